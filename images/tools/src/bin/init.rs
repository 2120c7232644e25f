//! PID 1 of a cell: mounts what a Linux system has, brings up the one network card, starts `migrationd` and the agent,
//! reaps, and ends the cell when it is told to (SIGTERM).

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, sync};
use ssi_tools::{cmdline::Parameters, network};

const AGENT: &str = "/usr/lib/ssi/agent";
const MIGRATIOND: &str = "/usr/sbin/migrationd";
/// How long programs may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

fn main() {
    if std::process::id() != 1 {
        eprintln!("ssi-init: this program is PID 1 of a cell and nothing else");
        std::process::exit(2);
    }
    match run() {
        Ok(()) => {}
        Err(error) => println!("ssi-init: {error:#}"),
    }
    end();
}

fn run() -> Result<()> {
    mount_all();
    let parameters = Parameters::of_this_kernel()?;
    println!("ssi-init: cell {}", parameters.cell);
    sethostname(&parameters.name).context("setting the host name")?;
    if let Err(error) = name_the_host(&parameters) {
        println!("ssi-init: /etc/hosts: {error:#}");
    }
    if let Err(error) = bring_up_network(&parameters) {
        println!("ssi-init: network: {error:#}");
    }
    let mut told = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        told.add(signal);
    }
    told.thread_block().context("blocking signals")?;
    let mut services = Services::default();
    services.start_agent()?;
    println!("ssi-init: cell {} ready", parameters.cell);
    services.start_migrationd();
    loop {
        match told.wait() {
            Ok(Signal::SIGCHLD) => services.reap(),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for signals"),
        }
    }
}

/// Mounts; one that fails is told and does not keep the cell from coming up.
fn mount_all() {
    let private = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounts = [
        ("proc", "/proc", private, ""),
        ("sysfs", "/sys", private, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", private, ""),
    ];
    for (kind, place, flags, data) in mounts {
        if place.starts_with("/dev/")
            && let Err(error) = fs::create_dir_all(place)
        {
            println!("ssi-init: {place}: {error}");
        }
        match mount(Some(kind), Path::new(place), Some(kind), flags, Some(data)) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => println!("ssi-init: mounting {kind} on {place}: {error}"),
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let link = Path::new("/dev").join(name);
        if name == "ptmx" {
            drop(fs::remove_file(&link));
        }
        drop(std::os::unix::fs::symlink(target, link));
    }
}

/// Enters the host name into `/etc/hosts`, so that looking it up asks nobody. The root is one for all cells: cell 0 does it.
fn name_the_host(parameters: &Parameters) -> Result<()> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let named = |line: &str| line.split_ascii_whitespace().skip(1).any(|word| word == parameters.name);
    if parameters.cell == 0 && !hosts.lines().any(named) {
        let address = parameters.ip.map_or(Ipv4Addr::LOCALHOST, |ip| ip.0);
        fs::write("/etc/hosts", format!("{hosts}{address}\t{}\n", parameters.name)).context("writing it")?;
    }
    Ok(())
}

fn bring_up_network(parameters: &Parameters) -> Result<()> {
    network::up("lo", None)?;
    if let Some(ip) = parameters.ip {
        network::up("eth0", Some(ip))?;
    }
    parameters.gateway.map_or(Ok(()), network::default_route)
}

/// The two programs that a cell always runs; one that ends is started again.
#[derive(Debug, Default)]
struct Services {
    agent: Option<Child>,
    migrationd: Option<Child>,
}

impl Services {
    /// Starts the agent and waits until its port is open.
    fn start_agent(&mut self) -> Result<()> {
        let (ready, told) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("making a pipe")?;
        let inherited = duplicate(&told)?;
        let mut command = Command::new(AGENT);
        command.arg("--ready-fd").arg(inherited.as_raw_fd().to_string()).stdin(Stdio::null());
        self.agent = Some(spawn(&mut command).with_context(|| format!("starting {AGENT}"))?);
        drop((told, inherited));
        let mut byte = [0];
        File::from(ready).read_exact(&mut byte).with_context(|| format!("{AGENT} ended before it was ready"))
    }

    fn start_migrationd(&mut self) {
        match spawn(Command::new(MIGRATIOND).stdin(Stdio::null())) {
            Ok(child) => self.migrationd = Some(child),
            Err(error) => println!("ssi-init: starting {MIGRATIOND}: {error}; processes cannot move here"),
        }
    }

    /// Takes the status of everything that ended.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => self.ended(status),
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        let is = |child: &Option<Child>| {
            let pid = child.as_ref().and_then(|c| i32::try_from(c.id()).ok());
            pid.is_some() && status.pid().map(Pid::as_raw) == pid
        };
        if is(&self.agent) {
            println!("ssi-init: the agent ended ({status:?}); starting it again");
            if let Err(error) = self.start_agent() {
                println!("ssi-init: {error:#}");
            }
        } else if is(&self.migrationd) {
            self.migrationd = None;
            // A kernel without the ssi device has nothing for it to do: it says so with status 69 (EX_UNAVAILABLE).
            if !matches!(status, WaitStatus::Exited(_, 69)) {
                println!("ssi-init: migrationd ended ({status:?}); starting it again");
                self.start_migrationd();
            }
        }
    }
}

/// A copy of the descriptor that a child inherits.
fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: dup makes a new descriptor, ours alone, without close-on-exec.
    let copy = unsafe { libc::dup(fd.as_raw_fd()) };
    Errno::result(copy).context("duplicating a descriptor")?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Starts a service with no signal blocked.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one system call on a value of its own.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
    command.spawn()
}

/// Ends every program, writes everything out and resets the machine, which ends the VMM.
fn end() -> ! {
    println!("ssi-init: stopping");
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        tell_everyone(signal);
    }
    let since = Instant::now();
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    while any_child_left() {
        let Some(left) = GRACE.checked_sub(since.elapsed()) else {
            tell_everyone(Signal::SIGKILL);
            break;
        };
        wait_for_child(&children, left);
    }
    sync();
    println!("ssi-init: stopped");
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    println!("ssi-init: reboot: {error}");
    loop {
        nix::unistd::pause();
    }
}

fn tell_everyone(signal: Signal) {
    match signal::kill(Pid::from_raw(-1), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => println!("ssi-init: {signal}: {error}"),
    }
}

/// Reaps what ended; is anything left?
fn any_child_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

fn wait_for_child(children: &SigSet, limit: Duration) {
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(0),
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    // SAFETY: both structures live over the call; the result is looked at by the caller through waitpid.
    unsafe {
        libc::sigtimedwait(std::ptr::from_ref(children.as_ref()), std::ptr::null_mut(), &raw const limit)
    };
}
