//! The kernel's side of process migration: two system calls and `/dev/ssi` (`guest-kernel/ssi/uapi.h`).

use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

const SYS_MIGRATE: libc::c_long = 600;
const SYS_RESTART: libc::c_long = 601;

/// Flag of [`migrate`]: every page is at the destination before the process runs there.
pub const EAGER: u64 = 1 << 32;

/// The device of process migration.
pub const DEVICE: &str = "/dev/ssi";

/// `migrate(2)`: moves process `pid` (0: the caller) to the node that `address` names.
///
/// # Errors
/// As migrate(2); the process then goes on where it was.
pub fn migrate(pid: c_int, address: u64) -> nix::Result<()> {
    // SAFETY: the call takes two numbers.
    Errno::result(unsafe { libc::syscall(SYS_MIGRATE, pid, address) }).map(drop)
}

/// `restart(2)`: becomes the process whose image `fd` holds. Returns `Ok` only where the process came home to its deputy.
///
/// # Errors
/// As restart(2); the caller is still itself.
pub fn restart(fd: &impl AsRawFd) -> nix::Result<()> {
    // SAFETY: the call takes a descriptor, which lives over the call; on success it does not return to this program.
    Errno::result(unsafe { libc::syscall(SYS_RESTART, fd.as_raw_fd()) }).map(drop)
}

/// A move that waits to be restarted (`struct ssi_incoming`).
#[derive(Debug)]
pub struct Incoming {
    /// The connection, for [`restart`].
    pub connection: OwnedFd,
    /// The PID it has had and keeps.
    pub pid: c_int,
    /// It comes home to its deputy, which has the PID already.
    pub home: bool,
    /// The cell it comes from.
    pub source: u32,
    /// Name of its program.
    pub comm: String,
}

#[repr(C)]
#[derive(Debug, Default)]
struct RawIncoming {
    size: u32,
    fd: i32,
    pid: i32,
    flags: u32,
    source: u32,
    home: u32,
    uid: u32,
    pad: u32,
    comm: [u8; 16],
}

#[repr(C)]
#[derive(Debug)]
struct RawCheckpoint {
    size: u32,
    pid: i32,
    fd: i32,
    flags: u32,
}

const INCOMING_HOME: u32 = 1;

mod ioctls {
    use super::{RawCheckpoint, RawIncoming};
    nix::ioctl_readwrite!(accept, b'S', 1, RawIncoming);
    nix::ioctl_write_ptr!(checkpoint, b'S', 2, RawCheckpoint);
}

/// Size of a record of the uapi, as the kernel wants it told.
fn size_of<T>() -> u32 {
    u32::try_from(std::mem::size_of::<T>()).unwrap_or(0)
}

/// Waits on `/dev/ssi` for the next move.
///
/// # Errors
/// `EINTR`, or what the device says.
pub fn accept(device: &File) -> nix::Result<Incoming> {
    let mut raw = RawIncoming { size: size_of::<RawIncoming>(), ..RawIncoming::default() };
    // SAFETY: the structure is the one that the request names, and lives over the call.
    unsafe { ioctls::accept(device.as_raw_fd(), &raw mut raw) }?;
    let end = raw.comm.iter().position(|byte| *byte == 0).unwrap_or(raw.comm.len());
    Ok(Incoming {
        // SAFETY: the kernel just made this descriptor for us alone.
        connection: unsafe { OwnedFd::from_raw_fd(raw.fd) },
        pid: raw.pid,
        home: raw.flags & INCOMING_HOME != 0,
        source: raw.source,
        comm: String::from_utf8_lossy(&raw.comm[..end]).into_owned(),
    })
}

/// Writes the image of process `pid` to `to`; the process goes on.
///
/// # Errors
/// As migrate(2), and those of the device and of `to`.
pub fn checkpoint(device: &File, pid: c_int, to: &File) -> nix::Result<()> {
    let raw = RawCheckpoint { size: size_of::<RawCheckpoint>(), pid, fd: to.as_raw_fd(), flags: 0 };
    // SAFETY: the structure is the one that the request names, and lives over the call.
    unsafe { ioctls::checkpoint(device.as_raw_fd(), &raw const raw) }.map(drop)
}

/// Forks a child; with `pid`, one of that number. 0 in the child.
///
/// # Errors
/// `EEXIST` if the number is taken; `EPERM`; `EAGAIN`.
pub fn fork_as(pid: Option<c_int>) -> nix::Result<libc::pid_t> {
    let mut wanted = pid.unwrap_or(0);
    // SAFETY: clone_args is plain data; all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if pid.is_some() {
        arguments.set_tid = std::ptr::from_mut(&mut wanted) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: without CLONE_VM the child has its own copy of everything, as after fork; this program has one thread.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>())
    };
    Errno::result(result).map(|pid| libc::pid_t::try_from(pid).unwrap_or(-1))
}

/// What `/proc/ssi/PID/FILE` says as `key: value` lines; nothing if there is no such file.
pub fn process_facts(proc: &Path, pid: u32, file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(proc.join("ssi").join(pid.to_string()).join(file)).unwrap_or_default();
    let pair = |line: &str| {
        line.split_once(':').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// Why process `pid` could not move, as `/proc/ssi/PID/why` names it.
pub fn why(pid: c_int) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/ssi/{pid}/why")).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Opens [`DEVICE`].
///
/// # Errors
/// `ENOENT` on a kernel without the device, `EACCES` for another user than root.
pub fn open_device() -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).open(DEVICE)
}
