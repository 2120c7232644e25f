use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Ui;
use crate::command::Run;

/// What packages are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// To build the guest kernel.
    Kernel,
    /// To build the root and tools images.
    Root,
    /// To run the emulated host.
    Lab,
    /// To run all tests.
    Tests,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Root, Self::Lab, Self::Tests];

    /// Its packages, by their names in Debian 12.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &[
                "linux-source-6.12",
                "gcc",
                "make",
                "flex",
                "bison",
                "bc",
                "libelf-dev",
                "libssl-dev",
                "patch",
                "tar",
                "xz-utils",
                "lz4",
                "perl",
            ],
            Self::Root => {
                &["mmdebstrap", "erofs-utils", "debian-archive-keyring", "gcc", "libc6-dev", "binutils"]
            }
            Self::Lab => &["qemu-system-x86"],
            Self::Tests => &["iproute2", "iputils-ping", "curl", "procps"],
        }
    }

    /// What it is, for a person.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kernel => "building the guest kernel",
            Self::Root => "building the root image",
            Self::Lab => "running the emulated host",
            Self::Tests => "running the tests",
        }
    }
}

/// The packages of these purposes that are not installed, sorted.
///
/// # Errors
/// If this is not a Debian (or descendant) machine.
pub fn missing(purposes: &[Purpose]) -> Result<Vec<&'static str>> {
    let wanted: BTreeSet<&str> = purposes.iter().flat_map(|purpose| purpose.packages()).copied().collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("dpkg-query")
        .env("LC_ALL", "C")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(&wanted)
        .output()
        .context("cannot run dpkg-query: ssivmm builds its images from Debian's packages, on Debian or a descendant of it")?;
    // It exits with 1 when one of them is unknown, and lists the others all the same.
    let installed = parse_installed(&String::from_utf8_lossy(&output.stdout));
    Ok(wanted.into_iter().filter(|package| !installed.contains(*package)).collect())
}

/// Names of the installed packages in the output of `dpkg-query -W -f '${Package} ${db:Status-Status}\n'`.
fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| *status == "installed")
        .map(|(package, _)| package.to_owned())
        .collect()
}

/// The command that installs packages.
pub fn install_command(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Sees to it that the packages of these purposes are installed: as root it installs what is missing.
///
/// # Errors
/// As an ordinary user, if something is missing: with the command that installs it. As root, if apt-get fails.
pub fn ensure(purposes: &[Purpose], ui: &Ui) -> Result<()> {
    let missing = missing(purposes)?;
    if missing.is_empty() {
        return Ok(());
    }
    let titles: Vec<&str> = purposes.iter().map(|purpose| purpose.title()).collect();
    // SAFETY: geteuid only reads.
    if unsafe { libc::geteuid() } != 0 {
        bail!(
            "{} needs Debian packages that are not installed: {}\nRun as root:\n  {}",
            titles.join(" and "),
            missing.join(" "),
            install_command(&missing)
        );
    }
    ui.say(&format!("{} needs packages: installing {}", titles.join(" and "), missing.join(" ")));
    let cache = crate::Cache::open()?;
    let mut log = crate::command::Log::create(&cache.dir().join("log/packages.log"))?;
    let step = ui.step("packages", &missing.join(" "), 0);
    // apt waits for another apt that runs instead of failing.
    let apt = || {
        Run::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args([
            "-o",
            "DPkg::Lock::Timeout=600",
            "-q",
            "-y",
        ])
    };
    apt().arg("update").log_lines(&mut log, |_| step.tick()).context("cannot read the package lists")?;
    apt()
        .args(["install", "--no-install-recommends"])
        .args(&missing)
        .log_lines(&mut log, |_| step.tick())
        .with_context(|| format!("cannot install {}", missing.join(" ")))?;
    step.done();
    let still = self::missing(purposes)?;
    if !still.is_empty() {
        bail!("apt-get installed no {}; does this machine's release of Debian have it?", still.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_calls_installed_counts() {
        let text = "gcc installed\nmake config-files\nlibelf-dev installed\nflex not-installed\nbroken\nbison half-configured\n";
        let installed = parse_installed(text);
        assert_eq!(installed.into_iter().collect::<Vec<_>>(), ["gcc", "libelf-dev"]);
        assert!(parse_installed("").is_empty());
    }

    #[test]
    fn every_list_is_of_plain_package_names() {
        for purpose in Purpose::ALL {
            assert!(!purpose.packages().is_empty());
            for package in purpose.packages() {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
                assert!(package.chars().all(plain), "{package}");
            }
        }
        assert!(install_command(&["a", "b"]).ends_with(" a b"));
    }
}
