use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Collects all that an artifact depends on into its key. Every part is framed by its length and named, so that no two
/// different lists of parts give the same bytes.
#[derive(Debug, Clone)]
pub struct Key {
    state: Sha256,
}

impl Key {
    /// A key for artifacts of `recipe`; a change of how something is built changes the recipe's name.
    pub fn new(recipe: &str) -> Self {
        let mut key = Self { state: Sha256::new() };
        key.add("recipe", recipe.as_bytes());
        key
    }

    /// Adds a named part.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.state.update((part.len() as u64).to_le_bytes());
            self.state.update(part);
        }
    }

    /// Adds the files of `dir` and below: names and contents, in the order of their names. A folder that does not exist
    /// is an empty one.
    ///
    /// # Errors
    /// If something in it cannot be read.
    pub fn add_tree(&mut self, name: &str, dir: &Path) -> Result<()> {
        self.add("tree", name.as_bytes());
        for (relative, path) in files(dir)? {
            self.add(&relative, &fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        Ok(())
    }

    /// The key: 32 hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.state.finalize()[..16])
    }
}

/// The regular files of `dir` and below as (path relative to `dir`, path), sorted; none if there is no `dir`.
///
/// # Errors
/// If a folder cannot be read.
pub fn files(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder == dir => break,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(dir)?.to_string_lossy().into_owned();
                found.push((relative, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a file, by `sha256sum` (at full speed in debug builds too).
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg("--").arg(path).output().context("cannot run sha256sum")?;
    if !output.status.success() {
        bail!("cannot hash {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A name with a backslash makes sha256sum put one before the hash.
    let hash = text.trim_start_matches('\\').split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(hash.len() == 64, "sha256sum printed no hash for {}", path.display());
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_where_one_part_ends_and_the_next_begins() {
        let key = |parts: &[(&str, &str)]| {
            let mut key = Key::new("test");
            for (name, value) in parts {
                key.add(name, value.as_bytes());
            }
            key.finish()
        };
        assert_eq!(key(&[("a", "bc")]), key(&[("a", "bc")]));
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "d")]), key(&[("a", "bcd")]));
        assert_eq!(key(&[]).len(), 32);
    }

    #[test]
    fn the_key_of_a_tree_changes_with_a_name_and_with_a_content() {
        let dir = tempfile::tempdir().unwrap();
        let key = || {
            let mut key = Key::new("test");
            key.add_tree("t", dir.path()).unwrap();
            key.finish()
        };
        let empty = key();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), "1").unwrap();
        let one = key();
        fs::write(dir.path().join("d/a"), "2").unwrap();
        let two = key();
        fs::rename(dir.path().join("d/a"), dir.path().join("d/b")).unwrap();
        let three = key();
        let all = [&empty, &one, &two, &three];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn sha256_of_a_file_is_the_published_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256_file(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(sha256_file(&dir.path().join("none")).is_err());
    }
}
