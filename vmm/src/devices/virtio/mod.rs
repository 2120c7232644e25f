//! Virtio devices (Virtual I/O Device specification 1.2). Each is a folder of the same five files:
//! `mod` (errors, constants), `device`, `worker`, `state`, `metrics`.

mod device;

pub use device::{ActivateError, Activation, ActiveQueue, DeviceInterrupt, GuestRam, VirtioDevice};
