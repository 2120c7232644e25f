//! The cluster's way to the outside (clauses NET-1 to NET-3): [`NetService`] gives the switch and gateway of
//! `ssi-netstack` one thread, a clock, sockets of the machine, and a TAP device if asked.
//!
//! ```text
//!   fabric --- NetHandle::input(cell, frame) ---> inbox (bounded) --+
//!   fabric <-- FramePort::deliver(cell, frame) <--------------------+-- worker "net": Stack, epoll
//!   sockets of the machine, TAP <-----------------------------------+
//! ```
//! Like a network it drops what does not fit, counts it, and waits for nobody.

/// Frames per second and throughput, against a plain loopback stream.
pub mod bench;
mod config;
mod fake;
mod handle;
mod host;
mod service;
mod tap;

pub use config::{NetConfig, NetError, Publish, PublishError, TapConfig};
pub use handle::{FramePort, NetCounters, NetHandle};
pub use service::NetService;
pub use ssi_netstack::offload::Offload;
pub use ssi_netstack::view::Proto;

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
