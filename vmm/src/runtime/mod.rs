//! The long-lived processes: `ssivmm io` (I/O server and controller) and `ssivmm node` (one VMM).
//!
//! ```text
//! ssivmm up / lab-run
//!    |-- ssivmm io        fabric, controller, network service, file service
//!    |-- ssivmm node 0    fabric, machine, devices, DSM
//!    `-- ssivmm node 1    ...
//! ```
//! A process ends when its work ends: the I/O server when the cluster is shut down, a node when its machine ends, when the I/O
//! server is gone (a cell without root file system and network is of no use), or when it is told to. While the launcher holds
//! its leash (`leash`), it also ends with the launcher.

/// The controller's cells, over the fabric.
pub mod cells;
/// The I/O server.
pub mod io;
/// Ending with the launcher, and on signals.
pub mod leash;
/// A node.
pub mod node;
/// What a process knows of itself.
pub mod stats;
