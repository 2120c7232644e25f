//! The tree that is served, and what its sessions share.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::worker::Exit;

use super::cell_fs::{CellFs, Shared};
use super::coherence::{Leases, Versions};
use super::{FsError, FsMetrics, FsSession};

/// How the service serves. `Options::default()` is right for a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a cell may keep a directory's name without asking; also the longest that a rename of a directory waits
    /// (and a quarter more).
    pub lease: Duration,
    /// How long a cell may keep attributes of a file that it has open. An open always gets fresh ones.
    pub attr: Duration,
    /// Threads of each session.
    pub threads: usize,
    /// Requests that a session queues at most; more are refused with ENOBUFS. At least the device's queue size.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { lease: second, attr: second, threads: 4, queue: 4096 }
    }
}

/// Files whose last writers are remembered.
const VERSIONS_MOST: usize = 1 << 16;

/// A directory tree, to be served to many cells.
#[derive(Debug)]
pub struct FsServer {
    options: Options,
    shared: Arc<Shared>,
    exit: Exit,
}

impl FsServer {
    /// Serves `root`. Needs `/proc` mounted. Sets the process's umask to 0 (modes come from the guests) and raises its limit
    /// of open files as far as it may: every inode that a cell knows costs a descriptor.
    ///
    /// # Errors
    /// [`FsError::Root`] if it is no directory.
    pub fn new(root: &Path, options: Options, exit: &Exit) -> Result<Self, FsError> {
        let bad = |source| FsError::Root { path: PathBuf::from(root), source };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(root).map_err(bad)?;
        raise_open_files();
        let shared = Shared {
            root: opened,
            versions: Mutex::new(Versions::new(VERSIONS_MOST)),
            leases: Mutex::new(Leases::new(options.lease)),
            metrics: Arc::default(),
        };
        Ok(Self { options, shared: Arc::new(shared), exit: exit.clone() })
    }

    /// A session for `cell`. When the cell's connection ends, drop it: everything it held open is closed.
    ///
    /// # Errors
    /// If the passthrough file system or the threads do not start.
    pub fn session(&self, cell: u16) -> Result<FsSession, FsError> {
        let fs = CellFs::new(cell, self.options.attr, self.shared.clone()).map_err(FsError::Start)?;
        FsSession::new(fs, cell, &self.options, self.shared.metrics.clone(), &self.exit)
    }

    /// The counters, over all sessions.
    pub fn metrics(&self) -> Arc<FsMetrics> {
        self.shared.metrics.clone()
    }
}

/// Raises RLIMIT_NOFILE to the highest that this process may have.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one rlimit into `limit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    let system =
        std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    for most in [system.unwrap_or(limit.rlim_max).max(limit.rlim_max), limit.rlim_max] {
        let raised = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: the call reads one rlimit from `raised`.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            log::debug!("open files: limit was {}, is {most}", limit.rlim_cur);
            return;
        }
    }
}
