use std::io;
use std::sync::{Arc, Mutex};

use ssi_proto::device::{MAGIC, MAX_CELLS, PAGE_SIZE, SLICE_ALIGN, SLICE0_BASE, VERSION};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Inbox, SsiMetrics};
use crate::devices::lock;
use crate::devices::virtio::DeviceInterrupt;

/// What the device says of the cluster, and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SsiConfig {
    /// Number of this cell.
    pub cell: u32,
    /// Number of cells, 1 to 64.
    pub cells: u32,
    /// Bytes from one slice to the next.
    pub slice_stride: u64,
    /// Bytes of a slice.
    pub slice_size: u64,
    /// Bytes of low RAM; not in the configuration space, but a bound of FETCH.
    pub low_end: u64,
    /// CLOCK_REALTIME of the cluster's epoch, ns.
    pub epoch_ns: u64,
}

/// An ssi device cannot be made of this.
#[derive(Debug, thiserror::Error)]
pub enum SsiError {
    /// Cell numbers.
    #[error("cell {cell} of {cells}: there are 1 to {MAX_CELLS} cells, numbered from 0")]
    Cells {
        /// Number of the cell.
        cell: u32,
        /// Number of cells.
        cells: u32,
    },
    /// The address map.
    #[error(
        "slices of {size:#x} bytes every {stride:#x} bytes: the size is a multiple of {SLICE_ALIGN:#x} and at most the stride"
    )]
    Slices {
        /// Bytes of a slice.
        size: u64,
        /// Bytes from one slice to the next.
        stride: u64,
    },
    /// No eventfd.
    #[error("no event for the ssi device: {0}")]
    Io(#[from] io::Error),
}

impl SsiConfig {
    fn check(&self) -> Result<(), SsiError> {
        if self.cells == 0 || self.cells > MAX_CELLS || self.cell >= self.cells {
            return Err(SsiError::Cells { cell: self.cell, cells: self.cells });
        }
        let end =
            u64::from(self.cells).checked_mul(self.slice_stride).and_then(|all| all.checked_add(SLICE0_BASE));
        let sound = self.slice_size > 0 && self.slice_size.is_multiple_of(SLICE_ALIGN) && end.is_some();
        if !sound || self.slice_size > self.slice_stride || !self.slice_stride.is_multiple_of(SLICE_ALIGN) {
            return Err(SsiError::Slices { size: self.slice_size, stride: self.slice_stride });
        }
        Ok(())
    }

    /// First address of the slice of `cell`.
    pub fn slice_base(&self, cell: u32) -> u64 {
        SLICE0_BASE + u64::from(cell) * self.slice_stride
    }

    /// Is the page at `address` one of the slice of `cell`?
    pub fn in_slice(&self, cell: u32, address: u64) -> bool {
        let base = self.slice_base(cell);
        address.is_multiple_of(PAGE_SIZE) && address >= base && address - base <= self.slice_size - PAGE_SIZE
    }

    /// Is the page at `address`, as `cell` sees it, one of its slice or its low RAM?
    pub fn in_own_ram(&self, cell: u32, address: u64) -> bool {
        let low = address.is_multiple_of(PAGE_SIZE) && address < self.low_end;
        low || self.in_slice(cell, address)
    }
}

#[derive(Debug, Clone, Copy)]
struct Live {
    alive: u64,
    generation: u64,
    lost: u64,
}

/// What device, workers and handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: SsiConfig,
    pub inbox: Inbox,
    /// Set when a message that found no room may go now.
    pub room: Arc<EventFd>,
    pub metrics: SsiMetrics,
    live: Mutex<Live>,
    interrupt: Mutex<Option<Arc<dyn DeviceInterrupt>>>,
}

impl Shared {
    pub fn new(config: SsiConfig) -> Result<Arc<Self>, SsiError> {
        config.check()?;
        Ok(Arc::new(Self {
            config,
            inbox: Inbox::new()?,
            room: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            metrics: SsiMetrics::default(),
            live: Mutex::new(Live { alive: 1 << config.cell, generation: 0, lost: 0 }),
            interrupt: Mutex::new(None),
        }))
    }

    /// Is `cell` reachable?
    pub fn is_alive(&self, cell: u32) -> bool {
        lock(&self.live).alive >> cell & 1 == 1
    }

    pub fn set_interrupt(&self, interrupt: Option<Arc<dyn DeviceInterrupt>>) {
        *lock(&self.interrupt) = interrupt;
    }

    /// The bytes of the configuration space.
    pub fn config_space(&self) -> [u8; 72] {
        let live = *lock(&self.live);
        let mut space = [0; 72];
        for (at, word) in
            [(0x00, MAGIC), (0x04, VERSION), (0x08, self.config.cell), (0x0c, self.config.cells)]
        {
            space[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let words = [
            SLICE0_BASE,
            self.config.slice_stride,
            self.config.slice_size,
            live.alive,
            live.generation,
            self.config.epoch_ns,
            live.lost,
        ];
        for (index, word) in words.iter().enumerate() {
            space[0x10 + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
        }
        space
    }
}

/// The way into the device from the outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SsiHandle(pub(super) Arc<Shared>);

impl SsiHandle {
    /// Where messages for this cell are delivered.
    pub fn inbox(&self) -> &Inbox {
        &self.0.inbox
    }

    /// Sets which cells are reachable (bit n: cell n; the own bit is always set). A change grows the generation and
    /// raises the configuration interrupt. Deliver what a cell sent before its death before this call.
    pub fn set_alive(&self, mask: u64) {
        let config = &self.0.config;
        let all = if config.cells == 64 { u64::MAX } else { (1 << config.cells) - 1 };
        let mask = mask & all | 1 << config.cell;
        {
            let mut live = lock(&self.0.live);
            if live.alive == mask {
                return;
            }
            *live = Live { alive: mask, generation: live.generation + 1, ..*live };
        }
        // Messages that wait for a cell that died are answered now.
        if let Err(error) = self.0.room.write(1) {
            log::error!("event of the ssi device could not be written: {error}");
        }
        self.changed();
    }

    fn changed(&self) {
        let interrupt = lock(&self.0.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Sets how many pages of the cell's own slice are lost. A change raises the configuration interrupt. Call it before
    /// [`SsiHandle::set_alive`] says that the node which had them is dead.
    pub fn set_lost(&self, pages: u64) {
        if std::mem::replace(&mut lock(&self.0.live).lost, pages) != pages {
            self.changed();
        }
    }

    /// Which cells are reachable, and how often that has changed.
    pub fn alive(&self) -> (u64, u64) {
        let live = *lock(&self.0.live);
        (live.alive, live.generation)
    }

    /// Counters.
    pub fn metrics(&self) -> &SsiMetrics {
        &self.0.metrics
    }
}
