//! Virtio devices (Virtual I/O Device specification 1.2). Each is a folder of the same five files:
//! `mod` (errors, constants), `device`, `worker`, `state`, `metrics`.

/// Console: one port, hvc0.
pub mod console;
mod device;
/// A driver's side of a ring, for tests.
#[cfg(test)]
pub(crate) mod driver;
/// A file system that somebody else serves.
pub mod fs;
/// The mmio transport (section 4.2).
pub mod mmio;
/// A network card.
pub mod net;
/// What every device does with a ring.
pub mod ring;
/// Entropy.
pub mod rng;
/// Messages between cells, and page operations (`docs/ssi-device.md`).
pub mod ssi;
/// A driver's side of the queues, for tests.
#[cfg(test)]
pub(crate) mod testing;
/// Stream connections between host and guest.
pub mod vsock;

pub use device::{ActivateError, Activation, ActiveQueue, DeviceInterrupt, GuestRam, VirtioDevice};
