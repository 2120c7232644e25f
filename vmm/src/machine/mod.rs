//! The KVM machine of one cell: guest memory by the address map of `docs/interfaces.md`, 1 to 8 vCPUs with an in-kernel
//! interrupt controller, direct boot of an ELF kernel, COM1, and virtio-mmio windows.
//!
//! The life of a [`Machine`]: [`Machine::new`] makes the VM, loads the kernel and wires the devices; [`Machine::run`]
//! starts the vCPU threads; the guest's reset, a fatal exit or [`Machine::stop`] ends it, which [`Config::exit`]
//! announces and [`Machine::end`] explains. Drop order: vCPU threads, device threads, the VM, guest memory.

/// Placing kernel, initrd, command line and tables in guest memory.
mod boot;
/// Port and MMIO accesses, to the devices.
mod bus;
/// Identity and initial state of a vCPU.
mod cpu;
/// Several cells in one process, joined without a network: for kernel developers.
pub mod devrun;
/// What can go wrong.
mod error;
/// Guest-physical addresses.
pub mod layout;
/// Guest memory that is gone.
mod lost;
/// Guest memory.
mod memory;
/// MultiProcessor Specification tables.
mod mptable;
#[cfg(test)]
mod tests;
/// A vCPU and its thread.
mod vcpu;
/// The machine.
mod vm;

pub use error::MachineError;
pub use memory::{Mapping, RamKind, RamRegion, resident_beyond};
pub use vm::{Config, End, Machine};
