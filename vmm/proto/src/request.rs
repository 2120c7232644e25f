//! The records inside the exec stream's JSON frames: what a client asks of the controller or of a cell's agent,
//! and what they answer.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Vsock port on which each cell's agent listens.
pub const AGENT_PORT: u32 = 1024;

/// A request, the first frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Run a program in a cell. Answered with [`Started`]; frames follow.
    Exec(Exec),
    /// The processes of a cell (agent), or of all cells (controller). Answered with a list of [`Process`].
    Ps,
    /// Is the agent there, and which cell is it? Answered with [`Pong`].
    Ping,
    /// The cluster: answered with [`Status`] by the controller.
    Status,
    /// Move a process (controller). Answered when the migration ended.
    Migrate {
        /// The process.
        pid: u32,
        /// The destination cell.
        cell: u32,
        /// All pages before the commit.
        #[serde(default)]
        eager: bool,
    },
    /// Attach to the serial console of a cell (controller). STDIN and STDOUT frames follow.
    Console {
        /// Which cell.
        cell: u32,
    },
    /// Stop: the agent syncs and reboots its cell; the controller stops every cell, then itself.
    Shutdown,
}

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments; the program is looked up in PATH.
    pub argv: Vec<String>,
    /// Where; the controller's default is cell 0.
    #[serde(default)]
    pub cell: u32,
    /// Added to the agent's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; default `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User name or number; default root.
    #[serde(default)]
    pub user: Option<String>,
    /// Give it a terminal of this size, as its controlling terminal; otherwise three pipes.
    #[serde(default)]
    pub tty: Option<WindowSize>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A signal for the program (its foreground group, with a terminal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number.
    pub signal: i32,
}

/// How a program ended: one of the two is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// One line of progress of a long operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub message: String,
}

/// An answer: `{"ok":true, ...}` or `{"ok":false,"error":...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Was it done?
    pub ok: bool,
    /// What went wrong, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The errno's name, where there is one, for a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The record that the operation promises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

impl Response {
    /// Done; with the record that the operation promises.
    ///
    /// # Errors
    /// If the record cannot be written as JSON.
    pub fn done<T: Serialize>(data: &T) -> Result<Self, serde_json::Error> {
        Ok(Self { ok: true, error: None, code: None, data: Some(serde_json::to_value(data)?) })
    }

    /// Refused or failed.
    pub fn failed(error: impl Into<String>, code: Option<&str>) -> Self {
        Self { ok: false, error: Some(error.into()), code: code.map(str::to_owned), data: None }
    }
}

/// Answer to [`Request::Exec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// PID of the program.
    pub pid: u32,
}

/// Answer to [`Request::Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The cell's number.
    pub cell: u32,
}

/// A process, as `ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// PID, the same wherever it runs.
    pub pid: u32,
    /// The parent's PID.
    pub ppid: u32,
    /// The cell that reports it.
    pub cell: u32,
    /// The cell where it was born.
    pub home: u32,
    /// Only the deputy of a process that runs elsewhere.
    pub deputy: bool,
    /// How often it has moved.
    pub moves: u64,
    /// Numeric user.
    pub uid: u32,
    /// State letter of proc(5).
    pub state: char,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Name of the program.
    pub comm: String,
    /// Command line, or the name in brackets for a kernel thread.
    pub command: String,
}

/// The cluster, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `kvm` or `lab`.
    pub host: String,
    /// Published ports, `host:guest`.
    pub publish: Vec<String>,
    /// Seconds since it is up.
    pub uptime_s: u64,
    /// One per node.
    pub nodes: Vec<NodeStatus>,
}

/// A node, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Number of node and cell.
    pub node: u32,
    /// `starting`, `up`, `dead`.
    pub state: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Bytes of its slice and low RAM.
    pub memory_bytes: u64,
    /// Resident bytes of the VMM that are not guest memory.
    pub vmm_overhead_bytes: u64,
    /// Processes that run there (no kernel threads, no deputies).
    pub processes: u32,
    /// Processes that were born elsewhere.
    pub guests: u32,
    /// What its coherent memory has cost so far.
    #[serde(default)]
    pub dsm: DsmStatus,
}

/// What a node's coherent memory has cost since it started (the paper's Table 4, and more).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DsmStatus {
    /// Accesses that waited for a page to read.
    pub read: WaitStatus,
    /// Accesses that waited for a page to write.
    pub write: WaitStatus,
    /// Accesses that waited for the right to write a page that was there.
    pub upgrade: WaitStatus,
    /// Messages sent.
    pub sent_count: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Messages received.
    pub received_count: u64,
    /// Messages that did not fit, and were refused.
    pub refused_count: u64,
    /// Pages of other nodes that take memory here.
    pub window_pages: u64,
    /// Pages of other nodes that were given back.
    pub discarded_pages: u64,
    /// Pages that came ahead of their access.
    pub run_pages: u64,
    /// Pages lost with a node.
    pub lost_pages: u64,
}

/// How long accesses of one kind waited, from the report of the fault until the page was there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitStatus {
    /// How many.
    pub count: u64,
    /// The shortest, in microseconds; 0 if there was none.
    pub min_us: u64,
    /// The mean.
    pub mean_us: u64,
    /// The longest.
    pub max_us: u64,
    /// How many took less than 1, 2, 4, ... microseconds, and no less than half of that; the last one has the rest.
    pub below_us: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let exec: Request = serde_json::from_str(r#"{"op":"exec","argv":["true"],"cell":1}"#).unwrap();
        assert_eq!(exec, Request::Exec(Exec { argv: vec!["true".into()], cell: 1, ..Exec::default() }));
        let migrate: Request = serde_json::from_str(r#"{"op":"migrate","pid":4211,"cell":1}"#).unwrap();
        assert_eq!(migrate, Request::Migrate { pid: 4211, cell: 1, eager: false });
        assert!(serde_json::from_str::<Request>(r#"{"op":"exec","argv":[],"colour":1}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"op":"fly"}"#).is_err());
    }
}
