use crate::device_metrics;

device_metrics! {
    /// Counters of one socket device.
    pub struct VsockMetrics {
        /// Connections that the host asked for.
        host_connects_count,
        /// Connections that the guest asked for and got.
        guest_connects_count,
        /// Connections refused: by the guest, or of the guest for want of a listener or of room.
        refused_count,
        /// Bytes from host to guest.
        to_guest_bytes,
        /// Bytes from guest to host.
        to_host_bytes,
        /// Packets that are none: outside of guest memory, lengths that lie, foreign addresses.
        malformed_count,
        /// Connections reset because the guest broke their rules.
        violations_count,
    }
}
