//! Wire formats of ssivmm, written once: the exec stream and its requests ([`frame`], [`request`]), and the
//! constants and records of the ssi device ([`device`]).
//!
//! Everything here is parsed from bytes that a guest or a peer wrote. A decoder checks every length before it
//! allocates, and never panics on any input.

pub mod device;
pub mod frame;
pub mod request;
