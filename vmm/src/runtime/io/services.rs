//! What the I/O server serves to every node, over the fabric: files and the network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Context;

use super::Services;
use super::root::mount_root;
use crate::fabric::{Class, Fabric, Handler, Handlers, Header, Kind, Peer, Violation};
use crate::io::fs::{FsServer, FsSession, Options};
use crate::io::net::{FramePort, NetConfig, NetHandle, NetService, Publish};
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

/// Takes frames of the network service to the cells' cards.
struct Cards(Weak<Fabric>);

impl fmt::Debug for Cards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cards").finish_non_exhaustive()
    }
}

impl FramePort for Cards {
    fn deliver(&self, cell: u32, frame: Vec<u8>) {
        if let Some(fabric) = self.0.upgrade() {
            // Never waits; what finds no room is dropped and counted there. A node that died takes no frames.
            let _ = fabric.send(Peer::Node(cell), Class::Frame, Kind::Net, 0, &[&frame]);
        }
    }
}

/// Frames of cells, for the network service.
struct Frames(NetHandle);

impl Handler for Frames {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let Peer::Node(cell) = from else { return Err(Violation(format!("{:?} from {from}", header.kind))) };
        self.0.input(cell, payload.to_vec());
        Ok(())
    }
}

/// Files and network of a cluster.
pub struct IoServices {
    files: Arc<Files>,
    net: NetService,
}

impl fmt::Debug for IoServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        let net = start_net(spec, fabric, exit)?;
        let (watched, cards) = (files.clone(), net.handle().clone());
        fabric.membership().on_death(move |death| {
            if let Peer::Node(node) = death.peer {
                cards.cell_down(node);
                // What it held open is closed.
                let gone = watched.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
                drop(gone);
            }
        });
        Ok(Box::new(Self { files, net }))
    }
}

fn start_net(spec: &ClusterSpec, fabric: &Arc<Fabric>, exit: &Exit) -> anyhow::Result<NetService> {
    let published = spec.publish.iter().map(|ports| Publish {
        bind: IpAddr::V4(ports.address),
        host_port: ports.host,
        guest_port: ports.guest,
    });
    let config = NetConfig { cells: spec.nodes, published: published.collect(), ..NetConfig::default() };
    NetService::start(&config, Arc::new(Cards(Arc::downgrade(fabric))), exit).context("the network service")
}

impl Services for IoServices {
    fn handlers(&self, handlers: Handlers) -> Handlers {
        let frames = Frames(self.net.handle().clone());
        handlers.with(Class::Fs, self.files.clone()).with(Class::Frame, Arc::new(frames))
    }
}
