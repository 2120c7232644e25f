use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::control::Cells;
use crate::control::node::{NodeStats, ToIo, ToNode};
use crate::fabric::stream::SharedStream;
use crate::fabric::{Class, Fabric, Handler, Header, Kind, Peer, Violation};

/// A node that does not say how it goes within this is shown without numbers.
const STATS_WITHIN: Duration = Duration::from_secs(5);

/// Stream target of the serial console.
const CONSOLE: u64 = 0;

/// The cells, reached over the I/O server's fabric.
#[derive(Debug)]
pub struct FabricCells {
    fabric: Weak<Fabric>,
    count: u32,
    tag: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Sender<NodeStats>>>,
}

impl FabricCells {
    /// The `count` cells of the nodes of `fabric`.
    pub fn new(fabric: &Arc<Fabric>, count: u32) -> Arc<Self> {
        Arc::new(Self {
            fabric: Arc::downgrade(fabric),
            count,
            tag: AtomicU64::new(1),
            waiting: Mutex::default(),
        })
    }

    fn stream(&self, cell: u32, target: u64) -> Result<SharedStream, String> {
        let fabric = self.fabric.upgrade().ok_or("the I/O server is ending")?;
        fabric.open_stream(Peer::Node(cell), target).map_err(|error| error.to_string())
    }

    /// Sends `message` to node `node`; a dead node does not get it.
    pub fn tell(&self, node: u32, tag: u64, message: &ToNode) {
        let Ok(json) = serde_json::to_vec(message) else { return };
        if let Some(fabric) = self.fabric.upgrade() {
            let _ = fabric.send(Peer::Node(node), Class::Ctl, Kind::Control, tag, &[&json]);
        }
    }
}

impl Cells for FabricCells {
    fn count(&self) -> u32 {
        self.count
    }

    fn is_alive(&self, cell: u32) -> bool {
        self.fabric.upgrade().is_some_and(|fabric| fabric.membership().is_alive(Peer::Node(cell)))
    }

    fn connect(&self, cell: u32, port: u32) -> Result<SharedStream, String> {
        self.stream(cell, u64::from(port))
    }

    fn console(&self, cell: u32) -> Result<SharedStream, String> {
        self.stream(cell, CONSOLE)
    }

    fn stats(&self, cell: u32) -> Option<NodeStats> {
        let tag = self.tag.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(tag, sender);
        self.tell(cell, tag, &ToNode::Stats);
        let stats = receiver.recv_timeout(STATS_WITHIN).ok();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag);
        stats
    }

    fn stop(&self) {
        for node in 0..self.count {
            self.tell(node, 0, &ToNode::Stop);
        }
    }
}

impl Handler for FabricCells {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let said: ToIo = serde_json::from_slice(payload)
            .map_err(|error| Violation(format!("a {:?} message that is none: {error}", header.kind)))?;
        match said {
            ToIo::Stats(stats) => {
                let waiter = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&header.tag);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(*stats);
                }
            }
            // Two nodes that cannot reach one another cannot both stay. The first to say so stays.
            ToIo::Lost { node, why } => {
                if let Some(fabric) = self.fabric.upgrade() {
                    fabric.declare_dead(Peer::Node(node), &format!("{from} lost it: {why}"));
                }
            }
            ToIo::Ended { why } => log::info!("{from}: {why}"),
        }
        Ok(())
    }
}
