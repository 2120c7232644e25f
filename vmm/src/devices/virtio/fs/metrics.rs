use crate::device_metrics;

device_metrics! {
    /// Counters of one file system device.
    pub struct FsDeviceMetrics {
        /// Requests handed to the link.
        requests_count,
        /// Bytes of them.
        request_bytes,
        /// Bytes of replies given to the guest.
        reply_bytes,
        /// Requests that the link dropped: answered EIO.
        dropped_count,
        /// Replies longer than the guest's buffers: answered EIO.
        oversized_replies_count,
        /// Chains that are no request: outside of guest memory, too short or too long.
        malformed_chains_count,
        /// Times that the queue had to wait because too many bytes or requests were on their way.
        throttled_count,
    }
}
