//! The MSI write-invalidate protocol as a sans-I/O state machine, and the userfaultfd back end that enforces it.

/// Protocol and back end put together, without threads.
pub mod driver;

mod delta;

/// Guest memory whose page states the kernel enforces.
#[cfg(target_os = "linux")]
pub mod memory;

/// The protocol as a pure state machine.
pub mod protocol;

/// Nodes, pages, accesses.
pub mod types;

/// Messages as bytes.
pub mod wire;

pub use types::{Access, NodeId, PageNo};
