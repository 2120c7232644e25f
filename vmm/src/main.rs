//! A single-system-image hypervisor: one Linux guest over many machines, whose processes move while they run.

use std::process::ExitCode;

fn main() -> ExitCode {
    ssivmm::cli::main()
use clap::{Parser, Subcommand};
use ssivmm::machine::devrun;
use ssivmm::{doctor, lab};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this machine can do for a cluster, and what to do about what it cannot
    Doctor {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Boot cells in one process, joined by function calls (for kernel developers)
    #[command(hide = true)]
    DevRun(devrun::DevRunArgs),
    /// PID 1 of an emulated host
    #[command(hide = true)]
    LabInit,
    /// The work of an emulated host
    #[command(hide = true)]
    LabRun,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let result = match Cli::parse().command {
        Command::Doctor { json } => doctor::command(json).map(ExitCode::from),
        Command::DevRun(args) => {
            devrun::run(&args).map(|good| if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::LabInit => lab::init::pid1(),
        Command::LabRun => {
            lab::init::run(|_| anyhow::bail!("no launcher in this build")).map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("ssivmm: {error:#}");
        ExitCode::FAILURE
    })
}
