//! `ssivmm doctor`: what this machine can do, what that means for a cluster, and what to do about it.
//!
//! Three steps that do not mix: [`facts::gather`] looks at the machine and judges nothing; [`verdict`] judges facts and looks
//! at nothing, so that its tests need no machine; [`report`] prints.

/// What there is.
pub mod facts;
/// How quickly KVM runs kernel code.
pub mod kvm;
/// What is printed.
pub mod report;
/// What it means.
pub mod verdict;

pub use facts::Facts;
pub use verdict::{Choice, Report, choose, judge};

/// Where `ssivmm up` should run the nodes of this machine: on its own KVM, or in the lab.
///
/// # Errors
/// If neither will do: with what stands in the way of each.
pub fn choose_host() -> anyhow::Result<Choice> {
    choose(&facts::gather())
}

/// `ssivmm doctor`: prints the report, as JSON for programs. Returns the exit code: 0 if a cluster can run here.
///
/// # Errors
/// If the report cannot be written.
pub fn command(json: bool) -> anyhow::Result<u8> {
    let report = judge(&facts::gather());
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report::text(&report));
    }
    Ok(u8::from(report.host.is_none()))
}
