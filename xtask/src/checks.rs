//! The one table of checks, the same here and in CI; CI only refuses to skip.

use std::process::Command;

use ssi_images::packages::Purpose;
use ssi_images::{Cache, Source, Ui, command::which};

use crate::{house, licences};

/// How a check is done.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Cargo, with these arguments.
    Cargo(&'static [&'static str]),
    /// All unit and integration tests, by nextest if it is there.
    UnitTests,
    /// The fuzzers of the protocol, for this many seconds.
    Fuzz(u32),
    /// A function of this program.
    Own(fn(&Source) -> anyhow::Result<()>),
    /// The end-to-end scenarios; `words` of the command line choose among them.
    Scenarios,
}

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// What it shows when it passes.
    pub about: &'static str,
    /// How it is done.
    pub work: Work,
    /// Packages it needs; root has them installed.
    pub needs: &'static [Purpose],
}

const fn check(name: &'static str, about: &'static str, work: Work, needs: &'static [Purpose]) -> Check {
    Check { name, about, work, needs }
}

/// All checks, the quick ones first.
pub const CHECKS: &[Check] = &[
    check("fmt", "the code is formatted", Work::Cargo(&["fmt", "--all", "--check"]), &[]),
    check("links", "links and paths in the documents lead somewhere", Work::Own(house::links), &[]),
    check("sizes", "no file has more than 800 lines of product code", Work::Own(house::sizes), &[]),
    check("threads", "threads of ssivmm start in one place", Work::Own(house::threads), &[]),
    check(
        "patches",
        "the kernel patches are numbered, and say why they are there",
        Work::Own(house::patches),
        &[],
    ),
    check(
        "clippy",
        "no warnings, in any target",
        Work::Cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
        &[],
    ),
    check("licences", "the dependencies are those that deny.toml allows", Work::Own(licences::check), &[]),
    check(
        "unit",
        "unit tests, models and simulations, native integration",
        Work::UnitTests,
        &[Purpose::Tests],
    ),
    check(
        "fuzz",
        "honest nodes stay coherent, and the parser sound, whatever another node says",
        Work::Fuzz(120),
        &[],
    ),
    check(
        "doc",
        "examples in the documentation compile and run",
        Work::Cargo(&["test", "--quiet", "--workspace", "--doc"]),
        &[],
    ),
    check(
        "images",
        "kernel, root and tools images can be built",
        Work::Own(images),
        &[Purpose::Kernel, Purpose::Root],
    ),
    check(
        "lab",
        "an emulated host boots, runs a program over the images and ends",
        Work::Cargo(&[
            "test",
            "--quiet",
            "--package",
            "ssivmm",
            "--test",
            "lab",
            "--",
            "--ignored",
            "--test-threads",
            "1",
        ]),
        &[Purpose::Kernel, Purpose::Root, Purpose::Lab],
    ),
    check(
        "scenarios",
        "a cluster boots, serves, moves processes, and refuses bad input",
        Work::Scenarios,
        &[Purpose::Kernel, Purpose::Root, Purpose::Lab, Purpose::Tests],
    ),
];

/// Does cargo have this subcommand?
pub fn has_cargo(subcommand: &str) -> bool {
    which(&format!("cargo-{subcommand}")).is_some()
        || Command::new("cargo")
            .args([subcommand, "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
}

fn images(source: &Source) -> anyhow::Result<()> {
    let ui = Ui::detect();
    ssi_images::build_all(&Cache::open()?, source, &ui)?;
    Ok(())
}
