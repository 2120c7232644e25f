//! PID 1 of an emulated host, and the process that it runs.
//!
//! PID 1 sets the machine up, starts `ssivmm lab-run`, and reaps whatever ends. When `lab-run` ends it says how on the
//! console and reboots, which ends QEMU. The two are two processes so that reaping orphans never takes a status that the
//! launcher waits for.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};

use super::host::SAYS;
use super::payload::{Payload, Work, place};

/// The boot benchmark.
mod boot;
/// The launcher.
mod cluster;
/// Addresses of the network cards.
mod network;

/// QEMU changes a flag word of its first processor from any other one, whenever that restores its FPU registers, with a plain
/// read and write (`cpu_clear_ignne`, up to QEMU 10 at least). The same word says whether a guest runs there and whether
/// its memory is translated: a cell on that processor is lost now and then (`docs/lab.md`). Without one the word does not
/// change, and the race has no effect.
const NO_CELL_ON: usize = 0;

/// Runs as PID 1 of an emulated host; ends it in every case.
pub fn pid1() -> ! {
    if std::process::id() != 1 {
        eprintln!("error: lab-init is PID 1 of an emulated host; it is not for use on a machine");
        std::process::exit(2);
    }
    let text = match set_up().and_then(|()| work()) {
        Ok(status) if status.success() => "done".to_owned(),
        Ok(status) => {
            let why = fs::read_to_string(place::FAILURE).unwrap_or_else(|_| describe(status));
            format!("failed: {why}")
        }
        Err(error) => format!("failed: {error:#}"),
    };
    say(&text.replace('\n', "; "));
    // SAFETY: sync has no arguments and no failure.
    unsafe { libc::sync() };
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    eprintln!("cannot reboot: {error}");
    // A dead PID 1 panics the kernel, and `panic=-1` reboots it.
    std::process::exit(1)
}

/// One line that the machine's side reads.
fn say(text: &str) {
    println!("{SAYS}{text}");
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn set_up() -> Result<()> {
    for (kind, at, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", "mode=0755"),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", ""),
        ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
    ] {
        mount_at(kind, Path::new(at), kind, options)?;
    }
    network::set_up()?;
    // Guest RAM is shared memory; where the VMM advises it, huge pages make nested faults rare.
    let advise = Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    fs::write(advise, "advise").with_context(|| format!("cannot write {}", advise.display()))?;
    fs::create_dir_all(place::STATE)?;
    fs::set_permissions("/run/ssi", std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    name_disks()?;
    let payload = File::open(place::PAYLOAD).context("the emulated host was given no payload")?;
    let payload = Payload::read(payload).context("the emulated host's payload cannot be read")?;
    set_clock(payload.realtime_ns)?;
    write_private(place::SECRET, &payload.secret)?;
    write_private(place::WORK, &serde_json::to_vec(&payload.work)?)?;
    say("up");
    Ok(())
}

fn mount_at(source: &str, at: &Path, kind: &str, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
    let options = (!options.is_empty()).then_some(options);
    mount(Some(source), at, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} at {}", at.display()))
}

/// Names each disk after its serial number: which card is which does not depend on the order of discovery.
fn name_disks() -> Result<()> {
    // Not below /dev/ssi: that is the ssi device of a kernel that can be a cell.
    fs::create_dir_all(place::DISKS)?;
    for entry in fs::read_dir("/sys/block")? {
        let disk = entry?;
        let serial = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if let Some(name) = serial.trim().strip_prefix("ssi-") {
            let device = Path::new("/dev").join(disk.file_name());
            if fs::metadata(&device).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
                symlink(&device, Path::new(place::DISKS).join(name))
                    .with_context(|| format!("cannot name the disk {name}"))?;
            }
        }
    }
    Ok(())
}

/// Sets the clock: QEMU's microvm is given no real-time clock that the kernel reads.
fn set_clock(realtime_ns: u64) -> Result<()> {
    if realtime_ns == 0 {
        return Ok(());
    }
    let seconds = i64::try_from(realtime_ns / 1_000_000_000)?;
    let nanoseconds = i64::try_from(realtime_ns % 1_000_000_000)?;
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    // SAFETY: `time` is valid for the call.
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) } != 0 {
        bail!("cannot set the clock: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

fn write_private(path: &str, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("cannot write {path}"))
}

/// Starts `lab-run` and reaps until it has ended.
fn work() -> Result<ExitStatus> {
    let child = Command::new("/proc/self/exe")
        .arg("lab-run")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .spawn()
        .context("cannot start lab-run")?;
    let main = i32::try_from(child.id())?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == main => {
                return Ok(ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == main => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for lab-run"),
        }
    }
}

/// The work of an emulated host: `ssivmm lab-run`, started by PID 1.
///
/// # Errors
/// If there is no work, or it fails.
pub fn run() -> Result<()> {
    let text = fs::read(place::WORK).with_context(|| {
        format!("cannot read {}: lab-run is started by lab-init, in an emulated host", place::WORK)
    })?;
    let work = serde_json::from_slice(&text).with_context(|| format!("{} is malformed", place::WORK))?;
    let done = match work {
        Work::Cluster { spec, ready_within_s } => cluster::run(&spec, Duration::from_secs(ready_within_s)),
        Work::Boot { rounds, format } => boot::run(rounds, format),
        Work::Run { argv } => run_program(&argv),
    };
    if let Err(error) = &done {
        // All of it goes to the console; PID 1 says the first line.
        let text = format!("{error:#}");
        write_private(place::FAILURE, text.lines().next().unwrap_or_default().as_bytes())?;
    }
    done
}

/// Runs a program in a writable root over the images.
fn run_program(argv: &[String]) -> Result<()> {
    let Some((program, arguments)) = argv.split_first() else { bail!("no program to run") };
    let root = mount_root()?;
    let status = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .env("TERM", "dumb")
        .chroot_to(&root)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program}: {}", describe(status));
    }
    Ok(())
}

/// The tree that the cells see, for programs of the emulated host: a tmpfs over the tools over the root.
fn mount_root() -> Result<std::path::PathBuf> {
    let base = Path::new("/mnt");
    for (device, name) in [(place::ROOT, "root"), (place::TOOLS, "tools")] {
        let at = base.join(name);
        fs::create_dir_all(&at)?;
        mount(Some(device), &at, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
            .with_context(|| format!("cannot mount the {name} image"))?;
    }
    mount_at("tmpfs", &base.join("upper"), "tmpfs", "")?;
    for name in ["upper/upper", "upper/work"] {
        fs::create_dir_all(base.join(name))?;
    }
    let all = base.join("all");
    let layers = "lowerdir=/mnt/tools:/mnt/root,upperdir=/mnt/upper/upper,workdir=/mnt/upper/work";
    mount_at("overlay", &all, "overlay", layers)?;
    for name in ["proc", "sys", "dev", "run"] {
        let at = all.join(name);
        fs::create_dir_all(&at)?;
        let from = Path::new("/").join(name);
        mount(Some(&from), &at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("cannot bind {}", from.display()))?;
    }
    Ok(all)
}

/// Runs a command in another root.
trait ChrootTo {
    fn chroot_to(&mut self, root: &Path) -> &mut Self;
}

impl ChrootTo for Command {
    fn chroot_to(&mut self, root: &Path) -> &mut Self {
        let root = root.to_owned();
        // SAFETY: both are plain system calls; the path was made before the fork.
        unsafe {
            self.pre_exec(move || {
                nix::unistd::chroot(&root)?;
                nix::unistd::chdir("/")?;
                Ok(())
            })
        }
    }
}
