//! One slice of guest RAM: a memfd, its two mappings and its userfaultfd.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::uffd::{FaultKind, Uffd, Watch};
use super::{Error, PAGE_SIZE, RUN_SIZE};
use crate::types::Access;

const RUN_PAGES: usize = RUN_SIZE / PAGE_SIZE;

/// Whose memory a slice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceKind {
    /// This node's own share of the cluster's RAM: watched in runs, from the first foreign request on.
    Own,
    /// A window onto the slice of another node: watched from the start, filled page by page.
    Window,
}

/// An access that waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceFault {
    /// The page, counted from the start of the slice.
    pub index: usize,
    /// What the access needs.
    pub access: Access,
    /// What the kernel found.
    pub kind: FaultKind,
}

/// One slice: see the [module's documentation](super). All methods may be called from any thread; two operations on one
/// page must not run at the same time (the driver's lock sees to it).
#[derive(Debug)]
pub struct SliceMemory {
    kind: SliceKind,
    guest: Mapping,
    alias: Mapping,
    file: File,
    uffd: Uffd,
    /// Own slices: which runs are watched.
    watched: Vec<AtomicBool>,
}

impl SliceMemory {
    /// A slice of `size` bytes, a multiple of 2 MiB; every page reads zero. No memory is used before it is touched.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Open`], [`Error::Features`], or [`Error::Os`] if memory or descriptors run out.
    pub fn new(size: usize, kind: SliceKind) -> Result<Self, Error> {
        if size == 0 || !size.is_multiple_of(RUN_SIZE) {
            return Err(Error::Size(size));
        }
        let file = memfd(size)?;
        let guest = Mapping::new(&file, size)?;
        let alias = Mapping::new(&file, size)?;
        // A child that inherited the mapping would share pages whose states are not its own.
        guest.advise(0, size, libc::MADV_DONTFORK)?;
        alias.advise(0, size, libc::MADV_DONTFORK)?;
        let uffd = Uffd::open()?;
        match kind {
            // Needs shmem_enabled=advise; a kernel without huge pages for memfds refuses the advice, and that is all.
            SliceKind::Own => drop(guest.advise(0, size, libc::MADV_HUGEPAGE)),
            SliceKind::Window => uffd.register(guest.address(0), size, Watch::All)?,
        }
        let runs = if kind == SliceKind::Own { size / RUN_SIZE } else { 0 };
        let watched = (0..runs).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { kind, guest, alias, file, uffd, watched })
    }

    /// Own slice or window?
    pub fn kind(&self) -> SliceKind {
        self.kind
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.guest.len
    }

    /// Pages of 4 KiB.
    pub fn pages(&self) -> usize {
        self.size() / PAGE_SIZE
    }

    /// Start of the guest mapping, 2 MiB-aligned: what KVM and vm-memory get. Valid while `self` lives.
    pub fn guest_addr(&self) -> *mut u8 {
        self.guest.start.as_ptr()
    }

    /// The memfd under both mappings.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes at most `limit` accesses that wait for a page, oldest first, without blocking. Poll the slice's
    /// descriptor ([`AsRawFd`]) for more.
    ///
    /// # Errors
    /// [`Error::Os`] if the userfaultfd cannot be read.
    pub fn faults(&self, limit: usize) -> Result<Vec<SliceFault>, Error> {
        let start = self.guest.address(0);
        let index = |address: u64| (address - start) as usize / PAGE_SIZE;
        let faults = self.uffd.read(limit)?;
        Ok(faults
            .into_iter()
            .map(|f| SliceFault { index: index(f.address), access: f.access, kind: f.kind })
            .collect())
    }

    /// To Shared: no write to the page succeeds any more when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn protect(&self, index: usize) -> Result<(), Error> {
        self.protect_run(index, 1)
    }

    /// [`SliceMemory::protect`] for `count` pages from `index` on, with few system calls.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn protect_run(&self, index: usize, count: usize) -> Result<(), Error> {
        self.by_run(index, count, |address, len| self.uffd.write_protect(address, len, true))
    }

    /// From Shared to Modified: writes go through again, and those who wait for the page are woken.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn unprotect(&self, index: usize) -> Result<(), Error> {
        let address = self.prepare(index)?;
        self.uffd.write_protect(address, PAGE_SIZE, false)
    }

    /// To Invalid: no access to the page succeeds any more when this returns; its bytes are stable in the alias.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn zap(&self, index: usize) -> Result<(), Error> {
        self.zap_run(index, 1)
    }

    /// [`SliceMemory::zap`] for `count` pages from `index` on, with few system calls.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn zap_run(&self, index: usize, count: usize) -> Result<(), Error> {
        let start = self.guest.address(0);
        self.by_run(index, count, |address, len| {
            self.guest.advise((address - start) as usize, len, libc::MADV_DONTNEED)
        })
    }

    /// Maps the page with the bytes that the alias shows, readable or writable, and wakes those who wait for it. A page
    /// that is mapped already (`EEXIST`) only changes its protection.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn install(&self, index: usize, access: Access) -> Result<(), Error> {
        let address = self.prepare(index)?;
        let protect = access == Access::Read;
        if !self.uffd.map_page(address, protect)? {
            self.uffd.write_protect(address, PAGE_SIZE, protect)?;
            if protect {
                self.uffd.wake(address)?;
            }
        }
        Ok(())
    }

    /// [`SliceMemory::install`] for `count` pages from `index` on, with few system calls.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn install_run(&self, index: usize, count: usize, access: Access) -> Result<(), Error> {
        self.check_run(index, count)?;
        if self.kind == SliceKind::Own {
            for page in index..index + count {
                self.prepare(page)?;
            }
        }
        let mut done = 0;
        while done < count {
            let (address, len) = (self.guest.address((index + done) * PAGE_SIZE), (count - done) * PAGE_SIZE);
            done += self.uffd.map_pages(address, len, access == Access::Read)? / PAGE_SIZE;
            if done < count {
                self.install(index + done, access)?;
                done += 1;
            }
        }
        Ok(())
    }

    /// Makes every access to the page a SIGBUS from now on, and wakes those who wait for it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn poison(&self, index: usize) -> Result<(), Error> {
        let address = self.prepare(index)?;
        loop {
            self.guest.advise(index * PAGE_SIZE, PAGE_SIZE, libc::MADV_DONTNEED)?;
            if self.uffd.poison(address)? {
                return Ok(());
            }
            // Or that it was protected stands where it was mapped, and survives the advice.
            self.uffd.write_protect(address, PAGE_SIZE, false)?;
        }
    }

    /// Gives the memory of an invalid page of a window back to the host.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn discard(&self, index: usize) -> Result<(), Error> {
        self.discard_run(index, 1)
    }

    /// [`SliceMemory::discard`] for `count` pages from `index` on, with one system call.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn discard_run(&self, index: usize, count: usize) -> Result<(), Error> {
        self.check_run(index, count)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = ((index * PAGE_SIZE) as libc::off_t, (count * PAGE_SIZE) as libc::off_t);
        // SAFETY: no memory of ours is passed; mappings of the hole read zero or fault afterwards, which is what is wanted.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } < 0 {
            return Err(Error::os("fallocate(PUNCH_HOLE)"));
        }
        Ok(())
    }

    /// Copies the page's bytes out, through the alias.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn read(&self, index: usize, bytes: &mut [u8; PAGE_SIZE]) -> Result<(), Error> {
        self.check(index)?;
        // SAFETY: the alias maps all pages of the slice, `index` is one of them, and `bytes` is a buffer of our own.
        // Guest memory is no Rust object: a guest that writes meanwhile makes the bytes mixed, not the program unsound.
        unsafe {
            ptr::copy_nonoverlapping(self.alias.at(index * PAGE_SIZE), bytes.as_mut_ptr(), PAGE_SIZE);
        }
        Ok(())
    }

    /// Copies bytes into the page, through the alias. The page is invalid in the guest mapping (or nobody uses it).
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn store(&self, index: usize, bytes: &[u8; PAGE_SIZE]) -> Result<(), Error> {
        self.check(index)?;
        // SAFETY: as in `read`.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.alias.at(index * PAGE_SIZE), PAGE_SIZE);
        }
        Ok(())
    }

    /// Copies as many whole pages out as `bytes` holds, from page `index` on, with one system call.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn read_run(&self, index: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.check_run(index, bytes.len() / PAGE_SIZE)?;
        let read = self.file.read_exact_at(bytes, (index * PAGE_SIZE) as u64);
        read.map_err(|e| Error::from_os("reading a memfd", e))
    }

    /// Copies as many whole pages as `bytes` holds into those from `index` on, with one system call: the host need not clear
    /// them first. They are invalid in the guest mapping (or nobody uses them).
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn store_run(&self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        self.check_run(index, bytes.len() / PAGE_SIZE)?;
        let stored = self.file.write_all_at(bytes, (index * PAGE_SIZE) as u64);
        stored.map_err(|e| Error::from_os("writing a memfd", e))
    }

    /// [`SliceMemory::store_run`], and then [`SliceMemory::install_run`] to read. Pages of a window that the memfd does not have
    /// are made, filled and mapped by one system call.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`].
    pub fn place_run(&self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let count = bytes.len() / PAGE_SIZE;
        self.check_run(index, count)?;
        let fresh = match self.kind {
            SliceKind::Own => 0,
            SliceKind::Window => self.uffd.copy_pages(self.guest.address(index * PAGE_SIZE), bytes)?,
        };
        // The memfd has the next one, and those after it, most likely.
        if fresh < bytes.len() {
            let index = index + fresh / PAGE_SIZE;
            self.store_run(index, &bytes[fresh..])?;
            self.install_run(index, count - fresh / PAGE_SIZE, Access::Read)?;
        }
        Ok(())
    }

    /// Is the run of this page watched? Always so in a window.
    pub fn is_watched(&self, index: usize) -> bool {
        self.watched.get(index * PAGE_SIZE / RUN_SIZE).is_none_or(|w| w.load(Ordering::Acquire))
    }

    /// Gives the page memory, if it has none, ahead of [`SliceMemory::store`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn populate(&self, index: usize) -> Result<(), Error> {
        self.check(index)?;
        // SAFETY: the alias maps all pages of the slice; the first bytes of a page are aligned for any integer.
        let word = unsafe { &*self.alias.at(index * PAGE_SIZE).cast::<AtomicU64>() };
        // A write, so that the alias maps the page writable; and none that could undo another one.
        word.fetch_or(0, Ordering::Relaxed);
        Ok(())
    }

    /// Has the guest mapping the page, so that a read does not fault?
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Os`] if `/proc/self/pagemap` cannot be read.
    pub fn is_resident(&self, index: usize) -> Result<bool, Error> {
        self.check(index)?;
        let mut entry = [0; 8];
        let offset = self.guest.address(index * PAGE_SIZE) / PAGE_SIZE as u64 * 8;
        let read = File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, offset));
        read.map_err(|e| Error::from_os("reading /proc/self/pagemap", e))?;
        // Bit 63: present (Documentation/admin-guide/mm/pagemap.rst).
        Ok(u64::from_le_bytes(entry) >> 63 == 1)
    }

    fn check(&self, index: usize) -> Result<(), Error> {
        if index < self.pages() { Ok(()) } else { Err(Error::OutOfRange { index, pages: self.pages() }) }
    }

    fn check_run(&self, index: usize, count: usize) -> Result<(), Error> {
        match index.checked_add(count) {
            Some(end) if end <= self.pages() && count > 0 => Ok(()),
            _ => Err(Error::OutOfRange { index: index.saturating_add(count), pages: self.pages() }),
        }
    }

    /// Takes rights away from `count` pages by `take`, which gets address and length; for each run of 2 MiB by itself, since
    /// its pages come under watch, and are mapped again, together.
    fn by_run(
        &self,
        index: usize,
        count: usize,
        take: impl Fn(u64, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.check_run(index, count)?;
        let (mut start, end) = (index, index + count);
        while start < end {
            let stop = end.min((start / RUN_PAGES + 1) * RUN_PAGES);
            let fresh = self.watch_run_of(start)?;
            if stop - start == 1 || !self.is_populated(start, stop) {
                (start..stop).for_each(|page| self.touch(page));
            }
            take(self.guest.address(start * PAGE_SIZE), (stop - start) * PAGE_SIZE)?;
            if fresh {
                self.map_neighbours(start, stop)?;
            }
            start = stop;
        }
        Ok(())
    }

    /// The page's address; see [`SliceMemory::watch`].
    fn prepare(&self, index: usize) -> Result<u64, Error> {
        Ok(self.watch(index)?.0)
    }

    /// The page's address, watched, and with a page in the memfd: from here on an access to it, where it is not mapped,
    /// is a minor fault, never one that the kernel serves from a hole by itself. And: is the run watched only since now?
    fn watch(&self, index: usize) -> Result<(u64, bool), Error> {
        self.check(index)?;
        let fresh = self.watch_run_of(index)?;
        self.touch(index);
        Ok((self.guest.address(index * PAGE_SIZE), fresh))
    }

    /// Has the page's run of 2 MiB watched. Is it so only since now?
    fn watch_run_of(&self, index: usize) -> Result<bool, Error> {
        if let Some(watched) = self.watched.get(index * PAGE_SIZE / RUN_SIZE)
            && !watched.load(Ordering::Acquire)
        {
            let run = index * PAGE_SIZE / RUN_SIZE * RUN_SIZE;
            self.uffd.register(self.guest.address(run), RUN_SIZE, Watch::MinorAndProtected)?;
            watched.store(true, Ordering::Release);
            return Ok(true);
        }
        Ok(false)
    }

    /// Has the memfd allocate the page, which is one of the slice.
    fn touch(&self, index: usize) {
        // SAFETY: the alias maps all pages of the slice.
        unsafe { ptr::read_volatile(self.alias.at(index * PAGE_SIZE)) };
    }

    /// Has the memfd all pages from `start` to `stop`, which are of one run of 2 MiB, in memory?
    fn is_populated(&self, start: usize, stop: usize) -> bool {
        let (mut there, count) = ([0_u8; RUN_PAGES], stop - start);
        // SAFETY: the pages are of the alias, and `there` has a byte for each.
        let done = unsafe {
            libc::mincore(self.alias.at(start * PAGE_SIZE).cast(), count * PAGE_SIZE, there.as_mut_ptr())
        };
        done == 0 && there[..count].iter().all(|page| page & 1 == 1)
    }

    /// The first change to pages of a run splits the huge page that maps it: the kernel unmaps all of it. The other pages
    /// are nobody else's yet, and are mapped again at once rather than by a fault each. Where pages were mapped one by one,
    /// nothing is unmapped, and this ends at the first of them.
    fn map_neighbours(&self, start: usize, stop: usize) -> Result<(), Error> {
        let first = start / RUN_PAGES * RUN_PAGES;
        let address = |page: usize| self.guest.address(page * PAGE_SIZE);
        self.uffd.map_pages(address(first), (start - first) * PAGE_SIZE, false)?;
        self.uffd.map_pages(address(stop), (first + RUN_PAGES - stop) * PAGE_SIZE, false)?;
        Ok(())
    }
}

impl AsRawFd for SliceMemory {
    /// The userfaultfd: readable when [`SliceMemory::faults`] has something.
    fn as_raw_fd(&self) -> RawFd {
        self.uffd.as_raw_fd()
    }
}

fn memfd(size: usize) -> Result<File, Error> {
    // SAFETY: the name is a constant C string.
    let fd = unsafe { libc::memfd_create(c"ssi-slice".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::os("memfd_create"));
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size as u64).map_err(|e| Error::from_os("sizing a memfd", e))?;
    Ok(file)
}

/// A shared mapping of a whole memfd, 2 MiB-aligned.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this object, and it is only accessed by raw copies that assume nothing about it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, len: usize) -> Result<Self, Error> {
        let reserve = len + RUN_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation where the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), reserve, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::os("reserving address space for a slice"));
        }
        let base: *mut u8 = base.cast();
        let skip = base.align_offset(RUN_SIZE);
        // SAFETY: `skip` < RUN_SIZE, so start..start+len lies in the reservation.
        let start = unsafe { base.add(skip) };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces a part of our own reservation.
        let mapped = unsafe { libc::mmap(start.cast(), len, prot, flags, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            let error = Error::os("mapping a slice");
            // SAFETY: our own reservation.
            unsafe { libc::munmap(base.cast(), reserve) };
            return Err(error);
        }
        // SAFETY: the parts of our own reservation before and after the mapping.
        unsafe {
            if skip > 0 {
                libc::munmap(base.cast(), skip);
            }
            libc::munmap(start.add(len).cast(), RUN_SIZE - skip);
        }
        // mmap with MAP_FIXED over a reservation never gives the null page.
        NonNull::new(start).map(|start| Self { start, len }).ok_or_else(|| Error::os("mapping a slice"))
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.len);
        // SAFETY: callers check that `offset` lies in the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn address(&self, offset: usize) -> u64 {
        self.start.as_ptr() as u64 + offset as u64
    }

    fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), Error> {
        // SAFETY: a range of our own mapping; none of the advices used takes the mapping away.
        if unsafe { libc::madvise(self.at(offset).cast(), len, advice) } < 0 {
            return Err(Error::os("madvise on a slice"));
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; who uses it outlives it by contract of `guest_addr`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
