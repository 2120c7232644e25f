//! What every device does with a ring, where a driver's mistake is counted and logged, never an end of the device.

use virtio_queue::{Queue, QueueT};

use super::GuestRam;
use crate::guest_warn;

/// Returns the chain `head` to the driver with `len` bytes written. A head that is no descriptor is dropped.
pub fn give_back(queue: &mut Queue, ram: &GuestRam, head: u16, len: u32) {
    if let Err(error) = queue.add_used(&**ram, head, len) {
        guest_warn!("virtio: chain {head} cannot be returned: {error}");
    }
}

/// Does the driver want an interrupt for what was returned since it was last asked?
pub fn wants_interrupt(queue: &mut Queue, ram: &GuestRam) -> bool {
    queue.needs_notification(&**ram).unwrap_or_else(|error| {
        guest_warn!("virtio: the driver's wish for interrupts cannot be read: {error}");
        true
    })
}
