//! The root file system of the cluster: an overlay, mounted where only the I/O server sees it.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::launch::RootSpec;

/// Mounts `root` below the directory `at`, in a mount namespace of this thread and those that it starts from now on: the
/// mounts end with the process. Returns where the tree is.
///
/// # Errors
/// If this process may not mount, or a layer is none.
pub fn mount_root(root: &RootSpec, at: &Path) -> anyhow::Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root may mount the cluster's root file system; run as root, or in a lab (`--host lab`)");
    }
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of its own")?;
    let none = None::<&str>;
    // Where `/` is not shared (an emulated host's initramfs) this changes nothing.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    make(at, 0o700)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("cannot mount a tmpfs at {}", at.display()))?;
    let mut lower = Vec::new();
    for (index, layer) in root.lower.iter().enumerate() {
        lower.push(mount_layer(layer, &at.join(format!("lower-{index}")))?);
    }
    let writable = root.upper.clone().unwrap_or_else(|| at.join("writable"));
    let (upper, work, all) = (writable.join("upper"), writable.join("work"), at.join("all"));
    for dir in [&upper, &work, &all] {
        make(dir, 0o755)?;
    }
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    // xino: a file keeps its inode number when it is copied up, so that a cell keeps what it knows of it.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},xino=on",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    mount(Some("overlay"), &all, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot mount the root file system ({options})"))?;
    Ok(all)
}

fn make(dir: &Path, mode: u32) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// The directory of a layer: itself, or where its image is mounted.
fn mount_layer(layer: &Path, at: &Path) -> anyhow::Result<PathBuf> {
    let meta = std::fs::metadata(layer).with_context(|| format!("no layer {}", layer.display()))?;
    if meta.is_dir() {
        return Ok(layer.to_owned());
    }
    make(at, 0o755)?;
    if meta.file_type().is_block_device() {
        mount(Some(layer), at, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
            .with_context(|| format!("cannot mount {} as erofs", layer.display()))?;
        return Ok(at.to_owned());
    }
    // mount(8) finds a free loop device, and frees it with the mount.
    let output = Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .arg(layer)
        .arg(at)
        .output()
        .context("cannot run mount(8)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot mount {}: {}", layer.display(), said.trim());
    }
    Ok(at.to_owned())
}
