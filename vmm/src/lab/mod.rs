//! The lab: an emulated host for machines whose KVM cannot run a kernel. QEMU (TCG, nested SVM) boots our own kernel
//! with `ssivmm` as PID 1, and in it nodes run on real KVM. See `docs/lab.md`.
//!
//! ```text
//! machine                                emulated host (L1)
//! -------                                ------------------
//! Lab::boot  -- QEMU, images, ports -->  ssivmm lab-init   PID 1: mounts, network, reaps; reboots when the next one ends
//!            <-- console log ----------  ssivmm lab-run    the launcher: I/O server and nodes (cells are L2)
//! control port 127.0.0.1:P  ---------->  10.0.2.15:Q       the controller
//! ```

/// A cluster in an emulated host.
pub mod cluster;
/// The machine's side: starting QEMU, watching it, ending it.
pub mod host;
/// The emulated host's side: PID 1 and the process that it runs.
pub mod init;
/// What the machine hands to the emulated host, and where it finds things.
pub mod payload;
/// The command line of QEMU.
pub mod qemu;
/// The frequency of this machine's time stamp counter.
pub mod tsc;

pub use cluster::{Booted, LabCluster};
pub use host::{Lab, LabError, LabSpec};
pub use payload::{Payload, Work};
pub use qemu::{Disk, Forward, LabImages};
