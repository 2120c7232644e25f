//! One cell's view of the served tree: the passthrough file system of fuse-backend-rs, and around it what many cells on
//! one tree need (coherence), and what a guest that is not trusted needs (bounds, no way above the root).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use crate::devices::lock;

use super::FsMetrics;
use super::coherence::{FileKey, Leases, Versions};
use super::message::XATTR_MAX;

type Inode = u64;
type Handle = u64;

/// Flags of a guest's `open` that reach the host: those that say what may be done with the data. O_DIRECT would want
/// aligned buffers; O_NONBLOCK, O_ASYNC mean nothing for files; O_PATH, O_TMPFILE are the guest kernel's business.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_DSYNC
    | libc::O_SYNC & !libc::O_DSYNC
    | libc::O_NOATIME;
/// Most files whose "seen" count one session remembers; beyond, cells drop pages that were good.
const SEEN_MOST: usize = 1 << 17;
/// Attempts at a READDIRPLUS whose first entry goes away under it.
const READDIR_ATTEMPTS: usize = 64;

/// What all sessions of one tree share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The root of the tree. Every session starts from this descriptor, whatever becomes of the path, and in whichever
    /// mount namespace its thread is.
    pub root: File,
    /// Who wrote what.
    pub versions: Mutex<Versions>,
    /// Who may have which directory's name cached.
    pub leases: Mutex<Leases>,
    /// Counters.
    pub metrics: Arc<FsMetrics>,
}

/// One cell's file system.
pub(super) struct CellFs {
    inner: PassthroughFs,
    shared: Arc<Shared>,
    cell: u16,
    /// The count of foreign writes at which this cell last dropped an inode's pages.
    seen: Mutex<BTreeMap<Inode, u64>>,
    /// Which file an open handle writes to.
    open: Mutex<BTreeMap<Handle, FileKey>>,
    started: AtomicBool,
}

impl std::fmt::Debug for CellFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CellFs").field("cell", &self.cell).finish_non_exhaustive()
    }
}

fn einval() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// A name as the kernel's own look-ups send it: no slash, not `.` or `..` (only NFS export asks for those).
fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        Err(einval())
    } else {
        Ok(())
    }
}

fn key(attr: &libc::stat64) -> FileKey {
    FileKey { dev: attr.st_dev, ino: attr.st_ino }
}

fn is_dir(attr: &libc::stat64) -> bool {
    attr.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// A change of a directory's name, from the wait before it to its end.
struct Change<'a> {
    leases: &'a Mutex<Leases>,
    dir: FileKey,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        lock(self.leases).end_change(self.dir);
    }
}

impl CellFs {
    /// The tree as `cell` sees it. `attr` is how long it may cache attributes of what it has open.
    pub fn new(cell: u16, attr: Duration, shared: Arc<Shared>) -> io::Result<Self> {
        let config = Config {
            root_dir: format!("/proc/self/fd/{}/.", shared.root.as_raw_fd()),
            attr_timeout: attr,
            entry_timeout: Duration::ZERO,
            // Directories get theirs from the leases.
            dir_entry_timeout: Some(Duration::ZERO),
            dir_attr_timeout: Some(attr),
            cache_policy: CachePolicy::Auto,
            xattr: true,
            do_import: true,
            // The guest leaves it to us to strip set-user-ID bits on a write; without it, it asks for an extended
            // attribute before each write.
            killpriv_v2: true,
            // One cell's write-back cache would hide its writes from the others.
            writeback: false,
            no_open: false,
            no_opendir: false,
            // Not on overlayfs: it has no handles that can be opened. An O_PATH descriptor for each inode works everywhere,
            // keeps unlinked files, and keeps an inode number from being reused while a cell knows it.
            inode_file_handles: false,
            allow_direct_io: false,
            ..Config::default()
        };
        Ok(Self {
            inner: PassthroughFs::new(config)?,
            shared,
            cell,
            seen: Mutex::default(),
            open: Mutex::default(),
            started: AtomicBool::new(false),
        })
    }

    /// Grants a directory's name in `entry`, if it is one.
    fn grant(&self, mut entry: Entry) -> Entry {
        entry.entry_timeout = if is_dir(&entry.attr) {
            lock(&self.shared.leases).grant(key(&entry.attr), self.cell, Instant::now())
        } else {
            Duration::ZERO
        };
        entry
    }

    /// Begins a change of `name` in `parent` if it is a directory, waiting until no other cell has it cached.
    fn begin_change(&self, ctx: &Context, parent: Inode, name: &CStr) -> Option<(Change<'_>, Instant)> {
        let entry = self.inner.lookup(ctx, parent, name).ok()?;
        self.inner.forget(ctx, entry.inode, 1);
        if !is_dir(&entry.attr) {
            return None;
        }
        let (dir, now) = (key(&entry.attr), Instant::now());
        let wait = lock(&self.shared.leases).begin_change(dir, self.cell, now);
        Some((Change { leases: &self.shared.leases, dir }, now + wait))
    }

    /// Waits for the latest of `changes`.
    fn wait_for(&self, changes: &[Option<(Change<'_>, Instant)>]) {
        let until = changes.iter().flatten().map(|(_, until)| *until).max();
        let Some(wait) = until.map(|until| until.saturating_duration_since(Instant::now())) else { return };
        if !wait.is_zero() {
            self.shared.metrics.lease_waits_count.add(1);
            self.shared.metrics.lease_wait_us.add(wait.as_micros() as u64);
            std::thread::sleep(wait);
        }
    }

    fn wrote(&self, file: FileKey) {
        lock(&self.shared.versions).wrote(file, self.cell);
    }

    fn wrote_handle(&self, handle: Handle) {
        if let Some(&file) = lock(&self.open).get(&handle) {
            self.wrote(file);
        }
    }

    /// A handle on `file` is given out: may the cell keep its pages?
    fn opened(&self, inode: Inode, handle: Option<Handle>, file: FileKey, flags: u32) -> OpenOptions {
        if let Some(handle) = handle {
            lock(&self.open).insert(handle, file);
        }
        if flags as i32 & libc::O_TRUNC != 0 {
            self.wrote(file);
        }
        let others = lock(&self.shared.versions).others_wrote_at(file, self.cell);
        let mut seen = lock(&self.seen);
        if seen.len() >= SEEN_MOST {
            seen.clear();
        }
        if seen.insert(inode, others) == Some(others) {
            self.shared.metrics.cache_kept_count.add(1);
            OpenOptions::KEEP_CACHE
        } else {
            self.shared.metrics.cache_dropped_count.add(1);
            OpenOptions::empty()
        }
    }
}

impl FileSystem for CellFs {
    type Inode = Inode;
    type Handle = Handle;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if self.started.swap(true, Ordering::SeqCst) {
            // The cell was restarted without a DESTROY: nothing of what it had open is left.
            self.destroy();
        }
        let mut want = self.inner.init(capable)?;
        want.remove(FsOptions::PERFILE_DAX | FsOptions::WRITEBACK_CACHE);
        want |= FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            // What a symbolic link says never changes: another target is another inode.
            | FsOptions::CACHE_SYMLINKS;
        Ok(want)
    }

    fn destroy(&self) {
        lock(&self.seen).clear();
        lock(&self.open).clear();
        self.inner.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.lookup(ctx, parent, name).map(|entry| self.grant(entry))
    }

    fn forget(&self, ctx: &Context, inode: Inode, count: u64) {
        self.inner.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(Inode, u64)>) {
        self.inner.batch_forget(ctx, requests);
    }

    fn getattr(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(libc::stat64, Duration)> {
        self.inner.getattr(ctx, inode, handle)
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: Inode,
        attr: libc::stat64,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(libc::stat64, Duration)> {
        let result = self.inner.setattr(ctx, inode, attr, handle, valid)?;
        if valid.contains(SetattrValid::SIZE) {
            self.wrote(key(&result.0));
        }
        Ok(result)
    }

    fn readlink(&self, ctx: &Context, inode: Inode) -> io::Result<Vec<u8>> {
        self.inner.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: Inode, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.symlink(ctx, target, parent, name).map(|entry| self.grant(entry))
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.mknod(ctx, parent, name, mode, rdev, umask).map(|entry| self.grant(entry))
    }

    fn mkdir(&self, ctx: &Context, parent: Inode, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.mkdir(ctx, parent, name, mode, umask).map(|entry| self.grant(entry))
    }

    fn unlink(&self, ctx: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        self.inner.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let change = [self.begin_change(ctx, parent, name)];
        self.wait_for(&change);
        self.inner.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        olddir: Inode,
        oldname: &CStr,
        newdir: Inode,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(oldname)?;
        check_name(newname)?;
        let changes = [self.begin_change(ctx, olddir, oldname), self.begin_change(ctx, newdir, newname)];
        self.wait_for(&changes);
        self.inner.rename(ctx, olddir, oldname, newdir, newname, flags)
    }

    fn link(&self, ctx: &Context, inode: Inode, newparent: Inode, newname: &CStr) -> io::Result<Entry> {
        check_name(newname)?;
        self.inner.link(ctx, inode, newparent, newname).map(|entry| self.grant(entry))
    }

    fn open(
        &self,
        ctx: &Context,
        inode: Inode,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions, Option<u32>)> {
        let flags = flags & OPEN_FLAGS as u32;
        let (handle, _, passthrough) = self.inner.open(ctx, inode, flags, fuse_flags)?;
        let attr = self.inner.getattr(ctx, inode, handle)?.0;
        Ok((handle, self.opened(inode, handle, key(&attr), flags), passthrough))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: Inode,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        let flags = args.flags & OPEN_FLAGS as u32;
        args.flags = flags | (libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u32;
        let (entry, handle, _, passthrough) = self.inner.create(ctx, parent, name, args)?;
        let options = self.opened(entry.inode, handle, key(&entry.attr), flags);
        Ok((self.grant(entry), handle, options, passthrough))
    }

    fn read(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.inner.read(ctx, inode, handle, w, size, offset, lock_owner, flags & OPEN_FLAGS as u32)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let flags = flags & OPEN_FLAGS as u32;
        let result = self.inner.write(
            ctx,
            inode,
            handle,
            r,
            size,
            offset,
            lock_owner,
            delayed_write,
            flags,
            fuse_flags,
        );
        // Even after an error some of it may be there.
        self.wrote_handle(handle);
        result
    }

    // `flush` stays ENOSYS: there is nothing to do on close (data is written through, locks are the cell's own), and the
    // guest then never asks again.

    fn fsync(&self, ctx: &Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()> {
        self.inner.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let result = self.inner.fallocate(ctx, inode, handle, mode, offset, length);
        self.wrote_handle(handle);
        result
    }

    fn release(
        &self,
        ctx: &Context,
        inode: Inode,
        flags: u32,
        handle: Handle,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.inner.release(ctx, inode, flags, handle, flush, flock_release, lock_owner)?;
        lock(&self.open).remove(&handle);
        Ok(())
    }

    fn statfs(&self, ctx: &Context, inode: Inode) -> io::Result<libc::statvfs64> {
        self.inner.statfs(ctx, inode)
    }

    fn setxattr(&self, ctx: &Context, inode: Inode, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        self.inner.setxattr(ctx, inode, name, value, flags)
    }

    fn getxattr(&self, ctx: &Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.inner.getxattr(ctx, inode, name, size.min(XATTR_MAX))
    }

    fn listxattr(&self, ctx: &Context, inode: Inode, size: u32) -> io::Result<ListxattrReply> {
        self.inner.listxattr(ctx, inode, size.min(XATTR_MAX))
    }

    fn removexattr(&self, ctx: &Context, inode: Inode, name: &CStr) -> io::Result<()> {
        self.inner.removexattr(ctx, inode, name)
    }

    fn opendir(&self, ctx: &Context, inode: Inode, _flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        self.inner.opendir(ctx, inode, libc::O_RDONLY as u32)
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        // By way of READDIRPLUS, so that both give the same inode numbers.
        self.list(ctx, inode, handle, size, offset, &mut |dir_entry, entry| {
            let node = entry.inode;
            let added = add_entry(dir_entry);
            if !matches!(added, Ok(0)) {
                self.inner.forget(ctx, node, 1);
            }
            added
        })
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(ctx, inode, handle, size, offset, &mut |dir_entry, entry| {
            let node = entry.inode;
            let added = add_entry(dir_entry, self.grant(entry));
            if added.is_err() {
                self.inner.forget(ctx, node, 1);
            }
            added
        })
    }

    fn fsyncdir(&self, ctx: &Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()> {
        self.inner.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()> {
        self.inner.releasedir(ctx, inode, flags, handle)
    }

    fn access(&self, ctx: &Context, inode: Inode, mask: u32) -> io::Result<()> {
        self.inner.access(ctx, inode, mask)
    }

    fn lseek(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.inner.lseek(ctx, inode, handle, offset, whence)
    }
}

impl CellFs {
    /// READDIRPLUS of the passthrough file system; but when the entry that it begins with goes away between being listed
    /// and being looked up, it fails, and here the next one is listed.
    fn list(
        &self,
        ctx: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for _ in 0..READDIR_ATTEMPTS {
            let mut added = false;
            let result = self.inner.readdirplus(ctx, inode, handle, size, offset, &mut |dir_entry, entry| {
                added = true;
                add_entry(dir_entry, entry)
            });
            match result {
                Err(error) if !added && error.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}
