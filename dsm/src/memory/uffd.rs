//! A thin owner of one userfaultfd: the handful of ioctls that the back end uses (`userfaultfd(2)`, `ioctl_userfaultfd(2)`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use super::{Error, PAGE_SIZE};
use crate::types::Access;

const UFFD_TYPE: u32 = 0xaa;
const UFFD_API: u64 = 0xaa;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_WRITE: u64 = 1 << 0;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;
const REGISTER_MISSING: u64 = 1 << 0;
const REGISTER_WP: u64 = 1 << 1;
const REGISTER_MINOR: u64 = 1 << 2;
const WRITEPROTECT_WP: u64 = 1 << 0;
const CONTINUE_WP: u64 = 1 << 1;
const COPY_WP: u64 = 1 << 1;

/// The features that the back end cannot do without: bit, name, first kernel that has it.
const NEEDED: [(u64, &str, &str); 5] = [
    (1 << 0, "PAGEFAULT_FLAG_WP", "5.7"),
    (1 << 5, "MISSING_SHMEM", "4.11"),
    (1 << 10, "MINOR_SHMEM", "5.14"),
    (1 << 12, "WP_HUGETLBFS_SHMEM", "5.19"),
    (1 << 14, "POISON", "6.6"),
];

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// The layout that REGISTER, CONTINUE and POISON share: range, mode in, result out.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct RangeModeResult {
    range: Range,
    mode: u64,
    result: u64,
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct RangeMode {
    range: Range,
    mode: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct CopyPages {
    target: u64,
    source: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffd_msg` for a page fault, 32 bytes.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, UFFD_TYPE, 0x00);
ioctl_iowr_nr!(UFFDIO_API, UFFD_TYPE, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFD_TYPE, 0x00, RangeModeResult);
ioctl_ior_nr!(UFFDIO_WAKE, UFFD_TYPE, 0x02, Range);
ioctl_iowr_nr!(UFFDIO_COPY, UFFD_TYPE, 0x03, CopyPages);
ioctl_iowr_nr!(UFFDIO_WRITEPROTECT, UFFD_TYPE, 0x06, RangeMode);
ioctl_iowr_nr!(UFFDIO_CONTINUE, UFFD_TYPE, 0x07, RangeModeResult);
ioctl_iowr_nr!(UFFDIO_POISON, UFFD_TYPE, 0x08, RangeModeResult);

/// Which accesses a registered range reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Accesses whose page is in the memfd but not mapped, and writes to write-protected pages.
    MinorAndProtected,
    /// Those, and accesses whose page the memfd does not have.
    All,
}

/// Why the kernel reported an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The memfd has no page there.
    Missing,
    /// The memfd has a page, the mapping has none.
    Minor,
    /// The mapping has the page write-protected.
    WriteProtected,
}

/// One reported access. The thread that did it sleeps until the range is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UffdFault {
    /// Host virtual address, page-aligned.
    pub address: u64,
    /// What the access needs.
    pub access: Access,
    /// What the kernel found.
    pub kind: FaultKind,
}

/// What [`probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How the descriptor was had: `/dev/userfaultfd` or `userfaultfd(2)`.
    pub opened_by: &'static str,
    /// The feature bits that the kernel offers (`UFFD_FEATURE_*`).
    pub features: u64,
    /// Needed features that it lacks: name and the first kernel that has it. Empty when all is well.
    pub missing: Vec<(&'static str, &'static str)>,
}

/// Can this process watch memory the way the back end does?
///
/// # Errors
/// [`Error::Open`] if no userfaultfd can be had at all; its text says what to do.
pub fn probe() -> Result<Probe, Error> {
    let (file, opened_by) = open()?;
    let mut api = Api { api: UFFD_API, ..Api::default() };
    api_handshake(&file, &mut api)?;
    let missing =
        NEEDED.iter().filter(|(bit, ..)| api.features & bit == 0).map(|&(_, name, since)| (name, since));
    Ok(Probe { opened_by, features: api.features, missing: missing.collect() })
}

fn api_handshake(file: &File, api: &mut Api) -> Result<(), Error> {
    // SAFETY: `file` is a userfaultfd and `api` has the layout of `struct uffdio_api`.
    let result = unsafe { ioctl_with_mut_ref(file, UFFDIO_API(), api) };
    if result < 0 { Err(Error::os("UFFDIO_API")) } else { Ok(()) }
}

fn open() -> Result<(File, &'static str), Error> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/userfaultfd");
    let device_error = match device {
        Ok(device) => {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            // SAFETY: the ioctl takes flags by value and touches no memory of ours.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW() as _, flags) };
            if fd >= 0 {
                return Ok((owned(fd), "/dev/userfaultfd"));
            }
            io::Error::last_os_error()
        }
        Err(error) => error,
    };
    // SAFETY: the system call takes flags by value and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    match RawFd::try_from(fd) {
        Ok(fd) if fd >= 0 => Ok((owned(fd), "userfaultfd(2)")),
        _ => Err(Error::Open { device: device_error, syscall: io::Error::last_os_error() }),
    }
}

fn owned(fd: RawFd) -> File {
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An open userfaultfd with the features of [`NEEDED`] on. Its reads do not block.
#[derive(Debug)]
pub struct Uffd {
    file: File,
}

impl Uffd {
    /// Opens one for this process: accesses of the kernel on its behalf (KVM) are reported too.
    ///
    /// # Errors
    /// [`Error::Open`] if none can be had, [`Error::Features`] if the kernel lacks a needed feature.
    pub fn open() -> Result<Self, Error> {
        let found = probe()?;
        if !found.missing.is_empty() {
            return Err(Error::Features { missing: found.missing });
        }
        let (file, _) = open()?;
        let features = NEEDED.iter().fold(0, |bits, (bit, ..)| bits | bit);
        api_handshake(&file, &mut Api { api: UFFD_API, features, ioctls: 0 })?;
        Ok(Self { file })
    }

    /// Watches `len` bytes at `start` (`UFFDIO_REGISTER`). Doing it twice is allowed.
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn register(&self, start: u64, len: usize, watch: Watch) -> Result<(), Error> {
        let mode = match watch {
            Watch::MinorAndProtected => REGISTER_WP | REGISTER_MINOR,
            Watch::All => REGISTER_WP | REGISTER_MINOR | REGISTER_MISSING,
        };
        let mut arg = RangeModeResult { range: Range { start, len: len as u64 }, mode, result: 0 };
        // SAFETY: RangeModeResult has the layout of `struct uffdio_register`.
        retry("UFFDIO_REGISTER", || unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut arg) })
            .map_err(|e| Error::from_os("UFFDIO_REGISTER", e))
    }

    /// Sets or lifts the write protection of `len` bytes at `address`, whole pages; lifting wakes those who wait for them.
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn write_protect(&self, address: u64, len: usize, protect: bool) -> Result<(), Error> {
        let mode = if protect { WRITEPROTECT_WP } else { 0 };
        let mut arg = RangeMode { range: Range { start: address, len: len as u64 }, mode };
        // SAFETY: RangeMode has the layout of `struct uffdio_writeprotect`.
        retry("UFFDIO_WRITEPROTECT", || unsafe {
            ioctl_with_mut_ref(&self.file, UFFDIO_WRITEPROTECT(), &mut arg)
        })
        .map_err(|e| Error::from_os("UFFDIO_WRITEPROTECT", e))
    }

    /// Maps the memfd's page at `address` and wakes those who wait for it. `Ok(false)`: something is mapped there
    /// already (`EEXIST`), and nobody was woken.
    ///
    /// # Errors
    /// [`Error::Os`]; `EFAULT` says that the memfd has no page there.
    pub fn map_page(&self, address: u64, protect: bool) -> Result<bool, Error> {
        let mode = if protect { CONTINUE_WP } else { 0 };
        // SAFETY: RangeModeResult has the layout of `struct uffdio_continue`.
        let result = retry("UFFDIO_CONTINUE", || unsafe {
            let mut arg = RangeModeResult { range: page(address), mode, result: 0 };
            ioctl_with_mut_ref(&self.file, UFFDIO_CONTINUE(), &mut arg)
        });
        unless_exists("UFFDIO_CONTINUE", result)
    }

    /// Maps the memfd's pages in `len` bytes at `address` and wakes those who wait for them; says how many bytes were mapped
    /// before a page that is mapped already, or that the memfd lacks.
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn map_pages(&self, address: u64, len: usize, protect: bool) -> Result<usize, Error> {
        let mode = if protect { CONTINUE_WP } else { 0 };
        over_range("UFFDIO_CONTINUE", len, |done| {
            let range = Range { start: address + done as u64, len: (len - done) as u64 };
            let mut arg = RangeModeResult { range, mode, result: 0 };
            // SAFETY: RangeModeResult has the layout of `struct uffdio_continue`.
            let result = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_CONTINUE(), &mut arg) };
            (result, arg.result.cast_signed())
        })
    }

    /// Gives the memfd pages with `bytes`, maps them write-protected at `address`, and wakes those who wait for them; says how
    /// many bytes were copied before a page that the memfd has already.
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn copy_pages(&self, address: u64, bytes: &[u8]) -> Result<usize, Error> {
        let len = bytes.len() / PAGE_SIZE * PAGE_SIZE;
        over_range("UFFDIO_COPY", len, |done| {
            let mut arg = CopyPages {
                target: address + done as u64,
                source: bytes[done..].as_ptr() as u64,
                len: (len - done) as u64,
                mode: COPY_WP,
                copied: 0,
            };
            // SAFETY: CopyPages has the layout of `struct uffdio_copy`, and its source is as long as it says.
            let result = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut arg) };
            (result, arg.copied)
        })
    }

    /// Makes every later access to the unmapped page at `address` a SIGBUS, and wakes those who wait. `Ok(false)`:
    /// something is mapped there (`EEXIST`).
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn poison(&self, address: u64) -> Result<bool, Error> {
        // SAFETY: RangeModeResult has the layout of `struct uffdio_poison`.
        let result = retry("UFFDIO_POISON", || unsafe {
            let mut arg = RangeModeResult { range: page(address), mode: 0, result: 0 };
            ioctl_with_mut_ref(&self.file, UFFDIO_POISON(), &mut arg)
        });
        unless_exists("UFFDIO_POISON", result)
    }

    /// Wakes those who wait for the page at `address`; they try their access again.
    ///
    /// # Errors
    /// [`Error::Os`] with the kernel's reason.
    pub fn wake(&self, address: u64) -> Result<(), Error> {
        let mut arg = page(address);
        // SAFETY: Range has the layout of `struct uffdio_range`.
        retry("UFFDIO_WAKE", || unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_WAKE(), &mut arg) })
            .map_err(|e| Error::from_os("UFFDIO_WAKE", e))
    }

    /// Takes at most `limit` (and at most 64) reported accesses, oldest first, without waiting.
    ///
    /// # Errors
    /// [`Error::Os`] if the descriptor cannot be read.
    pub fn read(&self, limit: usize) -> Result<Vec<UffdFault>, Error> {
        let mut messages = [Message::default(); 64];
        let size = size_of::<Message>();
        let bytes = limit.clamp(1, messages.len()) * size;
        // SAFETY: `messages` holds at least `bytes` bytes, and every bit pattern is a valid Message.
        let got = unsafe { libc::read(self.file.as_raw_fd(), messages.as_mut_ptr().cast(), bytes) };
        let Ok(got) = usize::try_from(got) else {
            return match io::Error::last_os_error() {
                e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(vec![]),
                e => Err(Error::from_os("reading a userfaultfd", e)),
            };
        };
        Ok(messages[..got / size].iter().filter(|m| m.event == UFFD_EVENT_PAGEFAULT).map(fault).collect())
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Repeats an ioctl over a range of `len` bytes, of which it is told how many are done, until all are, or the next page is there
/// already, or not there: how many are then. It says its result, and how many bytes it did itself.
fn over_range(
    what: &'static str,
    len: usize,
    mut ioctl: impl FnMut(usize) -> (i32, i64),
) -> Result<usize, Error> {
    let mut done = 0;
    while done < len {
        let (result, bytes) = ioctl(done);
        if result >= 0 {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        // A part of the range is EAGAIN too.
        match (error.raw_os_error(), usize::try_from(bytes)) {
            (_, Ok(bytes)) if bytes > 0 => done += bytes,
            (Some(libc::EAGAIN | libc::EINTR), _) => std::thread::yield_now(),
            (Some(libc::EEXIST | libc::EFAULT), _) => return Ok(done),
            _ => return Err(Error::from_os(what, error)),
        }
    }
    Ok(len)
}

/// `EAGAIN` means that the address space is changing under the ioctl (`fork`, `mremap`): it is tried again, in bounds.
fn retry(what: &'static str, mut ioctl: impl FnMut() -> i32) -> Result<(), io::Error> {
    const TRIES: usize = 10_000;
    for _ in 0..TRIES {
        if ioctl() >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => std::thread::yield_now(),
            _ => return Err(error),
        }
    }
    log::error!("{what}: the address space kept changing for {TRIES} tries");
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

fn page(address: u64) -> Range {
    Range { start: address, len: PAGE_SIZE as u64 }
}

fn unless_exists(what: &'static str, result: Result<(), io::Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(Error::from_os(what, e)),
    }
}

fn fault(message: &Message) -> UffdFault {
    let kind = match message.flags {
        f if f & FLAG_WP != 0 => FaultKind::WriteProtected,
        f if f & FLAG_MINOR != 0 => FaultKind::Minor,
        _ => FaultKind::Missing,
    };
    let write = message.flags & (FLAG_WRITE | FLAG_WP) != 0;
    UffdFault {
        address: message.address & !(PAGE_SIZE as u64 - 1),
        access: if write { Access::Write } else { Access::Read },
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail_with(errno: i32) -> i32 {
        // SAFETY: the thread's own errno.
        unsafe { *libc::__errno_location() = errno };
        -1
    }

    #[test]
    fn eagain_from_the_kernel_is_tried_again() {
        let mut tries = 0;
        let result = retry("test", || {
            tries += 1;
            if tries < 3 { fail_with(libc::EAGAIN) } else { 0 }
        });
        assert!(result.is_ok());
        assert_eq!(tries, 3);
    }

    #[test]
    fn another_error_is_reported_at_once_and_eagain_not_for_ever() {
        let error = retry("test", || fail_with(libc::ENOMEM)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        let error = retry("test", || fail_with(libc::EAGAIN)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    }
}
