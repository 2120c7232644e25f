//! `cargo xtask test` runs this: every scenario, or those whose name contains a word, against a real cluster.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use ssi_tests::cluster::{Bench, Cluster};
use ssi_tests::scenarios::{ALL, Need, Scenario};

/// Runs the end-to-end scenarios.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program under test.
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Force the kind of host: kvm or lab.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// List the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Where the logs of the clusters go in which a scenario failed.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/scenario-logs")]
    logs: PathBuf,
    /// Run them this often, until one fails.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    rounds: u32,
    /// Run only those whose name contains one of these words.
    only: Vec<String>,
}

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Whether it passed.
    fn run(&mut self, scenario: &Scenario, body: impl FnOnce() -> Result<()>) -> bool {
        let since = Instant::now();
        let result = body();
        let seconds = since.elapsed().as_secs_f64();
        match &result {
            Ok(()) => {
                self.passed += 1;
                println!("PASS {} ({seconds:.1} s)", scenario.name);
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {} ({seconds:.1} s)\n{error:#}", scenario.name);
            }
        }
        result.is_ok()
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted =
        |s: &&Scenario| arguments.only.is_empty() || arguments.only.iter().any(|word| s.name.contains(word));
    let chosen: Vec<&Scenario> = ALL.iter().filter(wanted).collect();
    if arguments.list {
        chosen.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(());
    }
    let bench = Bench::new(&arguments.binary, arguments.host)?;
    let mut tally = Tally::default();
    for _ in 0..arguments.rounds {
        run(&bench, &chosen, &arguments.logs, &mut tally);
        if tally.failed > 0 {
            break;
        }
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    std::process::exit(i32::from(tally.failed > 0 || tally.passed == 0));
}

/// Each of `chosen` once. One that fails takes its cluster with it: what comes after has a sound one.
fn run(bench: &Bench, chosen: &[&Scenario], logs: &Path, tally: &mut Tally) {
    let mut cluster: Option<Cluster<'_>> = None;
    for scenario in chosen {
        let passed = match scenario.need {
            Need::Own(body) => {
                cluster = None;
                tally.run(scenario, || body(bench))
            }
            Need::Shared(body) => tally.run(scenario, || {
                if cluster.is_none() {
                    cluster = Some(bench.up("scenarios", &["--nodes", "2"]).context("booting the cluster")?);
                }
                cluster.as_ref().map_or(Ok(()), body)
            }),
        };
        if !passed {
            cluster = None;
            match bench.keep_logs(&logs.join(scenario.name)) {
                Ok(()) => println!("its logs are in {}", logs.join(scenario.name).display()),
                Err(error) => println!("its logs could not be kept: {error:#}"),
            }
        }
    }
}
