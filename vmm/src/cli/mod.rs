//! The command line. `docs/man` and `--help` are made from the definitions in this file.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::dsm::BUSY_POLL_US;
use crate::launch::Publish;
use crate::machine::devrun;

/// Benchmarks that print ratios.
mod bench;
/// Boots, over QEMU's microvm.
mod bench_boot;
/// Programs in cells, for benchmarks.
mod bench_cluster;
/// Moves of processes.
mod bench_migrate;
/// Serial consoles.
mod console;
/// What this machine can do.
mod doctor;
/// `down`.
mod down;
/// `exec`.
mod exec;
/// `man`.
mod man;
/// `migrate`.
mod migrate;
/// Hidden commands: the long-lived processes.
mod process;
/// `status`, `ps`, `list`.
mod show;
/// What is kept of each cluster.
pub mod state;
/// The terminal of the user.
mod terminal;
/// `up`.
mod up;

/// Exit statuses; the table in `--help` and ssivmm(1).
pub mod exit {
    /// It failed.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// There is no such cluster.
    pub const NO_CLUSTER: u8 = 3;
    /// A cluster of this name runs already, or is just being started or stopped.
    pub const NAME_IN_USE: u8 = 4;
    /// A published port is taken.
    pub const PORT_IN_USE: u8 = 5;
    /// There is no such cell or process, or it is dead.
    pub const NOT_THERE: u8 = 6;
    /// The machine lacks something; `ssivmm doctor` says what.
    pub const MACHINE: u8 = 7;
    /// `exec`: ssivmm itself failed, not the program.
    pub const EXEC: u8 = 125;
    /// `exec`: the program cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// `exec`: there is no such program.
    pub const NOT_FOUND: u8 = 127;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

/// A command failed: what to say, and the exit status.
#[derive(Debug)]
pub struct Fail {
    /// One of [`exit`].
    pub status: u8,
    /// For a person: what, why, what to do.
    pub message: String,
}

impl Fail {
    /// A failure with this exit status.
    pub fn new(status: u8, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Fail {
    fn from(error: E) -> Self {
        Self::new(exit::FAILED, format!("{:#}", error.into()))
    }
}

/// What a command returns: its exit status.
pub type Outcome = Result<u8, Fail>;

const EXIT_STATUS: &str = "\
Exit status:
  0    done
  1    failed; the message says why
  2    the command line is wrong
  3    there is no such cluster
  4    a cluster of this name runs already, or is just being started or stopped
  5    a published port is taken
  6    there is no such cell or process, or it is dead
  7    this machine lacks something; `ssivmm doctor` says what
  130  interrupted
`exec` returns the exit status of the program, 128 and the number of the signal that ended it, or
  125  ssivmm itself failed     126  the program cannot be executed     127  there is no such program

Files:
  $XDG_STATE_HOME/ssivmm (~/.local/state/ssivmm), or $SSIVMM_STATE: clusters, their sockets and logs
  ~/.cache/ssivmm, or $SSIVMM_CACHE: kernel, images";

/// One Linux guest over many machines, whose processes move while they run.
///
/// `ssivmm up` boots a cluster: on each node a cell, a Linux kernel of its own, and all cells together are one system with
/// one process space, one root file system and one IP address. `ssivmm exec` runs unmodified programs in it, and `migrate`
/// moves a running process to another node.
#[derive(Debug, Parser)]
#[command(name = "ssivmm", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub struct Cli {
    /// Which cluster ($SSIVMM_CLUSTER); needed only if several run
    #[arg(long, short = 'C', global = true, value_name = "NAME")]
    cluster: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a cluster; builds what is missing
    Up(UpArgs),
    /// The nodes and cells of the cluster, and what they use
    Status(StatusArgs),
    /// The processes of the cluster, and the cell that each runs in
    Ps(PsArgs),
    /// Run a program in a cell
    Exec(ExecArgs),
    /// Move a running process to another cell
    Migrate(MigrateArgs),
    /// Attach to the serial console of a cell; Ctrl-] detaches
    Console {
        /// Number of the cell
        cell: u32,
    },
    /// Shut the cluster down
    Down,
    /// The clusters of this machine
    List(Json),
    /// Say what this machine can do, and what to do about the rest
    Doctor(Json),
    /// Measure, and print ratios
    Bench(BenchArgs),
    /// The I/O server of a cluster
    #[command(hide = true)]
    Io(ProcessArgs),
    /// A node of a cluster
    #[command(hide = true)]
    Node {
        #[command(flatten)]
        process: ProcessArgs,
        /// Its number
        #[arg(long)]
        node: u32,
    },
    /// PID 1 of an emulated host
    #[command(hide = true)]
    LabInit,
    /// The work of an emulated host, started by its PID 1
    #[command(hide = true)]
    LabRun,
    /// Boot cells in one process, joined by function calls (for kernel developers)
    #[command(hide = true)]
    DevRun(devrun::DevRunArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `status`.
#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    json: Json,
    /// What coherent memory has cost: accesses that waited for a page, messages, bytes
    #[arg(long)]
    dsm: bool,
}

/// `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// How many nodes, 1 to 64
    #[arg(long, default_value_t = 2, value_name = "N")]
    nodes: u32,
    /// Memory of each node: a multiple of 128M, from 256M
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = parse_size)]
    memory: u64,
    /// Virtual CPUs of each node, 1 to 8
    #[arg(long, default_value_t = 1, value_name = "N")]
    vcpus: u32,
    /// Publish a port: connections to HOST on this machine reach GUEST of the cluster; may be repeated
    #[arg(long, value_name = "[ADDRESS:]HOST:GUEST")]
    publish: Vec<Publish>,
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the nodes run
    #[arg(long, value_enum, default_value_t = Host::Auto)]
    host: Host,
    /// Longest time that a node polls for a page before it sleeps, in microseconds; 0 to sleep at once
    #[arg(long, default_value_t = BUSY_POLL_US, value_name = "US")]
    dsm_poll_us: u64,
    /// Processors of the host for the threads that serve page faults, one thread a node in turn: 2,3; without it, any
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    dsm_cpus: Vec<u32>,
    /// Memory of each node for pages of the others; without it, as much as they have
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    window_memory: Option<u64>,
    /// Let a cell run other tasks while it waits for a page (KVM's asynchronous page faults); pages that are read are then taken
    /// for writing
    #[arg(long)]
    async_pf: bool,
    /// Give up if the cells are not up after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
}

/// Where the nodes of a cluster run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// On this machine's KVM if that runs kernels at speed, else in a lab
    Auto,
    /// On this machine's KVM
    Kvm,
    /// In an emulated host
    Lab,
}

#[derive(Debug, Args)]
struct PsArgs {
    #[command(flatten)]
    json: Json,
    /// Kernel threads and deputies too
    #[arg(long, short)]
    all: bool,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Give the program a terminal
    #[arg(long, short)]
    tty: bool,
    /// The cell to start it in
    #[arg(long, default_value_t = 0, value_name = "N")]
    cell: u32,
    /// User name or number
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// Set a variable of its environment; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

/// `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The process; it keeps its number
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    /// The cell that it goes to
    cell: u32,
    /// Send every page before the process runs there
    #[arg(long)]
    eager: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    what: bench::What,
    /// How often; each benchmark has its own default
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// With dsm: between the cells of a cluster that runs, by a program in them
    #[arg(long)]
    cells: bool,
    #[command(flatten)]
    json: Json,
}

/// The long-lived processes.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// The description of the cluster
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// End when standard input does
    #[arg(long)]
    leash: bool,
}

/// Bytes: a number with K, M or G.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a size is a number with K, M or G, for example 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "this is more than there can be".to_owned())
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a variable is NAME=VALUE".to_owned()),
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let long_lived = matches!(
        cli.command,
        Command::Io(_) | Command::Node { .. } | Command::LabInit | Command::LabRun | Command::DevRun(_)
    );
    let level = if long_lived { "info" } else { "error" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    let cluster =
        cli.cluster.or_else(|| std::env::var("SSIVMM_CLUSTER").ok().filter(|name| !name.is_empty()));
    let cluster = cluster.as_deref();
    let outcome = match cli.command {
        Command::Up(args) => up::run(&args, cluster),
        Command::Status(args) => show::status(cluster, args.json.json, args.dsm),
        Command::Ps(args) => show::ps(cluster, args.json.json, args.all),
        Command::Exec(args) => exec::run(args, cluster),
        Command::Migrate(args) => migrate::run(&args, cluster),
        Command::Console { cell } => console::run(cell, cluster),
        Command::Down => down::run(cluster),
        Command::List(json) => show::list(json.json),
        Command::Doctor(json) => doctor::run(json.json),
        Command::Bench(args) => bench::run(&args, cluster),
        Command::Io(args) => process::io(&args),
        Command::Node { process, node } => process::node(&process, node),
        Command::DevRun(args) => match devrun::run(&args) {
            Ok(true) => Ok(0),
            Ok(false) => Ok(exit::FAILED),
            Err(error) => Err(error.into()),
        },
        Command::LabInit => crate::lab::init::pid1(),
        Command::LabRun => crate::lab::init::run().map(|()| 0).map_err(Into::into),
        Command::Man { dir } => man::run(Cli::command(), &dir),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(fail) => {
            eprintln!("ssivmm: {fail}");
            ExitCode::from(fail.status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_suffix() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "M", "-1M", "1T", "99999999999G", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
