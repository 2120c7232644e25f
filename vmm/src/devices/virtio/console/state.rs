use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ConsoleMetrics;
use crate::devices::terminal::Terminal;

/// What device and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub terminal: Terminal,
    /// Readable when input waits.
    pub typed: Arc<EventFd>,
    pub metrics: ConsoleMetrics,
}

impl Shared {
    pub fn new(terminal: &Terminal) -> io::Result<Self> {
        let typed = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { terminal: terminal.clone(), typed, metrics: ConsoleMetrics::default() })
    }
}
