//! The ways in and out of the service: thread-safe, bounded, and waiting for nobody.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ssi_netstack::gateway::GatewayCounters;
use ssi_netstack::offload::Offload;
use ssi_netstack::switch::Counters;
use ssi_netstack::view::Proto;
use ssi_netstack::{FRAME_MAX_BYTES, MAX_CELLS};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Takes frames to cells; the fabric implements it.
pub trait FramePort: Send + Sync + fmt::Debug {
    /// A frame for `cell`'s card: a 12-byte `virtio_net_hdr_v1`, then Ethernet. Called on the network thread: it must
    /// not wait; what cannot go at once is dropped, and counted where it is dropped.
    fn deliver(&self, cell: u32, frame: Vec<u8>);
    /// No more frames for now: what was kept back to go together, goes.
    fn flush(&self) {}
}

/// What the service counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Of the switch.
    pub switch: Counters,
    /// Of the gateway.
    pub gateway: GatewayCounters,
    /// Flows in the table now.
    pub flows_count: u64,
    /// Connections of the gateway now.
    pub connections_count: u64,
    /// Frames from cells that found their inbox full.
    pub inbox_dropped_count: u64,
    /// Frames that the TAP device did not take.
    pub tap_dropped_count: u64,
}

/// What comes to the worker from other threads.
#[derive(Debug)]
pub(super) enum Message {
    Frame(u32, Vec<u8>),
    CellUp(u32, Offload),
    CellDown(u32),
    SetLoad(u32, u64),
    SetListener(Proto, u16, u32, u32),
    RemoveListener(Proto, u16, u32),
}

#[derive(Debug)]
struct Inbox {
    queue: VecDeque<Message>,
    bytes: Vec<usize>,
    dropped: u64,
    /// The worker waits for the event.
    asleep: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    counters: Mutex<NetCounters>,
    pub(super) wake: EventFd,
    max_bytes: usize,
}

impl Shared {
    pub(super) fn new(max_bytes: usize) -> io::Result<Arc<Self>> {
        let inbox =
            Inbox { queue: VecDeque::new(), bytes: vec![0; MAX_CELLS as usize], dropped: 0, asleep: false };
        Ok(Arc::new(Self {
            inbox: Mutex::new(inbox),
            counters: Mutex::new(NetCounters::default()),
            wake: EventFd::new(EFD_NONBLOCK)?,
            max_bytes,
        }))
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nothing is done under the lock that could leave it half done.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: Message) {
        let mut inbox = self.inbox();
        if let Message::Frame(cell, frame) = &message {
            let (len, max) = (frame.len(), self.max_bytes);
            match inbox.bytes.get_mut(*cell as usize) {
                Some(bytes) if len <= FRAME_MAX_BYTES && *bytes + len <= max => *bytes += len,
                _ => {
                    inbox.dropped += 1;
                    return;
                }
            }
        }
        inbox.queue.push_back(message);
        if std::mem::take(&mut inbox.asleep) {
            drop(inbox);
            if let Err(error) = self.wake.write(1) {
                log::error!("the network worker could not be woken: {error}");
            }
        }
    }

    /// Moves up to `most` messages to `out`. If there is none, the next one writes the wake event.
    pub(super) fn take(&self, most: usize, out: &mut Vec<Message>) {
        let mut inbox = self.inbox();
        let count = inbox.queue.len().min(most);
        for _ in 0..count {
            let Some(message) = inbox.queue.pop_front() else { break };
            if let Message::Frame(cell, frame) = &message
                && let Some(bytes) = inbox.bytes.get_mut(*cell as usize)
            {
                *bytes -= frame.len();
            }
            out.push(message);
        }
        inbox.asleep = count == 0;
    }

    /// Is there something to take? If not, the next message writes the wake event.
    pub(super) fn has_more(&self) -> bool {
        let mut inbox = self.inbox();
        inbox.asleep = inbox.queue.is_empty();
        !inbox.asleep
    }

    pub(super) fn publish(&self, mut counters: NetCounters) {
        counters.inbox_dropped_count = self.inbox().dropped;
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// The way in. Clones are the same.
#[derive(Debug, Clone)]
pub struct NetHandle(pub(super) Arc<Shared>);

impl NetHandle {
    /// A frame came from `cell`'s card: a 12-byte `virtio_net_hdr_v1`, then Ethernet. Never waits: beyond
    /// [`NetConfig::inbox_bytes`](super::NetConfig::inbox_bytes) of the cell it is dropped and counted.
    pub fn input(&self, cell: u32, frame: Vec<u8>) {
        self.0.push(Message::Frame(cell, frame));
    }

    /// `cell` is there, and its card takes `offload` (what its driver negotiated). Again after a change.
    pub fn cell_up(&self, cell: u32, offload: Offload) {
        self.0.push(Message::CellUp(cell, offload));
    }

    /// `cell` is gone: its flows and listeners go.
    pub fn cell_down(&self, cell: u32) {
        self.0.push(Message::CellDown(cell));
    }

    /// How loaded `cell` is; the unit is the caller's, the same for all cells.
    pub fn set_load(&self, cell: u32, load: u64) {
        self.0.push(Message::SetLoad(cell, load));
    }

    /// `cell` has a socket on `port`, where `waiting` acceptors wait.
    pub fn set_listener(&self, proto: Proto, port: u16, cell: u32, waiting: u32) {
        self.0.push(Message::SetListener(proto, port, cell, waiting));
    }

    /// `cell` has no socket on `port` any more.
    pub fn remove_listener(&self, proto: Proto, port: u16, cell: u32) {
        self.0.push(Message::RemoveListener(proto, port, cell));
    }

    /// The counters, as of the worker's last turn.
    pub fn counters(&self) -> NetCounters {
        *self.0.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
