//! The controller, a part of the I/O server: what `ssivmm status`, `exec`, `ps`, `migrate`, `console` and `down` talk to.
//!
//! ```text
//!  ssivmm exec ...        controller (ssivmm io)          node 1                cell 1
//!      | handshake, REQUEST    |                            |                     |
//!      |---------------------->| stream to vsock port 1024  | connection to 1024  |
//!      |                       |--------------------------->|-------------------->| agent
//!      |      frames           |          the same frames, relayed as bytes       |
//!      |<---------------------->------------------------------------------------->|
//! ```
//! Records are those of `ssi_proto::request`, in the frames of `ssi_proto::frame`; one session carries one request.

/// What the controller needs of the cluster.
pub mod cells;
/// Asking a controller or an agent.
pub mod client;
/// Moving a process from outside.
pub mod migrate;
/// Messages between controller and nodes.
pub mod node;
/// The controller.
pub mod server;

pub use cells::{CellState, Cells};
pub use client::{Client, ClientError};
pub use server::Controller;
