//! `ssivmm bench boot`: how long a cell takes to boot, over QEMU's microvm with the same kernel and the same initramfs.
//!
//! ```text
//! machine with KVM                      machine without                emulated host
//! bench boot                            bench boot  -- payload, disks -->  lab-run
//!   run::measure                                                             run::measure
//!     dev-run, QEMU, QEMU, dev-run ...               <-- console, a line --    dev-run, QEMU, ...
//!   report                                report         per boot
//! ```
//! A boot begins with the start of the VMM's process. Its marker is what PID 1 of the initramfs says on the serial console; its end
//! is that of the process, after PID 1 has reset the machine.

/// Which kernel format QEMU can load.
pub mod elf;
/// What is printed.
pub mod report;
/// Boots, one after the other.
pub mod run;
/// The two VMMs and their command lines.
pub mod vmms;

pub use report::Report;
pub use run::{Boot, BootError, measure};
pub use vmms::{Contest, KernelFormat, Vmm};
