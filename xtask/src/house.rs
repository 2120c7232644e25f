//! Checks of the project's own files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ssi_images::Source;

/// Lines of product code that a file may have.
const LINES_MAX: usize = 800;

/// The files that git knows or would add.
fn project_files(source: &Source) -> Result<Vec<PathBuf>> {
    let listed = ssi_images::command::Run::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .dir(source.root())
        .output()?;
    let mut files: Vec<PathBuf> =
        listed.lines().map(PathBuf::from).filter(|path| source.join(path).is_file()).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn with_extension<'a>(files: &'a [PathBuf], extensions: &'a [&str]) -> impl Iterator<Item = &'a PathBuf> {
    files.iter().filter(|path| {
        path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))
    })
}

/// Fails with all findings, if there are any.
fn report(findings: &[String], what: &str) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    for finding in findings {
        println!("  {finding}");
    }
    bail!("{} {what}", findings.len())
}

fn read(source: &Source, path: &Path) -> Result<String> {
    fs::read_to_string(source.join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// Every relative link in a document leads to a file, and every `path/with/a.suffix` in code quotes that begins with a folder
/// of ours is there.
pub fn links(source: &Source) -> Result<()> {
    let files = project_files(source)?;
    let folders: Vec<String> = files
        .iter()
        .filter_map(|path| path.components().next())
        .map(|first| first.as_os_str().to_string_lossy().into_owned())
        .filter(|first| source.join(first).is_dir())
        .collect();
    let mut findings = Vec::new();
    for path in with_extension(&files, &["md"]) {
        let text = read(source, path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for (number, line) in prose(&text) {
            for target in link_targets(line) {
                let target = target.split('#').next().unwrap_or_default();
                let outside = target.contains("://") || target.starts_with("mailto:") || target.is_empty();
                if !outside && !source.join(folder.join(target)).exists() {
                    findings.push(format!("{}:{number}: the link to {target} leads nowhere", path.display()));
                }
            }
            for quoted in quoted_paths(line) {
                let known = quoted
                    .split('/')
                    .next()
                    .is_some_and(|first| folders.iter().any(|folder| folder == first));
                if known && !source.join(quoted).exists() {
                    findings.push(format!("{}:{number}: `{quoted}` is not there", path.display()));
                }
            }
        }
    }
    report(&findings, "broken links or paths in documents")
}

/// Numbered lines outside of code fences.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().map(|(index, line)| (index + 1, line)).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Targets of `[text](target)` in a line.
fn link_targets(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::trim).collect()
}

/// What stands in backquotes and looks like the path of one file or folder of the tree.
fn quoted_paths(line: &str) -> Vec<&str> {
    let plain = |text: &&str| {
        text.contains('/')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
            && !text.starts_with('/')
    };
    line.split('`').skip(1).step_by(2).filter(plain).collect()
}

/// No source file has more than [`LINES_MAX`] lines of product code: what comes before its test module.
pub fn sizes(source: &Source) -> Result<()> {
    let files = project_files(source)?;
    let mut findings = Vec::new();
    for path in with_extension(&files, &["rs", "c", "h"]) {
        if is_test(path) {
            continue;
        }
        let lines = product_lines(&read(source, path)?);
        if lines > LINES_MAX {
            findings.push(format!("{}: {lines} lines of product code", path.display()));
        }
    }
    report(&findings, &format!("files with more than {LINES_MAX} lines"))
}

/// Does a file hold tests only?
fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem == "tests"
        || stem.ends_with("_tests")
        || path.parent().is_some_and(|folder| folder.iter().any(|part| part == "tests"))
}

fn product_lines(text: &str) -> usize {
    text.lines().take_while(|line| line.trim_end() != "#[cfg(test)]").count()
}

/// In `vmm/`, threads start in `worker.rs` and nowhere else.
pub fn threads(source: &Source) -> Result<()> {
    let files = project_files(source)?;
    let mut findings = Vec::new();
    for path in with_extension(&files, &["rs"]).filter(|path| path.starts_with("vmm/src")) {
        if path == Path::new("vmm/src/worker.rs") || is_test(path) {
            continue;
        }
        let text = read(source, path)?;
        for (index, line) in text.lines().take(product_lines(&text)).enumerate() {
            if starts_a_thread(line) {
                findings.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    report(&findings, "threads that vmm/src/worker.rs does not start")
}

fn starts_a_thread(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["thread::spawn(", "thread::Builder::", "thread::scope("].iter().any(|start| code.contains(start))
}

/// Patches begin with a number of four digits, no two with the same, and each says why it is there.
pub fn patches(source: &Source) -> Result<()> {
    let mut findings = Vec::new();
    let mut numbers = Vec::new();
    for (name, path) in ssi_images::hash::files(&source.join("guest-kernel/patches"))? {
        if !name.ends_with(".patch") {
            continue;
        }
        match patch_number(&name) {
            Some(number) if numbers.contains(&number) => {
                findings.push(format!("{name}: another one has number {number}"))
            }
            Some(number) => numbers.push(number),
            None => findings.push(format!("{name}: does not begin with four digits and a dash")),
        }
        let text = fs::read_to_string(path).with_context(|| format!("{name} is not text"))?;
        if !explains_itself(&text) {
            findings.push(format!("{name}: does not say why"));
        }
    }
    report(&findings, "patches that are out of order or unexplained")
}

fn patch_number(name: &str) -> Option<u32> {
    let (number, _) = name.split_once('-')?;
    (number.len() == 4).then(|| number.parse().ok())?
}

/// Does a patch have a subject and a message below it?
fn explains_itself(patch: &str) -> bool {
    let message =
        patch.split("\n---\n").next().and_then(|text| text.split("\ndiff --git ").next()).unwrap_or_default();
    let body = message.split_once("\n\n").map(|(_, body)| body.trim()).unwrap_or_default();
    message.contains("Subject:") && !body.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_quoted_paths_are_found_outside_of_fences_only() {
        let text = "see [a](x.md#part) and [b](https://e.example)\n```\n[no](no.md) `docs/no.md`\n```\n`docs/y.md` `a b/c` `/etc/x`\n";
        let lines: Vec<(usize, &str)> = prose(text).collect();
        assert_eq!(lines.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(link_targets(lines[0].1), ["x.md#part", "https://e.example"]);
        assert_eq!(quoted_paths(lines[1].1), ["docs/y.md"]);
    }

    #[test]
    fn unit_tests_do_not_count_as_product_code() {
        assert_eq!(product_lines("a\nb\n#[cfg(test)]\nmod tests {\n"), 2);
        assert_eq!(product_lines("a\nb\n"), 2);
    }

    #[test]
    fn files_of_tests_are_told_from_product_code() {
        for path in [
            "vmm/src/io/tests.rs",
            "vmm/src/io/fs/tests/mounts.rs",
            "dsm/tests/model.rs",
            "vmm/src/lab/host_tests.rs",
        ] {
            assert!(is_test(Path::new(path)), "{path}");
        }
        assert!(!is_test(Path::new("vmm/src/worker.rs")) && !is_test(Path::new("vmm/src/testing.rs")));
    }

    #[test]
    fn a_patch_has_a_number_and_a_message() {
        assert_eq!(patch_number("0104-x.patch"), Some(104));
        assert_eq!(patch_number("104-x.patch"), None);
        assert_eq!(patch_number("01a4-x.patch"), None);
        assert!(explains_itself("From x\nSubject: [PATCH] y\n\nBecause.\n\ndiff --git a/f b/f\n"));
        assert!(!explains_itself("From x\nSubject: [PATCH] y\n\ndiff --git a/f b/f\n"));
    }

    #[test]
    fn a_thread_in_a_comment_is_none() {
        assert!(starts_a_thread("    let t = std::thread::spawn(|| ());"));
        assert!(!starts_a_thread("    // thread::spawn( would be wrong here"));
    }
}
