use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::payload::Payload;
use super::qemu::{Disk, Forward, LabImages, Machine, PROGRAM};
use super::tsc;
use crate::worker::Stop;

/// Prefix of the lines that PID 1 of an emulated host prints.
pub const SAYS: &str = "ssi-lab: ";
/// How long to wait between two looks at the console, while waiting for QEMU to end.
const LOOK_EVERY_MS: i32 = 50;
/// Lines of logs that an error quotes.
const QUOTED_LINES: usize = 15;

/// Why an emulated host cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// QEMU is not installed.
    #[error("the lab needs {PROGRAM}, which is not installed; install it: apt-get install qemu-system-x86")]
    NoQemu,
    /// A port of the machine is taken.
    #[error(
        "cannot listen on {address}: {source}; publish another port, or end the program that has this one"
    )]
    Port {
        /// The address.
        address: std::net::SocketAddrV4,
        /// What bind said.
        source: io::Error,
    },
    /// An image is missing.
    #[error("{} does not exist", .0.display())]
    NoImage(PathBuf),
    /// The machine's side failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The emulated host ended.
    #[error("the emulated host ended{}\n{quoted}\nlogs: {}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default(), logs.display())]
    Ended {
        /// The last thing that its PID 1 said.
        why: Option<String>,
        /// The ends of its logs.
        quoted: String,
        /// Folder of the logs.
        logs: PathBuf,
    },
    /// It did not come up in time.
    #[error("the emulated host did not say `{line}` within {seconds} s\n{quoted}\nlogs: {}", logs.display())]
    Late {
        /// What was waited for.
        line: String,
        /// How long.
        seconds: u64,
        /// The ends of its logs.
        quoted: String,
        /// Folder of the logs.
        logs: PathBuf,
    },
    /// The user gave up.
    #[error("interrupted")]
    Cancelled,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let what = what.into();
    |source| LabError::Io { what, source }
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// A folder of this run alone, mode 0700: payload, logs, and the record of the process.
    pub run_dir: PathBuf,
    /// Images.
    pub images: LabImages,
    /// More disks, for work that needs them.
    pub disks: Vec<Disk>,
    /// Memory of the emulated host in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub cpus: u32,
    /// Ports of the machine that lead into it.
    pub forwards: Vec<Forward>,
    /// What it is to do.
    pub payload: Payload,
}

impl LabSpec {
    /// Memory that an emulated host needs for `nodes` nodes of `node_bytes` each: their RAM, their root's writable layer, and
    /// what the host itself takes. In MiB.
    pub fn memory_for(nodes: u32, node_bytes: u64) -> u32 {
        const HOST_MIB: u64 = 512;
        const PER_NODE_MIB: u64 = 64;
        let mib = HOST_MIB + u64::from(nodes) * (node_bytes.div_ceil(1 << 20) + PER_NODE_MIB);
        u32::try_from(mib).unwrap_or(u32::MAX)
    }
}

/// Which process an emulated host is: its number, and when it began, because numbers come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    start_ticks: u64,
}

/// An emulated host. Dropping it leaves it running; [`Lab::kill`] ends it.
#[derive(Debug)]
pub struct Lab {
    run_dir: PathBuf,
    record: Record,
    process: OwnedFd,
    /// Set when this process started it, so that it does not stay as a zombie.
    child: Option<Child>,
    /// Console output that was read and holds no whole line yet.
    partial: Vec<u8>,
    console: Option<File>,
    /// The last thing that its PID 1 said.
    said: Option<String>,
}

impl Lab {
    /// Starts QEMU in the background and returns when it runs. It lives on when this process ends.
    ///
    /// # Errors
    /// If QEMU or an image is missing, a port is taken, or QEMU does not start.
    pub fn boot(spec: &LabSpec) -> Result<Self, LabError> {
        let Some(program) = ssi_images::command::which(PROGRAM) else { return Err(LabError::NoQemu) };
        let images = &spec.images;
        let always = [&images.bzimage, &images.initramfs, &images.vmlinux, &images.root, &images.tools];
        for path in always.into_iter().chain(spec.disks.iter().map(|disk| &disk.file)) {
            if !path.is_file() {
                return Err(LabError::NoImage(path.clone()));
            }
        }
        // QEMU would say so less clearly, and after it had started.
        for Forward { host: address, .. } in &spec.forwards {
            TcpListener::bind(address).map_err(|source| LabError::Port { address: *address, source })?;
        }
        let payload = spec.run_dir.join("payload");
        let bytes =
            spec.payload.to_bytes().map_err(io_error("cannot prepare the emulated host's payload"))?;
        write_private(&payload, &bytes).map_err(io_error(format!("cannot write {}", payload.display())))?;
        let console = spec.run_dir.join("console.log");
        write_private(&console, &[]).map_err(io_error(format!("cannot write {}", console.display())))?;
        let machine = Machine {
            images,
            disks: &spec.disks,
            payload: &payload,
            console: &console,
            memory_mib: spec.memory_mib,
            cpus: spec.cpus,
            forwards: &spec.forwards,
            tsc_khz: tsc::measure_khz(),
        };
        let errors =
            File::create(spec.run_dir.join("qemu.log")).map_err(io_error("cannot write qemu.log"))?;
        let output = errors.try_clone().map_err(io_error("cannot write qemu.log"))?;
        let mut command = Command::new(program);
        command.args(machine.arguments()).stdin(Stdio::null()).stdout(output).stderr(errors);
        // SAFETY: setsid is async-signal-safe. A session of its own keeps the terminal's signals from it.
        unsafe {
            command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
        }
        log::debug!("{command:?}");
        let mut child = command.spawn().map_err(io_error(format!("cannot start {PROGRAM}")))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let started = (|| {
            let record = Record { pid, start_ticks: start_ticks(pid)? };
            write_private(&spec.run_dir.join("lab.json"), &serde_json::to_vec(&record)?)?;
            Ok((record, open_process(pid)?))
        })();
        match started {
            Ok((record, process)) => Ok(Self {
                run_dir: spec.run_dir.clone(),
                record,
                process,
                child: Some(child),
                partial: Vec::new(),
                console: None,
                said: None,
            }),
            Err(source) => {
                // Ours, not reaped: the number is still its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(LabError::Io { what: "cannot record the emulated host's process".into(), source })
            }
        }
    }

    /// The emulated host that was booted with `run_dir` and still runs, if there is one.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn attach(run_dir: &Path) -> Result<Option<Self>, LabError> {
        let path = run_dir.join("lab.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(format!("cannot read {}", path.display()))(error)),
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| io_error(format!("{} is damaged", path.display()))(error.into()))?;
        // The descriptor first, then the check: what it names cannot become another process any more.
        let Ok(process) = open_process(record.pid) else { return Ok(None) };
        if start_ticks(record.pid).ok() != Some(record.start_ticks) {
            return Ok(None);
        }
        Ok(Some(Self {
            run_dir: run_dir.to_owned(),
            record,
            process,
            child: None,
            partial: Vec::new(),
            console: None,
            said: None,
        }))
    }

    /// QEMU's process number.
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// The console's log.
    pub fn console_log(&self) -> PathBuf {
        self.run_dir.join("console.log")
    }

    /// Waits until PID 1 says `line` (without the prefix); each thing it says goes to `said`.
    ///
    /// # Errors
    /// If the emulated host ends before, or does not say it within `limit`, or `cancel` is triggered. It is not killed.
    pub fn wait_for(
        &mut self,
        line: &str,
        limit: Duration,
        cancel: &Stop,
        mut said: impl FnMut(&str),
    ) -> Result<(), LabError> {
        self.wait_until(line, limit, cancel, |text| {
            said(text);
            text == line
        })
    }

    /// Waits until PID 1 says something (`line` tells a person what) for which `said` is true.
    ///
    /// # Errors
    /// As [`Lab::wait_for`].
    pub fn wait_until(
        &mut self,
        line: &str,
        limit: Duration,
        cancel: &Stop,
        mut said: impl FnMut(&str) -> bool,
    ) -> Result<(), LabError> {
        let begun = Instant::now();
        loop {
            let ended = self.poll_ended(cancel)?;
            let mut found = false;
            self.read_console(|text| found |= said(text))?;
            if found {
                return Ok(());
            }
            if ended {
                return Err(self.ended_error());
            }
            if begun.elapsed() > limit {
                return Err(LabError::Late {
                    line: line.to_owned(),
                    seconds: limit.as_secs(),
                    quoted: self.quote(),
                    logs: self.run_dir.clone(),
                });
            }
        }
    }

    /// Waits until it ended; `Ok` if its work ended well.
    ///
    /// # Errors
    /// If its work failed, it died without a word, or `cancel` is triggered.
    pub fn wait(&mut self, cancel: &Stop, mut said: impl FnMut(&str)) -> Result<(), LabError> {
        while !self.poll_ended(cancel)? {
            self.read_console(&mut said)?;
        }
        self.read_console(&mut said)?;
        if self.said.as_deref() == Some("done") { Ok(()) } else { Err(self.ended_error()) }
    }

    /// Does it still run?
    pub fn is_running(&self) -> bool {
        !readable(&self.process, 0)
    }

    /// Ends it now. Only this QEMU: the signal goes through a descriptor of the process.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&mut self) -> Result<(), LabError> {
        // SAFETY: the descriptor is a pidfd that we own; the siginfo pointer may be null.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.process.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) {
            return Err(io_error("cannot end the emulated host")(error));
        }
        readable(&self.process, -1);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.run_dir.join("lab.json"));
        Ok(())
    }

    /// Has it ended? Looks for [`LOOK_EVERY_MS`] at most.
    fn poll_ended(&mut self, cancel: &Stop) -> Result<bool, LabError> {
        let ended = readable(&self.process, LOOK_EVERY_MS);
        if cancel.is_triggered() {
            return Err(LabError::Cancelled);
        }
        if ended && let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        Ok(ended)
    }

    /// Hands on the new lines that PID 1 said.
    fn read_console(&mut self, mut said: impl FnMut(&str)) -> Result<(), LabError> {
        let console = match &mut self.console {
            Some(console) => console,
            None => {
                let opened = File::open(self.run_dir.join("console.log"))
                    .map_err(io_error("cannot read the console"))?;
                self.console.insert(opened)
            }
        };
        console.read_to_end(&mut self.partial).map_err(io_error("cannot read the console"))?;
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // The console may have something of the kernel's before it on the line.
            if let Some((_, text)) = line.trim_end().split_once(SAYS) {
                said(text);
                self.said = Some(text.to_owned());
            }
        }
        Ok(())
    }

    fn ended_error(&self) -> LabError {
        LabError::Ended { why: self.said.clone(), quoted: self.quote(), logs: self.run_dir.clone() }
    }

    /// The ends of the logs of QEMU and of the console.
    fn quote(&self) -> String {
        let mut lines = Vec::new();
        for name in ["qemu.log", "console.log"] {
            let bytes = fs::read(self.run_dir.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
            for line in &all[all.len().saturating_sub(QUOTED_LINES)..] {
                lines.push(format!("  {name} | {line}"));
            }
        }
        lines.join("\n")
    }
}

/// Writes a file that only its owner can read, replacing an earlier one.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

/// When a process began, in clock ticks since boot (proc(5), `/proc/<pid>/stat`, field 22).
fn start_ticks(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is in parentheses and may hold anything; the third begins after the last one.
    let after = text.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
    after
        .split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/<pid>/stat is malformed"))
}

/// A descriptor of a process, which is readable when it has ended.
pub(crate) fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits up to `limit_ms` (-1: for ever) for a descriptor to become readable; a pidfd is when its process has ended.
fn readable(descriptor: &OwnedFd, limit_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid pollfd.
        let count = unsafe { libc::poll(&mut poll, 1, limit_ms) };
        if count >= 0 || limit_ms >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return count > 0;
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
