//! What every device does with a ring, where a driver's mistake is counted and logged, never an end of the device.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{ActiveQueue, GuestRam};
use crate::guest_warn;

/// Takes the next chain that the driver has made available.
pub fn next_chain(queue: &mut Queue, ram: &GuestRam) -> Option<DescriptorChain<GuestRam>> {
    match queue.iter(ram.clone()) {
        Ok(mut available) => available.next(),
        Err(error) => {
            guest_warn!("virtio: the available ring cannot be followed: {error}");
            None
        }
    }
}

/// Takes at most as many chains as the queue has descriptors, and hands each to `each` until that says `false`. A driver
/// that makes chains available as fast as they are taken cannot keep a worker from its other sources, and from its end:
/// what is left notifies the queue again.
pub fn each_chain<W>(
    worker: &mut W,
    queue: impl Fn(&mut W) -> (&mut ActiveQueue, &GuestRam),
    mut each: impl FnMut(&mut W, DescriptorChain<GuestRam>) -> bool,
) {
    let size = queue(worker).0.queue.size();
    for _ in 0..size {
        let (active, ram) = queue(worker);
        let Some(chain) = next_chain(&mut active.queue, ram) else { return };
        if !each(worker, chain) {
            return;
        }
    }
    if let Err(error) = queue(worker).0.kick.write(1) {
        log::error!("queue event could not be written: {error}");
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::{Rings, ram, readable};

    struct Worker {
        ram: GuestRam,
        active: ActiveQueue,
        seen: usize,
    }

    #[test]
    fn an_available_ring_that_runs_ahead_of_its_size_is_not_followed() {
        let ram = ram();
        let mut rings = Rings::new(&ram, 0x1000, 8);
        (0..9).for_each(|_| rings.offer(0));
        assert!(next_chain(&mut rings.active().queue, &ram).is_none());
    }

    #[test]
    fn a_driver_that_never_stops_offering_is_left_after_one_queue_and_comes_again() {
        let ram = ram();
        let mut rings = Rings::new(&ram, 0x1000, 8);
        let mut worker = Worker { active: rings.active(), ram, seen: 0 };
        rings.push(&[readable(0, 1)]);
        each_chain(
            &mut worker,
            |worker| (&mut worker.active, &worker.ram),
            |worker, _| {
                worker.seen += 1;
                rings.offer(0);
                true
            },
        );
        assert_eq!(worker.seen, 8);
        assert!(worker.active.kick.read().is_ok());
    }
}
