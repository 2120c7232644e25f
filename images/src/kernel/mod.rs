//! The guest kernel: Debian's source (pinned by sha256), `guest-kernel/patches/*.patch` in order and without fuzz,
//! `guest-kernel/ssi/` as `ssi/` of the tree, and the configuration of `guest-kernel/configs/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Log, Run, which};
use crate::hash::{Key, files, sha256_file};
use crate::packages::{self, Purpose};
use crate::progress::Step;
use crate::{Cache, Source, Ui};

/// Requests of the configuration, and whether they stuck.
pub mod config;
/// The pinned source.
pub mod pin;

use pin::Pin;

const VMLINUX: &str = "vmlinux";
const BZIMAGE: &str = "bzImage";
const CONFIG: &str = "config";
/// Where the patched tree records what it was made of.
const PREPARED: &str = ".ssi-prepared";

/// A built kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// ELF image, which cells boot.
    pub vmlinux: PathBuf,
    /// Compressed image, which the emulated host boots.
    pub bzimage: PathBuf,
    /// The configuration that it was built with.
    pub config: PathBuf,
}

/// The kernel of this source tree, from the cache or built now (six minutes on two cores). With `$SSIVMM_KERNEL` set to a
/// kernel tree that is already built, that one.
///
/// # Errors
/// If a package is missing, the source is not the pinned one, a patch does not apply, a requested option does not
/// stick, or the compiler fails; the log is named.
pub fn build(cache: &Cache, source: &Source, ui: &Ui) -> Result<Kernel> {
    if let Some(tree) = std::env::var_os("SSIVMM_KERNEL").filter(|tree| !tree.is_empty()) {
        return of_tree(Path::new(&tree)).context("SSIVMM_KERNEL does not name a kernel tree that is built");
    }
    let pin = Pin::read(&source.join("guest-kernel/source.toml"))?;
    let names = [VMLINUX, BZIMAGE, CONFIG];
    let dir = cache.build("kernel", &key(source, &pin)?, &names, *ui, |build| {
        packages::ensure(&[Purpose::Kernel], ui)?;
        let tree = build.dir.join("linux");
        prepare(source, &pin, &tree, &mut build.log, *ui)?;
        overlay(source, &tree)?;
        configure(source, &tree, true, &mut build.log)?;
        compile(&pin, &tree, true, &mut build.log, *ui)?;
        let built = of_tree(&tree)?;
        for (from, name) in [(&built.vmlinux, VMLINUX), (&built.bzimage, BZIMAGE), (&built.config, CONFIG)] {
            fs::rename(from, build.dir.join(name)).with_context(|| format!("cannot move {name}"))?;
        }
        Ok(())
    })?;
    Ok(Kernel { vmlinux: dir.join(VMLINUX), bzimage: dir.join(BZIMAGE), config: dir.join(CONFIG) })
}

/// Builds in the developer's own `tree`, and builds only what changed. The tree is made from the pinned source when it does
/// not exist; when it holds other patches than the project's, it is left alone.
///
/// # Errors
/// As [`build`].
pub fn build_in_tree(source: &Source, tree: &Path, ui: &Ui) -> Result<Kernel> {
    packages::ensure(&[Purpose::Kernel], ui)?;
    let pin = Pin::read(&source.join("guest-kernel/source.toml"))?;
    let tree = std::path::absolute(tree)?;
    let mut log = Log::create(&tree.with_extension("build.log"))?;
    if !tree.join("Makefile").exists() {
        prepare(source, &pin, &tree, &mut log, *ui)?;
    }
    let prepared = fs::read_to_string(tree.join(PREPARED)).unwrap_or_default();
    if prepared.trim() != patches_key(source, &pin)? {
        ui.say(&format!(
            "warning: {} was not prepared from the project's patches as they are now; to start from them, remove it",
            tree.display()
        ));
    }
    overlay(source, &tree)?;
    configure(source, &tree, false, &mut log)?;
    compile(&pin, &tree, false, &mut log, *ui)?;
    of_tree(&tree)
}

/// The kernel that was built in `tree`.
///
/// # Errors
/// If one of its files is not there.
pub fn of_tree(tree: &Path) -> Result<Kernel> {
    let kernel = Kernel {
        vmlinux: tree.join("vmlinux"),
        bzimage: tree.join("arch/x86/boot/bzImage"),
        config: tree.join(".config"),
    };
    for path in [&kernel.vmlinux, &kernel.bzimage, &kernel.config] {
        ensure!(path.is_file(), "{} does not exist", path.display());
    }
    Ok(kernel)
}

/// The key of the artifact.
fn key(source: &Source, pin: &Pin) -> Result<String> {
    let mut key = Key::new("kernel-1");
    key.add("source", pin.sha256.as_bytes());
    for folder in ["patches", "ssi", "configs"] {
        key.add_tree(folder, &source.join("guest-kernel").join(folder))?;
    }
    Ok(key.finish())
}

/// What [`prepare`] makes a tree of.
fn patches_key(source: &Source, pin: &Pin) -> Result<String> {
    let mut key = Key::new("kernel-tree-1");
    key.add("source", pin.sha256.as_bytes());
    for patch in patches(source)? {
        key.add(&patch.display().to_string(), &fs::read(source.join("guest-kernel/patches").join(&patch))?);
    }
    Ok(key.finish())
}

/// Names of the patches, in order.
fn patches(source: &Source) -> Result<Vec<PathBuf>> {
    let all = files(&source.join("guest-kernel/patches"))?;
    Ok(all
        .into_iter()
        .map(|(name, _)| PathBuf::from(name))
        .filter(|name| name.extension() == Some("patch".as_ref()))
        .collect())
}

/// Unpacks the pinned source into `tree` and applies the patches. `tree` appears under its name when all applied.
fn prepare(source: &Source, pin: &Pin, tree: &Path, log: &mut Log, ui: Ui) -> Result<()> {
    pin.verify()?;
    let step = ui.step("kernel", "unpacking the source", 0);
    let partial = tree.with_extension("unpacking");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    Run::new("tar")
        .args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(&pin.path)
        .arg("--directory")
        .arg(&partial)
        .log_to(log)?;
    step.done();
    for name in patches(source)? {
        let path = source.join("guest-kernel/patches").join(&name);
        apply(&partial, &path, log)
            .with_context(|| format!("the patch {} does not apply", name.display()))?;
    }
    fs::write(partial.join(PREPARED), patches_key(source, pin)?)?;
    fs::rename(&partial, tree).with_context(|| format!("cannot make {}", tree.display()))
}

/// Applies one patch; neither fuzz nor a reject is taken.
fn apply(tree: &Path, patch: &Path, log: &mut Log) -> Result<()> {
    let file = fs::File::open(patch)?;
    Run::new("patch")
        .args(["-p1", "--fuzz=0", "--forward", "--batch", "--no-backup-if-mismatch", "--reject-file=-"])
        .dir(tree)
        .stdin(file)
        .log_to(log)
}

/// Copies our directory into the tree; files that did not change keep their times, so that make leaves them alone.
fn overlay(source: &Source, tree: &Path) -> Result<()> {
    let (from, to) = (source.join("guest-kernel/ssi"), tree.join("ssi"));
    let ours = files(&from)?;
    for (name, path) in &ours {
        let target = to.join(name);
        let content = fs::read(path)?;
        if fs::read(&target).ok().as_ref() != Some(&content) {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    // A file that was taken out of our directory must not go on being compiled.
    for (name, path) in files(&to)? {
        let is_source = [".c", ".h", ".S"].iter().any(|end| name.ends_with(end)) && !name.ends_with(".mod.c");
        if is_source && !ours.iter().any(|(ours, _)| *ours == name) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// `make` in `tree`. `cached`: through ccache, where that is installed; make takes another compiler command for a reason to compile
/// all again, so a developer's tree, which was perhaps built by hand, goes without.
fn make(tree: &Path, cached: bool) -> Run {
    let mut make = Run::new("make")
        .dir(tree)
        // Variables of an outer make or cargo must not leak into the build.
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env_remove("KCONFIG_CONFIG")
        .env("KBUILD_BUILD_USER", "ssi")
        .env("KBUILD_BUILD_HOST", "ssi")
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("ARCH", "x86_64");
    if cached && which("ccache").is_some() {
        make = make.env("CCACHE_BASEDIR", tree).env("CCACHE_NOHASHDIR", "1").arg("CC=ccache gcc");
    }
    make
}

/// Writes `.config` from the requests and checks that each one stuck.
fn configure(source: &Source, tree: &Path, cached: bool, log: &mut Log) -> Result<()> {
    let configs = source.join("guest-kernel/configs");
    let mut requests = config::Requests::default();
    let base = configs.join("ssi_defconfig");
    requests.add(&fs::read_to_string(&base).with_context(|| format!("cannot read {}", base.display()))?)?;
    for (name, path) in files(&configs)? {
        // What our own directory defines can be asked for only where it defines something.
        let defined = name != "ssi.config" || source.join("guest-kernel/ssi/Kconfig").exists();
        if name.ends_with(".config") && defined {
            requests.add(&fs::read_to_string(&path)?).with_context(|| format!("in {name}"))?;
        }
    }
    let wanted = requests.text();
    let asked = tree.join(".ssi-requested");
    // With the same requests as last time the configuration stands, and make has nothing to redo.
    if !(tree.join(".config").exists() && fs::read_to_string(&asked).ok().as_ref() == Some(&wanted)) {
        fs::write(tree.join(".config"), &wanted)?;
    }
    make(tree, cached).arg("olddefconfig").log_to(log).context("the kernel cannot be configured")?;
    requests.check(&fs::read_to_string(tree.join(".config"))?)?;
    fs::write(asked, wanted)?;
    Ok(())
}

fn compile(pin: &Pin, tree: &Path, cached: bool, log: &mut Log, ui: Ui) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let step = ui.step("kernel", "compiling", pin.objects);
    make(tree, cached).arg(format!("-j{jobs}")).arg("bzImage").log_lines(log, |line| count(&step, line))?;
    step.done();
    Ok(())
}

/// Counts the compiled objects of kbuild's output.
fn count(step: &Step, line: &str) {
    match line.strip_prefix("  ").and_then(|line| line.split_once(' ')) {
        Some(("CC" | "AS", object)) => {
            step.message(object.trim());
            step.advance();
        }
        _ => step.tick(),
    }
}

/// Says what the key of the kernel depends on, for `doctor`.
///
/// # Errors
/// If the project's files cannot be read.
pub fn describe(source: &Source) -> Result<String> {
    let pin = Pin::read(&source.join("guest-kernel/source.toml"))?;
    if pin.sha256.is_empty() {
        bail!("no source is pinned");
    }
    Ok(format!(
        "{} {}, {} patches, key {}",
        pin.package,
        pin.version,
        patches(source)?.len(),
        key(source, &pin)?
    ))
}

/// Checks the pinned source now (a second), for `xtask`.
///
/// # Errors
/// If it is missing or another one.
pub fn verify_source(source: &Source) -> Result<String> {
    let pin = Pin::read(&source.join("guest-kernel/source.toml"))?;
    pin.verify()?;
    sha256_file(&pin.path)
}

#[cfg(test)]
mod tests;
