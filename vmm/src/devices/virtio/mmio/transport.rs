use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MmioInterrupt;
use super::registers as reg;
use crate::devices::event_loop::drain;
use crate::devices::virtio::{Activation, ActiveQueue, DeviceInterrupt, GuestRam, VirtioDevice};
use crate::guest_warn;

/// One queue as the driver sets it up, and the event that a notification of it triggers.
#[derive(Debug)]
struct Slot {
    max: u16,
    size: u32,
    desc: u64,
    avail: u64,
    used: u64,
    ready: bool,
    kick: EventFd,
}

impl Slot {
    fn new(max: u16) -> io::Result<Self> {
        let kick = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { max, size: u32::from(max), desc: 0, avail: 0, used: 0, ready: false, kick })
    }

    fn reset(&mut self) {
        (self.size, self.desc, self.avail, self.used, self.ready) = (u32::from(self.max), 0, 0, 0, false);
        drain(&self.kick);
    }

    /// The queue, if its size and its three parts are what section 2.7 allows and lie in guest memory.
    fn queue(&self, ram: &GuestRam) -> Option<Queue> {
        let size =
            u16::try_from(self.size).ok().filter(|size| size.is_power_of_two() && *size <= self.max)?;
        let n = usize::from(size);
        let holds = |start: u64, align: u64, len: usize| {
            start != 0 && start.is_multiple_of(align) && ram.get_slice(GuestAddress(start), len).is_ok()
        };
        let sound =
            holds(self.desc, 16, 16 * n) && holds(self.avail, 2, 6 + 2 * n) && holds(self.used, 4, 6 + 8 * n);
        let mut queue = Queue::new(self.max).ok().filter(|_| sound)?;
        queue.try_set_size(size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.desc)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).ok()?;
        queue.set_ready(true);
        Some(queue)
    }
}

/// A device in its window: the register file of section 4.2.2 and the initialisation sequence of section 3.1.
/// Accesses come from vCPU threads, one at a time.
#[derive(Debug)]
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    slots: Vec<Slot>,
    interrupt: Arc<MmioInterrupt>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

impl MmioTransport {
    /// `device` behind a window, with memory `ram`.
    ///
    /// # Errors
    /// If no eventfd can be had, or the device names a queue size that is not a power of two up to 32768.
    pub fn new(device: Box<dyn VirtioDevice>, ram: GuestRam) -> io::Result<Self> {
        for &max in device.queue_sizes() {
            Queue::new(max).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        }
        let slots = device.queue_sizes().iter().map(|&max| Slot::new(max)).collect::<io::Result<_>>()?;
        let interrupt = Arc::new(MmioInterrupt::new(EventFd::new(EFD_NONBLOCK)?));
        Ok(Self {
            device,
            ram,
            slots,
            interrupt,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
        })
    }

    /// The event to be bound to a write of the index `n` to QueueNotify, for each queue `n` (KVM_IOEVENTFD).
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.slots.iter().map(|slot| &slot.kick)
    }

    /// The event to be bound to the interrupt line (KVM_IRQFD).
    pub fn line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// Resets the device: its threads have ended on return. Also what the end of the machine does.
    pub fn reset(&mut self) {
        self.device.reset();
        self.slots.iter_mut().for_each(Slot::reset);
        self.interrupt.reset();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
    }

    fn offered(&self) -> u64 {
        self.device.features() | reg::F_VERSION_1
    }

    fn in_status(&self, set: u32, clear: u32) -> bool {
        self.status & set == set && self.status & clear == 0
    }

    /// A read of `data.len()` bytes at `offset` of the window. Registers are read 32 bits at a time (section
    /// 4.2.2.2); another width reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= reg::CONFIG {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.device.read_config(offset - reg::CONFIG, data);
            }
            return;
        }
        if data.len() != 4 || !offset.is_multiple_of(4) {
            guest_warn!(
                "virtio-mmio: read of {} bytes at {offset:#x} is not an aligned 32-bit access",
                data.len()
            );
            return;
        }
        data.copy_from_slice(&self.read_register(offset).to_le_bytes());
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => 2,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            reg::QUEUE_NUM_MAX => self.selected().map_or(0, |slot| u32::from(slot.max)),
            reg::QUEUE_READY => self.selected().map_or(0, |slot| u32::from(slot.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status,
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            _ => {
                guest_warn!("virtio-mmio: read of register {offset:#x}, which is not readable");
                0
            }
        }
    }

    /// A write of `data` at `offset` of the window. A write that the state of the device does not allow is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            if matches!(data.len(), 1 | 2 | 4 | 8) && self.in_status(reg::DRIVER, reg::FAILED) {
                self.device.write_config(offset - reg::CONFIG, data);
            }
            return;
        }
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            guest_warn!("virtio-mmio: write of {} bytes at {offset:#x} is not a 32-bit access", data.len());
            return;
        };
        self.write_register(offset, u32::from_le_bytes(bytes));
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NOTIFY => self.notify(value),
            // There is no shared memory region to select.
            reg::SHM_SEL => {}
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::QUEUE_NUM
            | reg::QUEUE_READY
            | reg::QUEUE_DESC_LOW
            | reg::QUEUE_DESC_HIGH
            | reg::QUEUE_DRIVER_LOW
            | reg::QUEUE_DRIVER_HIGH
            | reg::QUEUE_DEVICE_LOW
            | reg::QUEUE_DEVICE_HIGH => self.write_queue(offset, value),
            _ => guest_warn!("virtio-mmio: write of register {offset:#x}, which is not writable"),
        }
    }

    fn selected(&self) -> Option<&Slot> {
        self.slots.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.in_status(reg::DRIVER, reg::FEATURES_OK | reg::FAILED) {
            guest_warn!("virtio-mmio: DriverFeatures written outside feature negotiation");
            return;
        }
        set_half(&mut self.driver_features, self.driver_features_sel, value);
    }

    fn notify(&mut self, index: u32) {
        let slot = usize::try_from(index).ok().and_then(|index| self.slots.get(index));
        match slot {
            Some(slot) if self.status & reg::DRIVER_OK != 0 => {
                if let Err(error) = slot.kick.write(1) {
                    log::error!("queue event could not be written: {error}");
                }
            }
            _ => guest_warn!("virtio-mmio: notification of queue {index}, which is not in use"),
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        if !self.in_status(reg::FEATURES_OK, reg::DRIVER_OK | reg::FAILED) {
            guest_warn!("virtio-mmio: queue register {offset:#x} written outside queue set-up");
            return;
        }
        let ram = self.ram.clone();
        let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index) else {
            guest_warn!("virtio-mmio: set-up of queue {index}, which does not exist");
            return;
        };
        if offset == reg::QUEUE_READY {
            slot.ready = value == 1 && slot.queue(&ram).is_some();
            if value == 1 && !slot.ready {
                guest_warn!(
                    "virtio-mmio: queue {index} made ready with an invalid layout; it stays unusable"
                );
            }
            return;
        }
        if slot.ready {
            guest_warn!("virtio-mmio: queue register {offset:#x} written while queue {index} is ready");
            return;
        }
        match offset {
            reg::QUEUE_NUM => slot.size = value,
            reg::QUEUE_DESC_LOW => set_low(&mut slot.desc, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut slot.desc, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut slot.avail, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut slot.avail, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut slot.used, value),
            _ => set_high(&mut slot.used, value),
        }
    }

    /// Section 2.1 and 3.1.1: bits are set one step after another, and taken back only by a reset.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let own = reg::DEVICE_NEEDS_RESET;
        let value = value & !own | self.status & own;
        if value & self.status != self.status {
            guest_warn!(
                "virtio-mmio: status {value:#x} takes back bits of {:#x}; only a reset can",
                self.status
            );
            return;
        }
        let added = value & !self.status;
        if added & reg::FAILED != 0 {
            self.status |= reg::FAILED;
            return;
        }
        if self.status & reg::FAILED != 0 {
            return;
        }
        self.status |= added & (reg::ACKNOWLEDGE | reg::DRIVER);
        if added & reg::FEATURES_OK != 0 {
            self.agree_features();
        }
        if added & reg::DRIVER_OK != 0 {
            self.start_device();
        }
    }

    fn agree_features(&mut self) {
        let refused = self.driver_features & !self.offered();
        if self.in_status(reg::ACKNOWLEDGE | reg::DRIVER, 0)
            && refused == 0
            && self.driver_features & reg::F_VERSION_1 != 0
        {
            self.status |= reg::FEATURES_OK;
        } else {
            guest_warn!(
                "virtio-mmio: features {:#x} are not accepted (status {:#x})",
                self.driver_features,
                self.status
            );
        }
    }

    fn start_device(&mut self) {
        if !self.in_status(reg::FEATURES_OK, 0) {
            guest_warn!("virtio-mmio: DRIVER_OK before FEATURES_OK (status {:#x})", self.status);
            return;
        }
        self.status |= reg::DRIVER_OK;
        if let Err(error) = self.try_activate() {
            log::error!("virtio device {:#x} could not start: {error:#}", self.device.device_id());
            self.status |= reg::DEVICE_NEEDS_RESET;
            self.interrupt.config_changed();
        }
    }

    fn try_activate(&mut self) -> anyhow::Result<()> {
        let event_idx = self.driver_features & reg::F_RING_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let queue = if slot.ready { slot.queue(&self.ram) } else { None };
            let active = queue.map(|mut queue| -> io::Result<_> {
                queue.set_event_idx(event_idx);
                Ok(ActiveQueue { queue, kick: slot.kick.try_clone()? })
            });
            queues.push(active.transpose()?);
        }
        self.device.activate(Activation {
            ram: self.ram.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })?;
        Ok(())
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.reset();
    }
}

fn set_low(address: &mut u64, value: u32) {
    set_half(address, 0, value);
}

fn set_high(address: &mut u64, value: u32) {
    set_half(address, 1, value);
}

/// Sets the lower (0) or the upper (1) half of a 64-bit value; others do not exist.
fn set_half(word: &mut u64, sel: u32, value: u32) {
    match sel {
        0 => *word = *word & !0xffff_ffff | u64::from(value),
        1 => *word = *word & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

fn half(features: u64, sel: u32) -> u32 {
    match sel {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
