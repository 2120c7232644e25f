//! Messages between kernels: the ssi device's queues on one side, the fabric on the other.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use ssi_proto::device::TxStatus;

use crate::devices::terminal::Waker;
use crate::devices::virtio::ssi::{CellLink, Class as Urgency, DeliverError, Inbox, Sent};
use crate::fabric::{Class, Fabric, Handler, Header, Kind, Peer, SendError, Violation};

/// Carries the device's messages to other cells.
pub struct FabricMessages(Weak<Fabric>);

impl fmt::Debug for FabricMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FabricMessages").finish_non_exhaustive()
    }
}

impl FabricMessages {
    /// Over `fabric`.
    pub fn new(fabric: &Arc<Fabric>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(fabric)))
    }
}

impl CellLink for FabricMessages {
    fn send(&self, cell: u32, class: Urgency, message: &[u8]) -> Sent {
        let Some(fabric) = self.0.upgrade() else { return Sent::Done(TxStatus::Dead) };
        let class = match class {
            Urgency::Normal => Class::Ctl,
            Urgency::Bulk => Class::Bulk,
        };
        match fabric.send(Peer::Node(cell), class, Kind::Ssi, 0, &[message]) {
            Ok(()) => Sent::Done(TxStatus::Accepted),
            Err(SendError::Full) => Sent::Busy,
            Err(SendError::Dead) => Sent::Done(TxStatus::Dead),
            Err(SendError::Message(_)) => Sent::Done(TxStatus::TooLong),
        }
    }

    fn on_room(&self, wake: Waker) {
        if let Some(fabric) = self.0.upgrade() {
            fabric.on_room(wake);
        }
    }
}

#[derive(Debug, Default)]
struct Room {
    /// Grows at each time that there may be room.
    times: Mutex<(u64, bool)>,
    changed: Condvar,
}

/// Puts messages of other cells into the device's inbox; waits while it is full, so that their senders are held back.
#[derive(Debug)]
pub struct Deliver {
    inbox: Inbox,
    room: Arc<Room>,
}

impl Deliver {
    /// Into `inbox`.
    pub fn new(inbox: &Inbox) -> Arc<Self> {
        let room = Arc::new(Room::default());
        let wake = room.clone();
        inbox.on_room(Arc::new(move || {
            wake.times.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
            wake.changed.notify_all();
        }));
        Arc::new(Self { inbox: inbox.clone(), room })
    }

    /// Nobody takes messages any more: who waits gives up.
    pub fn stop(&self) {
        self.room.times.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.room.changed.notify_all();
    }
}

impl Handler for Deliver {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let Peer::Node(cell) = from else { return Err(Violation(format!("{:?} from {from}", header.kind))) };
        let mut message = payload.to_vec();
        loop {
            // Looked at before the try: room that comes in between is then not missed.
            let seen = self.room.times.lock().unwrap_or_else(PoisonError::into_inner).0;
            message = match self.inbox.deliver(cell, message) {
                Ok(()) => return Ok(()),
                Err(DeliverError::Full(back)) => back,
                Err(error) => return Err(Violation(error.to_string())),
            };
            let mut times = self.room.times.lock().unwrap_or_else(PoisonError::into_inner);
            while times.0 == seen && !times.1 {
                times = self.room.changed.wait(times).unwrap_or_else(PoisonError::into_inner);
            }
            if times.1 {
                return Ok(());
            }
        }
    }
}
