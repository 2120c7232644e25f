//! The ssi device (`docs/ssi-device.md`): identifiers, limits and the records on its queues.

use std::ops::Range;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 0x5353;
/// `magic` of the configuration space: "SSSI".
pub const MAGIC: u32 = 0x4953_5353;
/// Feature bit: the driver knows page faults with [`PF_LOST`].
pub const F_LOST: u64 = 1;
/// In the error code of a page fault: the frame at the guest-physical address in CR2 is lost.
pub const PF_LOST: u32 = 1 << 14;
/// Offset of the write-only le32 of the configuration space that takes a lost page of the own slice, by its index there, as out
/// of use.
pub const CONFIG_BURY: u64 = 0x48;

/// `version` of the configuration space.
pub const VERSION: u32 = 1;
/// Most cells of a cluster; `alive` is one 64-bit word.
pub const MAX_CELLS: u32 = 64;
/// Guest-physical address of slice 0.
pub const SLICE0_BASE: u64 = 4 << 30;
/// A slice is a multiple of this many bytes (a memory section of x86-64 Linux).
pub const SLICE_ALIGN: u64 = 128 << 20;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// Index of the queue of messages to other cells.
pub const QUEUE_TX: usize = 0;
/// Index of the queue of messages from other cells.
pub const QUEUE_RX: usize = 1;
/// Index of the queue of page operations.
pub const QUEUE_PAGE: usize = 2;
/// Sizes of the queues, in descriptors.
pub const QUEUE_SIZES: [u16; 3] = [256, 64, 256];

/// Bytes of the header of a message.
pub const MESSAGE_HEADER_BYTES: usize = 32;
/// Most bytes of a message, header included.
pub const MESSAGE_MAX_BYTES: usize = 32768;
/// Most bytes of a message's payload.
pub const PAYLOAD_MAX_BYTES: usize = MESSAGE_MAX_BYTES - MESSAGE_HEADER_BYTES;
/// Message flag: bulk traffic class, may be overtaken by messages without it.
pub const FLAG_BULK: u32 = 1;

/// Result of a tx chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TxStatus {
    /// Handed to the fabric.
    Accepted = 0,
    /// The cell number is not one of this cluster.
    NoSuchCell = 1,
    /// The cell is dead.
    Dead = 2,
    /// More than [`PAYLOAD_MAX_BYTES`] of payload.
    TooLong = 3,
    /// The chain and its header disagree.
    Malformed = 4,
}

/// Operation of a page request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageOp {
    /// Copy a remote frame into a local one, outside coherence.
    Fetch = 1,
    /// Bring a window page here, readable.
    Prefetch = 2,
    /// Give a window page back to its home.
    Release = 3,
    /// List the lost pages of the own slice, from `remote` on, in the page `local`.
    Lost = 4,
}

impl PageOp {
    /// The operation that `code` names.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Fetch),
            2 => Some(Self::Prefetch),
            3 => Some(Self::Release),
            4 => Some(Self::Lost),
            _ => None,
        }
    }
}

/// Result of one entry of a page request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageStatus {
    /// Done.
    Done = 0,
    /// Bad address or argument.
    Bad = 1,
    /// The cell is dead or unknown.
    Dead = 2,
    /// Memory lost, or an I/O error.
    Failed = 3,
}

/// Most entries of one page request.
pub const PAGE_REQUEST_MAX: usize = 256;
/// Bytes of the header of a page request: le32 op, le32 count, le64 reserved.
pub const PAGE_HEADER_BYTES: usize = 16;
/// Bytes of one entry of a page request: le32 cell, le32 reserved, le64 remote, le64 local.
pub const PAGE_ENTRY_BYTES: usize = 24;

/// Most runs in one answer to [`PageOp::Lost`]: a page holds a header of 16 bytes, then 16 bytes for each.
pub const LOST_RUNS_MAX: usize = 255;

/// The answer to [`PageOp::Lost`]: le32 count, 12 bytes of 0, then le64 first address and le64 end of each run. At most
/// [`LOST_RUNS_MAX`] of `runs` find room; as many as that mean that there may be more.
pub fn emit_lost(runs: &[Range<u64>]) -> Box<[u8; PAGE_SIZE as usize]> {
    let mut page = Box::new([0; PAGE_SIZE as usize]);
    let runs = &runs[..runs.len().min(LOST_RUNS_MAX)];
    page[..4].copy_from_slice(&(runs.len() as u32).to_le_bytes());
    for (run, to) in runs.iter().zip(page[16..].chunks_exact_mut(16)) {
        to[..8].copy_from_slice(&run.start.to_le_bytes());
        to[8..].copy_from_slice(&run.end.to_le_bytes());
    }
    page
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// Header of a message between cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHeader {
    /// tx: destination; rx: source.
    pub cell: u32,
    /// The kernels' own.
    pub kind: u32,
    /// Bytes of payload.
    pub len: u32,
    /// [`FLAG_BULK`] or 0.
    pub flags: u32,
    /// The kernels' own.
    pub tag: u64,
    /// The kernels' own.
    pub cookie: u64,
}

impl MessageHeader {
    /// Reads a header. Does not judge `len` or `cell`: the device does, and answers with a [`TxStatus`].
    pub fn parse(bytes: &[u8; MESSAGE_HEADER_BYTES]) -> Self {
        Self {
            cell: le32(bytes, 0),
            kind: le32(bytes, 4),
            len: le32(bytes, 8),
            flags: le32(bytes, 12),
            tag: le64(bytes, 16),
            cookie: le64(bytes, 24),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; MESSAGE_HEADER_BYTES] {
        let mut out = [0; MESSAGE_HEADER_BYTES];
        out[0..4].copy_from_slice(&self.cell.to_le_bytes());
        out[4..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.tag.to_le_bytes());
        out[24..32].copy_from_slice(&self.cookie.to_le_bytes());
        out
    }
}

/// One entry of a page request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEntry {
    /// The cell whose address `remote` is.
    pub cell: u32,
    /// Guest-physical address there.
    pub remote: u64,
    /// Guest-physical address here; 0 where the operation has none.
    pub local: u64,
}

impl PageEntry {
    /// Reads an entry; `None` if a reserved field is not 0 or an address is not page-aligned.
    pub fn parse(bytes: &[u8; PAGE_ENTRY_BYTES]) -> Option<Self> {
        let entry = Self { cell: le32(bytes, 0), remote: le64(bytes, 8), local: le64(bytes, 16) };
        let aligned = entry.remote.is_multiple_of(PAGE_SIZE) && entry.local.is_multiple_of(PAGE_SIZE);
        (le32(bytes, 4) == 0 && aligned).then_some(entry)
    }

    /// Writes the entry.
    pub fn emit(&self) -> [u8; PAGE_ENTRY_BYTES] {
        let mut out = [0; PAGE_ENTRY_BYTES];
        out[0..4].copy_from_slice(&self.cell.to_le_bytes());
        out[8..16].copy_from_slice(&self.remote.to_le_bytes());
        out[16..24].copy_from_slice(&self.local.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn message_header_parses_what_it_emits(cell: u32, kind: u32, len: u32, flags: u32, tag: u64, cookie: u64) {
            let header = MessageHeader { cell, kind, len, flags, tag, cookie };
            prop_assert_eq!(MessageHeader::parse(&header.emit()), header);
        }

        #[test]
        fn page_entry_parses_what_it_emits(cell: u32, remote: u32, local: u32) {
            let entry = PageEntry { cell, remote: u64::from(remote) << 12, local: u64::from(local) << 12 };
            prop_assert_eq!(PageEntry::parse(&entry.emit()), Some(entry));
        }
    }

    #[test]
    fn page_entry_refuses_reserved_bits_and_unaligned_addresses() {
        let good = PageEntry { cell: 1, remote: 0x1000, local: 0x2000 }.emit();
        for at in [4, 8, 16] {
            let mut bad = good;
            bad[at] = 1;
            assert_eq!(PageEntry::parse(&bad), None, "byte {at}");
        }
    }
}
