use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use ssi_images::command::{Run, which};
use ssi_images::packages::{self, Purpose};

use super::kvm::{self, KvmFacts};
use crate::lab::qemu;

/// What there is on this machine. No field says whether that is good.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// KVM.
    pub kvm: KvmFacts,
    /// userfaultfd: needed features that are missing, as (name, first kernel that has it); or why there is none.
    pub userfaultfd: Result<Vec<(String, String)>, String>,
    /// TAP: usable, or why not.
    pub tap: Result<(), String>,
    /// QEMU's version, (major, minor); `None` if it is not installed or does not say.
    pub qemu: Option<(u32, u32)>,
    /// Packages that are not installed, by purpose; or why that cannot be told.
    pub packages: Result<Vec<(Purpose, Vec<&'static str>)>, String>,
    /// The image cache.
    pub cache: PathBuf,
    /// Bytes that are free there, for this user; or why that cannot be told.
    pub cache_free: Result<u64, String>,
    /// Memory that programs can still get, in bytes.
    pub memory_available: u64,
    /// Processors.
    pub cpus: usize,
    /// Is this root?
    pub root: bool,
    /// Is this an emulated host of ours?
    pub is_lab_host: bool,
}

/// Looks.
pub fn gather() -> Facts {
    let cache = cache_dir();
    Facts {
        kvm: kvm::probe(),
        userfaultfd: userfaultfd(),
        tap: tap(),
        qemu: qemu_version(),
        packages: missing_packages(),
        cache_free: free_bytes(&cache).map_err(|error| error.to_string()),
        cache,
        memory_available: memory_available().unwrap_or(0),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        // SAFETY: geteuid only reads.
        root: unsafe { libc::geteuid() } == 0,
        is_lab_host: Path::new(crate::lab::payload::place::WORK).exists(),
    }
}

fn cache_dir() -> PathBuf {
    ssi_images::Cache::open().map_or_else(|_| PathBuf::from("/"), |cache| cache.dir().to_owned())
}

fn userfaultfd() -> Result<Vec<(String, String)>, String> {
    let found = ssi_dsm::memory::probe().map_err(|error| error.to_string())?;
    Ok(found.missing.iter().map(|(name, since)| ((*name).to_owned(), (*since).to_owned())).collect())
}

fn tap() -> Result<(), String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    device.map(|_| ()).map_err(|error| format!("/dev/net/tun: {error}"))
}

fn qemu_version() -> Option<(u32, u32)> {
    which(qemu::PROGRAM)?;
    parse_qemu_version(&Run::new(qemu::PROGRAM).arg("--version").output().ok()?)
}

/// (major, minor) in `QEMU emulator version 7.2.22 (...)`.
fn parse_qemu_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn missing_packages() -> Result<Vec<(Purpose, Vec<&'static str>)>, String> {
    let mut all = Vec::new();
    for purpose in Purpose::ALL {
        let missing = packages::missing(&[purpose]).map_err(|error| format!("{error:#}"))?;
        if !missing.is_empty() {
            all.push((purpose, missing));
        }
    }
    Ok(all)
}

fn free_bytes(path: &Path) -> nix::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_version_is_read_from_its_own_words() {
        assert_eq!(
            parse_qemu_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"),
            Some((7, 2))
        );
        assert_eq!(parse_qemu_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_qemu_version("something else"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_available().unwrap() > 0);
    }
}
