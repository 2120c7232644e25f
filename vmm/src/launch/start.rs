use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ssi_proto::request::{Request, Status};

use super::process::{ProcessRecord, end_all};
use super::{ClusterSpec, HostKind, Publish, SpecError};
use crate::control::{Client, ClientError};
use crate::fabric::Secret;
use crate::fabric::auth::HandshakeError;
use crate::runtime::leash::LET_GO;
use crate::worker::Stop;

/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A process that is asked to end has this long.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of a log that an error quotes.
const QUOTED_LINES: usize = 15;
/// Bytes of a log that are looked at for them.
const QUOTED_BYTES: u64 = 8 << 10;

/// The process of the I/O server.
const IO: &str = "io";

/// How to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that has the `io` and `node` commands: ssivmm itself.
    pub program: PathBuf,
    /// Every cell's agent answers within this, or the start has failed.
    pub ready_within: Duration,
    /// Gives the start up.
    pub cancel: Stop,
    /// A processor that no cell may run on, if there is another.
    pub nodes_avoid_cpu: Option<usize>,
}

/// What happened so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A process runs.
    Started {
        /// `io` or `node-N`.
        process: String,
        /// Its number.
        pid: i32,
    },
    /// A cell's agent answered.
    CellReady {
        /// Which.
        cell: u32,
        /// How many have.
        ready: u32,
        /// How many there are.
        of: u32,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { process, pid } => write!(f, "{process} started (pid {pid})"),
            Self::CellReady { cell, ready, of } => write!(f, "cell {cell} is up ({ready} of {of})"),
        }
    }
}

/// Why a cluster did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The description is not one.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Somebody has a published port.
    #[error(
        "cannot listen on {address}:{port}: {source}; publish another port, or end the program that has this one"
    )]
    Port {
        /// Address of the machine.
        address: std::net::Ipv4Addr,
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// A file or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A process ended.
    #[error("{process} ended while the cluster started: {status}\n{log}")]
    Ended {
        /// `io` or `node-N`.
        process: String,
        /// How.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// The controller says that a cell died.
    #[error("node {cell} died while the cluster started\n{log}")]
    Dead {
        /// Which.
        cell: u32,
        /// The ends of its logs.
        log: String,
    },
    /// Not everything was there in time.
    #[error("not ready after {seconds} s: {missing}\n{log}")]
    Late {
        /// What was missing.
        missing: String,
        /// How long it was waited for.
        seconds: u64,
        /// The ends of the logs of what was missing.
        log: String,
    },
    /// The controller does not answer as one.
    #[error(transparent)]
    Controller(#[from] ClientError),
    /// It was given up.
    #[error("interrupted")]
    Cancelled,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.into();
    |source| LaunchError::Io { what, source }
}

/// How a cluster ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The I/O server ended by itself and well: the cluster was shut down.
    pub well: bool,
    /// How, for a person.
    pub how: String,
}

struct Process {
    name: String,
    child: Child,
    leash: Option<ChildStdin>,
    record: ProcessRecord,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("record", &self.record).finish_non_exhaustive()
    }
}

/// A cluster that runs. Dropping it ends every process.
#[derive(Debug)]
pub struct Running {
    processes: Vec<Process>,
}

/// Starts the cluster that `spec` describes.
///
/// # Errors
/// [`LaunchError`]; nothing is left running.
pub fn start(
    spec: &ClusterSpec,
    options: &Options,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Running, LaunchError> {
    spec.check()?;
    // In a lab the ports belong to the emulated host, which nobody shares.
    if spec.host == HostKind::Kvm {
        check_ports(&spec.publish)?;
    }
    let config = prepare(spec)?;
    let mut running = Running { processes: Vec::new() };
    let mut names = vec![(IO.to_owned(), vec![IO.to_owned()])];
    names.extend(
        (0..spec.nodes)
            .map(|n| (format!("node-{n}"), vec!["node".to_owned(), "--node".to_owned(), n.to_string()])),
    );
    for (name, arguments) in names {
        let process = spawn(spec, options, &config, &name, &arguments)?;
        progress(&Progress::Started { process: name, pid: process.record.pid });
        running.processes.push(process);
    }
    running.wait_ready(spec, options, progress)?;
    Ok(running)
}

/// Can every published port be listened on now?
///
/// # Errors
/// [`LaunchError::Port`] names the first that cannot.
pub fn check_ports(publish: &[Publish]) -> Result<(), LaunchError> {
    for publish in publish {
        TcpListener::bind((publish.address, publish.host)).map_err(|source| LaunchError::Port {
            address: publish.address,
            port: publish.host,
            source,
        })?;
    }
    Ok(())
}

/// Makes the directories and writes the description; returns its path.
fn prepare(spec: &ClusterSpec) -> Result<PathBuf, LaunchError> {
    for name in ["fabric", "logs"] {
        let path = spec.state.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(io_error(format!("cannot make {}", path.display())))?;
    }
    let path = spec.state.join("config.json");
    let json = serde_json::to_vec_pretty(spec).map_err(|e| SpecError(e.to_string()))?;
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    written
        .and_then(|mut file| file.write_all(&json))
        .map_err(io_error(format!("cannot write {}", path.display())))?;
    Ok(path)
}

/// The processors of this process without `cpu`; `None` if none would be left, or it is not one of them.
pub(crate) fn processors_without(cpu: usize) -> Option<CpuSet> {
    let mut set = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let others = (0..CpuSet::count()).any(|other| other != cpu && set.is_set(other) == Ok(true));
    if !others || set.is_set(cpu) != Ok(true) {
        return None;
    }
    set.unset(cpu).ok()?;
    Some(set)
}

fn spawn(
    spec: &ClusterSpec,
    options: &Options,
    config: &Path,
    name: &str,
    arguments: &[String],
) -> Result<Process, LaunchError> {
    let (log, errors) = match spec.host {
        // An emulated host takes its files with it: what processes say goes to its console, which the machine keeps.
        HostKind::Lab => (Stdio::inherit(), Stdio::inherit()),
        HostKind::Kvm => {
            let path = spec.log_path(name);
            let log = File::create(&path).map_err(io_error(format!("cannot write {}", path.display())))?;
            let errors = log.try_clone().map_err(io_error("cannot share a log"))?;
            (log.into(), errors.into())
        }
    };
    let mut command = Command::new(&options.program);
    command.args(arguments).arg("--leash").arg("--config").arg(config);
    command.stdin(Stdio::piped()).stdout(log).stderr(errors).current_dir("/");
    let processors = options.nodes_avoid_cpu.filter(|_| name != IO).and_then(processors_without);
    // SAFETY: both are system calls and nothing else. A session of its own keeps the terminal's signals from it.
    unsafe {
        command.pre_exec(move || {
            if let Some(set) = &processors {
                sched_setaffinity(Pid::from_raw(0), set)?;
            }
            if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let mut child =
        command.spawn().map_err(io_error(format!("cannot start {}", options.program.display())))?;
    let leash = child.stdin.take();
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    match ProcessRecord::of(name, pid) {
        Ok(record) => Ok(Process { name: name.to_owned(), child, leash, record }),
        Err(source) => {
            // Ours and not reaped: the number is still its own.
            let _ = child.kill();
            let _ = child.wait();
            Err(LaunchError::Io { what: format!("cannot look at {name}"), source })
        }
    }
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(QUOTED_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return format!("  {name} is empty");
    }
    let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
    last.iter().map(|line| format!("  {name} | {line}")).collect::<Vec<_>>().join("\n")
}

impl Running {
    /// Waits until every cell's agent answered.
    fn wait_ready(
        &mut self,
        spec: &ClusterSpec,
        options: &Options,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), LaunchError> {
        let secret = Secret::load(&spec.secret).map_err(io_error("the cluster's secret"))?;
        let deadline = Instant::now() + options.ready_within;
        let mut ready = vec![false; spec.nodes as usize];
        loop {
            if options.cancel.is_triggered() {
                return Err(LaunchError::Cancelled);
            }
            if let Some((name, status)) = self.ended()? {
                let log = tail(&spec.log_path(&name));
                let console = name.strip_prefix("node-").and_then(|n| n.parse().ok());
                let log = console.map_or(log.clone(), |n| format!("{log}\n{}", tail(&spec.console_path(n))));
                return Err(LaunchError::Ended { process: name, status: status.to_string(), log });
            }
            if let Some(status) = ask_status(spec, &secret)? {
                for node in &status.nodes {
                    let seen = ready.get_mut(node.node as usize);
                    match (node.state.as_str(), seen) {
                        ("up", Some(seen)) if !*seen => {
                            *seen = true;
                            let count = ready.iter().filter(|ready| **ready).count();
                            let count = u32::try_from(count).unwrap_or(u32::MAX);
                            progress(&Progress::CellReady { cell: node.node, ready: count, of: spec.nodes });
                        }
                        ("dead", _) => {
                            return Err(LaunchError::Dead { cell: node.node, log: logs_of(spec, node.node) });
                        }
                        _ => {}
                    }
                }
            }
            if ready.iter().all(|ready| *ready) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let missing: Vec<u32> = (0..spec.nodes).filter(|n| !ready[*n as usize]).collect();
                let names: Vec<String> = missing.iter().map(|n| format!("cell {n}")).collect();
                let log: Vec<String> = missing.iter().map(|n| logs_of(spec, *n)).collect();
                return Err(LaunchError::Late {
                    missing: format!("no answer from the agent of {}", names.join(", ")),
                    seconds: options.ready_within.as_secs(),
                    log: log.join("\n"),
                });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// A process that has ended, if one has.
    fn ended(&mut self) -> Result<Option<(String, ExitStatus)>, LaunchError> {
        for process in &mut self.processes {
            let status = process.child.try_wait().map_err(io_error("cannot look at a process"))?;
            if let Some(status) = status {
                return Ok(Some((process.name.clone(), status)));
            }
        }
        Ok(None)
    }

    /// Lets the processes go on without us.
    pub fn detach(mut self) -> Vec<ProcessRecord> {
        let processes = std::mem::take(&mut self.processes);
        processes
            .into_iter()
            .map(|mut process| {
                if let Some(mut leash) = process.leash.take() {
                    // If it has just ended, `status` will say so.
                    let _ = leash.write_all(&[LET_GO]);
                }
                process.record
            })
            .collect()
    }

    /// Waits until the I/O server ends, or `cancel` is triggered; then ends what is left.
    pub fn wait(mut self, cancel: &Stop) -> Ended {
        loop {
            if cancel.is_triggered() {
                return Ended { well: false, how: "interrupted".to_owned() };
            }
            let Some(io) = self.processes.first_mut() else {
                return Ended { well: true, how: "there was nothing to wait for".to_owned() };
            };
            match io.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK_EVERY),
                Ok(Some(status)) => {
                    return Ended { well: status.success(), how: format!("the I/O server ended: {status}") };
                }
                Err(error) => return Ended { well: false, how: format!("cannot wait: {error}") },
            }
        }
    }
}

fn logs_of(spec: &ClusterSpec, node: u32) -> String {
    format!("{}\n{}", tail(&spec.log_path(&format!("node-{node}"))), tail(&spec.console_path(node)))
}

/// What the controller says; `None` while it does not listen yet.
fn ask_status(spec: &ClusterSpec, secret: &Secret) -> Result<Option<Status>, LaunchError> {
    let client = match Client::connect(&spec.control, &spec.name, secret) {
        Ok(client) => client,
        Err(
            ClientError::Unreachable { .. } | ClientError::Handshake { source: HandshakeError::Io(_), .. },
        ) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match client.ask(&Request::Status) {
        Ok(status) => Ok(Some(status)),
        // It is just ending: its process will say why.
        Err(ClientError::Frame(_) | ClientError::Silent) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let running: Vec<ProcessRecord> = self.processes.iter().map(|p| p.record.clone()).collect();
        end_all(&running, GRACE);
        for process in &mut self.processes {
            // Killed: this reaps it.
            let _ = process.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_left_out_if_there_is_another() {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let ours: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true)).collect();
        let without = processors_without(ours[0]);
        assert_eq!(without.is_some(), ours.len() > 1);
        if let Some(set) = without {
            let left: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect();
            assert_eq!(left, ours[1..]);
        }
        let strange = (0..CpuSet::count()).find(|cpu| !ours.contains(cpu)).unwrap();
        assert_eq!(processors_without(strange), None);
    }
}
