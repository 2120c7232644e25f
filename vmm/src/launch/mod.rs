//! Starting a cluster: the I/O server and the nodes, as processes, from one description.
//!
//! The same launcher serves `ssivmm up --host kvm` on the machine itself and `lab-run` inside an emulated host:
//!
//! ```text
//! let running = launch::start(&spec, &options, &mut |progress| ...)?;    // every cell's agent answered, or nothing is left
//! running.detach();            // `up --host kvm`: the processes go on without us
//! let ended = running.wait();  // `lab-run`: until the I/O server ends (`down`, or a failure); then nothing is left
//! ```
//! A process of the cluster gets a pipe as its standard input, the *leash*: it ends when the pipe closes, unless
//! [`Running::detach`] let it go before. So a launcher that is killed leaves nothing running either.

/// Processes by number, safely.
pub mod process;
/// The description of a cluster.
pub mod spec;
/// The launcher.
mod start;

pub use process::ProcessRecord;
pub use spec::{Address, ClusterSpec, DsmSpec, FabricSpec, HostKind, Publish, RootSpec, SpecError};
pub(crate) use start::processors_without;
pub use start::{Ended, LaunchError, Options, Progress, Running, check_ports, start, tail};
