//! The I/O server's parts: each owns one thing that all cells share.

/// The file service: one directory tree, one FUSE session for each cell.
pub mod fs;
/// The network service: one address for all cells.
pub mod net;
