use crate::device_metrics;

device_metrics! {
    /// Counters of one entropy device.
    pub struct RngMetrics {
        /// Random bytes given to the driver.
        given_bytes,
        /// Chains without a writable buffer in guest memory.
        malformed_chains_count,
        /// Times that the host gave no random bytes.
        host_errors_count,
    }
}
