//! ssivmm: a single-system-image hypervisor. One Linux guest over many machines; its processes move while they run.
//!
//! The map of the crate (`docs/architecture.md` draws it):

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

/// Starting and stopping threads: the only place that does.
pub mod worker;

/// How long a boot takes, over QEMU's microvm.
pub mod bootbench;
/// Virtio devices and the transport under them.
pub mod devices;

/// What this machine can do for a cluster.
pub mod doctor;
/// The I/O server: what the cells share with the outside world and with each other.
pub mod io;
/// The emulated host, for machines whose KVM cannot run a kernel.
pub mod lab;

/// Starting a cluster's processes from one description.
pub mod launch;
/// The KVM machine of one cell.
pub mod machine;

/// Authenticated links between the processes of a cluster.
pub mod fabric;

/// The controller of a cluster, and asking it.
pub mod control;

/// The long-lived processes: I/O server and node.
pub mod runtime;

/// The command line.
pub mod cli;
/// Guest memory that is coherent over the nodes.
pub mod dsm;
