use crate::device_metrics;

device_metrics! {
    /// Counters of one ssi device.
    pub struct SsiMetrics {
        /// Messages accepted from the driver.
        tx_messages_count,
        /// Their bytes, headers included.
        tx_bytes,
        /// Chains answered with a status other than accepted.
        tx_refused_count,
        /// Times that a message had to wait for room on its way.
        tx_busy_count,
        /// Messages given to the driver.
        rx_messages_count,
        /// Their bytes, headers included.
        rx_bytes,
        /// Receive buffers that were too small, or not writable.
        rx_bad_buffers_count,
        /// Pages fetched.
        fetched_pages,
        /// Pages that a prefetch or a release was done for.
        hinted_pages,
        /// Answers to the question which pages are lost.
        lost_answers_count,
        /// Entries of page requests answered with a status other than done.
        failed_pages,
        /// Chains that no status could be written to.
        malformed_chains_count,
    }
}
