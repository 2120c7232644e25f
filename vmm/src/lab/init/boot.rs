//! The boot benchmark, in an emulated host.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use ssi_images::boot::{ROOT, place as on_disk};

use super::{NO_CELL_ON, place, say};
use crate::bootbench::{self, Contest, KernelFormat};
use crate::lab::payload::BOOTED;
use crate::worker::Stop;

/// Where the disk is mounted.
const DISK: &str = "/mnt/boot";

/// Boots in turn and says each boot in a line of its own.
pub(super) fn run(rounds: u32, format: KernelFormat) -> Result<()> {
    let disk = Path::new(DISK);
    fs::create_dir_all(disk)?;
    mount(Some(place::BOOT), disk, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
        .context("cannot mount the disk of the boot benchmark")?;
    // QEMU maps its files, which it cannot do with a disk; and neither VMM is to wait for one.
    let vmlinux = copy(Path::new(place::KERNEL), "vmlinux")?;
    let qemu_kernel = match format {
        KernelFormat::Pvh => vmlinux.clone(),
        KernelFormat::BzImage => copy(Path::new(place::BZIMAGE), "bzImage")?,
    };
    let contest = Contest {
        // `/proc/self/exe` would be another program in a process that has changed.
        ssivmm: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/init")),
        qemu: qemu(disk),
        vmlinux,
        qemu_kernel,
        initramfs: copy(&disk.join(ROOT), ROOT)?,
        avoid_cpu: Some(NO_CELL_ON),
    };
    quiet()?;
    let cancel = Stop::new().context("no event")?;
    bootbench::measure(&contest, rounds, &cancel, |boot| match serde_json::to_string(&boot) {
        Ok(json) => say(&format!("{BOOTED}{json}")),
        Err(error) => log::error!("a boot cannot be told: {error}"),
    })?;
    Ok(())
}

/// Keeps the kernel's messages from the console: KVM has one or two for each boot, and a guest would wait while they go
/// over the emulated serial line.
fn quiet() -> Result<()> {
    const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;
    const KERN_ALERT: libc::c_int = 1;
    // SAFETY: this action takes no buffer.
    if unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, std::ptr::null_mut(), KERN_ALERT) } < 0 {
        return Err(io::Error::last_os_error()).context("cannot keep the kernel's messages from the console");
    }
    Ok(())
}

/// Copies a file or a disk into memory.
fn copy(from: &Path, name: &str) -> Result<PathBuf> {
    let to = Path::new("/tmp").join(name);
    let copied = fs::File::open(from).and_then(|mut from| io::copy(&mut from, &mut fs::File::create(&to)?));
    copied.with_context(|| format!("cannot copy {} into memory", from.display()))?;
    Ok(to)
}

/// QEMU's loader, and QEMU with the places of its files: none of them is where it was on the machine.
fn qemu(disk: &Path) -> Vec<OsString> {
    vec![
        disk.join(on_disk::LOADER).into(),
        "--library-path".into(),
        disk.join(on_disk::LIBRARIES).into(),
        disk.join(on_disk::QEMU).into(),
        "-L".into(),
        disk.join(on_disk::FIRMWARE).into(),
    ]
}
