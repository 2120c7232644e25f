//! The MSI write-invalidate protocol as a sans-I/O state machine, and the userfaultfd back end that enforces it.

/// Nodes, pages, accesses.
pub mod types;

/// Guest memory whose page states the kernel enforces.
#[cfg(target_os = "linux")]
pub mod memory;

pub use types::{Access, NodeId, PageNo};
