use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use ssi_images::{Source, Ui, packages};

use crate::checks::{CHECKS, Check, Work, has_cargo};

/// Where cargo puts the programs of a release build, in the source tree.
const RELEASE: &str = "target/x86_64-unknown-linux-gnu/release";

/// What `cargo xtask test` is asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the checks with these names (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// List the checks and end
    #[arg(long)]
    list: bool,
    /// As in CI: a check that cannot be done for want of a package is a failure
    #[arg(long)]
    ci: bool,
    /// Only the scenarios whose name contains one of these words
    scenario: Vec<String>,
}

/// How a check ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs the checks.
pub fn run(source: &Source, options: &Options) -> Result<ExitCode> {
    if options.list {
        for check in CHECKS {
            println!("{:<10} {}", check.name, check.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&options.only)?;
    let mut failed = Vec::new();
    let (mut passed, mut skipped) = (0u32, 0u32);
    for check in chosen {
        println!("--- {}: {}", check.name, check.about);
        let begun = Instant::now();
        let outcome = perform(source, check, options);
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("PASS {} ({seconds:.1} s)", check.name);
            }
            Outcome::Failed(why) => {
                println!("FAIL {} ({seconds:.1} s): {why}", check.name);
                failed.push(check.name);
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("SKIP {}: {why}", check.name);
            }
        }
    }
    if !failed.is_empty() {
        println!(
            "failed: {} (again: cargo xtask test --only {})",
            failed.join(", "),
            failed.join(" --only ")
        );
    }
    println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    Ok(if failed.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The checks that were asked for, in the table's order.
fn choose(only: &[String]) -> Result<Vec<&'static Check>> {
    for name in only {
        if !CHECKS.iter().any(|check| check.name == name) {
            let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
            bail!("there is no check `{name}`; there are: {}", names.join(", "));
        }
    }
    Ok(CHECKS.iter().filter(|check| only.is_empty() || only.iter().any(|name| name == check.name)).collect())
}

fn perform(source: &Source, check: &Check, options: &Options) -> Outcome {
    if let Err(error) = packages::ensure(check.needs, &Ui::detect()) {
        let why = format!("{error:#}");
        return if options.ci { Outcome::Failed(why) } else { Outcome::Skipped(why) };
    }
    let done = match check.work {
        Work::Cargo(arguments) => cargo(source, arguments),
        Work::UnitTests => unit_tests(source),
        Work::Fuzz(seconds) => fuzz(source, seconds),
        Work::Own(function) => function(source),
        Work::Scenarios => scenarios(source, &options.scenario),
    };
    match done {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Cargo in the source tree; its output goes where ours goes.
fn cargo_command(source: &Source, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(source.root());
    command
}

fn cargo(source: &Source, arguments: &[&str]) -> Result<()> {
    succeed(&mut cargo_command(source, arguments))
}

fn fuzz(source: &Source, seconds: u32) -> Result<()> {
    let arguments = ["test", "--quiet", "--package", "ssi-dsm", "--test", "fuzz", "--", "--nocapture"];
    succeed(cargo_command(source, &arguments).env("SSI_FUZZ_SECONDS", seconds.to_string()))
}

fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn unit_tests(source: &Source) -> Result<()> {
    if has_cargo("nextest") {
        return cargo(source, &["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"]);
    }
    cargo(source, &["test", "--quiet", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"])
}

fn scenarios(source: &Source, words: &[String]) -> Result<()> {
    cargo(source, &["build", "--release", "--package", "ssivmm", "--package", "ssi-tests"])?;
    let folder = source.join(RELEASE);
    let mut command = Command::new(folder.join("scenarios"));
    command.arg("--binary").arg(folder.join("ssivmm")).args(words).current_dir(source.root());
    succeed(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_an_unknown_one_is_refused_with_the_known_ones() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[i + 1..].iter().all(|other| other.name != check.name), "{}", check.name);
        }
        let error = choose(&["nonsense".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("scenarios"), "{error}");
        assert_eq!(choose(&["unit".to_owned(), "fmt".to_owned()]).unwrap()[0].name, "fmt");
        assert_eq!(choose(&[]).unwrap().len(), CHECKS.len());
    }
}
