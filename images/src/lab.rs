//! The lab image: an initramfs with the statically linked `ssivmm` as PID 1 and the mount points that it needs. It is not
//! compressed: an emulated machine inflates slower than it copies.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::hash::{Key, sha256_file};
use crate::packages::{self, Purpose};
use crate::{Cache, Ui, tools};

/// Name of the image.
pub const IMAGE: &str = "initramfs.cpio";

/// The initramfs whose `/init` is `program`, a statically linked `ssivmm`.
///
/// # Errors
/// If the program cannot be read or the image cannot be written.
pub fn build(cache: &Cache, program: &Path, ui: &Ui) -> Result<PathBuf> {
    let mut key = Key::new("lab-1");
    key.add("ssivmm", sha256_file(program)?.as_bytes());
    let dir = cache.build("lab", &key.finish(), &[IMAGE], *ui, |build| {
        packages::ensure(&[Purpose::Root], ui)?;
        let stripped = build.dir.join("init");
        tools::install(program, &stripped)?;
        let out = BufWriter::new(File::create(build.dir.join(IMAGE))?);
        write(Archive::new(out), &fs::read(&stripped)?).context("cannot write the initramfs")?;
        Ok(())
    })?;
    Ok(dir.join(IMAGE))
}

fn write<W: std::io::Write>(mut archive: Archive<W>, init: &[u8]) -> std::io::Result<W> {
    for name in ["dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"] {
        archive.directory(name, 0o755)?;
    }
    // The kernel opens it for PID 1 before anything is mounted.
    archive.character("dev/console", 0o600, 5, 1)?;
    archive.character("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, init)?;
    archive.finish()
}
