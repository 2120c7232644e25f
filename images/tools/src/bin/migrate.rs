//! migrate(1): moves a running process to another cell; writes and reads images of processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use nix::errno::Errno;
use ssi_tools::kernel;

/// Moves a running process to another cell of the cluster.
#[derive(Debug, Parser)]
#[command(version, group(ArgGroup::new("image").args(["checkpoint", "restart"])))]
struct Arguments {
    /// The process; it keeps its number.
    #[arg(required_unless_present = "restart", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// The cell that it goes to, as `ssivmm status` numbers them.
    #[arg(required_unless_present_any = ["checkpoint", "restart"], value_parser = clap::value_parser!(u32).range(..64))]
    cell: Option<u32>,
    /// Send every page before the process runs there.
    #[arg(long)]
    eager: bool,
    /// Print what the kernel measured, as JSON.
    #[arg(long)]
    json: bool,
    /// Write the image of PID to this file; the process goes on.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Become the process whose image is in this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pid", "cell"])]
    restart: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("migrate: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if let Some(file) = &arguments.restart {
        let image = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
        return kernel::restart(&image).map_err(|error| format!("{}: {}", file.display(), describe(error)));
    }
    let pid = arguments.pid.unwrap_or_default();
    if let Some(file) = &arguments.checkpoint {
        let device = kernel::open_device().map_err(|error| format!("{}: {error}", kernel::DEVICE))?;
        let image = File::create(file).map_err(|error| format!("{}: {error}", file.display()))?;
        return kernel::checkpoint(&device, pid, &image).map_err(|error| refusal(pid, error));
    }
    let flags = if arguments.eager { kernel::EAGER } else { 0 };
    kernel::migrate(pid, u64::from(arguments.cell.unwrap_or_default()) | flags)
        .map_err(|error| refusal(pid, error))?;
    if arguments.json {
        println!("{}", facts(pid));
    }
    Ok(())
}

/// The errno as a script and as a person read it.
fn describe(error: Errno) -> String {
    format!("{error:?}: {}", error.desc())
}

/// What a refusal of migrate(2) means here.
fn refusal(pid: i32, error: Errno) -> String {
    let reason = match error {
        Errno::ENOSYS => "this kernel has no migrate(2)".to_owned(),
        Errno::EHOSTUNREACH => "there is no such cell, or it is dead".to_owned(),
        Errno::EPERM => "it belongs to another user, or is the kernel's or the cell's own".to_owned(),
        Errno::EINVAL => "it is a kernel thread, which has nothing that could move".to_owned(),
        Errno::EBUSY => "it is already moving".to_owned(),
        Errno::ESRCH => "there is no such process".to_owned(),
        Errno::ENOTSUP => kernel::why(pid).unwrap_or_else(|| "something in it cannot move".to_owned()),
        other => kernel::why(pid).unwrap_or_else(|| other.desc().to_owned()),
    };
    format!("process {pid}: {error:?}: {reason}; it goes on where it was")
}

/// What the kernel measured of the last move: `/proc/ssi/PID/stat`.
fn facts(pid: i32) -> serde_json::Value {
    let number = u32::try_from(pid).unwrap_or_default();
    kernel::process_facts(Path::new("/proc"), number, "stat")
        .into_iter()
        .map(|(key, value)| match value.parse::<u64>() {
            Ok(number) => (key, serde_json::Value::from(number)),
            Err(_) => (key, serde_json::Value::from(value)),
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}
