//! Processes by number: a number alone may be another process by now, so it goes with the time of its start.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// `io`, `node-N` or `lab`.
    pub name: String,
    /// Its number.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    pub start_ticks: u64,
}

/// Start of process `pid` and its state, from `/proc/PID/stat`.
fn stat(pid: i32) -> Option<(u64, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold anything.
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((rest.nth(18)?.parse().ok()?, state))
}

impl ProcessRecord {
    /// The record of the running process `pid`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(name: &str, pid: i32) -> io::Result<Self> {
        let (start_ticks, _) = stat(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { name: name.to_owned(), pid, start_ticks })
    }

    /// Does it run? A zombie does not.
    pub fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|(start, state)| start == self.start_ticks && state != 'Z' && state != 'X')
    }

    /// Sends it `signal`, if it runs.
    fn signal(&self, signal: Signal) {
        if self.is_running() {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Ends `processes`: asks, waits up to `grace`, then kills. Returns when none runs.
pub fn end_all(processes: &[ProcessRecord], grace: Duration) {
    for (signal, wait) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, Duration::from_secs(10))] {
        processes.iter().for_each(|process| process.signal(signal));
        let deadline = Instant::now() + wait;
        while processes.iter().any(ProcessRecord::is_running) {
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_number_that_another_process_has_now_is_not_running_and_not_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = ProcessRecord::of("x", i32::try_from(child.id()).unwrap()).unwrap();
        assert!(record.is_running());
        let other = ProcessRecord { start_ticks: record.start_ticks + 1, ..record.clone() };
        assert!(!other.is_running());
        end_all(std::slice::from_ref(&other), Duration::ZERO);
        assert!(record.is_running());
        end_all(std::slice::from_ref(&record), Duration::from_secs(5));
        assert!(!record.is_running(), "a zombie does not run");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(15));
    }
}
