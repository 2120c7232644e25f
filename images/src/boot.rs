//! What `ssivmm bench boot` boots, and the QEMU that it is measured against where that runs in an emulated host.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::Run;
use crate::cpio::Archive;
use crate::hash::{Key, sha256_file};
use crate::packages::{self, Purpose};
use crate::{Cache, Ui, root};

/// What PID 1 of the initramfs prints, alone on a line.
pub const MARKER: &str = "ssi-boot: up";
/// Name of the initramfs, in the cache and on the disk.
pub const ROOT: &str = "boot.cpio";
/// Name of the disk image.
const DISK: &str = "boot.erofs";
/// The image's UUID.
const UUID: &str = "53534900-0000-4000-8000-000000000003";
/// The only program of the initramfs.
const INIT: &str = include_str!("../boot/init.c");
/// Files that a microvm may load, of those that come with QEMU.
const FIRMWARE: &[&str] =
    &["qboot.rom", "bios-microvm.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin"];
/// The one that it does load without ACPI.
const NEEDED: &str = "qboot.rom";

/// Where things are on the disk.
pub mod place {
    /// QEMU.
    pub const QEMU: &str = "qemu";
    /// The dynamic loader that starts it.
    pub const LOADER: &str = "loader";
    /// Its shared libraries.
    pub const LIBRARIES: &str = "lib";
    /// Its firmware.
    pub const FIRMWARE: &str = "firmware";
}

/// The initramfs: one static program, which says [`MARKER`] and resets the machine.
///
/// # Errors
/// If it does not compile or cannot be written.
pub fn initramfs(cache: &Cache, ui: &Ui) -> Result<PathBuf> {
    let marker = format!("-DMARKER=\"{MARKER}\"");
    let flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", &marker];
    let mut key = Key::new("boot-1");
    key.add("init", INIT.as_bytes());
    key.add("flags", flags.join(" ").as_bytes());
    let dir = cache.build("boot", &key.finish(), &[ROOT], *ui, |build| {
        packages::ensure(&[Purpose::Root], ui)?;
        let (source, program) = (build.dir.join("init.c"), build.dir.join("init"));
        fs::write(&source, INIT)?;
        Run::new("gcc").args(flags).arg("-o").arg(&program).arg(&source).log_to(&mut build.log)?;
        let mut archive = Archive::new(BufWriter::new(File::create(build.dir.join(ROOT))?));
        archive.directory("dev", 0o755)?;
        // The kernel opens it for PID 1.
        archive.character("dev/console", 0o600, 5, 1)?;
        archive.file("init", 0o755, &fs::read(&program)?)?;
        archive.finish().context("cannot write the initramfs")?;
        Ok(())
    })?;
    Ok(dir.join(ROOT))
}

/// A disk with the initramfs, and with this machine's `qemu`: the program, its shared libraries and its firmware.
///
/// # Errors
/// If a library or the firmware is missing, or the image cannot be written.
pub fn disk(cache: &Cache, qemu: &Path, ui: &Ui) -> Result<PathBuf> {
    let mut files = vec![(ROOT.to_owned(), initramfs(cache, ui)?), (place::QEMU.to_owned(), qemu.to_owned())];
    let needs = Run::new("ldd").arg(qemu).output().context("cannot tell which libraries QEMU needs")?;
    files.extend(libraries(&needs)?);
    let folders = Run::new(qemu).args(["-L", "help"]).output().context("cannot ask QEMU for its folders")?;
    let folders: Vec<PathBuf> = folders.lines().map(|line| PathBuf::from(line.trim())).collect();
    files.extend(firmware(&folders)?);

    let dir = cache.build("boot-disk", &disk_key(&files)?, &[DISK], *ui, |build| {
        packages::ensure(&[Purpose::Root], ui)?;
        let step = ui.step("boot-disk", "packing QEMU for the emulated host", 0);
        let tree = build.dir.join("tree");
        for (place, from) in &files {
            let to = tree.join(place);
            fs::create_dir_all(to.parent().unwrap_or(&tree))?;
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        root::pack(&tree, &build.dir.join(DISK), UUID, &["--all-root"]).log_to(&mut build.log)?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join(DISK))
}

/// The key of a disk with these (place, file) pairs: their contents, not where they come from.
fn disk_key(files: &[(String, PathBuf)]) -> Result<String> {
    let mut key = Key::new("boot-disk-1");
    for (place, from) in files {
        key.add(place, sha256_file(from)?.as_bytes());
    }
    Ok(key.finish())
}

/// The (place, file) pairs of what `ldd` says, the loader among them.
fn libraries(text: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut loader = None;
    for line in text.lines().map(str::trim) {
        match line.split_once(" => ") {
            Some((name, "not found")) => bail!("QEMU needs {name}, which is not there"),
            Some((name, path)) => {
                let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
                found.push((format!("{}/{name}", place::LIBRARIES), PathBuf::from(path)));
            }
            // The loader is named by its path; the kernel's own page has none.
            None => {
                loader = loader
                    .or(line.split_once(" (").map(|(path, _)| path).filter(|path| path.starts_with('/')))
            }
        }
    }
    let Some(loader) = loader else { bail!("ldd names no dynamic loader for QEMU") };
    found.push((place::LOADER.to_owned(), PathBuf::from(loader)));
    Ok(found)
}

/// The (place, file) pairs of the firmware: of each file the one in the first of QEMU's folders that has it.
fn firmware(folders: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for name in FIRMWARE {
        match folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) {
            Some(path) => found.push((format!("{}/{name}", place::FIRMWARE), path)),
            None if *name == NEEDED => {
                bail!("QEMU has no {name}; install it: apt-get install qemu-system-data")
            }
            None => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_every_library_but_the_kernels_own_are_taken() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x00007e)\n\t/lib64/ld.so.2 (0x00007d)\n";
        assert_eq!(
            libraries(text).unwrap(),
            [
                ("lib/libz.so.1".to_owned(), PathBuf::from("/lib/x/libz.so.1")),
                ("loader".to_owned(), PathBuf::from("/lib64/ld.so.2")),
            ]
        );
    }

    #[test]
    fn a_library_that_is_not_there_is_named_and_a_static_program_has_no_loader() {
        let error = libraries("\tlibz.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libz.so.1"), "{error}");
        assert!(libraries("\tstatically linked\n").is_err());
    }

    #[test]
    fn firmware_comes_from_the_first_folder_that_has_it_and_its_package_is_named_when_none_does() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_owned(), second.path().to_owned()];
        fs::write(second.path().join("pvh.bin"), "").unwrap();
        assert!(firmware(&folders).unwrap_err().to_string().contains("qemu-system-data"));
        for folder in &folders {
            fs::write(folder.join(NEEDED), "").unwrap();
        }
        assert_eq!(
            firmware(&folders).unwrap(),
            [
                ("firmware/qboot.rom".to_owned(), first.path().join(NEEDED)),
                ("firmware/pvh.bin".to_owned(), second.path().join("pvh.bin")),
            ]
        );
    }

    #[test]
    fn a_disk_is_known_by_the_contents_on_it_and_not_by_where_they_come_from() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            disk_key(&[(place::QEMU.to_owned(), path)]).unwrap()
        };
        assert_eq!(key("a", "one"), key("b", "one"));
        assert_ne!(key("a", "one"), key("a", "two"));
    }
}
