//! The back end: guest memory whose page states the kernel enforces (Linux 6.6 or newer, x86-64, 4 KiB pages).
//!
//! A slice of guest RAM is a memfd mapped twice: the *guest mapping*, which KVM and the device models use and a
//! userfaultfd watches, and the *alias*, which only the protocol touches and which never faults.
//!
//! | wanted | how |
//! |---|---|
//! | Invalid | `MADV_DONTNEED` on the guest mapping (the memfd keeps the bytes), then read the stable bytes through the alias |
//! | Shared at the holder | `UFFDIO_WRITEPROTECT`; complete before the bytes are read |
//! | install Shared, Modified | write through the alias, `UFFDIO_CONTINUE` with, without `MODE_WP` |
//! | Shared to Modified | `UFFDIO_WRITEPROTECT` with mode 0 |
//! | lost | `UFFDIO_POISON`: the next access is a SIGBUS |
//!
//! A slice of one's own ([`SliceKind::Own`]) is watched in runs of 2 MiB, each from the moment when another node first
//! asks for one of its pages. Until then it is plain memory: no descriptor watches it, and it keeps its huge pages. A
//! [`SliceKind::Window`] onto another node's slice is watched from the start.
//!
//! # How a VMM uses it
//! ```no_run
//! use ssi_dsm::memory::{SliceKind, SliceMemory};
//! # fn main() -> Result<(), ssi_dsm::memory::Error> {
//! let memory = SliceMemory::new(1 << 30, SliceKind::Own)?;
//! // vm-memory: MmapRegionBuilder::new(memory.size()).with_raw_mmap_pointer(memory.guest_addr()), PROT_READ | PROT_WRITE
//! // KVM_SET_USER_MEMORY_REGION: userspace_addr = memory.guest_addr() as u64
//! # Ok(()) }
//! ```
//! The [`SliceMemory`] owns both mappings: it outlives every region made from its pointer. A thread of the VMM that
//! touches the guest mapping of a window sleeps until the page is there, so the threads that serve the DSM never do it.

mod slice;
mod uffd;

use std::io;

pub use slice::{SliceFault, SliceKind, SliceMemory};
pub use uffd::{FaultKind, Probe, Uffd, UffdFault, Watch, probe};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of the runs in which an own slice comes under watch, and the alignment of every guest mapping: a huge page.
pub const RUN_SIZE: usize = 2 << 20;

/// Why the memory back end could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No userfaultfd can be had.
    #[error(
        "no userfaultfd: /dev/userfaultfd: {device}; userfaultfd(2): {syscall}. Run as root, or give the user access to \
         /dev/userfaultfd; the kernel needs CONFIG_USERFAULTFD"
    )]
    Open {
        /// Why the device could not be used.
        device: io::Error,
        /// Why the system call failed too.
        syscall: io::Error,
    },
    /// The kernel's userfaultfd lacks features.
    #[error(
        "userfaultfd lacks {}: Linux 6.6 or newer with CONFIG_PTE_MARKER_UFFD_WP is needed",
        names(missing)
    )]
    Features {
        /// Name, and the first kernel that has it.
        missing: Vec<(&'static str, &'static str)>,
    },
    /// A size that is no positive multiple of [`RUN_SIZE`].
    #[error("a slice of {0} bytes: the size must be a positive multiple of 2 MiB")]
    Size(usize),
    /// A page outside the slice.
    #[error("page {index} of a slice of {pages} pages")]
    OutOfRange {
        /// The page asked for, counted from the start of the slice.
        index: usize,
        /// Pages of the slice.
        pages: usize,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// Which.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Error {
    fn os(what: &'static str) -> Self {
        Self::Os { what, source: io::Error::last_os_error() }
    }

    fn from_os(what: &'static str, source: io::Error) -> Self {
        Self::Os { what, source }
    }
}

fn names(missing: &[(&'static str, &'static str)]) -> String {
    missing.iter().map(|(name, since)| format!("{name} (Linux {since})")).collect::<Vec<_>>().join(", ")
}
