//! `cargo xtask test` runs this: every scenario, or those whose name contains a word, against a real cluster.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use ssi_tests::cluster::{Bench, Cluster};
use ssi_tests::scenarios::{ALL, Need, PENDING, Scenario};

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
    /// Those that are not expected to pass yet, instead of those that have to.
    #[arg(long)]
    pending: bool,
    /// Run only those whose name contains one of these words.
    only: Vec<String>,
}

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn run(&mut self, scenario: &Scenario, body: impl FnOnce() -> Result<()>) {
        let since = Instant::now();
        let result = body();
        let seconds = since.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("PASS {} ({seconds:.1} s)", scenario.name);
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {} ({seconds:.1} s)\n{error:#}", scenario.name);
            }
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted =
        |s: &&Scenario| arguments.only.is_empty() || arguments.only.iter().any(|word| s.name.contains(word));
    let table: Vec<&Scenario> =
        if arguments.pending { PENDING.iter().map(|p| &p.scenario).collect() } else { ALL.iter().collect() };
    let chosen: Vec<&Scenario> = table.into_iter().filter(wanted).collect();
    if arguments.list {
        chosen.iter().for_each(|scenario| println!("{}", scenario.name));
        PENDING.iter().for_each(|p| println!("pending: {}: {}", p.scenario.name, p.why));
        return Ok(());
    }
    let bench = Bench::new(&arguments.binary, arguments.host)?;
    let mut tally = Tally::default();
    let mut cluster: Option<Cluster<'_>> = None;
    for scenario in chosen {
        match scenario.need {
            Need::Own(body) => {
                cluster = None;
                tally.run(scenario, || body(&bench));
            }
            Need::Shared(body) => {
                if cluster.is_none() {
                    match bench.up("scenarios", &["--nodes", "2"]) {
                        Ok(up) => cluster = Some(up),
                        Err(error) => {
                            tally.run(scenario, || Err(error.context("booting the cluster")));
                            continue;
                        }
                    }
                }
                if let Some(cluster) = &cluster {
                    tally.run(scenario, || body(cluster));
                }
            }
        }
    }
    drop(cluster);
    println!("{} passed, {} failed", tally.passed, tally.failed);
    std::process::exit(i32::from(tally.failed > 0 || tally.passed == 0));
}
