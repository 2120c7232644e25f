//! Layout below the cache's folder:
//! ```text
//! <kind>/<key>/            an artifact: its files, and manifest.json with their sizes, hashes and times
//! tmp/<kind>-<key>.XXXX/   a build under way; belongs to the holder of the lock, and is swept when there is none
//! lock/<kind>-<key>        flock'ed by the builder
//! log/<kind>-<key>.log     output of the last build
//! ```
//! An artifact becomes visible by one rename of a folder whose files and manifest are already on disk. What does not
//! agree with its manifest when it is looked up is thrown away and built again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::Ui;
use crate::command::Log;
use crate::hash::sha256_file;

const MANIFEST: &str = "manifest.json";
const MANIFEST_VERSION: u32 = 1;

/// What was true of an artifact when it was committed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
    /// Modification time in nanoseconds since 1970. A file whose time is another one is hashed again.
    mtime_ns: i128,
}

/// The folder in which artifacts are kept.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// What a build is given.
#[derive(Debug)]
pub struct Build<'a> {
    /// The folder to put the artifact's files in, in the cache's file system; what is in it besides the promised files is
    /// taken away before the commit.
    pub dir: &'a Path,
    /// The log of this build.
    pub log: Log,
    /// Where progress goes.
    pub ui: Ui,
}

/// Holds the lock of an artifact; released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
struct Lock {
    _file: File,
}

impl Lock {
    fn open(path: &Path) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))
    }

    /// Takes the lock if nobody holds it.
    fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = Self::open(path)?;
        // SAFETY: flock on a descriptor that `file` owns.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Some(Self { _file: file }));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
            return Ok(None);
        }
        Err(error).with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Takes the lock, waiting for its holder; says so first.
    fn take(path: &Path, what: &str, ui: Ui) -> Result<Self> {
        if let Some(lock) = Self::try_take(path)? {
            return Ok(lock);
        }
        ui.say(&format!("{what}: another process is building it; waiting for it to end"));
        let file = Self::open(path)?;
        loop {
            // SAFETY: as above.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(Self { _file: file });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

impl Cache {
    /// The user's cache: `$SSIVMM_CACHE`, else `$XDG_CACHE_HOME/ssivmm`, else `~/.cache/ssivmm`.
    ///
    /// # Errors
    /// If there is none of the three, or the folder cannot be made.
    pub fn open() -> Result<Self> {
        let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = given("SSIVMM_CACHE")
            .or_else(|| given("XDG_CACHE_HOME").map(|dir| dir.join("ssivmm")))
            .or_else(|| given("HOME").map(|dir| dir.join(".cache/ssivmm")));
        match dir {
            Some(dir) => Self::at(dir),
            None => bail!("no place for the image cache: HOME is not set; set SSIVMM_CACHE to a folder"),
        }
    }

    /// The cache in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = std::path::absolute(dir.into()).context("the current folder is gone")?;
        for part in ["tmp", "lock", "log"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| {
                format!(
                    "cannot make the image cache {}; set SSIVMM_CACHE to a folder that you can write",
                    path.display()
                )
            })?;
        }
        Ok(Self { dir })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of the artifact if it is there and whole: every promised file has the size and time that its manifest
    /// records, or at least the content.
    pub fn find(&self, kind: &str, key: &str, files: &[&str]) -> Option<PathBuf> {
        let dir = self.dir.join(kind).join(key);
        match check(&dir, files) {
            Ok(true) => Some(dir),
            Ok(false) => None,
            Err(error) => {
                log::warn!("{} is damaged and will be built again: {error:#}", dir.display());
                None
            }
        }
    }

    /// The artifact's folder; runs `build` if it is not there. `files` are the names that `build` makes in its folder.
    ///
    /// # Errors
    /// What `build` returns; or that it did not make a file it promised; or what the file system says.
    pub fn build(
        &self,
        kind: &str,
        key: &str,
        files: &[&str],
        ui: Ui,
        build: impl FnOnce(&mut Build<'_>) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(dir) = self.find(kind, key, files) {
            return Ok(dir);
        }
        let name = format!("{kind}-{key}");
        let _lock = Lock::take(&self.dir.join("lock").join(&name), kind, ui)?;
        // The one we waited for may have built it.
        if let Some(dir) = self.find(kind, key, files) {
            return Ok(dir);
        }
        self.sweep(&name);
        let temporary = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .tempdir_in(self.dir.join("tmp"))
            .context("cannot make a temporary folder in the image cache")?;
        let log = Log::create(&self.dir.join("log").join(format!("{name}.log")))?;
        build(&mut Build { dir: temporary.path(), log, ui })
            .with_context(|| format!("cannot build the {kind} image"))?;
        keep_only(temporary.path(), files)?;
        seal(temporary.path(), files)?;
        let target = self.dir.join(kind).join(key);
        fs::create_dir_all(self.dir.join(kind)).context("cannot make a folder in the image cache")?;
        if target.exists() {
            // Damaged, or `find` would have returned it.
            remove_tree(&target)?;
        }
        fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::rename(temporary.path(), &target)
            .with_context(|| format!("cannot commit the {kind} image to {}", target.display()))?;
        // It has moved: there is nothing to take away.
        let _ = temporary.keep();
        sync_dir(&self.dir.join(kind))?;
        Ok(target)
    }

    /// Takes away what dead builds left: temporary folders whose lock nobody holds (`held` is ours).
    fn sweep(&self, held: &str) {
        let Ok(entries) = fs::read_dir(self.dir.join("tmp")) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((owner, _)) = name.rsplit_once('.') else { continue };
            let lock =
                if owner == held { None } else { Some(Lock::try_take(&self.dir.join("lock").join(owner))) };
            if let Some(Ok(None) | Err(_)) = lock {
                continue;
            }
            if let Err(error) = remove_tree(&entry.path()) {
                log::warn!("what an interrupted build left cannot be removed: {error:#}");
            }
        }
    }
}

/// Is there an artifact in `dir`? `Ok(false)`: no. An error says how it is damaged.
fn check(dir: &Path, files: &[&str]) -> Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    let text = fs::read(dir.join(MANIFEST)).context("it has no manifest")?;
    let manifest: Manifest = serde_json::from_slice(&text).context("its manifest cannot be read")?;
    ensure!(manifest.version == MANIFEST_VERSION, "its manifest has version {}", manifest.version);
    for name in files {
        let entry = manifest.files.get(*name).with_context(|| format!("{name} is not in its manifest"))?;
        let path = dir.join(name);
        let metadata = fs::metadata(&path).with_context(|| format!("{name} is missing"))?;
        ensure!(metadata.len() == entry.bytes, "{name} has {} bytes, not {}", metadata.len(), entry.bytes);
        if mtime_ns(&metadata) != entry.mtime_ns {
            ensure!(sha256_file(&path)? == entry.sha256, "{name} has another content");
        }
    }
    Ok(true)
}

fn mtime_ns(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// Removes everything from `dir` but `files`.
fn keep_only(dir: &Path, files: &[&str]) -> Result<()> {
    for entry in fs::read_dir(dir).context("the build's folder is gone")? {
        let entry = entry?;
        if !files.iter().any(|name| entry.file_name() == *name) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes the manifest and brings all of it to disk, so that the rename commits whole files.
fn seal(dir: &Path, files: &[&str]) -> Result<()> {
    let mut manifest = Manifest { version: MANIFEST_VERSION, files: BTreeMap::new() };
    for name in files {
        let path = dir.join(name);
        let file = File::open(&path).with_context(|| format!("the build did not make {name}"))?;
        file.sync_all().with_context(|| format!("cannot bring {name} to disk"))?;
        let metadata = file.metadata()?;
        let entry =
            Entry { bytes: metadata.len(), sha256: sha256_file(&path)?, mtime_ns: mtime_ns(&metadata) };
        manifest.files.insert((*name).to_owned(), entry);
    }
    let mut file = File::create(dir.join(MANIFEST))?;
    file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
    file.sync_all().context("cannot bring the manifest to disk")?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot bring {} to disk", dir.display()))
}

/// Removes a file or a tree, unless something is mounted below it: what is mounted is not ours to remove.
fn remove_tree(path: &Path) -> Result<()> {
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_dir() {
        return fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(mount).starts_with(path) {
            bail!("{} is still mounted; unmount it (umount {mount})", mount);
        }
    }
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    const KEY: &str = "0123456789abcdef";

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    fn make(cache: &Cache, text: &str) -> Result<PathBuf> {
        cache.build("thing", KEY, &["a"], Ui::Silent, |build| {
            fs::write(build.dir.join("a"), text)?;
            fs::create_dir(build.dir.join("scratch"))?;
            Ok(())
        })
    }

    #[test]
    fn a_second_build_finds_what_the_first_made_and_scratch_is_not_kept() {
        let (_dir, cache) = cache();
        let first = make(&cache, "1").unwrap();
        let second = make(&cache, "2").unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(first.join("a")).unwrap(), "1");
        let mut names: Vec<_> = fs::read_dir(&first).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "manifest.json"]);
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let (_dir, cache) = cache();
        let error = cache.build("thing", KEY, &["a"], Ui::Silent, |build| {
            fs::write(build.dir.join("a"), "half")?;
            bail!("it broke")
        });
        assert!(format!("{:#}", error.unwrap_err()).contains("it broke"));
        assert!(cache.find("thing", KEY, &["a"]).is_none());
        assert_eq!(fs::read_dir(cache.dir().join("tmp")).unwrap().count(), 0);
        assert!(!cache.dir().join("thing").exists());
    }

    #[test]
    fn a_build_that_does_not_make_a_promised_file_is_refused() {
        let (_dir, cache) = cache();
        let error = cache
            .build("thing", KEY, &["a", "b"], Ui::Silent, |build| Ok(fs::write(build.dir.join("a"), "1")?));
        assert!(error.unwrap_err().to_string().contains("did not make b"));
        assert!(cache.find("thing", KEY, &["a"]).is_none());
    }

    #[test]
    fn what_a_killed_builder_left_is_not_trusted_and_is_swept() {
        let (_dir, cache) = cache();
        // As a process killed in the middle leaves it: a temporary folder whose lock nobody holds.
        let left = cache.dir().join("tmp").join(format!("thing-{KEY}.Ab12"));
        let other = cache.dir().join("tmp").join("kernel-77.Cd34");
        for dir in [&left, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("a"), "half").unwrap();
        }
        assert!(cache.find("thing", KEY, &["a"]).is_none());
        let dir = make(&cache, "whole").unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "whole");
        assert!(!left.exists() && !other.exists());
    }

    #[test]
    fn the_folder_of_a_living_builder_is_not_swept() {
        let (_dir, cache) = cache();
        let theirs = cache.dir().join("tmp/kernel-77.Cd34");
        fs::create_dir(&theirs).unwrap();
        let lock = Lock::try_take(&cache.dir().join("lock/kernel-77")).unwrap().unwrap();
        make(&cache, "1").unwrap();
        assert!(theirs.exists());
        drop(lock);
    }

    #[test]
    fn of_two_builders_one_builds_and_the_other_waits_and_uses_it() {
        let (_dir, cache) = cache();
        let (barrier, runs) = (Barrier::new(2), AtomicU32::new(0));
        let dirs: Vec<PathBuf> = std::thread::scope(|scope| {
            let builder = || {
                barrier.wait();
                cache.build("thing", KEY, &["a"], Ui::Silent, |build| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    Ok(fs::write(build.dir.join("a"), "1")?)
                })
            };
            let threads = [scope.spawn(builder), scope.spawn(builder)];
            threads.map(|thread| thread.join().unwrap().unwrap()).into_iter().collect()
        });
        assert_eq!(dirs[0], dirs[1]);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_damaged_artifact_is_found_out_and_built_again() {
        let damages: [fn(&Path); 4] = [
            |dir| fs::write(dir.join("a"), "longer").unwrap(),
            |dir| fs::write(dir.join("a"), "X").unwrap(),
            |dir| fs::remove_file(dir.join("a")).unwrap(),
            |dir| fs::write(dir.join(MANIFEST), "{").unwrap(),
        ];
        for damage in damages {
            let (_dir, cache) = cache();
            let dir = make(&cache, "1").unwrap();
            damage(&dir);
            assert!(cache.find("thing", KEY, &["a"]).is_none());
            let dir = make(&cache, "2").unwrap();
            assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "2");
        }
    }

    #[test]
    fn a_file_with_another_time_and_the_same_content_is_still_good() {
        let (_dir, cache) = cache();
        let dir = make(&cache, "1").unwrap();
        fs::write(dir.join("a"), "1").unwrap();
        assert!(cache.find("thing", KEY, &["a"]).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_made_names_the_variable_to_set() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Cache::at(dir.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("SSIVMM_CACHE"), "{error}");
    }
}
