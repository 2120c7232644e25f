//! Network device (section 5.1): a card whose frames, `virtio_net_hdr_v1` in front, go to and come from a [`FrameLink`].
//! Checksums and segmentation are left to whoever is behind it, so that large frames stay large all the way.

mod device;
mod header;
mod link;
mod metrics;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Net, NetConfig};
pub use link::{FrameInput, FrameLink};
pub use metrics::NetMetrics;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 1;
/// Descriptors of the receive and of the transmit queue.
pub const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Index of receiveq1.
pub const QUEUE_RX: usize = 0;
/// Index of transmitq1.
pub const QUEUE_TX: usize = 1;
/// Bytes of `virtio_net_hdr_v1`.
pub const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Most bytes of a frame with its header: an IP packet of 64 KiB in a tagged Ethernet frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + ETHERNET_BYTES + 4 + 65535;
/// Most frames that wait for the guest's buffers.
pub const WAITING_FRAMES_MAX: usize = 1024;
/// Most bytes of them.
pub const WAITING_BYTES_MAX: usize = 4 << 20;

/// VIRTIO_NET_F_CSUM: the device takes frames with partial checksums.
pub const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver does.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes TCP segments larger than the MTU.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_HOST_TSO4: the device does.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_MRG_RXBUF: a frame may fill several buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS.
pub const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_S_LINK_UP.
pub const STATUS_LINK_UP: u16 = 1;
