//! The virtio-mmio transport (Virtual I/O Device specification 1.2, section 4.2): one window of 4 KiB and one
//! interrupt line for each device.

/// Raising the interrupt of a window.
mod interrupt;
/// Offsets and bits of section 4.2.2.
pub mod registers;
#[cfg(test)]
mod tests;
/// The register file and the device status state machine.
mod transport;

pub use interrupt::MmioInterrupt;
pub use transport::MmioTransport;
