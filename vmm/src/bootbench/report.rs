use std::fmt::Write as _;

use serde::Serialize;

use super::vmms::MEMORY_MIB;
use super::{Boot, KernelFormat, Vmm};
use crate::launch::HostKind;

/// Times of some boots, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest.
    pub min: f64,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// Of times in microseconds; `None` if there are none.
    fn of(mut all_us: Vec<u64>) -> Option<Self> {
        all_us.sort_unstable();
        let middle = all_us.len() / 2;
        let upper = *all_us.get(middle)?;
        let lower = if all_us.len().is_multiple_of(2) { all_us[middle - 1] } else { upper };
        let ms = |us: u64| us as f64 / 1e3;
        let (first, last) = (all_us.first()?, all_us.last()?);
        Some(Self { min: ms(*first), median: (ms(lower) + ms(upper)) / 2.0, max: ms(*last) })
    }

    fn columns(&self) -> String {
        format!("{:>10.1}{:>10.1}{:>10.1}", self.min, self.median, self.max)
    }
}

/// One VMM.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    vmm: Vmm,
    kernel: &'static str,
    rounds: usize,
    up_ms: Spread,
    end_ms: Spread,
}

/// Medians of ours over those of the yardstick.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Ratio {
    up: f64,
    end: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    host: HostKind,
    memory_mib: u32,
    vcpus: u32,
    vmms: Vec<Row>,
    ratio_of_medians: Ratio,
}

impl Report {
    /// Of boots on `host`, where QEMU got the kernel as `format`. `None` if one of the two has no boot that
    /// counts.
    pub fn of(boots: &[Boot], host: HostKind, format: KernelFormat) -> Option<Self> {
        let row = |vmm: Vmm| {
            let counted = boots.iter().filter(|boot| boot.vmm == vmm && boot.round > 0);
            let (up, end): (Vec<u64>, Vec<u64>) = counted.map(|boot| (boot.up_us, boot.end_us)).unzip();
            let (kernel, rounds) = (format.describe(vmm), up.len());
            Some(Row { vmm, kernel, rounds, up_ms: Spread::of(up)?, end_ms: Spread::of(end)? })
        };
        let (ours, qemu) = (row(Vmm::Ssivmm)?, row(Vmm::Qemu)?);
        let ratio_of_medians =
            Ratio { up: ours.up_ms.median / qemu.up_ms.median, end: ours.end_ms.median / qemu.end_ms.median };
        Some(Self { host, memory_mib: MEMORY_MIB, vcpus: 1, vmms: vec![ours, qemu], ratio_of_medians })
    }

    /// A table.
    pub fn text(&self) -> String {
        let place = if self.host == HostKind::Lab { "in an emulated host" } else { "on this machine's KVM" };
        let mut out = format!(
            "boot of one cell over QEMU's microvm, {place}: same kernel, same initramfs, 1 vCPU, {} MiB\n\n",
            self.memory_mib
        );
        let _ = writeln!(
            out,
            "{:<8}{:<24}{:>6}{:>10}{:>10}{:>10}{:>11}{:>10}{:>10}",
            "vmm", "kernel loaded as", "rounds", "up_ms min", "median", "max", "end_ms min", "median", "max"
        );
        for row in &self.vmms {
            let _ = writeln!(
                out,
                "{:<8}{:<24}{:>6}{} {}",
                row.vmm.name(),
                row.kernel,
                row.rounds,
                row.up_ms.columns(),
                row.end_ms.columns()
            );
        }
        let Ratio { up, end } = self.ratio_of_medians;
        let _ = writeln!(out, "\nmedian of ssivmm over that of qemu: up {up:.2}, end {end:.2}");
        out.push_str(
            "up: from the start of the process to the line of PID 1 on the serial console\n\
             end: to the end of the process; PID 1 resets by the keyboard controller in ssivmm, by a triple fault in qemu\n",
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(vmm: Vmm, round: u32, up_us: u64, end_us: u64) -> Boot {
        Boot { vmm, round, up_us, end_us }
    }

    fn boots() -> Vec<Boot> {
        vec![
            boot(Vmm::Ssivmm, 0, 9_000_000, 9_000_000),
            boot(Vmm::Qemu, 0, 1, 1),
            boot(Vmm::Ssivmm, 1, 100_000, 300_000),
            boot(Vmm::Qemu, 1, 200_000, 400_000),
        ]
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let median = |all: &[u64]| Spread::of(all.to_vec()).map(|spread| spread.median);
        assert_eq!(median(&[3000, 1000, 2000]), Some(2.0));
        assert_eq!(median(&[4000, 1000, 2000, 9000]), Some(3.0));
        assert_eq!(median(&[]), None);
        let spread = Spread::of(vec![3000, 1500, 2000]).unwrap();
        assert_eq!((spread.min, spread.max), (1.5, 3.0));
    }

    #[test]
    fn the_round_that_warms_up_does_not_count() {
        let report = Report::of(&boots(), HostKind::Kvm, KernelFormat::Pvh).unwrap();
        assert_eq!(report.vmms[0].up_ms, Spread { min: 100.0, median: 100.0, max: 100.0 });
        assert_eq!(report.vmms.iter().map(|row| row.rounds).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(Report::of(&boots()[..2], HostKind::Kvm, KernelFormat::Pvh), None);
    }

    #[test]
    fn the_yardstick_is_below_the_line_of_the_ratio() {
        let report = Report::of(&boots(), HostKind::Kvm, KernelFormat::Pvh).unwrap();
        assert_eq!(report.ratio_of_medians, Ratio { up: 0.5, end: 0.75 });
        assert!(report.text().contains("up 0.50, end 0.75"), "{}", report.text());
    }

    #[test]
    fn the_table_says_which_kernel_each_loads_and_where_they_ran() {
        let lab = Report::of(&boots(), HostKind::Lab, KernelFormat::BzImage).unwrap().text();
        for part in ["emulated host", "ELF, 64-bit entry", "bzImage (no PVH entry)"] {
            assert!(lab.contains(part), "{part} is not in\n{lab}");
        }
        let kvm = Report::of(&boots(), HostKind::Kvm, KernelFormat::Pvh).unwrap().text();
        assert!(kvm.contains("this machine's KVM") && kvm.contains("ELF, PVH entry"), "{kvm}");
    }

    #[test]
    fn the_json_has_units_in_its_names() {
        let report = Report::of(&boots(), HostKind::Lab, KernelFormat::Pvh).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["vmms"][1]["vmm"], "qemu");
        assert_eq!(json["vmms"][1]["up_ms"]["median"], 200.0);
        assert_eq!(json["vmms"][0]["end_ms"]["max"], 300.0);
        assert_eq!(json["ratio_of_medians"]["up"], 0.5);
        assert_eq!(json["memory_mib"], 512);
    }
}
