//! Moving a process from outside: find the cell where it runs, and run migrate(1) there.

use serde::{Deserialize, Serialize};
use ssi_proto::frame::Kind;
use ssi_proto::request::{Exec, Exit, Process, Request, Started};

use super::cells::Cells;
use super::client::{Client, ClientError};
use super::server::AGENT_TIMEOUT;
use ssi_proto::request::AGENT_PORT;

/// Most bytes that are kept of what migrate(1) prints.
const OUTPUT_MAX_BYTES: usize = 64 << 10;

/// Why a process was not moved: the answer to a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// For a person.
    pub error: String,
    /// The errno's name.
    pub code: Option<String>,
}

/// How a move went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The process.
    pub pid: u32,
    /// Where it was.
    pub from: u32,
    /// Where it is.
    pub to: u32,
    /// What the source kernel measured (`/proc/ssi/PID/stat`), if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<serde_json::Value>,
}

fn refused(error: impl Into<String>, code: &str) -> Refused {
    Refused { error: error.into(), code: Some(code.to_owned()) }
}

/// The processes of `cell`.
///
/// # Errors
/// Why the agent did not say.
pub fn processes(cells: &dyn Cells, cell: u32) -> Result<Vec<Process>, String> {
    let client = Client::over(cells.connect(cell, AGENT_PORT)?);
    client.set_timeout(Some(AGENT_TIMEOUT)).map_err(|e| e.to_string())?;
    client.ask(&Request::Ps).map_err(|e| format!("cell {cell}: {e}"))
}

/// The cell where `pid` runs.
fn find(cells: &dyn Cells, pid: u32) -> Result<u32, Refused> {
    let mut silent = Vec::new();
    for cell in (0..cells.count()).filter(|cell| cells.is_alive(*cell)) {
        match processes(cells, cell) {
            Ok(all) if all.iter().any(|process| process.pid == pid && !process.deputy) => return Ok(cell),
            Ok(_) => {}
            Err(error) => silent.push(error),
        }
    }
    if silent.is_empty() {
        return Err(refused(format!("process {pid}: there is no such process in any cell"), "ESRCH"));
    }
    // It may be in a cell that does not answer: this is not "no such process".
    let error = format!("process {pid} was not found, and not every cell answered: {}", silent.join("; "));
    Err(Refused { error, code: None })
}

/// The errno's name in a line of migrate(1): `migrate: process 1: EPERM: ...`.
fn errno_in(message: &str) -> Option<String> {
    let is_errno = |word: &&str| {
        word.len() > 1
            && word.starts_with('E')
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    message.split(": ").find(is_errno).map(str::to_owned)
}

/// Moves `pid` to `to`.
///
/// # Errors
/// [`Refused`]: nothing was moved, and the process goes on where it is.
pub fn migrate(cells: &dyn Cells, pid: u32, to: u32, eager: bool) -> Result<Moved, Refused> {
    if to >= cells.count() {
        let last = cells.count() - 1;
        return Err(refused(format!("there is no cell {to}; the last one is {last}"), "EHOSTUNREACH"));
    }
    if !cells.is_alive(to) {
        return Err(refused(format!("cell {to} is dead"), "EHOSTUNREACH"));
    }
    let from = find(cells, pid)?;
    let mut argv = vec!["/usr/bin/migrate".to_owned(), "--json".to_owned()];
    if eager {
        argv.push("--eager".to_owned());
    }
    argv.extend([pid.to_string(), to.to_string()]);
    let (exit, out, err) =
        run(cells, from, Exec { argv, cell: from, ..Exec::default() }).map_err(|error| match error {
            ClientError::Refused { error, code } => Refused { error, code },
            other => Refused { error: format!("cell {from}: {other}"), code: None },
        })?;
    if exit.code == Some(0) {
        return Ok(Moved { pid, from, to, facts: serde_json::from_slice(&out).ok() });
    }
    let said = String::from_utf8_lossy(&err).trim().to_owned();
    let error = said.strip_prefix("migrate: ").unwrap_or(&said).to_owned();
    let code = errno_in(&error);
    if error.is_empty() {
        return Err(Refused { error: format!("migrate(1) ended with {exit:?} and said nothing"), code });
    }
    Err(Refused { error, code })
}

/// Runs a program in a cell to its end: how it ended, and what it wrote.
fn run(cells: &dyn Cells, cell: u32, exec: Exec) -> Result<(Exit, Vec<u8>, Vec<u8>), ClientError> {
    let stream =
        cells.connect(cell, AGENT_PORT).map_err(|error| ClientError::Refused { error, code: None })?;
    let client = Client::over(stream);
    let _: Started = client.ask(&Request::Exec(exec))?;
    client.send(&ssi_proto::frame::Frame::bytes(Kind::Stdin, &[]))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let frame = client.receive()?.ok_or(ClientError::Silent)?;
        let sink = match frame.kind {
            Kind::Exit => return Ok((frame.record(Kind::Exit)?, out, err)),
            Kind::Stderr => &mut err,
            _ => &mut out,
        };
        let room = OUTPUT_MAX_BYTES.saturating_sub(sink.len());
        sink.extend_from_slice(&frame.payload[..frame.payload.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::errno_in;

    #[test]
    fn the_errno_is_read_from_what_migrate_says() {
        let line = "process 1: EPERM: it belongs to another user; it goes on where it was";
        assert_eq!(errno_in(line).as_deref(), Some("EPERM"));
        assert_eq!(errno_in("process 7: E2BIG: x").as_deref(), Some("E2BIG"));
        assert_eq!(errno_in("Everything: is broken"), None);
        assert_eq!(errno_in(""), None);
    }
}
