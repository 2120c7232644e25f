//! Console device (section 5.3) with its one port, hvc0, and a [`crate::devices::terminal::Terminal`] behind it.

mod device;
mod metrics;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Console;
pub use metrics::ConsoleMetrics;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 3;
/// Descriptors of the receive and of the transmit queue.
pub const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Index of the receive queue.
pub const QUEUE_RX: usize = 0;
/// Index of the transmit queue.
pub const QUEUE_TX: usize = 1;
/// Bytes of output that are handed on at once.
pub const PIECE_BYTES: usize = 4096;
