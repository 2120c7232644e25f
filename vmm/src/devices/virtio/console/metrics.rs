use crate::device_metrics;

device_metrics! {
    /// Counters of one console.
    pub struct ConsoleMetrics {
        /// Bytes that the guest wrote.
        output_bytes,
        /// Bytes that were typed and given to the guest.
        input_bytes,
        /// Chains that name no readable or no writable guest memory.
        malformed_chains_count,
    }
}
