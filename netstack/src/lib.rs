//! The single-IP switch and user-mode gateway as sans-I/O state machines (clauses NET-1 to NET-3).
//!
//! Every cell of the cluster has a network card with the same MAC and the same address. The I/O server stands between
//! those cards and the outside, and is made of the parts of this crate:
//!
//! ```text
//!   cell 0   cell 1   cell n        frames: a 12-byte virtio_net_hdr_v1, then Ethernet
//!      \       |       /
//!       +---------------+           flows:     (protocol, ports, remote address) -> cell
//!       |    Switch     |           listeners: (protocol, port) -> cells, acceptors that wait
//!       +---------------+
//!         /           \
//!    TAP uplink     Gateway         published ports and outgoing connections, with no privilege:
//!                      |            smoltcp on the side of the cells, sockets of the machine (the glue's) on the other
//!                 host sockets
//! ```
//!
//! Nothing here has a clock, a socket, a thread or a source of randomness: time and seeds are arguments, frames go in,
//! and frames and events come out, in order. All tables are bounded. `vmm/src/io/net/` is the glue that gives it a
//! thread and sockets.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

/// Views of Ethernet frames: what the switch needs to know of one, checked, and nothing more.
pub mod view;

/// The header in front of every frame: `virtio_net_hdr_v1`, as checked bytes and as valid values.
pub mod vnet;

/// Completes checksums and cuts large segments for a receiver that cannot.
pub mod offload;

/// Which cell owns a flow: bounded, aged.
pub mod flows;

/// Which cells listen on a port.
pub mod listeners;

/// Later fragments of a datagram follow its first.
pub mod frags;

/// The switch.
pub mod switch;

/// The user-mode gateway.
pub mod gateway;

mod fin;

#[cfg(test)]
mod testing;

/// Switch and gateway, joined.
pub mod stack;

/// A simulated cell, for tests and benchmarks.
pub mod sim;

pub use smoltcp::time::{Duration, Instant};
pub use smoltcp::wire::EthernetAddress;
pub use stack::Stack;

use core::net::Ipv4Addr;

/// Number of a cell, from 0; at most [`MAX_CELLS`] of them.
pub type Cell = u32;

/// Most cells of a cluster.
pub const MAX_CELLS: u32 = 64;

/// MAC of every cell's card.
pub const CLUSTER_MAC: EthernetAddress = EthernetAddress([0x02, 0x53, 0x53, 0x49, 0x00, 0x02]);
/// MAC of the gateway.
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x53, 0x53, 0x49, 0x00, 0x01]);
/// The cluster's one address.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// The gateway's address.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// Length of the network's prefix.
pub const PREFIX_BITS: u8 = 24;

/// Bytes of the header in front of every frame.
pub const VNET_HDR_BYTES: usize = vnet::HDR_BYTES;
/// Bytes of an Ethernet header.
pub const ETH_HDR_BYTES: usize = 14;
/// Most bytes of a frame with its header: an IPv4 packet of 65535 bytes, Ethernet, vnet.
pub const FRAME_MAX_BYTES: usize = VNET_HDR_BYTES + ETH_HDR_BYTES + 65535;
/// Bytes of an IP packet on a link that is not asked to take larger ones.
pub const MTU_BYTES: usize = 1500;

/// Where a frame comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// The card of a cell.
    Cell(Cell),
    /// The user-mode gateway.
    Gateway,
    /// The uplink (a TAP device).
    Uplink,
}
