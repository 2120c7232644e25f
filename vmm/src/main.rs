//! A single-system-image hypervisor: one Linux guest over many machines, whose processes move while they run.

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("lab-init") => ssivmm::lab::init::pid1(),
        Some("lab-run") => ssivmm::lab::init::run(|_| anyhow::bail!("no launcher yet")),
        _ => Ok(()),
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ssivmm::machine::devrun;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot cells in one process, joined by function calls (for kernel developers)
    #[command(hide = true)]
    DevRun(devrun::DevRunArgs),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let Cli { command: Command::DevRun(args) } = Cli::parse();
    match devrun::run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ssivmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
