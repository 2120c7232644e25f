//! The kernel's FUSE client on two mounts of one served tree: two cells, as far as the service can tell.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::{FsMetrics, FsServer, FsSession, MAX_REQUEST};
use super::server;

/// A session that is mounted.
struct Mount {
    path: PathBuf,
    reader: Option<JoinHandle<()>>,
}

impl Mount {
    fn new(session: FsSession, path: PathBuf) -> nix::Result<Self> {
        fs::create_dir(&path).unwrap();
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|_| nix::Error::ENODEV)?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        mount(Some("ssi"), &path, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
        let device = Arc::new(device);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; MAX_REQUEST];
            loop {
                match (&*device).read(&mut buffer) {
                    Ok(length) => {
                        let device = device.clone();
                        session.submit(buffer[..length].to_vec(), move |reply| {
                            // An answer to a request that was interrupted is refused with ENOENT.
                            if !reply.is_empty() {
                                let _ = (&*device).write(&reply);
                            }
                        });
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { path, reader: Some(reader) })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
        let _ = self.reader.take().unwrap().join();
    }
}

/// An overlay file system, as the root of a cluster is.
struct Overlay(PathBuf);

impl Overlay {
    /// One at `dir`/root, over `dir`/lower.
    fn new(dir: &Path) -> nix::Result<Self> {
        let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|name| dir.join(name));
        for part in [&lower, &upper, &work] {
            fs::create_dir(part).unwrap();
        }
        fs::write(lower.join("below"), "below").unwrap();
        let show = |path: &Path| path.display().to_string();
        let options =
            format!("lowerdir={},upperdir={},workdir={},xino=on", show(&lower), show(&upper), show(&work));
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(root))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Two cells on one tree. Fields are dropped in order: mounts first.
struct Cells {
    a: Mount,
    b: Mount,
    metrics: Arc<FsMetrics>,
    /// The tree itself.
    root: PathBuf,
    _server: FsServer,
    overlay: Option<Overlay>,
    _dir: tempfile::TempDir,
}

/// Two cells on a plain directory, then two on an overlay; what this machine cannot do is skipped, and says why.
fn each() -> impl Iterator<Item = Cells> {
    [false, true].into_iter().filter_map(cells)
}

fn cells(overlay: bool) -> Option<Cells> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let overlay = match overlay.then(|| Overlay::new(dir.path())).transpose() {
        Ok(overlay) => overlay,
        Err(error) => {
            eprintln!("SKIP: no overlay mount here: {error}");
            return None;
        }
    };
    let server = server(&root);
    let metrics = server.metrics();
    let mount = |cell, name| match Mount::new(server.session(cell).unwrap(), dir.path().join(name)) {
        Ok(mount) => Some(mount),
        Err(error) => {
            eprintln!("SKIP: no FUSE mount here: {error}");
            None
        }
    };
    Some(Cells { a: mount(0, "a")?, b: mount(1, "b")?, metrics, root, _server: server, overlay, _dir: dir })
}

impl Cells {
    fn a(&self, name: &str) -> PathBuf {
        self.a.path.join(name)
    }

    fn b(&self, name: &str) -> PathBuf {
        self.b.path.join(name)
    }
}

/// COH-1: of the same length, and faster than the clock of file time stamps ticks.
#[test]
fn coh1_what_one_cell_writes_and_closes_another_reads_after_open() {
    for cells in each() {
        for n in 0..300 {
            let text = format!("{n:05}");
            let (writer, reader) =
                if n % 2 == 0 { (cells.a("f"), cells.b("f")) } else { (cells.b("f"), cells.a("f")) };
            if n % 3 == 0 {
                fs::write(&writer, &text).unwrap();
            } else {
                OpenOptions::new().write(true).open(&writer).unwrap().write_all(text.as_bytes()).unwrap();
            }
            assert_eq!(fs::read_to_string(&reader).unwrap(), text, "turn {n}");
            assert_eq!(fs::read_to_string(&writer).unwrap(), text, "turn {n}");
        }
        // Longer, shorter, replaced by rename.
        for text in ["much longer than it was before", "short", ""] {
            fs::write(cells.a("f"), text).unwrap();
            assert_eq!(fs::read_to_string(cells.b("f")).unwrap(), text);
            fs::write(cells.a("new"), format!("{text}!")).unwrap();
            fs::rename(cells.a("new"), cells.a("f")).unwrap();
            assert_eq!(fs::read_to_string(cells.b("f")).unwrap(), format!("{text}!"));
        }
    }
}

/// COH-1 for what is written through a shared mapping.
#[test]
fn coh1_holds_for_shared_mappings() {
    for cells in each() {
        fs::write(cells.a("f"), vec![b'.'; 8192]).unwrap();
        assert_eq!(fs::read(cells.b("f")).unwrap()[4096], b'.');
        let file = OpenOptions::new().read(true).write(true).open(cells.a("f")).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice; it is unmapped below and used in between only.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                8192,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>().add(4096).write_volatile(b'!');
            libc::munmap(at, 8192);
        }
        drop(file);
        assert_eq!(fs::read(cells.b("f")).unwrap()[4096], b'!');
    }
}

/// COH-2, and the reason for it: a file that nobody else writes is read from the server once.
#[test]
fn coh2_pages_stay_cached_over_opens_while_nobody_else_writes() {
    for cells in each() {
        let data = vec![7u8; 1 << 20];
        fs::write(cells.a("f"), &data).unwrap();
        assert_eq!(fs::read(cells.b("f")).unwrap(), data);
        let before = cells.metrics.reply_bytes.get();
        for _ in 0..5 {
            assert_eq!(fs::read(cells.b("f")).unwrap(), data);
        }
        let sent = cells.metrics.reply_bytes.get() - before;
        assert!(sent < data.len() as u64, "{sent} bytes were sent for a file that was cached");
        assert!(cells.metrics.cache_kept_count.get() >= 5);
        // Now A writes a byte: B gets it.
        OpenOptions::new().write(true).open(cells.a("f")).unwrap().write_all(&[9]).unwrap();
        assert_eq!(fs::read(cells.b("f")).unwrap()[0], 9);
    }
}

#[test]
fn coh4_a_renamed_directory_is_under_its_new_name_everywhere_at_once() {
    for cells in each() {
        for n in 0..3 {
            let (this, other) = if n % 2 == 0 { (&cells.a, &cells.b) } else { (&cells.b, &cells.a) };
            fs::create_dir(this.path.join("site")).unwrap();
            fs::write(this.path.join("site/page"), format!("old {n}")).unwrap();
            assert_eq!(fs::read_to_string(other.path.join("site/page")).unwrap(), format!("old {n}"));
            fs::create_dir(this.path.join("site.new")).unwrap();
            fs::write(this.path.join("site.new/page"), format!("new {n}")).unwrap();
            fs::rename(this.path.join("site"), this.path.join("site.old")).unwrap();
            fs::rename(this.path.join("site.new"), this.path.join("site")).unwrap();
            assert_eq!(fs::read_to_string(other.path.join("site/page")).unwrap(), format!("new {n}"));
            assert_eq!(fs::read_to_string(other.path.join("site.old/page")).unwrap(), format!("old {n}"));
            fs::remove_dir_all(this.path.join("site")).unwrap();
            fs::remove_dir_all(this.path.join("site.old")).unwrap();
            assert!(!other.path.join("site").exists());
        }
        assert!(cells.metrics.lease_waits_count.get() > 0);
    }
}

#[test]
fn a_file_that_is_unlinked_elsewhere_while_open_lives_until_it_is_closed() {
    for cells in each() {
        fs::write(cells.a("f"), "before").unwrap();
        let mut open = OpenOptions::new().read(true).write(true).open(cells.b("f")).unwrap();
        fs::remove_file(cells.a("f")).unwrap();
        assert!(!cells.b("f").exists());
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before");
        open.write_all(b" and after").unwrap();
        open.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and after");
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        // A new file of that name is another.
        fs::write(cells.a("f"), "other").unwrap();
        assert_eq!(fs::read_to_string(cells.b("f")).unwrap(), "other");
        assert_eq!(open.metadata().unwrap().len(), 16);
    }
}

#[test]
fn both_cells_append_to_one_file_and_no_line_is_lost() {
    for cells in each() {
        std::thread::scope(|scope| {
            for path in [cells.a("log"), cells.b("log")] {
                scope.spawn(move || {
                    let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
                    for _ in 0..200 {
                        log.write_all(b"a line\n").unwrap();
                    }
                });
            }
        });
        assert_eq!(
            fs::read_to_string(cells.root.join("log")).unwrap().lines().filter(|l| *l == "a line").count(),
            400
        );
    }
}

#[test]
fn a_program_runs_from_the_mount_and_its_new_version_after_a_replacement() {
    for cells in each() {
        let run = |path: &Path| String::from_utf8(Command::new(path).output().unwrap().stdout).unwrap();
        fs::copy("/bin/echo", cells.a("program")).unwrap();
        assert_eq!(run(&cells.b("program")), "\n");
        assert_eq!(run(&cells.b("program")), "\n");
        fs::write(cells.a("next"), "#!/bin/sh\necho new\n").unwrap();
        fs::set_permissions(cells.a("next"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(cells.a("next"), cells.a("program")).unwrap();
        assert_eq!(run(&cells.b("program")), "new\n");
    }
}

#[test]
fn owners_modes_links_nodes_and_attributes_are_kept() {
    for cells in each() {
        fs::write(cells.a("f"), "x").unwrap();
        std::os::unix::fs::chown(cells.a("f"), Some(33), Some(44)).unwrap();
        fs::set_permissions(cells.a("f"), fs::Permissions::from_mode(0o4751)).unwrap();
        let seen = fs::metadata(cells.b("f")).unwrap();
        assert_eq!((seen.uid(), seen.gid(), seen.mode() & 0o7777), (33, 44, 0o4751));
        fs::hard_link(cells.a("f"), cells.a("g")).unwrap();
        assert_eq!(fs::metadata(cells.b("g")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(cells.b("g")).unwrap().ino(), fs::metadata(cells.b("f")).unwrap().ino());
        symlink("f", cells.a("s")).unwrap();
        assert_eq!(fs::read_link(cells.b("s")).unwrap(), Path::new("f"));
        assert_eq!(fs::read_to_string(cells.b("s")).unwrap(), "x");
        // A write takes the set-user-ID bit away (POSIX), here from the other cell and as another user.
        let status = Command::new("/bin/sh")
            .args(["-c", "echo y >> \"$0\""])
            .arg(cells.b("f"))
            .uid(33)
            .gid(44)
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(fs::metadata(cells.a("f")).unwrap().mode() & 0o7777, 0o751);
        nix::unistd::mkfifo(&cells.a("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(fs::symlink_metadata(cells.b("fifo")).unwrap().file_type().is_fifo());
        set_attribute(&cells.a("f"), "value");
        assert_eq!(attribute(&cells.b("f")).as_deref(), Some("value"));
        fs::rename(cells.b("f"), cells.b("h")).unwrap();
        assert_eq!(attribute(&cells.a("h")).as_deref(), Some("value"));
    }
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().unwrap()).unwrap()
}

fn set_attribute(path: &Path, value: &str) {
    // SAFETY: both names are C strings, and the value is as long as said.
    let result = unsafe {
        libc::setxattr(c_path(path).as_ptr(), c"trusted.ssi".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn attribute(path: &Path) -> Option<String> {
    let mut value = [0u8; 64];
    // SAFETY: both names are C strings, and the buffer is as long as said.
    let length = unsafe {
        libc::getxattr(c_path(path).as_ptr(), c"trusted.ssi".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    (length >= 0).then(|| String::from_utf8(value[..length as usize].to_vec()).unwrap())
}

/// The guest's kernel decides by all of a user's groups; the server must not decide again by one.
#[test]
fn a_user_makes_files_where_only_a_supplementary_group_may() {
    for cells in each() {
        fs::create_dir(cells.a("shared")).unwrap();
        std::os::unix::fs::chown(cells.a("shared"), Some(0), Some(50)).unwrap();
        fs::set_permissions(cells.a("shared"), fs::Permissions::from_mode(0o770)).unwrap();
        for dir in [cells.root.clone(), cells.a(""), cells.root.parent().unwrap().to_owned()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut touch = Command::new("/usr/bin/touch");
        touch.arg(cells.a("shared/f")).gid(33);
        // SAFETY: setgroups and setuid are system calls, fit for a child between fork and exec.
        unsafe {
            touch.pre_exec(|| {
                let groups = [50];
                if libc::setgroups(1, groups.as_ptr()) != 0 || libc::setuid(33) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        assert!(touch.status().unwrap().success());
        let made = fs::metadata(cells.root.join("shared/f")).unwrap();
        assert_eq!((made.uid(), made.gid()), (33, 33));
    }
}

#[test]
fn a_large_file_is_the_same_through_the_other_cell() {
    for cells in each() {
        let mut state = 1u64;
        let data: Vec<u8> = (0..24 << 20)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        fs::write(cells.a("large"), &data).unwrap();
        assert!(fs::read(cells.b("large")).unwrap() == data);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(cells.b("large")).unwrap();
        let mut part = vec![0; 4096];
        file.read_exact_at(&mut part, 8192).unwrap();
        assert_eq!(part, data[8192..12288]);
        let sparse = File::create(cells.a("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert_eq!(fs::metadata(cells.b("sparse")).unwrap().len(), 1 << 40);
    }
}

#[test]
fn a_directory_can_be_listed_while_the_other_cell_deletes_from_it() {
    for cells in each() {
        fs::create_dir(cells.a("d")).unwrap();
        for n in 0..600 {
            File::create(cells.a(&format!("d/keep{n}"))).unwrap();
            File::create(cells.a(&format!("d/drop{n}"))).unwrap();
        }
        std::thread::scope(|scope| {
            let delete = scope.spawn(|| {
                for n in 0..600 {
                    fs::remove_file(cells.a(&format!("d/drop{n}"))).unwrap();
                }
            });
            loop {
                let done = delete.is_finished();
                let kept = fs::read_dir(cells.b("d"))
                    .unwrap()
                    .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("keep"))
                    .count();
                assert_eq!(kept, 600);
                if done {
                    break;
                }
            }
        });
        assert_eq!(fs::read_dir(cells.b("d")).unwrap().count(), 600);
    }
}

/// Locks are each cell's own: they work inside a cell, and say nothing to another.
#[test]
fn locks_are_kept_by_each_cell_for_itself() {
    for cells in each() {
        fs::write(cells.a("f"), "x").unwrap();
        let lock = |path: PathBuf| {
            let file = File::open(path).unwrap();
            // SAFETY: flock takes a descriptor and a number.
            let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
            (file, result)
        };
        let (_held, first) = lock(cells.a("f"));
        assert_eq!((first, lock(cells.a("f")).1, lock(cells.b("f")).1), (0, -1, 0));
    }
}

/// A file of the lower layer is copied when it is first written: who had it open, or cached, sees the copy.
#[test]
fn coh1_holds_when_a_file_is_copied_up() {
    let Some(cells) = cells(true) else { return };
    assert!(cells.overlay.is_some());
    let before = fs::metadata(cells.b("below")).unwrap().ino();
    assert_eq!(fs::read_to_string(cells.b("below")).unwrap(), "below");
    let held = File::open(cells.b("below")).unwrap();
    fs::write(cells.a("below"), "above").unwrap();
    assert_eq!(fs::read_to_string(cells.b("below")).unwrap(), "above");
    assert_eq!(fs::metadata(cells.b("below")).unwrap().ino(), before, "its inode number stays");
    let mut text = [0; 5];
    held.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"above", "the same file, also by a descriptor from before");
    fs::remove_file(cells.b("below")).unwrap();
    assert!(!cells.a("below").exists());
}
