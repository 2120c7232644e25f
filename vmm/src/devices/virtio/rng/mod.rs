//! Entropy device (section 5.4): one queue of buffers that it fills with random bytes of the host.

mod device;
mod metrics;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Rng;
pub use metrics::RngMetrics;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 4;
/// Descriptors of the queue.
pub const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes given for one chain: what the driver asks beyond is left for its next request.
pub const CHAIN_BYTES_MAX: usize = 64 << 10;
