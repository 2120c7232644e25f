//! What a cell sees besides CPUs and memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The one event loop that every device worker runs.
pub mod event_loop;
/// Counters of devices.
pub mod metrics;
/// Rate limits for log lines that a guest can cause.
pub mod ratelimit;
/// COM1.
pub mod serial;
/// Terminals: where console bytes go to and come from.
pub mod terminal;
/// Virtio: the trait every device has, the mmio transport, and the devices.
pub mod virtio;

/// Locks `mutex`, also after a panic of another holder: what is behind these locks is valid between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
