//! What the guest tools share: the kernel's parameters, users, the network card, and the processes of a cell.

pub mod cmdline;
pub mod exec;
pub mod kernel;
pub mod network;
pub mod processes;
pub mod users;
