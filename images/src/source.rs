use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A file that only the root of the project's tree has.
const MARK: &str = "guest-kernel/source.toml";

/// The project's source tree: kernel patches and configurations, guest tools, test programs.
#[derive(Debug, Clone)]
pub struct Source {
    root: PathBuf,
}

impl Source {
    /// Finds the tree: `$SSIVMM_SOURCE`, else a folder above the running program, else where this program was compiled.
    ///
    /// # Errors
    /// If none of them holds it.
    pub fn find() -> Result<Self> {
        if let Some(root) = std::env::var_os("SSIVMM_SOURCE") {
            return Self::at(root);
        }
        let program = std::env::current_exe().ok();
        let above = program.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned));
        let compiled = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
        for root in above.chain(compiled) {
            if root.join(MARK).is_file() {
                return Self::at(root);
            }
        }
        bail!(
            "the sources of ssivmm are not where this program was built; set SSIVMM_SOURCE to a clone of the project"
        )
    }

    /// The tree at `root`.
    ///
    /// # Errors
    /// If `root` is not a tree of the project.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !root.join(MARK).is_file() {
            bail!("{} is not a source tree of ssivmm: it has no {MARK}", root.display());
        }
        Ok(Self { root })
    }

    /// Path of something in the tree.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The tree itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
