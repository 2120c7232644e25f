//! Builds what a cluster needs: guest kernel, root image, guest tools, lab image, into a content-addressed cache.
//!
//! Every artifact is a directory `<cache>/<kind>/<key>/` whose key is a hash of all that went into it. It is built under
//! a temporary name in the same file system and renamed when it is whole: the rename is the commit, so what an
//! interrupted build leaves is never taken for an artifact.

/// What the boot benchmark boots, and the QEMU that it is measured against.
pub mod boot;
/// The cache: locks, temporary directories, the atomic commit, and the check of what is found.
pub mod cache;
/// Runs the programs that do the work, each with a log file and an error that quotes its end.
pub mod command;
/// The `newc` cpio archive that Linux takes as its initramfs.
pub mod cpio;
/// Programs of Debian that only tests need.
pub mod extra;
/// Content hashes and cache keys.
pub mod hash;
/// The guest kernel, from Debian's source, our patches and our configuration.
pub mod kernel;
/// The initramfs of an emulated host.
pub mod lab;
/// Which Debian packages each purpose needs, and how they get onto the machine.
pub mod packages;
/// Progress, as bars on a terminal and as plain lines elsewhere.
pub mod progress;
/// The root file system: an unmodified Debian tree as an erofs image.
pub mod root;
/// Where the project's own sources are.
pub mod source;
/// The guest tools as an erofs image that is laid over the root.
pub mod tools;

pub use cache::Cache;
pub use progress::Ui;
pub use source::Source;

use std::path::PathBuf;

/// All that a cluster boots from.
#[derive(Debug, Clone)]
pub struct Images {
    /// The kernel of cells and of the emulated host.
    pub kernel: kernel::Kernel,
    /// `root.erofs`.
    pub root: PathBuf,
    /// `tools.erofs`.
    pub tools: PathBuf,
}

/// Builds what is missing of kernel, root and tools; takes well under a second when all is there and the tools did not
/// change.
///
/// # Errors
/// What could not be built and why, with the name of the log file.
pub fn build_all(cache: &Cache, source: &Source, ui: &Ui) -> anyhow::Result<Images> {
    packages::ensure(&[packages::Purpose::Kernel, packages::Purpose::Root], ui)?;
    let root = root::build(cache, ui)?;
    let tools = tools::build(cache, source, ui)?;
    let kernel = kernel::build(cache, source, ui)?;
    Ok(Images { kernel, root, tools })
}
