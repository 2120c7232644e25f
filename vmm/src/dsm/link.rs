//! The way to other nodes.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_channel::{Receiver, Sender, unbounded};
use ssi_dsm::NodeId;

use super::Dsm;
use crate::fabric::stream::SharedStream;
use crate::fabric::{Class, Kind, Peer, link};
use crate::worker::{Exit, Stop, Worker};

/// Carries DSM frames to other nodes.
pub trait Link: Send + Sync + fmt::Debug {
    /// Hands `frame` (at most [`ssi_dsm::wire::MAX_BYTES`]) over to the way to `to`. Frames for one node arrive whole, in
    /// the order of the calls, or never, if the node dies. Called under a lock that the receiving side takes too, so it
    /// never waits for the peer: what does not fit the socket is queued (the protocol bounds how much that is). A node
    /// that is dead is no error: its death is reported by itself.
    fn send(&self, to: NodeId, frame: &[u8]);
}

/// Connections of the fabric's kind, one to each other node, without a fabric.
#[derive(Debug)]
pub struct StreamLinks(Vec<OnceLock<link::Link>>);

impl StreamLinks {
    /// To at most `nodes` nodes; none is joined yet.
    pub fn new(nodes: u16) -> Self {
        Self((0..nodes).map(|_| OnceLock::new()).collect())
    }

    /// Joins `dsm`, which runs, to node `to` over `stream`. When the connection ends, the node is dead.
    ///
    /// # Errors
    /// There is no such node, it is joined already, or no thread can be had.
    pub fn join(&self, to: NodeId, stream: SharedStream, dsm: &Arc<Dsm>, exit: &Exit) -> io::Result<()> {
        let slot = self.0.get(usize::from(to.0)).ok_or(io::ErrorKind::NotFound)?;
        let (peer, mourner) = (Peer::Node(to.0.into()), Arc::downgrade(dsm));
        let ended = move |_| {
            if let Some(dsm) = mourner.upgrade() {
                dsm.node_died(to);
            }
        };
        let link = link::Link::start(peer, Class::Page, stream, dsm.clone(), Arc::new(|| {}), exit, ended)?;
        slot.set(link).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// Ends the connection to `to`.
    pub fn part(&self, to: NodeId) {
        if let Some(link) = self.0.get(usize::from(to.0)).and_then(OnceLock::get) {
            link.close();
        }
    }
}

impl Link for StreamLinks {
    fn send(&self, to: NodeId, frame: &[u8]) {
        let link = self.0.get(usize::from(to.0)).and_then(OnceLock::get);
        if link.is_none_or(|link| link.send(Kind::Dsm, 0, &[frame]).is_err()) {
            log::debug!("no DSM message to {to}: it is not there");
        }
    }
}

type Frame = (NodeId, Vec<u8>);

/// Links between nodes of one process: a queue and a thread for each receiver.
#[derive(Debug)]
pub struct LocalLinks {
    queues: Vec<(Sender<Frame>, Receiver<Frame>)>,
}

#[derive(Debug)]
struct LocalLink {
    me: NodeId,
    to: Vec<Sender<Frame>>,
}

impl LocalLinks {
    /// For `nodes` nodes.
    pub fn new(nodes: u16) -> Self {
        Self { queues: (0..nodes).map(|_| unbounded()).collect() }
    }

    /// The link of node `me`.
    pub fn of(&self, me: NodeId) -> Arc<dyn Link> {
        Arc::new(LocalLink { me, to: self.queues.iter().map(|(sender, _)| sender.clone()).collect() })
    }

    /// Delivers what is sent to node `me` until the worker is dropped.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn deliver(&self, me: NodeId, dsm: &Arc<Dsm>, exit: &Exit) -> std::io::Result<Worker> {
        let queue = self.queues[usize::from(me.0)].1.clone();
        let dsm = Arc::downgrade(dsm);
        Worker::spawn(&format!("dsm-link-{}", me.0), exit, move |stop| {
            run(&queue, &dsm, stop);
            Ok(())
        })
    }
}

fn run(queue: &Receiver<Frame>, dsm: &Weak<Dsm>, stop: &Stop) {
    while !stop.is_triggered() {
        let Some(dsm) = dsm.upgrade() else { return };
        if let Ok((from, frame)) = queue.recv_timeout(std::time::Duration::from_millis(20))
            && let Err(why) = dsm.message(from, &frame)
        {
            log::error!("{from} broke the DSM's protocol ({why:?})");
        }
    }
}

impl Link for LocalLink {
    fn send(&self, to: NodeId, frame: &[u8]) {
        if let Some(queue) = self.to.get(usize::from(to.0)) {
            // The receiver lives as long as `LocalLinks`; afterwards nobody waits for the frame.
            let _ = queue.send((self.me, frame.to_vec()));
        }
    }
}
