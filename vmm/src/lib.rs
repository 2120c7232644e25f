//! ssivmm: a single-system-image hypervisor. One Linux guest over many machines; its processes move while they run.
//!
//! The map of the crate (`docs/architecture.md` draws it):

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

/// Starting and stopping threads: the only place that does.
pub mod worker;

/// Virtio devices and the transport under them.
pub mod devices;

/// The emulated host, for machines whose KVM cannot run a kernel.
pub mod lab;
