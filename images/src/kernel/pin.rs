use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::Run;
use crate::hash::sha256_file;

/// The source that the kernel is built from: `guest-kernel/source.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Debian package that brings it.
    pub package: String,
    /// Version of the package.
    pub version: String,
    /// Where the package puts the archive.
    pub path: PathBuf,
    /// Its hash.
    pub sha256: String,
    /// About how many objects a build compiles; only for progress.
    pub objects: u64,
}

impl Pin {
    /// Reads `source.toml`.
    ///
    /// # Errors
    /// If a field is missing or malformed, or unknown.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Parses the text of `source.toml`: comments, and `name = value` with a quoted text or a number.
    ///
    /// # Errors
    /// As [`Pin::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let (mut package, mut version, mut path, mut sha256, mut objects) = (None, None, None, None, None);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) =
                line.split_once('=').with_context(|| format!("line {}: no `=`", number + 1))?;
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let quoted =
                || quoted.map(str::to_owned).with_context(|| format!("line {}: no quoted text", number + 1));
            match name.trim() {
                "package" => package = Some(quoted()?),
                "version" => version = Some(quoted()?),
                "path" => path = Some(PathBuf::from(quoted()?)),
                "sha256" => sha256 = Some(quoted()?),
                "objects" => {
                    objects = Some(value.parse().with_context(|| format!("line {}: no number", number + 1))?)
                }
                other => bail!("line {}: unknown field {other}", number + 1),
            }
        }
        let sha256 = sha256.context("no sha256")?;
        if sha256.len() != 64 || !sha256.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            bail!("sha256 is not 64 lower-case hexadecimal digits");
        }
        Ok(Self {
            package: package.context("no package")?,
            version: version.context("no version")?,
            path: path.context("no path")?,
            sha256,
            objects: objects.unwrap_or(0),
        })
    }

    /// Is the archive on this machine the pinned one?
    ///
    /// # Errors
    /// If it is missing or another: with the version to install.
    pub fn verify(&self) -> Result<()> {
        let Self { package, version, path, sha256, .. } = self;
        if !path.is_file() {
            bail!("{} does not exist; install it: apt-get install {package}={version}", path.display());
        }
        let found = sha256_file(path)?;
        if found == *sha256 {
            return Ok(());
        }
        let installed = Run::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
        bail!(
            "{} is not the source that the kernel's patches are made for.\n  expected: {package} {version}, sha256 {sha256}\n  \
             found:    {package} {}, sha256 {found}\nInstall that version (apt-get install {package}={version}), or move the pin \
             in guest-kernel/source.toml and check that the patches apply.",
            path.display(),
            installed.as_deref().unwrap_or("(not installed)"),
        )
    }
}
