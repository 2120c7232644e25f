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

/// VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// The queue was found empty: asks the driver to notify what comes from now on. True if something came meanwhile, so that
/// the device has to look again.
pub fn look_again(queue: &mut Queue, ram: &GuestRam) -> bool {
    queue.enable_notification(&**ram).unwrap_or_else(|error| {
        guest_warn!("virtio: the driver cannot be asked for notifications: {error}");
        false
    })
}

/// Reads `data` at `offset` of a configuration space of `config`; beyond its end are zeroes.
pub fn config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let tail = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or(&[]);
    let len = tail.len().min(data.len());
    data[..len].copy_from_slice(&tail[..len]);
    data[len..].fill(0);
}
