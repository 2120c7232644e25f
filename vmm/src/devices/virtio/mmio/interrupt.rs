use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::registers::{INTERRUPT_CONFIG, INTERRUPT_USED};
use crate::devices::virtio::DeviceInterrupt;

/// The interrupt of one window: InterruptStatus, ConfigGeneration, and the event that pulses the line (an irqfd,
/// edge-triggered: every cause pulses it again, so none is lost while the driver handles an earlier one).
#[derive(Debug)]
pub struct MmioInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    line: EventFd,
}

impl MmioInterrupt {
    /// An interrupt that pulses `line`.
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), generation: AtomicU32::new(0), line }
    }

    /// The event that pulses the line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// InterruptACK: takes `bits` off the status.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// ConfigGeneration.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Device reset: nothing is pending. The generation goes on, so that a driver across the reset sees no old value.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            log::error!("interrupt line could not be pulsed: {error}");
        }
    }
}

impl DeviceInterrupt for MmioInterrupt {
    fn used(&self, _index: usize) {
        self.raise(INTERRUPT_USED);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG);
    }
}
