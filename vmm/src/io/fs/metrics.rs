//! What the file service counts, over all cells.

use crate::device_metrics;

device_metrics! {
    /// Counters of the file service; they only grow.
    pub struct FsMetrics {
        /// Requests handled.
        requests_count,
        /// Messages that were no FUSE request, or that the server could not decode.
        malformed_count,
        /// Requests refused because a session's queue was full.
        refused_count,
        /// Bytes of requests taken in.
        request_bytes,
        /// Bytes of replies given out.
        reply_bytes,
        /// Opens that let the cell keep its cached pages.
        cache_kept_count,
        /// Opens that made the cell drop them, because another cell had written.
        cache_dropped_count,
        /// Renames and removals of directories that waited for other cells' grants to run out.
        lease_waits_count,
        /// Microseconds that they waited.
        lease_wait_us,
        /// Handlers that panicked: bugs.
        panics_count,
    }
}
