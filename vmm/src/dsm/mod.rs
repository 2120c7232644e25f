//! The node's side of the DSM: the memory of all slices, the threads that serve it, and its place on the fabric.
//!
//! ```text
//!  vCPU, device threads          "dsm-0", "dsm-1", ...: one thread a slice
//!  touch the guest mapping           |  its faults and deadlines; the page connection to that slice's node
//!        | sleeps in a fault         v                                     v
//!        +----------------> userfaultfd, timer             Dsm::message(from, frame), of any slice
//!                                    +--> slice 0: lock { Driver } <-------+
//!                                            |  memory: zap, protect, install, wake
//!                                            +--> Link::send (never waits)
//! ```
//! The answer to a fault so comes to the thread that asked, and that thread polls for it (`polling.rs`).
//! One lock a slice; nothing that is done under it waits, so pages of different slices never wait for each other, and two
//! nodes never for each other's locks. Threads here never touch a guest mapping.
//!
//! # Order of a start
//! 1. [`Dsm::new`] makes the memory of every slice. 2. [`Dsm::ram_regions`] go into the machine. 3. [`Dsm::start`] with the
//!    link, before the first vCPU runs and before the first message comes. 4. Frames of the fabric's `page` class go to
//!    [`Dsm::message`] (a `Dsm` is a fabric [`Handler`](crate::fabric::Handler)), deaths to [`Dsm::node_died`].

/// Round trips of page faults between processes, against raw TCP: `ssivmm bench dsm`.
pub mod bench;
mod fabric;
mod hold;
mod link;
mod polling;
/// Nodes as processes, for benchmarks and litmus tests.
pub mod rig;
mod service;

pub use fabric::FabricLink;
pub use hold::{HOLD_MAX_US, HOLD_MIN_US, measured_hold_us};
pub use link::{Link, LocalLinks, StreamLinks};
pub use polling::BUSY_POLL_US;
pub use service::{Dsm, DsmError, PREFETCH_PAGES, PageLost, TWIN_PAGES, Tuning};

#[cfg(test)]
mod tests;
