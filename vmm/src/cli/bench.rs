//! Benchmarks: what is measured, over what. They print and judge nothing.

use clap::ValueEnum;

use super::show::say;
use super::{BenchArgs, Fail, Outcome, bench_boot, bench_cluster, bench_migrate, exit};
use crate::{dsm, io};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Coherent memory: page faults between processes over raw round trips of the same processes; needs no cluster. With
    /// --cells: between the cells of one, over messages between the same cells
    Dsm,
    /// The switch and the gateway against the machine's loopback; needs no cluster
    Net,
    /// Moves of the paper's two test programs between cells 0 and 1, lazy and eager
    Migrate,
    /// Boots of one cell over boots of QEMU's microvm, with the same kernel and initramfs; needs no cluster
    Boot,
}

/// `bench`.
pub fn run(args: &BenchArgs, cluster: Option<&str>) -> Outcome {
    let (what, rounds, json) = (args.what, args.rounds, args.json.json);
    if args.cells && what != What::Dsm {
        return Err(Fail::new(exit::USAGE, "--cells is for bench dsm"));
    }
    let text = match what {
        What::Dsm if args.cells => bench_cluster::dsm(rounds, json, cluster)?,
        What::Dsm => {
            let mut args = dsm::bench::BenchArgs { json, ..Default::default() };
            args.rounds = rounds.unwrap_or(args.rounds);
            dsm::bench::run(&args)?
        }
        What::Net => io::net::bench::run(&io::net::bench::BenchArgs::default())?,
        What::Boot => bench_boot::run(rounds.unwrap_or(5), json)?,
        What::Migrate => bench_migrate::run(rounds.unwrap_or(10), json, cluster)?,
    };
    // A process that the benchmark started has nothing to say.
    if !text.is_empty() {
        say(text.trim_end())?;
    }
    Ok(0)
}
