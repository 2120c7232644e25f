//! What the file service counts, over all cells.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the file service; they only grow.
#[derive(Debug, Default)]
pub struct FsMetrics {
    /// Requests handled.
    pub requests_count: AtomicU64,
    /// Messages that were no FUSE request, or that the server could not decode.
    pub malformed_count: AtomicU64,
    /// Requests refused because a session's queue was full.
    pub refused_count: AtomicU64,
    /// Bytes of requests taken in.
    pub request_bytes: AtomicU64,
    /// Bytes of replies given out.
    pub reply_bytes: AtomicU64,
    /// Opens that let the cell keep its cached pages.
    pub cache_kept_count: AtomicU64,
    /// Opens that made the cell drop them, because another cell had written.
    pub cache_dropped_count: AtomicU64,
    /// Renames and removals of directories that waited for other cells' grants to run out.
    pub lease_waits_count: AtomicU64,
    /// Microseconds that they waited.
    pub lease_wait_us: AtomicU64,
    /// Handlers that panicked: bugs.
    pub panics_count: AtomicU64,
}

impl FsMetrics {
    /// Names and values, for `ssivmm status` and logs.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        [
            ("requests_count", &self.requests_count),
            ("malformed_count", &self.malformed_count),
            ("refused_count", &self.refused_count),
            ("request_bytes", &self.request_bytes),
            ("reply_bytes", &self.reply_bytes),
            ("cache_kept_count", &self.cache_kept_count),
            ("cache_dropped_count", &self.cache_dropped_count),
            ("lease_waits_count", &self.lease_waits_count),
            ("lease_wait_us", &self.lease_wait_us),
            ("panics_count", &self.panics_count),
        ]
        .map(|(name, value)| (name, value.load(Ordering::Relaxed)))
        .to_vec()
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
