//! The tools image: our programs and the test programs, at the places of `docs/interfaces.md`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{Log, Run};
use crate::hash::{Key, files};
use crate::packages::{self, Purpose};
use crate::{Cache, Source, Ui, extra, root};

/// Name of the image.
pub const IMAGE: &str = "tools.erofs";
/// Where test programs go in the cells' root.
const TESTS: &str = "usr/lib/ssi/tests";
/// The image's UUID.
const UUID: &str = "53534900-0000-4000-8000-000000000002";

/// Compiles the guest programs and packs them; when none changed, the image in the cache is the answer.
///
/// # Errors
/// If a program does not compile or the image cannot be written; the log is named.
pub fn build(cache: &Cache, source: &Source, ui: &Ui) -> Result<PathBuf> {
    packages::ensure(&[Purpose::Root], ui)?;
    let scratch = tempfile::Builder::new()
        .prefix("ssivmm-tools.")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let tree = scratch.path().join("tree");
    let mut log = Log::create(&cache.dir().join("log/tools-compile.log"))?;
    let step = ui.step("tools", "compiling the guest programs", 0);
    for (program, place) in rust_programs(source, &mut log, &|| step.tick())? {
        install(&program, &tree.join(place))?;
    }
    c_programs(source, &tree, &mut log)?;
    drop(step);
    extra::install(cache, ui, &tree, Path::new(TESTS))?;
    let mut key = Key::new("tools-1");
    key.add_tree("tree", &tree)?;
    let dir = cache.build("tools", &key.finish(), &[IMAGE], *ui, |build| {
        let step = ui.step("tools", "packing the image", 0);
        // A file system needs a root directory even when there is no program.
        fs::create_dir_all(&tree)?;
        root::pack(&tree, &build.dir.join(IMAGE), UUID, &["--all-root"]).log_to(&mut build.log)?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join(IMAGE))
}

/// Where a program of ours goes in the cells' root.
fn place(name: &str) -> PathBuf {
    let short = name.strip_prefix("ssi-").unwrap_or(name);
    match short {
        "init" | "agent" => Path::new("usr/lib/ssi").join(short),
        "migrationd" => Path::new("usr/sbin").join(short),
        "migrate" | "counter" | "heap100" => Path::new("usr/bin").join(short),
        _ => Path::new(TESTS).join(short),
    }
}

/// Builds `ssi-tools` and returns (program, place in the image).
fn rust_programs(source: &Source, log: &mut Log, tick: &dyn Fn()) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    cargo(source)
        .args([
            "build",
            "--release",
            "--package",
            "ssi-tools",
            "--bins",
            "--message-format=json-render-diagnostics",
        ])
        .log_lines(log, |line| {
            tick();
            let Some(path) = executable(line) else { return };
            if let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) {
                found.push((path, place(&name)));
            }
        })
        .context("the guest tools do not compile")?;
    Ok(found)
}

/// The program that a message of cargo says it made.
fn executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}

/// Cargo, in the project's tree, free of what an outer cargo put into the environment.
pub fn cargo(source: &Source) -> Run {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut run = Run::new(program).dir(source.root());
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_MAKEFLAGS", "MAKEFLAGS", "RUSTFLAGS"] {
        run = run.env_remove(name);
    }
    run
}

/// Compiles each `tests/guest/*.c` into a static program, at its place in `tree`.
fn c_programs(source: &Source, tree: &Path, log: &mut Log) -> Result<()> {
    for (name, path) in files(&source.join("tests/guest"))? {
        let Some(stem) = name.strip_suffix(".c").filter(|stem| !stem.contains('/')) else { continue };
        let to = tree.join(place(stem));
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        Run::new("gcc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
            .arg(to)
            .arg(path)
            .log_to(log)
            .with_context(|| format!("the guest test program {name} does not compile"))?;
    }
    Ok(())
}

/// Copies a program without its debugging information.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    Run::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from).output()?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_go_where_the_interfaces_page_says() {
        for (name, path) in [
            ("init", "usr/lib/ssi/init"),
            ("ssi-agent", "usr/lib/ssi/agent"),
            ("migrationd", "usr/sbin/migrationd"),
            ("migrate", "usr/bin/migrate"),
            ("counter", "usr/bin/counter"),
            ("fpu", "usr/lib/ssi/tests/fpu"),
        ] {
            assert_eq!(place(name), Path::new(path));
        }
    }

    #[test]
    fn the_program_is_read_from_cargos_message() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/release/init","fresh":true}"#;
        assert_eq!(executable(line), Some(PathBuf::from("/t/release/init")));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable("warning: x"), None);
    }
}
