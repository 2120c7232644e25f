//! Socket device (section 5.10): stream connections between host and guest. On the host a connection is an ordinary
//! [`std::os::unix::net::UnixStream`], whose other end the device pumps, with credit in both directions.
//!
//! ```text
//! VsockHandle::connect --> command --> REQUEST --> guest        guest: RESPONSE --> connected; RST --> refused
//! host writes --> socketpair --> RW, as far as the guest's credit and buffers go
//! guest: RW --> kept (at most the credit that it was given) --> socketpair --> credit comes back as it is taken
//! EOF on either side --> SHUTDOWN; both closed --> RST; data on the way still arrives
//! ```

mod connection;
mod device;
mod handle;
mod metrics;
mod packet;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Vsock;
pub use handle::{VsockHandle, VsockListener};
pub use metrics::VsockMetrics;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 19;
/// Descriptors of the receive, transmit and event queues.
pub const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
/// Index of the receive queue.
pub const QUEUE_RX: usize = 0;
/// Index of the transmit queue.
pub const QUEUE_TX: usize = 1;
/// CID of the host.
pub const HOST_CID: u64 = 2;
/// CID of the first cell; cell n has this and n.
pub const FIRST_GUEST_CID: u64 = 3;
/// Most connections at a time, half-open ones included.
pub const CONNECTIONS_MAX: usize = 256;
/// Bytes of guest data that are kept for a connection whose host end does not read: the credit given to the guest.
pub const CREDIT_BYTES: u32 = 256 << 10;
/// Most bytes of data in one packet, either way.
pub const PACKET_BYTES_MAX: usize = 64 << 10;
/// Most connections that wait to be accepted by one listener.
pub const BACKLOG: usize = 64;
