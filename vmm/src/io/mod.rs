//! The I/O server's parts: each owns one thing that all cells share.

/// The file service: one directory tree, one FUSE session for each cell.
pub mod fs;
