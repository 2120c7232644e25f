//! A driver's side of a split ring (section 2.7), written by hand, for the tests of devices.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, DeviceInterrupt, GuestRam};

/// A device that has done nothing for this long is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// Tells the test about interrupts.
#[derive(Debug)]
struct Interrupts(Sender<usize>);

impl DeviceInterrupt for Interrupts {
    fn used(&self, index: usize) {
        let _ = self.0.send(index);
    }

    fn config_changed(&self) {}
}

/// One ring as its driver sees it.
#[derive(Debug)]
pub(crate) struct Ring {
    ram: GuestRam,
    base: u64,
    size: u16,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    available: u16,
    seen: u16,
    kick: EventFd,
}

/// A buffer of a chain: address, length, written by the device.
pub(crate) type Buffer = (u64, u32, bool);

impl Ring {
    fn new(ram: &GuestRam, base: u64, size: u16) -> (Self, ActiveQueue) {
        let table = 16 * u64::from(size);
        let (avail, used) = (base + table, (base + table + 2 * u64::from(size) + 6).next_multiple_of(4));
        let mut queue = Queue::new(size).unwrap();
        queue.set_size(size);
        queue.set_desc_table_address(Some(base as u32), Some(0));
        queue.set_avail_ring_address(Some(avail as u32), Some(0));
        queue.set_used_ring_address(Some(used as u32), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&**ram));
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let active = ActiveQueue { queue, kick: kick.try_clone().unwrap() };
        let ring = Self {
            ram: ram.clone(),
            base,
            size,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            available: 0,
            seen: 0,
            kick,
        };
        (ring, active)
    }

    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.avail() + 2 * u64::from(self.size) + 6).next_multiple_of(4)
    }

    /// Writes descriptor `index` as it is told, however wrong.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.write_slice(&bytes, GuestAddress(self.base + 16 * u64::from(index))).unwrap();
    }

    /// Makes `head` available, whatever is there.
    pub fn offer(&mut self, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.available % self.size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.ram.write_obj(self.available, GuestAddress(self.avail() + 2)).unwrap();
    }

    /// Makes a chain of `buffers` available and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let chain: Vec<u16> = buffers.iter().map(|_| self.free.pop().expect("ring full")).collect();
        for (n, &(address, len, writable)) in buffers.iter().enumerate() {
            let next = chain.get(n + 1);
            let flags = u16::from(next.is_some()) | u16::from(writable) << 1;
            self.descriptor(chain[n], address, len, flags, next.copied().unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(head);
        head
    }

    /// Tells the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Sets `used_event` (section 2.7.7): the device interrupts when the next chain comes back.
    fn want_interrupt(&self) {
        let used_event = self.avail() + 4 + 2 * u64::from(self.size);
        self.ram.write_obj(self.seen, GuestAddress(used_event)).unwrap();
        fence(Ordering::SeqCst);
    }

    /// The next chain that came back: head and bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.ram.read_obj(GuestAddress(self.used() + 2)).unwrap();
        fence(Ordering::SeqCst);
        if index == self.seen {
            return None;
        }
        let slot = self.used() + 4 + 8 * u64::from(self.seen % self.size);
        let [head, len]: [u32; 2] = self.ram.read_obj(GuestAddress(slot)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(chain);
        Some((head, len))
    }
}

/// A driver of one device: memory and rings.
#[derive(Debug)]
pub(crate) struct Driver {
    pub ram: GuestRam,
    pub rings: Vec<Ring>,
    interrupts: Receiver<usize>,
}

/// Where buffers may be: above the rings.
pub(crate) const BUFFERS: u64 = 1 << 20;
/// End of memory.
pub(crate) const RAM_END: u64 = 32 << 20;

impl Driver {
    /// Rings of `sizes`, and what a device is activated with.
    pub fn new(sizes: &[u16], features: u64) -> (Self, Activation) {
        let ram: GuestRam =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_END as usize)]).unwrap());
        let (sender, interrupts) = unbounded();
        let (mut rings, mut queues) = (Vec::new(), Vec::new());
        for (n, &size) in sizes.iter().enumerate() {
            let (ring, mut active) = Ring::new(&ram, 0x1000 + 0x20000 * n as u64, size);
            active.queue.set_event_idx(features & 1 << 29 != 0);
            rings.push(ring);
            queues.push(Some(active));
        }
        let interrupt = Arc::new(Interrupts(sender));
        (Self { ram: ram.clone(), rings, interrupts }, Activation { ram, queues, interrupt, features })
    }

    /// Waits until a chain of ring `index` has come back.
    pub fn wait_used(&mut self, index: usize) -> (u16, u32) {
        loop {
            let ring = &mut self.rings[index];
            ring.want_interrupt();
            if let Some(used) = ring.take_used() {
                return used;
            }
            self.interrupts.recv_timeout(STUCK).expect("the device never returned a buffer");
        }
    }

    /// Bytes of guest memory.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Puts bytes into guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }
}
