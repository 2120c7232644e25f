//! The root image: `mmdebstrap` installs Debian packages from the sources that this machine's apt is configured with, and
//! `mkfs.erofs` packs the tree. Nothing of the packages is changed; documentation and translations are left out by dpkg's own
//! `path-exclude`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::Build;
use crate::command::Run;
use crate::hash::Key;
use crate::packages::{self, Purpose};
use crate::{Cache, Ui};

/// The release of Debian that cells run.
pub const RELEASE: &str = "bookworm";
/// Name of the image.
pub const IMAGE: &str = "root.erofs";
/// Time of every file in the image, in seconds since 1970 (2024-01-01), so that a build does not carry its own time.
const EPOCH: &str = "1704067200";
/// The image's UUID: fixed, for the same reason.
const UUID: &str = "53534900-0000-4000-8000-000000000001";

/// What is installed beyond the packages that every Debian has.
const PACKAGES: &[&str] = &[
    "apache2",
    "ca-certificates",
    "curl",
    "file",
    "iproute2",
    "iputils-ping",
    "less",
    "lsof",
    "netbase",
    "perl",
    "procps",
    "psmisc",
    "python3-minimal",
    "strace",
    "vim-tiny",
];
/// What dpkg leaves out.
const EXCLUDED: &[&str] = &["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// Runs in the finished tree, before it is packed: what mmdebstrap copied from this machine is replaced by what cells have.
/// `$1` is the tree.
const FINISH: &str = r#"
set -eu
printf 'ssi\n' > "$1/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\tssi\n' > "$1/etc/hosts"
printf 'nameserver 10.64.0.1\n' > "$1/etc/resolv.conf"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/apt "$1"/var/log/dpkg.log "$1"/var/log/bootstrap.log \
       "$1"/var/log/alternatives.log "$1"/var/cache/ldconfig/aux-cache
test -s "$1/var/www/html/index.html"
test -x "$1/usr/sbin/apachectl"
"#;

/// `root.erofs`, from the cache or built now (a minute or two).
///
/// # Errors
/// If a package is missing, apt has no source of Debian, or a program fails; the log is named.
pub fn build(cache: &Cache, ui: &Ui) -> Result<PathBuf> {
    let mut key = Key::new("root-1");
    for (name, values) in
        [("package", PACKAGES), ("excluded", EXCLUDED), ("finish", &[FINISH, RELEASE, EPOCH])]
    {
        for value in values {
            key.add(name, value.as_bytes());
        }
    }
    let dir = cache.build("root", &key.finish(), &[IMAGE], *ui, |build| make(build, *ui))?;
    Ok(dir.join(IMAGE))
}

fn make(build: &mut Build<'_>, ui: Ui) -> Result<()> {
    packages::ensure(&[Purpose::Root], &ui)?;
    let sources = build.dir.join("debian.sources");
    fs::write(&sources, sources_for(Path::new("/etc/apt"), RELEASE)?)?;
    let hook = build.dir.join("finish.sh");
    fs::write(&hook, FINISH)?;
    let tree = build.dir.join("tree");
    let step = ui.step("root", &format!("installing Debian {RELEASE} with apache2, perl and tools"), 0);
    let mut install = Run::new("mmdebstrap")
        .args(["--mode=auto", "--variant=minbase", "--format=directory"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--customize-hook=sh {} \"$1\"", hook.display()))
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("TMPDIR", build.dir);
    for path in EXCLUDED {
        install = install.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    install
        .arg(RELEASE)
        .arg(&tree)
        .arg(&sources)
        .log_lines(&mut build.log, |_| step.tick())
        .context("the Debian packages of the root image cannot be installed")?;
    step.done();
    let step = ui.step("root", "packing the image", 0);
    pack(&tree, &build.dir.join(IMAGE), UUID, &[]).log_lines(&mut build.log, |_| step.tick())?;
    step.done();
    Ok(())
}

/// The program that packs `tree` as an erofs image.
pub(crate) fn pack(tree: &Path, image: &Path, uuid: &str, options: &[&str]) -> Run {
    Run::new("mkfs.erofs")
        .args(["--quiet", "-zlz4hc,9", "-T", EPOCH, "-U", uuid])
        .args(options)
        .arg(image)
        .arg(tree)
}

/// The parts of this machine's apt sources that have `release`, as a deb822 file. On a machine with another release of
/// Debian, the same archive is asked for `release`.
pub(crate) fn sources_for(apt: &Path, release: &str) -> Result<String> {
    let mut entries = Vec::new();
    for (name, path) in crate::hash::files(&apt.join("sources.list.d"))?
        .into_iter()
        .chain([("sources.list".into(), apt.join("sources.list"))])
    {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if name.ends_with(".sources") {
            entries.extend(text.split("\n\n").filter_map(stanza));
        } else if name.ends_with(".list") {
            entries.extend(text.lines().filter_map(one_line));
        }
    }
    let debian: Vec<&Entry> = entries.iter().filter(|entry| entry.is_debian()).collect();
    let mut chosen: Vec<Entry> = debian.iter().filter_map(|entry| entry.only(release)).collect();
    if chosen.is_empty()
        && let Some(archive) = debian
            .iter()
            .find(|entry| entry.uris.iter().any(|uri| uri.trim_end_matches('/').ends_with("/debian")))
    {
        chosen.push(Entry {
            suites: vec![release.to_owned(), format!("{release}-updates")],
            ..(*archive).clone()
        });
    }
    if chosen.is_empty() {
        bail!(
            "apt on this machine has no source of Debian (nothing in {} names an archive of {release}); add one, then run \
             this again",
            apt.display()
        );
    }
    Ok(chosen.iter().map(Entry::text).collect::<Vec<_>>().join("\n"))
}

/// One source of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    signed_by: Option<String>,
}

impl Entry {
    /// Suites named after a release of Debian, from an archive path that Debian's mirrors have.
    fn is_debian(&self) -> bool {
        self.uris.iter().any(|uri| uri.contains("/debian"))
    }

    /// The part of it that is `release`.
    fn only(&self, release: &str) -> Option<Self> {
        let suites: Vec<String> = self
            .suites
            .iter()
            .filter(|suite| {
                let rest = suite.strip_prefix(release);
                rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
            })
            .cloned()
            .collect();
        (!suites.is_empty()).then(|| Self { suites, ..self.clone() })
    }

    fn text(&self) -> String {
        let signed = self.signed_by.as_ref().map(|path| format!("Signed-By: {path}\n")).unwrap_or_default();
        format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{signed}",
            self.uris.join(" "),
            self.suites.join(" ")
        )
    }
}

/// A stanza of a deb822 file. Keys that are written into the stanza itself are left out: the keyring of Debian serves.
fn stanza(text: &str) -> Option<Entry> {
    let field = |name: &str| {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if field("Enabled").is_some_and(|value| value == "no")
        || !words(field("Types")?).contains(&"deb".to_owned())
    {
        return None;
    }
    Some(Entry {
        uris: words(field("URIs")?),
        suites: words(field("Suites")?),
        signed_by: field("Signed-By").filter(|value| value.starts_with('/')),
    })
}

/// A line of a one-line-style file: `deb [options] uri suite components...`.
fn one_line(line: &str) -> Option<Entry> {
    let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace();
    Some(Entry { uris: vec![words.next()?.to_owned()], suites: vec![words.next()?.to_owned()], signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const DEB822: &str = "Types: deb\n# URIs: http://old.example/debian\nURIs: http://mirror.example/debian\nSuites: bookworm \
        bookworm-updates bookworm-backports\nComponents: main contrib\nSigned-By: /usr/share/keyrings/d.gpg\n\nTypes: deb\nURIs: \
        http://other.example/tool\nSuites: bookworm\nComponents: x\n";

    #[test]
    fn the_machines_own_archive_is_used_and_strangers_are_not() {
        let dir = apt(&[("sources.list.d/debian.sources", DEB822)]);
        assert_eq!(
            sources_for(dir.path(), "bookworm").unwrap(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: \
             main\nSigned-By: /usr/share/keyrings/d.gpg\n"
        );
    }

    #[test]
    fn one_line_sources_are_read_and_disabled_ones_are_not() {
        let dir = apt(&[
            (
                "sources.list",
                "# deb http://a.example/debian bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://b.example/debian bookworm main\n",
            ),
            (
                "sources.list.d/x.sources",
                "Enabled: no\nTypes: deb\nURIs: http://c.example/debian\nSuites: bookworm\n",
            ),
            ("sources.list.d/y.list.save", "deb http://d.example/debian bookworm main\n"),
        ]);
        let text = sources_for(dir.path(), "bookworm").unwrap();
        assert!(text.contains("http://b.example/debian\n") && text.contains("Signed-By: /k.gpg"), "{text}");
        assert!(["a.", "c.", "d."].iter().all(|host| !text.contains(&format!("http://{host}"))), "{text}");
    }

    #[test]
    fn another_release_of_debian_asks_its_archive_for_ours() {
        let dir = apt(&[("sources.list", "deb http://m.example/debian trixie main\n")]);
        assert!(sources_for(dir.path(), "bookworm").unwrap().contains("Suites: bookworm bookworm-updates\n"));
    }

    #[test]
    fn a_machine_without_a_debian_archive_is_told_so() {
        let dir = apt(&[("sources.list", "deb http://m.example/ubuntu noble main\n")]);
        assert!(sources_for(dir.path(), "bookworm").unwrap_err().to_string().contains("no source of Debian"));
    }
}
