//! File system device (section 5.11): FUSE requests of the guest go out as bytes, replies come back as bytes, in any
//! order. What they mean is the business of whoever is behind the [`FsLink`] (`vmm/src/io/fs/`).

mod device;
mod link;
mod metrics;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Fs;
pub use link::{FsLink, Reply};
pub use metrics::FsDeviceMetrics;

/// Virtio device ID.
pub const DEVICE_ID: u32 = 26;
/// Name that the guest mounts: `root=ssiroot rootfstype=virtiofs`.
pub const TAG: &str = "ssiroot";
/// Descriptors of the queue for FORGET and INTERRUPT, and of the request queue. The guest's largest request has four
/// pages less than the queue has descriptors, so 1024 allow one of 1 MiB.
pub const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Index of the queue for FORGET and INTERRUPT.
pub const QUEUE_HIPRIO: usize = 0;
/// Index of the request queue.
pub const QUEUE_REQUEST: usize = 1;
/// Most bytes of one request: 1 MiB of data and its headers.
pub const REQUEST_BYTES_MAX: usize = (1 << 20) + 4096;
/// Most bytes of requests that wait for replies; more stay in the queue.
pub const WAITING_BYTES_MAX: usize = 16 << 20;
/// Bytes of `fuse_in_header`.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;
