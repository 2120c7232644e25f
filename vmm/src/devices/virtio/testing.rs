//! A driver's side of a device, for tests: guest memory, rings that a test fills by hand, and an interrupt that records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActiveQueue, DeviceInterrupt, GuestRam};

/// Bytes of guest memory that a test has.
pub const RAM_BYTES: u64 = 4 << 20;

/// Guest memory of [`RAM_BYTES`] at address 0.
pub fn ram() -> GuestRam {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap())
}

/// Records interrupts.
#[derive(Debug, Default)]
pub struct Recorder {
    used: AtomicU64,
    config: AtomicU64,
}

impl Recorder {
    /// Used-buffer interrupts so far.
    pub fn used_count(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Configuration interrupts so far.
    pub fn config_count(&self) -> u64 {
        self.config.load(Ordering::SeqCst)
    }
}

impl DeviceInterrupt for Recorder {
    fn used(&self, _index: usize) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The rings of one queue, at fixed offsets from `base`: descriptors, available, used.
#[derive(Debug, Clone)]
pub struct Rings {
    ram: GuestRam,
    base: u64,
    size: u16,
    next_desc: u16,
    avail: u16,
    seen: u16,
}

impl Rings {
    /// Empty rings of `size` descriptors at `base`; they take at most 32 KiB for 256 descriptors.
    pub fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let rings = Self { ram: ram.clone(), base, size, next_desc: 0, avail: 0, seen: 0 };
        for at in [rings.avail_ring(), rings.used_ring()] {
            ram.write_obj(0_u32, GuestAddress(at)).unwrap();
        }
        rings
    }

    /// Address of the descriptor table.
    pub fn desc_table(&self) -> u64 {
        self.base
    }

    /// Address of the available ring.
    pub fn avail_ring(&self) -> u64 {
        self.base + 0x4000
    }

    /// Address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.base + 0x5000
    }

    /// The device's side, as the transport hands it over.
    pub fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.desc_table())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail_ring())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).unwrap();
        queue.set_ready(true);
        ActiveQueue { queue, kick: EventFd::new(EFD_NONBLOCK).unwrap() }
    }

    /// Writes descriptor `index`.
    pub fn write_desc(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.desc_table() + 16 * u64::from(index);
        self.ram.write_obj(address, GuestAddress(at)).unwrap();
        self.ram.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub fn offer(&mut self, head: u16) {
        let at = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.ram.write_obj(head, GuestAddress(at)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.ram.write_obj(self.avail, GuestAddress(self.avail_ring() + 2)).unwrap();
    }

    /// Writes the next descriptors as a chain of `buffers` and makes it available; returns its head.
    pub fn push(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (self.next_desc + 1) % self.size;
            let more = if position + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if buffer.writable { WRITE } else { 0 };
            self.write_desc(index, buffer.address, buffer.len, flags, self.next_desc);
        }
        self.offer(head);
        head
    }

    /// The next chain that the device has returned, if any: its head and the bytes written.
    pub fn pop_used(&mut self) -> Option<(u32, u32)> {
        let idx: u16 = self.ram.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if idx == self.seen {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let head = self.ram.read_obj(GuestAddress(at)).unwrap();
        let len = self.ram.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head, len))
    }
}

/// What a hostile driver may put into its rings: descriptors of any content, any heads.
#[derive(Debug, Clone)]
pub struct Hostile {
    descriptors: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
}

/// Descriptors that point near and over the ends of memory, at small and huge lengths, in circles.
pub fn hostile(size: u16) -> impl Strategy<Value = Hostile> {
    let address = prop_oneof![
        4 => 0..RAM_BYTES,
        1 => RAM_BYTES - 64..RAM_BYTES + 64,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0_u32..64, 2 => 0_u32..70_000, 1 => any::<u32>()];
    // Any of NEXT, WRITE and INDIRECT.
    let descriptor = (address, len, 0_u16..8, 0..size + 2);
    let descriptors = proptest::collection::vec(descriptor, 1..=usize::from(size.min(16)));
    (descriptors, proptest::collection::vec(0..size + 2, 1..usize::from(size)))
        .prop_map(|(descriptors, heads)| Hostile { descriptors, heads })
}

impl Hostile {
    /// Puts it into `rings`; returns the number of chains.
    pub fn fill(&self, rings: &mut Rings) -> usize {
        for index in 0..rings.size {
            let (address, len, flags, next) = self.descriptors[usize::from(index) % self.descriptors.len()];
            rings.write_desc(index, address, len, flags, next);
        }
        self.heads.iter().for_each(|&head| rings.offer(head));
        self.heads.len()
    }
}
