use crate::device_metrics;

device_metrics! {
    /// Counters of one card.
    pub struct NetMetrics {
        /// Frames that the guest sent.
        tx_frames_count,
        /// Bytes of them, headers included.
        tx_bytes,
        /// Chains that are no frame: outside of guest memory, too short or too long.
        tx_malformed_count,
        /// Times that the transmit queue had to wait for the link.
        tx_throttled_count,
        /// Frames given to the guest.
        rx_frames_count,
        /// Bytes of them, headers included.
        rx_bytes,
        /// Frames dropped because the card was down or its queue full.
        rx_dropped_count,
        /// Frames too short or too long to be one.
        rx_malformed_count,
        /// Frames dropped because the driver did not agree to take such: segments or checksums.
        rx_unsupported_count,
        /// Frames dropped because the driver's buffers were no guest memory, or too small for ever.
        rx_bad_buffers_count,
    }
}
