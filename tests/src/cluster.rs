//! A cluster under test, driven through the command line.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use ssi_proto::request::{Process, Status};
use tempfile::TempDir;

/// Seconds after which a command is ended and the scenario fails: a bound on a hang, not on speed.
const COMMAND_LIMIT_S: u32 = 300;
/// The same for a program at a terminal, which lives as long as its scenario.
const TERMINAL_LIMIT_S: u32 = 900;
/// The same for `up`, which may have to build.
const UP_LIMIT_S: u32 = 600;

/// Where the program under test is, and where its clusters keep their state.
#[derive(Debug)]
pub struct Bench {
    binary: PathBuf,
    state: TempDir,
    host: Option<String>,
}

impl Bench {
    /// Tests `binary`; `host` forces `kvm` or `lab`.
    ///
    /// # Errors
    /// If there is no such program, or no temporary folder can be had.
    pub fn new(binary: &Path, host: Option<String>) -> Result<Self> {
        ensure!(binary.is_file(), "{} is not there: build it first", binary.display());
        let state = tempfile::Builder::new().prefix("ssivmm-test").tempdir().context("making a folder")?;
        Ok(Self { binary: binary.to_owned(), state, host })
    }

    /// Copies what is left of the clusters of this bench to `to`: the logs that `down` keeps, or all of one that is up.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn keep_logs(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
        let mut copy = Command::new("cp");
        copy.arg("-r").arg("--").arg(self.state.path().join(".")).arg(to).stdin(Stdio::null());
        let copied = copy.output().context("starting cp")?;
        ensure!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
        Ok(())
    }

    /// The command `ssivmm ARGS`, bounded in time, with the state of this bench.
    pub fn command(&self, limit_s: u32, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after=10", &limit_s.to_string()]);
        command.arg(&self.binary).args(args).env("SSIVMM_STATE", self.state.path());
        command
    }

    /// Runs `ssivmm ARGS` to its end, with nothing on its standard input.
    ///
    /// # Errors
    /// If it does not end within the limit.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.run_within(COMMAND_LIMIT_S, args, &[])
    }

    fn run_within(&self, limit_s: u32, args: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
        let mut command = self.command(limit_s, args);
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        let output = command.output().context("starting ssivmm")?;
        ensure!(output.status.code() != Some(124), "ssivmm {} did not end in {limit_s} s", args.join(" "));
        Ok(output)
    }

    /// Boots a cluster with `--name NAME` and a published port of the guest's port 80.
    ///
    /// # Errors
    /// If `up` fails; what it said is in the error.
    pub fn up(&self, name: &str, extra: &[&str]) -> Result<Cluster<'_>> {
        self.up_with(name, extra, &[])
    }

    /// As [`Self::up`], with these environment variables.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_with(&self, name: &str, extra: &[&str], variables: &[(&str, &str)]) -> Result<Cluster<'_>> {
        let port = free_port()?;
        let publish = format!("{port}:80");
        let mut args = vec!["up", "--name", name, "--publish", &publish];
        if let Some(host) = &self.host {
            args.extend(["--host", host]);
        }
        args.extend(extra);
        let output = self.run_within(UP_LIMIT_S, &args, variables)?;
        let cluster = Cluster { bench: self, name: name.to_owned(), port };
        expect_success(&args, &output)?;
        Ok(cluster)
    }
}

/// A port of the loopback address that is free now.
///
/// # Errors
/// If none can be had.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?.local_addr()?.port())
}

fn expect_success(args: &[&str], output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("ssivmm {}: {}\nstdout: {out}\nstderr: {error}", args.join(" "), output.status);
    }
    Ok(out)
}

/// A cluster that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Cluster<'a> {
    bench: &'a Bench,
    name: String,
    /// The machine's port that leads to the guest's port 80.
    pub port: u16,
}

impl Cluster<'_> {
    /// The bench that it runs on.
    pub fn bench(&self) -> &Bench {
        self.bench
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ssivmm -C NAME VERB ARGS`, as a command to start.
    pub fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut all = vec!["-C", &self.name, verb];
        all.extend(args);
        self.bench.command(TERMINAL_LIMIT_S, &all)
    }

    /// `ssivmm -C NAME VERB ARGS`, run to its end, whatever its status.
    ///
    /// # Errors
    /// If it does not end within the limit.
    pub fn output(&self, verb: &str, args: &[&str]) -> Result<Output> {
        let mut all = vec!["-C", &self.name, verb];
        all.extend(args);
        self.bench.run(&all)
    }

    /// As [`Self::output`], of a command that has to succeed: its standard output.
    ///
    /// # Errors
    /// If it fails; what it said is in the error.
    pub fn run(&self, verb: &str, args: &[&str]) -> Result<String> {
        let mut all = vec![verb];
        all.extend(args);
        expect_success(&all, &self.output(verb, args)?)
    }

    /// Runs a program in cell `cell`; its standard output. It has to succeed.
    ///
    /// # Errors
    /// If it fails; what it said is in the error.
    pub fn exec(&self, cell: u32, argv: &[&str]) -> Result<String> {
        let cell = cell.to_string();
        let mut args = vec!["--cell", &cell, "--"];
        args.extend(argv);
        self.run("exec", &args)
    }

    /// Runs the guest test program `program` in cell `cell`; its standard output. It has to succeed, and to say PASS on a line.
    ///
    /// # Errors
    /// If it fails or does not say so; what it said is in the error.
    pub fn passes(&self, cell: u32, program: &str, arguments: &[&str]) -> Result<String> {
        let path = format!("/usr/lib/ssi/tests/{program}");
        let report = self.exec(cell, &[&[path.as_str()], arguments].concat())?;
        let passed = report.lines().any(|line| line == "PASS");
        ensure!(passed, "{program} {} in cell {cell}: {report}", arguments.join(" "));
        Ok(report)
    }

    /// Runs a program that may fail.
    ///
    /// # Errors
    /// If the command does not end within the limit.
    pub fn exec_output(&self, cell: u32, argv: &[&str]) -> Result<Output> {
        let cell = cell.to_string();
        let mut args = vec!["--cell", &cell, "--"];
        args.extend(argv);
        self.output("exec", &args)
    }

    /// What `ssivmm ps --json` says.
    ///
    /// # Errors
    /// If it fails, or says something else than promised.
    pub fn ps(&self) -> Result<Vec<Process>> {
        serde_json::from_str(&self.run("ps", &["--json"])?).context("ps --json")
    }

    /// The one process of the cluster with this command line.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find(&self, command: &str) -> Result<Process> {
        let all = self.ps()?;
        let mut found = all.iter().filter(|p| p.command == command && !p.deputy);
        match (found.next(), found.next()) {
            (Some(process), None) => Ok(process.clone()),
            (None, _) => bail!("no process runs {command:?}; there are: {all:#?}"),
            _ => bail!("several processes run {command:?}: {all:#?}"),
        }
    }

    /// What `ssivmm status --json` says.
    ///
    /// # Errors
    /// If it fails, or says something else than promised.
    pub fn status(&self) -> Result<Status> {
        serde_json::from_str(&self.run("status", &["--json"])?).context("status --json")
    }

    /// Moves a process from inside the guest: the program `migrate` in the cell where the process is.
    ///
    /// # Errors
    /// If the process is not there or the move fails.
    pub fn migrate_inside(&self, pid: u32, to: u32) -> Result<()> {
        let here = self.ps()?.iter().find(|p| p.pid == pid && !p.deputy).map(|p| p.cell);
        let here = here.with_context(|| format!("no process {pid}"))?;
        self.exec(here, &["migrate", &pid.to_string(), &to.to_string()]).map(drop)
    }

    /// Moves a process from outside: `ssivmm migrate`.
    ///
    /// # Errors
    /// If the move fails.
    pub fn migrate_outside(&self, pid: u32, to: u32, flags: &[&str]) -> Result<String> {
        let (pid, to) = (pid.to_string(), to.to_string());
        let mut args = flags.to_vec();
        args.extend([pid.as_str(), to.as_str()]);
        self.run("migrate", &args)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.output("down", &[]) {
            eprintln!("taking {} down: {error:#}", self.name);
        }
    }
}
