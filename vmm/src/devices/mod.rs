//! What a cell sees besides CPUs and memory.

/// Virtio: the trait every device has, the mmio transport, and the devices.
pub mod virtio;
