//! Programs that only tests need, taken from Debian's packages as they are: `$SSIVMM_EXTRA=stress-ng` puts them into the tools
//! image. Without it no image carries them.
//!
//! A program gets a folder of its own with the libraries that it loads, so that neither the root nor its libraries change:
//! `/usr/lib/ssi/tests/NAME/NAME`, to be run with `LD_LIBRARY_PATH=/usr/lib/ssi/tests/NAME`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::Build;
use crate::command::Run;
use crate::hash::Key;
use crate::packages::{self, Purpose};
use crate::{Cache, Ui, root};

/// The environment variable that names programs, with commas between them.
pub const VARIABLE: &str = "SSIVMM_EXTRA";
/// Programs there are: each is in the Debian package of its name, as `/usr/bin/NAME`.
const PROGRAMS: &[&str] = &["stress-ng"];
/// The dynamic linker, in the tree and as programs name it.
const LINKER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Where Debian keeps libraries.
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Libraries of the C library, which fit only the dynamic linker of the root: it brings its own.
const OF_LIBC: &[&str] = &["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"];
/// The artifact.
const ARCHIVE: &str = "program.tar";

/// Puts the programs that `$SSIVMM_EXTRA` names into `tree`, in a subfolder of `folder` each.
///
/// # Errors
/// If a name is none of those that there are, or a package cannot be had.
pub fn install(cache: &Cache, ui: &Ui, tree: &Path, folder: &Path) -> Result<()> {
    let names = std::env::var(VARIABLE).unwrap_or_default();
    for name in wanted(&names)? {
        let archive = build(cache, ui, name)?;
        let to = tree.join(folder).join(name);
        fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
        Run::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(to).output()?;
    }
    Ok(())
}

fn wanted(names: &str) -> Result<Vec<&'static str>> {
    let split = names.split(',').filter(|name| !name.is_empty());
    split
        .map(|name| match PROGRAMS.iter().find(|known| **known == name) {
            Some(known) => Ok(*known),
            None => {
                bail!("{VARIABLE} names {name:?}, which there is not; there are: {}", PROGRAMS.join(", "))
            }
        })
        .collect()
}

/// The archive of a program and its libraries, from the cache or made now (half a minute).
fn build(cache: &Cache, ui: &Ui, name: &str) -> Result<PathBuf> {
    let mut key = Key::new("extra-1");
    for part in [name, root::RELEASE] {
        key.add("part", part.as_bytes());
    }
    let dir = cache.build("extra", &key.finish(), &[ARCHIVE], *ui, |build| make(build, *ui, name))?;
    Ok(dir.join(ARCHIVE))
}

fn make(build: &mut Build<'_>, ui: Ui, name: &str) -> Result<()> {
    packages::ensure(&[Purpose::Root], &ui)?;
    let sources = build.dir.join("debian.sources");
    fs::write(&sources, root::sources_for(Path::new("/etc/apt"), root::RELEASE)?)?;
    let tree = build.dir.join("tree");
    let step = ui.step("extra", &format!("unpacking Debian's {name}"), 0);
    // Unpacked only: nothing of the packages runs.
    Run::new("mmdebstrap")
        .args(["--mode=auto", "--variant=extract", "--format=directory"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(format!("--include={name}"))
        .env("TMPDIR", build.dir)
        .arg(root::RELEASE)
        .arg(&tree)
        .arg(&sources)
        .log_lines(&mut build.log, |_| step.tick())
        .with_context(|| format!("Debian's package {name} cannot be had"))?;
    let program = tree.join("usr/bin").join(name);
    let path: Vec<String> = LIBRARIES.iter().map(|folder| tree.join(folder).display().to_string()).collect();
    let listed = Run::new(tree.join(LINKER))
        .args(["--library-path", &path.join(":"), "--list"])
        .arg(&program)
        .output()
        .with_context(|| format!("the libraries of {name} cannot be listed"))?;
    let packed = build.dir.join("packed");
    fs::create_dir_all(&packed)?;
    copy(&program, &packed.join(name))?;
    for (library, from) in libraries(&listed)? {
        ensure!(from.starts_with(&tree), "{name} would load {}, which is not Debian's", from.display());
        copy(&from, &packed.join(library))?;
    }
    let archive = Run::new("tar").args(["--create", "--sort=name", "--owner=0", "--group=0", "--mtime=@0"]);
    archive.arg("--file").arg(build.dir.join(ARCHIVE)).arg("--directory").arg(&packed).arg(".").output()?;
    step.done();
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

/// Names and paths of the libraries in what the dynamic linker lists, without those that belong to the C library.
fn libraries(listed: &str) -> Result<Vec<(&str, PathBuf)>> {
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        let Some((name, rest)) = line.split_once(" => ") else { continue };
        let Some((path, _)) = rest.rsplit_once(" (0x") else {
            bail!("the library {name} is missing: {line}");
        };
        // The dynamic linker names itself with its path.
        if !name.contains('/') && !OF_LIBC.contains(&name) {
            found.push((name, PathBuf::from(path)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_the_c_library_does_not_bring() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /t/lib/libm.so.6 (0x00007f01)\n\tlibz.so.1 => \
                      /t/a (b)/libz.so.1 (0x00007f02)\n\t/lib64/ld-linux-x86-64.so.2 => /t/ld.so (0x00007f03)\n";
        assert_eq!(libraries(listed).unwrap(), [("libz.so.1", PathBuf::from("/t/a (b)/libz.so.1"))]);
        let error = libraries("\tlibq.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libq.so.1"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        assert!(wanted("").unwrap().is_empty());
        assert_eq!(wanted("stress-ng").unwrap(), ["stress-ng"]);
        let error = wanted("stress-ng,../x").unwrap_err().to_string();
        assert!(error.contains("../x") && error.contains("there are: stress-ng"), "{error}");
    }
}
