use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use ssi_images::boot::MARKER;

use super::{Contest, Vmm};
use crate::lab::host::open_process;
use crate::launch::processors_without;
use crate::worker::Stop;

/// A boot takes seconds, in an emulated host too.
pub const BOOT_WITHIN: Duration = Duration::from_secs(120);
/// Output that an error quotes, in bytes.
const QUOTED_BYTES: usize = 2048;

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Who.
    pub vmm: Vmm,
    /// Which round, from 1; round 0 warms up and does not count.
    pub round: u32,
    /// From the start of the process to the marker, in microseconds.
    pub up_us: u64,
    /// From the start of the process to its end, in microseconds.
    pub end_us: u64,
}

/// Why a boot was not measured. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The guest's first program was not heard of.
    #[error("{} ended ({status}) before its guest was up\n{output}", vmm.name())]
    Ended {
        /// Who.
        vmm: Vmm,
        /// How.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// The guest was up, but its reset was no end in order.
    #[error("{} ended badly ({status}) after its guest was up\n{output}", vmm.name())]
    Bad {
        /// Who.
        vmm: Vmm,
        /// How.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It took too long.
    #[error("{} {missing} within {seconds} s\n{output}", vmm.name())]
    Late {
        /// Who.
        vmm: Vmm,
        /// What it did not do.
        missing: &'static str,
        /// How long it was waited for.
        seconds: u64,
        /// The end of what it wrote.
        output: String,
    },
    /// It was given up.
    #[error("interrupted")]
    Cancelled,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let what = what.into();
    |source| BootError::Io { what, source }
}

/// The boots of `rounds` rounds and of the one that warms up, in their order: who is first changes with each round.
pub fn order(rounds: u32) -> impl Iterator<Item = (u32, Vmm)> {
    (0..=rounds).flat_map(|round| {
        let mut pair = Vmm::BOTH;
        if round % 2 == 1 {
            pair.reverse();
        }
        pair.map(|vmm| (round, vmm))
    })
}

/// How many boots [`order`] has.
pub fn boots(rounds: u32) -> usize {
    2 * (rounds as usize + 1)
}

/// Boots both in turn, and hands every boot to `seen`, those that warm up too.
///
/// # Errors
/// [`BootError`]; nothing is left running.
pub fn measure(
    contest: &Contest,
    rounds: u32,
    cancel: &Stop,
    mut seen: impl FnMut(Boot),
) -> Result<(), BootError> {
    for (round, vmm) in order(rounds) {
        let command = contest.command(vmm);
        let (up, end) = Running::start(vmm, &command, contest.avoid_cpu)?.watch(BOOT_WITHIN, cancel)?;
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        seen(Boot { vmm, round, up_us: us(up), end_us: us(end) });
    }
    Ok(())
}

/// What a VMM wrote: the end of it, and whether the marker's whole line was in it.
#[derive(Debug, Default)]
struct Heard {
    last: VecDeque<u8>,
    marker: bool,
}

impl Heard {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.last.push_back(*byte);
            if self.last.len() > QUOTED_BYTES {
                self.last.pop_front();
            }
            // The terminal puts a carriage return before the end of the line.
            self.marker |= *byte == b'\n' && self.line().trim_end().ends_with(MARKER);
        }
    }

    /// The line that was heard last.
    fn line(&self) -> String {
        let before_end = self.last.iter().rev().skip(1);
        let mut line: Vec<u8> = before_end.take_while(|byte| **byte != b'\n').copied().collect();
        line.reverse();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// The end of it, as an error quotes it.
    fn quote(&self) -> String {
        let bytes: Vec<u8> = self.last.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        lines.map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// A VMM that runs; dropping it ends it.
#[derive(Debug)]
struct Running {
    vmm: Vmm,
    begun: Instant,
    child: Child,
    process: OwnedFd,
    output: PipeReader,
    heard: Heard,
    /// It can still write.
    open: bool,
}

impl Running {
    fn start(vmm: Vmm, command: &[OsString], avoid_cpu: Option<usize>) -> Result<Self, BootError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io_error("there is no program to start")(io::ErrorKind::InvalidInput.into()));
        };
        let cannot = || io_error(format!("cannot start {}", program.to_string_lossy()));
        let (output, writer) = io::pipe().map_err(cannot())?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(cannot())?;
        let errors = writer.try_clone().map_err(cannot())?;
        let processors = avoid_cpu.and_then(processors_without);
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(writer).stderr(errors).env("RUST_LOG", "warn");
        // SAFETY: all are system calls and nothing else. A session of its own keeps the terminal's signals from it; it ends
        // when we do.
        unsafe {
            command.pre_exec(move || {
                if let Some(set) = &processors {
                    sched_setaffinity(Pid::from_raw(0), set)?;
                }
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let begun = Instant::now();
        let mut child = command.spawn().map_err(cannot())?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        match open_process(pid) {
            Ok(process) => {
                Ok(Self { vmm, begun, child, process, output, heard: Heard::default(), open: true })
            }
            Err(source) => {
                // Ours and not reaped: the number is still its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(cannot()(source))
            }
        }
    }

    /// Waits for the marker and for the end; returns when they came, counted from the start.
    fn watch(mut self, within: Duration, cancel: &Stop) -> Result<(Duration, Duration), BootError> {
        let mut up = None;
        loop {
            let left = within.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                let missing = if up.is_some() { "did not end" } else { "did not bring its guest up" };
                let output = self.heard.quote();
                return Err(BootError::Late { vmm: self.vmm, missing, seconds: within.as_secs(), output });
            }
            let ended = self.wait(left, cancel)?;
            if cancel.is_triggered() {
                return Err(BootError::Cancelled);
            }
            let now = self.begun.elapsed();
            self.listen()?;
            if self.heard.marker {
                up.get_or_insert(now);
            }
            if ended {
                let status = self.child.wait().map_err(io_error("cannot wait for a VMM"))?;
                let (vmm, output) = (self.vmm, self.heard.quote());
                return match up {
                    None => Err(BootError::Ended { vmm, status, output }),
                    Some(_) if !status.success() => Err(BootError::Bad { vmm, status, output }),
                    Some(up) => Ok((up, now)),
                };
            }
        }
    }

    /// Waits until there is output, or it has ended (then true), or `cancel` is triggered, or `limit` is over.
    fn wait(&self, limit: Duration, cancel: &Stop) -> Result<bool, BootError> {
        // SAFETY: the descriptor is open as long as `cancel` is borrowed.
        let cancelled = unsafe { BorrowedFd::borrow_raw(cancel.as_raw_fd()) };
        let mut fds = [
            PollFd::new(self.process.as_fd(), PollFlags::POLLIN),
            PollFd::new(cancelled, PollFlags::POLLIN),
            PollFd::new(self.output.as_fd(), PollFlags::POLLIN),
        ];
        // A pipe that nobody writes to is always ready.
        let count = if self.open { fds.len() } else { fds.len() - 1 };
        let limit = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds[..count], limit) {
            Ok(_) => Ok(fds[0].any() == Some(true)),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(io_error("cannot wait for a VMM")(error.into())),
        }
    }

    /// Takes all the output that there is now.
    fn listen(&mut self) -> Result<(), BootError> {
        let mut bytes = [0; 4096];
        loop {
            match self.output.read(&mut bytes) {
                Ok(0) => {
                    self.open = false;
                    return Ok(());
                }
                Ok(len) => self.heard.hear(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("cannot read a serial console")(error)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that was waited for is not signalled any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    /// A shell script in the place of a VMM.
    fn script(text: &str) -> Running {
        let command = ["sh", "-c", text].map(OsString::from);
        Running::start(Vmm::Qemu, &command, None).unwrap()
    }

    #[test]
    fn who_boots_first_changes_with_each_round() {
        use Vmm::{Qemu, Ssivmm};
        let all: Vec<_> = order(2).collect();
        assert_eq!(all, [(0, Ssivmm), (0, Qemu), (1, Qemu), (1, Ssivmm), (2, Ssivmm), (2, Qemu)]);
        assert_eq!(boots(2), all.len());
    }

    #[test]
    fn the_marker_is_heard_in_pieces_and_behind_a_label_but_only_as_the_end_of_a_line() {
        let heard = |pieces: &[&str]| {
            let mut heard = Heard::default();
            pieces.iter().for_each(|piece| heard.hear(piece.as_bytes()));
            heard.marker
        };
        assert!(heard(&["noise\r\n[0] ssi-bo", "ot: up\r", "\nmore\n"]));
        assert!(!heard(&["ssi-boot: up"]), "the line is not whole");
        assert!(!heard(&["ssi-boot: up!\n", "ssi-boot: \nup\n"]));
    }

    #[test]
    fn what_is_kept_of_the_output_is_bounded() {
        let mut heard = Heard::default();
        heard.hear(&[b'x'; 3 * QUOTED_BYTES]);
        assert_eq!(heard.last.len(), QUOTED_BYTES);
    }

    #[test]
    fn a_boot_is_up_at_its_marker_and_over_at_its_end() {
        let script = script(&format!("sleep 0.1; echo '{MARKER}'; sleep 0.2"));
        let (up, end) = script.watch(WITHIN, &Stop::new().unwrap()).unwrap();
        assert!(
            up >= Duration::from_millis(100) && end >= up + Duration::from_millis(200),
            "{up:?}, {end:?}"
        );
    }

    #[test]
    fn a_vmm_that_ends_before_the_marker_is_quoted() {
        let error = script("echo no kernel >&2; exit 3").watch(WITHIN, &Stop::new().unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BootError::Ended { .. }), "{text}");
        assert!(text.contains("exit status: 3") && text.contains("| no kernel"), "{text}");
    }

    #[test]
    fn a_vmm_that_fails_after_the_marker_is_no_boot() {
        let script = script(&format!("echo '{MARKER}'; exit 3"));
        let error = script.watch(WITHIN, &Stop::new().unwrap()).unwrap_err();
        assert!(matches!(error, BootError::Bad { .. }), "{error}");
    }

    #[test]
    fn a_boot_that_is_late_or_given_up_leaves_no_process() {
        let cancelled = Stop::new().unwrap();
        cancelled.trigger();
        for (within, cancel) in [(Duration::from_millis(100), Stop::new().unwrap()), (WITHIN, cancelled)] {
            let running = script("exec sleep 60");
            let process = running.process.try_clone().unwrap();
            let error = running.watch(within, &cancel).unwrap_err();
            assert!(matches!(error, BootError::Late { .. } | BootError::Cancelled), "{error}");
            let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1), "it still runs");
        }
    }
}
