//! Starting a cluster: the I/O server and the nodes, as processes, from one description.
//!
//! The same launcher serves `ssivmm up --host kvm` on the machine itself and `lab-init` inside an emulated host:
//!
//! ```text
//! pub fn start(spec: &ClusterSpec, options: Options, progress: &mut dyn FnMut(&Progress)) -> Result<Running, LaunchError>;
//!     // Ok: every cell's agent answered. Err: nothing is left running; the error names what was missing.
//! pub struct Options { program: PathBuf /* ssivmm itself */, ready_within: Duration, cancel: Stop }
//! pub enum Progress { Started { process: String, pid: u32 }, CellReady { cell: u32, ready: u32, of: u32 }, ... }   // Display: one line
//! impl Running {
//!     pub fn detach(self) -> Vec<ProcessRecord>;   // `up --host kvm`: the processes go on without us
//!     pub fn wait(self) -> Ended;                  // `lab-init`: until the I/O server ends (`down`, or a failure); then nothing is left
//! }                                                // Drop: everything is killed and reaped
//! ```

/// The description of a cluster.
pub mod spec;

pub use spec::{Address, ClusterSpec, FabricSpec, HostKind, Publish, RootSpec, SpecError};
