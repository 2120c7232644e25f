use serde::Serialize;
use ssi_images::packages::{Purpose, install_command};

use super::facts::Facts;
use super::kvm::KvmFacts;
use crate::lab::qemu;

/// Above this, an iteration of two instructions in guest kernel mode was interpreted, not run, in nanoseconds. Processors take
/// 0.3 to 5; a nested guest in an emulated host 6; the interpreter of a host kernel 500 and more.
pub const KERNEL_NS_MAX: f64 = 50.0;
/// Disk that a first build needs: kernel tree, root tree, images.
const DISK_NEEDED: u64 = 4 << 30;
/// Memory for the smallest useful cluster, in bytes: two nodes and an emulated host.
const MEMORY_NEEDED: u64 = 2 << 30;

/// Where nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// On this machine's KVM.
    Kvm,
    /// In an emulated host.
    Lab,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Worth knowing; nothing fails for it.
    Note,
    /// Something will fail or be slow.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at: a word for programs.
    pub id: &'static str,
    /// How it is to be taken.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where nodes should run; `None` if they cannot run at all.
    pub host: Option<Choice>,
    /// Why there.
    pub reason: String,
    /// Each thing that was looked at.
    pub findings: Vec<Finding>,
}

fn finding(id: &'static str, level: Level, found: impl Into<String>, advice: Option<String>) -> Finding {
    Finding { id, level, found: found.into(), advice }
}

/// What stands in the way of running nodes on this machine's KVM, if anything.
pub fn kvm_obstacle(facts: &Facts) -> Option<String> {
    match &facts.kvm {
        KvmFacts::Absent => return Some("this machine has no /dev/kvm".into()),
        KvmFacts::Denied(why) => return Some(format!("/dev/kvm cannot be opened: {why}")),
        KvmFacts::Broken(why) => return Some(format!("KVM does not run a guest: {why}")),
        KvmFacts::Runs { kernel_ns, .. } if *kernel_ns > KERNEL_NS_MAX => {
            return Some(format!(
                "KVM interprets guest kernel code in software ({kernel_ns:.0} ns for two instructions; a processor takes less than 5)"
            ));
        }
        KvmFacts::Runs { lacks, .. } if !lacks.is_empty() => {
            return Some(format!("KVM lacks {}", lacks.join(", ")));
        }
        KvmFacts::Runs { .. } => {}
    }
    match &facts.userfaultfd {
        Err(why) => Some(format!("there is no userfaultfd: {why}")),
        Ok(missing) if !missing.is_empty() => Some(format!("userfaultfd lacks {}", features(missing))),
        Ok(_) => None,
    }
}

/// What stands in the way of the lab, if anything. QEMU that root can install is no obstacle.
pub fn lab_obstacle(facts: &Facts) -> Option<String> {
    if facts.is_lab_host {
        return Some("this is an emulated host already".into());
    }
    match facts.qemu {
        Some(version) if version >= qemu::OLDEST => None,
        Some((major, minor)) => Some(format!(
            "QEMU {major}.{minor} is too old: the lab needs {}.{}",
            qemu::OLDEST.0,
            qemu::OLDEST.1
        )),
        None if facts.root && facts.packages.is_ok() => None,
        None => Some(format!("{} is not installed", qemu::PROGRAM)),
    }
}

fn features(missing: &[(String, String)]) -> String {
    let list: Vec<String> = missing.iter().map(|(name, since)| format!("{name} (Linux {since})")).collect();
    list.join(", ")
}

/// Where nodes run: on KVM if it will do, else in the lab.
///
/// # Errors
/// If neither will do: with what stands in the way of each.
pub fn choose(facts: &Facts) -> anyhow::Result<Choice> {
    let Some(kvm) = kvm_obstacle(facts) else { return Ok(Choice::Kvm) };
    let Some(lab) = lab_obstacle(facts) else { return Ok(Choice::Lab) };
    anyhow::bail!(
        "a cluster cannot run on this machine.\n  on its KVM: {kvm}\n  in the lab: {lab}\nInstall QEMU (as root: {}), or run `ssivmm \
         doctor` for all that was found.",
        install_command(Purpose::Lab.packages())
    )
}

/// Judges facts.
pub fn judge(facts: &Facts) -> Report {
    let (host, reason) = match choose(facts) {
        Ok(Choice::Kvm) => {
            (Some(Choice::Kvm), "KVM runs kernel code at full speed, and userfaultfd has all it needs".into())
        }
        Ok(Choice::Lab) => (Some(Choice::Lab), kvm_obstacle(facts).unwrap_or_default()),
        Err(error) => (None, error.to_string()),
    };
    let findings = vec![
        of_kvm(facts),
        of_userfaultfd(facts),
        of_qemu(facts),
        of_tap(facts),
        of_packages(facts),
        of_disk(facts),
        of_memory(facts),
        of_user(facts),
    ];
    Report { host, reason, findings }
}

fn of_kvm(facts: &Facts) -> Finding {
    let (level, found, advice) = match &facts.kvm {
        KvmFacts::Absent => (
            Level::Note,
            "no /dev/kvm".to_owned(),
            Some(
                "switch virtualisation on in the firmware and load kvm-intel or kvm-amd; until then the lab serves",
            ),
        ),
        KvmFacts::Denied(why) => (
            Level::Bad,
            format!("/dev/kvm cannot be opened: {why}"),
            Some("join the group kvm: usermod -aG kvm $USER, then log in again"),
        ),
        KvmFacts::Broken(why) => {
            (Level::Bad, format!("KVM does not run a guest: {why}"), Some("use the lab"))
        }
        KvmFacts::Runs { kernel_ns, .. } if *kernel_ns > KERNEL_NS_MAX => (
            Level::Note,
            format!("kernel code is interpreted: {kernel_ns:.0} ns for two instructions at CPL 0"),
            Some("no Linux guest boots on it; use the lab, or a machine with hardware virtualisation"),
        ),
        KvmFacts::Runs { lacks, .. } if !lacks.is_empty() => {
            (Level::Bad, format!("KVM lacks {}", lacks.join(", ")), Some("install a newer kernel"))
        }
        KvmFacts::Runs { kernel_ns, .. } => (
            Level::Good,
            format!("kernel code runs at full speed: {kernel_ns:.2} ns for two instructions at CPL 0"),
            None,
        ),
    };
    finding("kvm", level, found, advice.map(str::to_owned))
}

fn of_userfaultfd(facts: &Facts) -> Finding {
    let advice = || Some("nodes on KVM need it; the lab brings its own kernel".to_owned());
    match &facts.userfaultfd {
        Err(why) => finding("userfaultfd", Level::Note, why.clone(), advice()),
        Ok(missing) if missing.is_empty() => {
            finding("userfaultfd", Level::Good, "has every feature that the DSM needs", None)
        }
        Ok(missing) => finding("userfaultfd", Level::Note, format!("lacks {}", features(missing)), advice()),
    }
}

fn of_qemu(facts: &Facts) -> Finding {
    let (oldest_major, oldest_minor) = qemu::OLDEST;
    match facts.qemu {
        Some((major, minor)) if (major, minor) >= qemu::OLDEST => {
            finding("qemu", Level::Good, format!("QEMU {major}.{minor}"), None)
        }
        Some((major, minor)) => finding(
            "qemu",
            Level::Bad,
            format!("QEMU {major}.{minor}"),
            Some(format!("the lab needs {oldest_major}.{oldest_minor} or newer")),
        ),
        None => finding(
            "qemu",
            Level::Note,
            format!("{} is not installed", qemu::PROGRAM),
            Some(format!("only the lab needs it; as root: {}", install_command(Purpose::Lab.packages()))),
        ),
    }
}

fn of_tap(facts: &Facts) -> Finding {
    match &facts.tap {
        Ok(()) => finding("tap", Level::Good, "TAP devices can be made", None),
        Err(why) => finding(
            "tap",
            Level::Note,
            why.clone(),
            Some(
                "published ports work without; only an uplink of its own (a TAP device) needs it".to_owned(),
            ),
        ),
    }
}

fn of_packages(facts: &Facts) -> Finding {
    let missing = match &facts.packages {
        Ok(missing) => missing,
        Err(why) => {
            let advice =
                "images are built on Debian 12 or a descendant; bring a filled image cache, or use Debian";
            return finding("packages", Level::Bad, why.clone(), Some(advice.to_owned()));
        }
    };
    if missing.is_empty() {
        return finding("packages", Level::Good, "all packages are installed", None);
    }
    let found: Vec<String> = missing
        .iter()
        .map(|(purpose, names)| format!("for {}: {}", purpose.title(), names.join(" ")))
        .collect();
    let mut names: Vec<&str> = missing.iter().flat_map(|(_, names)| names).copied().collect();
    names.sort_unstable();
    names.dedup();
    let advice = if facts.root {
        "they are installed when they are needed".to_owned()
    } else {
        format!("as root: {}", install_command(&names))
    };
    finding(
        "packages",
        if facts.root { Level::Note } else { Level::Bad },
        format!("not installed, {}", found.join("; ")),
        Some(advice),
    )
}

fn of_disk(facts: &Facts) -> Finding {
    let place = facts.cache.display();
    match &facts.cache_free {
        Ok(free) if *free >= DISK_NEEDED => finding(
            "disk",
            Level::Good,
            format!("{} GiB free for the image cache in {place}", free >> 30),
            None,
        ),
        Ok(free) => finding(
            "disk",
            Level::Bad,
            format!("only {} MiB free for the image cache in {place}", free >> 20),
            Some(format!(
                "a first build needs {} GiB; set SSIVMM_CACHE to a folder with more room",
                DISK_NEEDED >> 30
            )),
        ),
        Err(why) => finding(
            "disk",
            Level::Bad,
            format!("{place}: {why}"),
            Some("set SSIVMM_CACHE to a folder that you can write".to_owned()),
        ),
    }
}

fn of_memory(facts: &Facts) -> Finding {
    let found =
        format!("{} MiB of memory available, {} processors", facts.memory_available >> 20, facts.cpus);
    if facts.memory_available >= MEMORY_NEEDED {
        return finding("memory", Level::Good, found, None);
    }
    let advice =
        format!("two nodes in the lab need {} MiB; give nodes less with --memory", MEMORY_NEEDED >> 20);
    finding("memory", Level::Bad, found, Some(advice))
}

fn of_user(facts: &Facts) -> Finding {
    if facts.root {
        return finding("user", Level::Good, "root", None);
    }
    let advice = "packages are not installed by themselves, and nodes on KVM need root to mount the root file system; the lab does not";
    finding("user", Level::Note, "an ordinary user", Some(advice.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn good() -> Facts {
        Facts {
            kvm: KvmFacts::Runs { kernel_ns: 0.4, lacks: vec![] },
            userfaultfd: Ok(vec![]),
            tap: Ok(()),
            qemu: Some((7, 2)),
            packages: Ok(vec![]),
            cache: PathBuf::from("/c"),
            cache_free: Ok(100 << 30),
            memory_available: 16 << 30,
            cpus: 8,
            root: true,
            is_lab_host: false,
        }
    }

    fn with(change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = good();
        change(&mut facts);
        facts
    }

    #[test]
    fn a_machine_with_hardware_virtualisation_runs_nodes_itself() {
        assert_eq!(choose(&good()).unwrap(), Choice::Kvm);
        let report = judge(&good());
        assert!(report.findings.iter().all(|finding| finding.level == Level::Good), "{report:?}");
    }

    #[test]
    fn a_kvm_that_interprets_kernel_code_means_the_lab() {
        let facts = with(|f| f.kvm = KvmFacts::Runs { kernel_ns: 1000.0, lacks: vec![] });
        assert_eq!(choose(&facts).unwrap(), Choice::Lab);
        assert!(judge(&facts).reason.contains("1000 ns"));
        // A nested guest of the lab is no interpreter.
        let nested = with(|f| f.kvm = KvmFacts::Runs { kernel_ns: 6.0, lacks: vec![] });
        assert_eq!(choose(&nested).unwrap(), Choice::Kvm);
    }

    #[test]
    fn whatever_keeps_nodes_off_kvm_leads_to_the_lab() {
        let changes: [fn(&mut Facts); 6] = [
            |f| f.kvm = KvmFacts::Absent,
            |f| f.kvm = KvmFacts::Denied("Permission denied".into()),
            |f| f.kvm = KvmFacts::Broken("x".into()),
            |f| f.kvm = KvmFacts::Runs { kernel_ns: 1.0, lacks: vec!["KVM_CAP_IRQFD"] },
            |f| f.userfaultfd = Err("x".into()),
            |f| f.userfaultfd = Ok(vec![("MINOR_SHMEM".into(), "5.14".into())]),
        ];
        for change in changes {
            assert_eq!(choose(&with(change)).unwrap(), Choice::Lab);
        }
    }

    #[test]
    fn where_neither_will_do_both_obstacles_and_the_remedy_are_said() {
        let facts = with(|f| {
            f.kvm = KvmFacts::Absent;
            f.qemu = None;
            f.root = false;
        });
        let error = choose(&facts).unwrap_err().to_string();
        for part in ["no /dev/kvm", "qemu-system-x86_64 is not installed", "apt-get install"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(judge(&facts).host.is_none());
        // Root installs it.
        assert_eq!(choose(&Facts { root: true, ..facts }).unwrap(), Choice::Lab);
    }

    #[test]
    fn a_qemu_that_is_too_old_is_an_obstacle_even_for_root() {
        let facts = with(|f| {
            f.kvm = KvmFacts::Absent;
            f.qemu = Some((6, 9));
        });
        assert!(choose(&facts).unwrap_err().to_string().contains("6.9"));
    }

    #[test]
    fn an_emulated_host_does_not_start_another() {
        let facts = with(|f| {
            f.kvm = KvmFacts::Absent;
            f.is_lab_host = true;
        });
        assert!(choose(&facts).is_err());
    }

    #[test]
    fn every_bad_finding_says_what_to_do() {
        let facts = Facts {
            kvm: KvmFacts::Denied("Permission denied".into()),
            userfaultfd: Err("no".into()),
            tap: Err("no".into()),
            qemu: Some((5, 0)),
            packages: Ok(vec![(Purpose::Lab, vec!["qemu-system-x86"])]),
            cache: PathBuf::from("/c"),
            cache_free: Ok(1 << 20),
            memory_available: 1 << 20,
            cpus: 1,
            root: false,
            is_lab_host: false,
        };
        for finding in judge(&facts).findings {
            assert!(finding.level != Level::Good && finding.advice.is_some(), "{finding:?}");
        }
    }
}
