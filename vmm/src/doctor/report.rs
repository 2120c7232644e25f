use std::fmt::Write as _;

use super::verdict::{Choice, Level, Report};

/// The report for a person.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Good => "good",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        let _ = writeln!(text, "{mark}  {:<12} {}", finding.id, finding.found);
        if let Some(advice) = &finding.advice {
            let _ = writeln!(text, "                   -> {advice}");
        }
    }
    let host = match report.host {
        Some(Choice::Kvm) => "`ssivmm up` runs nodes on this machine's KVM",
        Some(Choice::Lab) => "`ssivmm up` runs nodes in the lab, an emulated host",
        None => "`ssivmm up` cannot run here",
    };
    let _ = writeln!(text, "\n{host}:\n{}", report.reason);
    text
}
