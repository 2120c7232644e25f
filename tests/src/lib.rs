//! End-to-end scenarios over a real cluster, and the paper's evaluation.
//!
//! A scenario drives the command line as a person would, against real cells. The host half is here; what runs inside
//! the guest is a plain program under `tests/guest/`.

pub mod cluster;
pub mod scenarios;
pub mod terminal;
