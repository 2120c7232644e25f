//! The card and the file system of a cell: their other ends are at the I/O server.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::devices::terminal::Waker;
use crate::devices::virtio::fs::{FsLink, Reply};
use crate::devices::virtio::net::{FrameInput, FrameLink};
use crate::fabric::{Class, Fabric, Handler, Header, Kind, Peer, Violation};

/// Carries frames to the I/O server; what does not fit is dropped and counted by the fabric.
pub struct FabricFrames(Weak<Fabric>);

impl fmt::Debug for FabricFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FabricFrames").finish_non_exhaustive()
    }
}

impl FabricFrames {
    /// Over `fabric`.
    pub fn new(fabric: &Arc<Fabric>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(fabric)))
    }
}

impl FrameLink for FabricFrames {
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        if let Some(fabric) = self.0.upgrade() {
            // Without the I/O server the node ends anyway.
            let _ = fabric.send(Peer::Io, Class::Frame, Kind::Net, 0, &[&frame]);
        }
        Ok(())
    }

    fn on_room(&self, _: Waker) {}
}

/// Frames from the I/O server, for the card.
#[derive(Debug)]
pub struct DeliverFrames(pub FrameInput);

impl Handler for DeliverFrames {
    fn message(&self, _: Peer, _: Class, _: Header, payload: &[u8]) -> Result<(), Violation> {
        // What finds no room is dropped and counted by the card.
        self.0.deliver(payload.to_vec());
        Ok(())
    }
}

/// Carries file requests to the I/O server, and its replies back.
pub struct FabricFiles {
    fabric: Weak<Fabric>,
    tag: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Reply>>,
}

impl fmt::Debug for FabricFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FabricFiles").field("waiting", &self.waiting().len()).finish_non_exhaustive()
    }
}

impl FabricFiles {
    /// Over `fabric`.
    pub fn new(fabric: &Arc<Fabric>) -> Arc<Self> {
        Arc::new(Self { fabric: Arc::downgrade(fabric), tag: AtomicU64::new(1), waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Reply>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The I/O server is gone: every request is answered with an error.
    pub fn stop(&self) {
        drop(std::mem::take(&mut *self.waiting()));
    }
}

impl FsLink for FabricFiles {
    fn submit(&self, request: Vec<u8>, reply: Reply) {
        let tag = self.tag.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(tag, reply);
        let sent = self.fabric.upgrade().is_some_and(|fabric| {
            fabric.send(Peer::Io, Class::Fs, Kind::FsRequest, tag, &[&request]).is_ok()
        });
        if !sent {
            self.waiting().remove(&tag);
        }
    }
}

impl Handler for FabricFiles {
    fn message(&self, _: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        if header.kind != Kind::FsReply {
            return Err(Violation(format!("{:?} message to a node", header.kind)));
        }
        let reply = self.waiting().remove(&header.tag);
        let reply = reply.ok_or_else(|| Violation("a reply to no file request".to_owned()))?;
        // An empty one: the request has no reply (FORGET), or the service gave it up; dropping says which.
        if !payload.is_empty() {
            reply.send(payload.to_vec());
        }
        Ok(())
    }
}
