//! What the I/O server serves to every node, over the fabric: files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Context;

use super::Services;
use super::root::mount_root;
use crate::fabric::{Class, Fabric, Handler, Handlers, Header, Kind, Peer, Violation};
use crate::io::fs::{FsServer, FsSession, Options};
use crate::launch::ClusterSpec;
use crate::worker::Exit;

/// File sessions, one for each node that lives.
struct Files {
    fabric: Weak<Fabric>,
    sessions: Mutex<BTreeMap<u32, Arc<FsSession>>>,
}

/// Sends the reply to a request; an empty one if the service gave the request up.
struct ReplyTo {
    fabric: Weak<Fabric>,
    to: Peer,
    tag: u64,
    bytes: Vec<u8>,
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(fabric) = self.fabric.upgrade() {
            // A node that died waits for nothing.
            let _ = fabric.send(self.to, Class::Fs, Kind::FsReply, self.tag, &[&self.bytes]);
        }
    }
}

impl Handler for Files {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let (Peer::Node(node), Kind::FsRequest) = (from, header.kind) else {
            return Err(Violation(format!("{:?} message from {from} to the file service", header.kind)));
        };
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        let fabric = self.fabric.clone();
        let mut reply = ReplyTo { fabric, to: from, tag: header.tag, bytes: Vec::new() };
        if let Some(session) = session {
            session.submit(payload.to_vec(), move |bytes| {
                reply.bytes = bytes;
                drop(reply);
            });
        }
        Ok(())
    }
}

/// Files, and the network, of a cluster.
pub struct IoServices {
    files: Arc<Files>,
}

impl std::fmt::Debug for IoServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoServices").finish_non_exhaustive()
    }
}

impl IoServices {
    /// Mounts the root file system and starts the services.
    ///
    /// # Errors
    /// If the root file system cannot be mounted, or a service does not start.
    pub fn start(spec: &ClusterSpec, fabric: &Arc<Fabric>, exit: &Exit) -> anyhow::Result<Box<dyn Services>> {
        let root = mount_root(&spec.root, &spec.state.join("root"))?;
        let server = FsServer::new(&root, Options::default(), exit).context("the file service")?;
        let mut sessions = BTreeMap::new();
        for node in 0..spec.nodes {
            let session = server.session(u16::try_from(node)?).context("the file service")?;
            sessions.insert(node, Arc::new(session));
        }
        let files = Arc::new(Files { fabric: Arc::downgrade(fabric), sessions: Mutex::new(sessions) });
        let watched = files.clone();
        fabric.membership().on_death(move |death| {
            if let Peer::Node(node) = death.peer {
                // What it held open is closed.
                let gone = watched.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
                drop(gone);
            }
        });
        Ok(Box::new(Self { files }))
    }
}

impl Services for IoServices {
    fn handlers(&self, handlers: Handlers) -> Handlers {
        handlers.with(Class::Fs, self.files.clone())
    }
}
