//! The file service of the I/O server: serves one directory tree to many cells, each with a FUSE session of its own.
//!
//! ```text
//! virtio-fs device --request bytes--> FsSession::submit --> queue --> worker --> Server<CellFs> --> PassthroughFs
//!        ^                                                                           |    |
//!        +--------------------------------- reply bytes -----------------------------+    +-> Coherence (all cells)
//! ```
//!
//! What travels is FUSE messages (`linux/fuse.h`, 7.33), never descriptors, so a cell may be on another machine.
//!
//! Coherence between cells (`docs/file-service.md`):
//! - Close-to-open. Names of files are not cached by cells (entry timeout zero), so every open looks its name up and gets
//!   fresh attributes. Pages stay cached over opens (FOPEN_KEEP_CACHE) unless another cell has written the file since this
//!   cell last dropped them; the service sees every write, so it needs no time stamps to know.
//! - Names of directories are cached for [`Options::lease`]; renaming or removing a directory waits until what the
//!   other cells were granted has run out.
//! - Writes go through (no write-back cache): when `write` returns, the service has the data.
//! - `flock` and POSIX locks are kept by each cell for itself.

mod cell_fs;
mod coherence;
mod message;
mod metrics;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use message::{MAX_REPLY, MAX_REQUEST, error_reply};
pub use metrics::FsMetrics;
pub use server::{FsServer, Options};
pub use session::FsSession;

/// Why the file service could not start.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The root is no directory that can be served.
    #[error("cannot serve {path}: {source}; give a directory that exists and that this user may read")]
    Root {
        /// What was asked for.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The passthrough file system did not start (`/proc` not mounted is the usual reason).
    #[error("the file system service did not start: {0}; is /proc mounted?")]
    Start(std::io::Error),
    /// A thread could not be had.
    #[error("no thread for the file service: {0}")]
    Thread(std::io::Error),
}
