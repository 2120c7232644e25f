//! The processes of this cell, from proc(5) and `/proc/ssi`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use ssi_proto::request::Process;

use crate::kernel::process_facts;

/// Every process that this cell's `/proc` shows. One that ends meanwhile is left out.
///
/// # Errors
/// If the directory `proc` cannot be read.
pub fn list(proc: &Path, cell: u32) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).with_context(|| format!("reading {}", proc.display()))? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(process) = read(proc, pid, cell) {
            found.push(process);
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

fn read(proc: &Path, pid: u32, cell: u32) -> Option<Process> {
    let folder = proc.join(pid.to_string());
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (comm, fields) = split_stat(&stat)?;
    let command = fs::read(folder.join("cmdline")).ok().and_then(|raw| command_line(&raw));
    let moved = Moved::read(proc, pid, cell);
    Some(Process {
        pid,
        ppid: fields.get(1)?.parse().ok()?,
        cell,
        home: moved.home,
        deputy: moved.deputy,
        moves: moved.moves,
        uid: fs::metadata(&folder).ok()?.uid(),
        state: fields.first()?.chars().next()?,
        rss_kib: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(4),
        comm: comm.to_owned(),
        command: command.unwrap_or_else(|| format!("[{comm}]")),
    })
}

/// Splits `pid (comm) rest`, where `comm` may hold anything, parentheses too.
fn split_stat(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    Some((stat.get(open + 1..close)?, stat.get(close + 1..)?.split_ascii_whitespace().collect()))
}

fn command_line(raw: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(raw);
    let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
    (!text.is_empty()).then(|| words.join(" "))
}

/// What `/proc/ssi/<pid>/stat` says: `key: value` lines.
#[derive(Debug, PartialEq, Eq)]
struct Moved {
    home: u32,
    deputy: bool,
    moves: u64,
}

impl Moved {
    /// A process without an entry was born here and never moved.
    fn read(proc: &Path, pid: u32, cell: u32) -> Self {
        Self::from_facts(&process_facts(proc, pid, "stat"), cell)
    }

    fn from_facts(facts: &[(String, String)], cell: u32) -> Self {
        let number = |key: &str| -> Option<u64> { facts.iter().find(|fact| fact.0 == key)?.1.parse().ok() };
        Self {
            home: number("home").and_then(|n| u32::try_from(n).ok()).unwrap_or(cell),
            deputy: number("deputy").is_some_and(|n| n != 0),
            moves: number("moves").unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_read_whole() {
        let (comm, fields) = split_stat("42 (a) b (c) S 1 42 42").unwrap();
        assert_eq!(comm, "a) b (c");
        assert_eq!(fields[..2], ["S", "1"]);
        assert!(split_stat("42 no parentheses").is_none());
        assert!(split_stat(")(").is_none());
    }

    #[test]
    fn a_kernel_thread_has_no_command_line() {
        assert_eq!(command_line(b""), None);
        assert_eq!(command_line(b"counter\x00100\0").as_deref(), Some("counter 100"));
    }

    #[test]
    fn where_a_process_was_born_and_how_often_it_moved() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(proc.path().join("ssi/42")).unwrap();
        std::fs::write(proc.path().join("ssi/42/stat"), "home: 0\nnode: 1\nmoves: 3\ndeputy: 1\n").unwrap();
        assert_eq!(Moved::read(proc.path(), 42, 2), Moved { home: 0, deputy: true, moves: 3 });
        assert_eq!(Moved::read(proc.path(), 43, 2), Moved { home: 2, deputy: false, moves: 0 });
    }

    #[test]
    fn this_test_sees_itself() {
        let me = std::process::id();
        let all = list(Path::new("/proc"), 0).unwrap();
        let process = all.iter().find(|p| p.pid == me).unwrap();
        assert!(process.rss_kib > 0 && !process.command.is_empty() && process.ppid != 0);
    }
}
