//! What every virtio device is to the transport, and what the transport gives to a device.

use std::fmt;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest RAM as devices see it: the guest mapping, so that an access to a page that is elsewhere faults and waits
/// like a vCPU's. A thread that answers such faults must never use it (`docs/architecture.md`).
pub type GuestRam = Arc<GuestMemoryMmap<()>>;

/// Raises a device's interrupts. Implemented by the transport; by a recorder in unit tests.
pub trait DeviceInterrupt: Send + Sync + fmt::Debug {
    /// Used buffers are in queue `index` (section 4.2.3.4, bit 0 of InterruptStatus). Honour
    /// `Queue::needs_notification` before the call.
    fn used(&self, index: usize);
    /// The configuration space changed (bit 1 of InterruptStatus; also bumps ConfigGeneration).
    fn config_changed(&self);
}

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its state; the device owns it from here until reset.
    pub queue: Queue,
    /// Readable when the driver has notified the queue (an ioeventfd on QueueNotify).
    pub kick: EventFd,
}

/// What a device gets when the driver sets DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub ram: GuestRam,
    /// One per entry of [`VirtioDevice::queue_sizes`], in order; `None` where the driver left the queue not ready.
    pub queues: Vec<Option<ActiveQueue>>,
    /// The way to interrupt the driver.
    pub interrupt: Arc<dyn DeviceInterrupt>,
    /// The features that both sides accepted.
    pub features: u64,
}

/// A device could not start; the transport sets DEVICE_NEEDS_RESET (section 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not make ready a queue that the device cannot do without.
    #[error("queue {0} is needed and was not made ready")]
    QueueMissing(usize),
    /// A thread, an event or a connection could not be had.
    #[error("device could not start: {0}")]
    Io(#[from] std::io::Error),
}

/// A virtio device, as the transport drives it. Calls come from vCPU threads, one at a time.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Virtio device ID (section 5).
    fn device_id(&self) -> u32;
    /// Features offered, besides VIRTIO_F_VERSION_1, which the transport adds.
    fn features(&self) -> u64;
    /// Most descriptors of each queue, a power of two each.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space; what lies beyond its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; a device without writable fields ignores it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver set DRIVER_OK.
    ///
    /// # Errors
    /// [`ActivateError`]; the device stays as it was before the call.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// The driver wrote 0 to Status, or the machine stops: threads end, queues are dropped, state is as new.
    fn reset(&mut self);
}
