//! `bench boot`: finds where boots can be measured, and measures there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ssi_images::command::which;
use ssi_images::{Cache, Source, Ui, boot, kernel};

use super::up::{choose_host, lab_failed};
use super::{Fail, Host, exit};
use crate::bootbench::{self, Boot, Contest, KernelFormat, Report, Vmm, elf, run, vmms};
use crate::lab::cluster::{cpus, now_ns};
use crate::lab::payload::BOOTED;
use crate::lab::qemu::PROGRAM;
use crate::lab::{Disk, Lab, LabError, LabImages, LabSpec, Payload, Work};
use crate::launch::HostKind;
use crate::runtime::leash::on_signals;
use crate::worker::Stop;

/// An emulated host is up, and its files are in memory, within this.
const HOST_WITHIN: Duration = Duration::from_secs(120);
/// A boot is heard of within this. Longer than the emulated host waits for it: that has more to say of why it is late.
const HEARD_WITHIN: Duration = run::BOOT_WITHIN.saturating_add(Duration::from_secs(30));
/// Memory of an emulated host for the files that it copies, beyond that of one guest.
const FILES_BYTES: u64 = 256 << 20;

/// Measures, and returns what to print.
pub fn run(rounds: u32, json: bool) -> Result<String, Fail> {
    let rounds = rounds.max(1);
    let Some(qemu) = which(PROGRAM) else {
        let why = format!(
            "bench boot measures against {PROGRAM}, which is not installed; install it: apt-get install qemu-system-x86"
        );
        return Err(Fail::new(exit::MACHINE, why));
    };
    let host = choose_host(Host::Auto)?;
    let (cache, source, ui) = (Cache::open()?, Source::find()?, Ui::detect());
    let program = std::env::current_exe().context("finding ssivmm itself")?;
    let mut bench = Bench { rounds, cancel: Stop::new()?, boots: Vec::new(), format: KernelFormat::Pvh };
    let measured = match host {
        HostKind::Kvm => {
            let kernel = kernel::build(&cache, &source, &ui)?;
            let initramfs = boot::initramfs(&cache, &ui)?;
            let _signals = on_signals(&bench.cancel)?;
            bench.on_kvm(qemu, program, kernel, initramfs)
        }
        HostKind::Lab => {
            let images = ssi_images::build_all(&cache, &source, &ui)?;
            let disk = boot::disk(&cache, &qemu, &ui)?;
            let lab = LabImages {
                bzimage: images.kernel.bzimage,
                initramfs: ssi_images::lab::build(&cache, &program, &ui)?,
                vmlinux: images.kernel.vmlinux,
                root: images.root,
                tools: images.tools,
            };
            let _signals = on_signals(&bench.cancel)?;
            bench.in_lab(lab, disk)
        }
    };
    if bench.cancel.is_triggered() {
        return Err(Fail::new(exit::INTERRUPTED, "interrupted; nothing is left running"));
    }
    measured?;
    let report = Report::of(&bench.boots, host, bench.format).context("no boot was measured")?;
    if json {
        return Ok(serde_json::to_string_pretty(&report)?);
    }
    Ok(report.text())
}

/// A measurement under way.
#[derive(Debug)]
struct Bench {
    rounds: u32,
    cancel: Stop,
    boots: Vec<Boot>,
    format: KernelFormat,
}

impl Bench {
    fn on_kvm(
        &mut self,
        qemu: PathBuf,
        ssivmm: PathBuf,
        kernel: kernel::Kernel,
        initramfs: PathBuf,
    ) -> Result<(), Fail> {
        self.format = format(&kernel.vmlinux)?;
        let qemu_kernel = match self.format {
            KernelFormat::Pvh => kernel.vmlinux.clone(),
            KernelFormat::BzImage => kernel.bzimage,
        };
        let contest = Contest {
            ssivmm,
            qemu: vec![qemu.into()],
            vmlinux: kernel.vmlinux,
            qemu_kernel,
            initramfs,
            avoid_cpu: None,
        };
        let (rounds, boots) = (self.rounds, &mut self.boots);
        Ok(bootbench::measure(&contest, rounds, &self.cancel, |boot| {
            eprintln!("{}", describe(&boot, rounds));
            boots.push(boot);
        })?)
    }

    fn in_lab(&mut self, images: LabImages, disk: PathBuf) -> Result<(), Fail> {
        self.format = format(&images.vmlinux)?;
        let mut disks = vec![Disk { name: "boot", file: disk }];
        if self.format == KernelFormat::BzImage {
            disks.push(Disk { name: "bzimage", file: images.bzimage.clone() });
        }
        let logs = tempfile::Builder::new().prefix("ssivmm-bench-boot.").tempdir()?;
        let guest_bytes = u64::from(vmms::MEMORY_MIB) << 20;
        let work = Work::Boot { rounds: self.rounds, format: self.format };
        let spec = LabSpec {
            run_dir: logs.path().to_owned(),
            images,
            disks,
            memory_mib: LabSpec::memory_for(1, guest_bytes + FILES_BYTES),
            cpus: cpus(),
            forwards: Vec::new(),
            payload: Payload { work, secret: Vec::new(), realtime_ns: now_ns() },
        };
        let mut lab = Lab::boot(&spec).map_err(|error| lab_failed(&error))?;
        let measured = self.follow(&mut lab);
        if lab.is_running() {
            lab.kill().map_err(|error| lab_failed(&error))?;
        }
        if measured.is_err() && !self.cancel.is_triggered() {
            // The error names them.
            let _ = logs.keep();
        }
        measured
    }

    /// Collects what the emulated host says of its boots, until it is off.
    fn follow(&mut self, lab: &mut Lab) -> Result<(), Fail> {
        let failed = |error: LabError| lab_failed(&error);
        let rounds = self.rounds;
        let mut malformed = None;
        let mut limit = HOST_WITHIN + HEARD_WITHIN;
        while self.boots.len() < run::boots(rounds) {
            let boots = &mut self.boots;
            lab.wait_until(BOOTED, limit, &self.cancel, |text| match heard(text) {
                None => false,
                Some(Ok(boot)) => {
                    eprintln!("{}", describe(&boot, rounds));
                    boots.push(boot);
                    true
                }
                Some(Err(error)) => {
                    malformed = Some(format!("the emulated host's console is garbled: {error}: {text}"));
                    true
                }
            })
            .map_err(failed)?;
            if let Some(why) = malformed {
                return Err(Fail::new(exit::FAILED, why));
            }
            limit = HEARD_WITHIN;
        }
        lab.wait(&self.cancel, |_| ()).map_err(failed)
    }
}

fn format(vmlinux: &Path) -> Result<KernelFormat, Fail> {
    Ok(elf::format_for_qemu(vmlinux).with_context(|| format!("cannot look at {}", vmlinux.display()))?)
}

/// A boot, if this is what the emulated host says of one.
fn heard(text: &str) -> Option<serde_json::Result<Boot>> {
    text.strip_prefix(BOOTED).map(serde_json::from_str)
}

/// A line of progress.
fn describe(boot: &Boot, rounds: u32) -> String {
    let round = match boot.round {
        0 => "warming up".to_owned(),
        round => format!("round {round} of {rounds}"),
    };
    let ms = |us: u64| us as f64 / 1e3;
    let Boot { up_us, end_us, .. } = *boot;
    let name = Vmm::name(boot.vmm);
    format!("{round}: {name} up after {:.1} ms, ended after {:.1} ms", ms(up_us), ms(end_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_emulated_host_says_of_a_boot_is_read_back() {
        let boot = Boot { vmm: Vmm::Qemu, round: 3, up_us: 1_500, end_us: 2_000 };
        let line = format!("{BOOTED}{}", serde_json::to_string(&boot).unwrap());
        assert_eq!(heard(&line).unwrap().unwrap(), boot);
        assert_eq!(describe(&boot, 5), "round 3 of 5: qemu up after 1.5 ms, ended after 2.0 ms");
    }

    #[test]
    fn other_lines_are_no_boots_and_a_cut_one_is_an_error() {
        assert!(heard("up").is_none() && heard("failed: booted").is_none());
        for cut in ["{\"vmm\":\"qemu\",\"rou", "{\"vmm\":\"xen\",\"round\":1,\"up_us\":1,\"end_us\":2}"] {
            assert!(heard(&format!("{BOOTED}{cut}")).unwrap().is_err(), "{cut}");
        }
    }
}
