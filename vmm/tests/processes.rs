//! The processes of a cluster and the command line, with cells that are no machines: each node of these clusters is a real
//! process with a real fabric, whose cell is a fake agent. This program is its own `io` and `node`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssi_proto::frame::{Frame, Kind};
use ssi_proto::request::{DsmStatus, Exit as Ended, Pong, Process, Request, Response, Started, Status};
use ssivmm::cli::state::{Record, State};
use ssivmm::control::Client;
use ssivmm::control::migrate::Moved;
use ssivmm::fabric::stream::SharedStream;
use ssivmm::fabric::{Handler, Handlers, Header, Peer, Secret, StreamService, View, Violation};
use ssivmm::launch::{self, ClusterSpec, LaunchError, Options, Progress, Running};
use ssivmm::runtime::node::{Cell, Outcome, Parts};
use ssivmm::runtime::{io, leash, node};
use ssivmm::worker::{Exit, Stop};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// What the fake cells of a cluster do wrong, by file name in its state directory.
const FAILS: &str = "fails";
const MUTE: &str = "mute";

// ---- the fake cell ----------------------------------------------------------------------------------------------

struct FakeCell {
    node: u32,
    state: PathBuf,
    outcome: Outcome,
}

impl Handler for FakeCell {
    fn message(&self, _: Peer, _: ssivmm::fabric::Class, _: Header, _: &[u8]) -> Result<(), Violation> {
        Ok(())
    }
}

impl StreamService for FakeCell {
    fn open(&self, _: Peer, target: u64) -> Result<SharedStream, String> {
        if self.state.join(format!("{MUTE}-{}", self.node)).exists() {
            return Err("nobody listens yet".to_owned());
        }
        let (near, far) = UnixStream::pair().map_err(|e| e.to_string())?;
        let (node, outcome) = (self.node, self.outcome.clone());
        std::thread::spawn(move || match target {
            0 => console(far, node),
            _ => {
                let _ = agent(far, node, &outcome);
            }
        });
        Ok(Arc::new(near))
    }
}

struct Shell(Arc<FakeCell>);

impl Cell for Shell {
    fn handlers(&self, handlers: Handlers) -> Handlers {
        handlers.with_streams(self.0.clone())
    }
    fn messages(&self) -> Arc<dyn Handler> {
        self.0.clone()
    }
    fn run(&self) -> anyhow::Result<()> {
        let fails = self.0.state.join(format!("{FAILS}-{}", self.0.node)).exists();
        anyhow::ensure!(!fails, "as the test asks");
        Ok(())
    }
    fn changed(&self, _: u32, _: View) {}
    fn ram(&self) -> Vec<Range<u64>> {
        Vec::new()
    }
    fn dsm(&self) -> DsmStatus {
        DsmStatus { sent_count: 7, ..DsmStatus::default() }
    }
    fn stop(&self) {}
}

fn console(mut stream: UnixStream, node: u32) {
    use std::io::{Read, Write};
    let _ = writeln!(stream, "console of {node}");
    let mut typed = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut typed) {
        let _ = stream.write_all(&typed[..n].to_ascii_uppercase());
    }
}

fn process(pid: u32, cell: u32, deputy: bool) -> Process {
    Process {
        pid,
        ppid: 1,
        cell,
        home: 0,
        deputy,
        moves: u64::from(deputy),
        uid: 0,
        state: 'S',
        rss_kib: 4,
        comm: "x".into(),
        command: "x \u{1b}[2J".into(),
    }
}

/// As a cell's agent: `cat`, `exit N`, `kill N`, `both`, and migrate(1), which moves process 301 and refuses all others.
fn agent(mut stream: UnixStream, node: u32, outcome: &Outcome) -> anyhow::Result<()> {
    let Some(frame) = Frame::read_from(&mut stream)? else { return Ok(()) };
    let reply = |response: &Response| Frame::json(Kind::Response, response);
    let exec = match frame.record(Kind::Request)? {
        Request::Ping => return Ok(reply(&Response::done(&Pong { cell: node })?)?.write_to(&mut stream)?),
        Request::Ps => {
            let all = if node == 0 {
                vec![process(300, 0, false), process(301, 0, true)]
            } else {
                vec![process(301, 1, false)]
            };
            return Ok(reply(&Response::done(&all)?)?.write_to(&mut stream)?);
        }
        Request::Shutdown => {
            reply(&Response::done(&Pong { cell: node })?)?.write_to(&mut stream)?;
            outcome.end("shut down");
            return Ok(());
        }
        Request::Exec(exec) => exec,
        other => anyhow::bail!("{other:?}"),
    };
    let words: Vec<&str> = exec.argv.iter().map(String::as_str).collect();
    if words[0] == "nonsense" {
        let no = Response::failed("no such program", Some("ENOENT"));
        return Ok(reply(&no)?.write_to(&mut stream)?);
    }
    reply(&Response::done(&Started { pid: 400 })?)?.write_to(&mut stream)?;
    let mut end = Ended { code: Some(0), signal: None };
    match words[..] {
        ["cat"] => loop {
            match Frame::read_from(&mut stream)? {
                Some(Frame { kind: Kind::Stdin, payload }) if payload.is_empty() => break,
                Some(Frame { kind: Kind::Stdin, payload }) => {
                    Frame::bytes(Kind::Stdout, &payload).write_to(&mut stream)?;
                }
                Some(_) => {}
                None => return Ok(()),
            }
        },
        ["exit", code] => end.code = Some(code.parse()?),
        ["kill", signal] => end = Ended { code: None, signal: Some(signal.parse()?) },
        ["both"] => {
            let size = format!("{:?} {} {:?}", exec.tty, exec.cell, exec.user);
            Frame::bytes(Kind::Stdout, size.as_bytes()).write_to(&mut stream)?;
            Frame::bytes(Kind::Stderr, b"err").write_to(&mut stream)?;
        }
        ["die"] => {
            // By then the client has its answer.
            let _ = Frame::read_from(&mut stream)?;
            std::process::exit(9)
        }
        ["/usr/bin/migrate", "--json", "301", to] => {
            let facts = format!("{{\"moves\":2,\"to\":{to}}}");
            Frame::bytes(Kind::Stdout, facts.as_bytes()).write_to(&mut stream)?;
        }
        ["/usr/bin/migrate", "--json", pid, _] => {
            let why =
                format!("migrate: process {pid}: EPERM: it is the cell's own; it goes on where it was\n");
            Frame::bytes(Kind::Stderr, why.as_bytes()).write_to(&mut stream)?;
            end.code = Some(1);
        }
        _ => end.code = Some(99),
    }
    Ok(Frame::json(Kind::Exit, &end)?.write_to(&mut stream)?)
}

/// `io` and `node` of this program.
fn long_lived(arguments: &[String]) -> anyhow::Result<()> {
    let after = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|i| arguments.get(i + 1));
    let spec = ClusterSpec::load(Path::new(after("--config").expect("--config")))?;
    let exit = Exit::new()?;
    let _signals = leash::on_signals(&exit)?;
    let _leash = leash::leash(&exit)?;
    match arguments[0].as_str() {
        "io" => io::run(&spec, &exit, |_, _, _| Ok(Box::new(io::NoServices))),
        _ => {
            let number: u32 = after("--node").expect("--node").parse()?;
            node::run(&spec, number, &exit, |parts: Parts<'_>| {
                let (state, outcome) = (parts.spec.state.clone(), parts.outcome.clone());
                Ok(Arc::new(Shell(Arc::new(FakeCell { node: parts.node, state, outcome }))))
            })
        }
    }
}

// ---- clusters of them -------------------------------------------------------------------------------------------

struct Bench {
    dir: tempfile::TempDir,
    spec: ClusterSpec,
    secret: Secret,
}

fn bench(name: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    // The layout of the command line's state, so that it finds the cluster too.
    let home = dir.path().join("clusters").join(name);
    std::fs::create_dir_all(home.join("run")).unwrap();
    let secret = Secret::create(&home.join("secret")).unwrap();
    let spec = serde_json::from_value(serde_json::json!({
        "name": name, "host": "kvm", "nodes": 2, "vcpus": 1, "memory_bytes": 512 << 20, "publish": [],
        "kernel": "/nowhere", "root": {"lower": ["/"], "upper": null}, "secret": home.join("secret"), "epoch_ns": 0,
        "control": format!("unix:{}", home.join("run/control.sock").display()), "state": home.join("run"),
    }))
    .unwrap();
    Bench { dir, spec, secret }
}

impl Bench {
    fn flaw(&self, kind: &str, node: u32) {
        std::fs::write(self.spec.state.join(format!("{kind}-{node}")), "").unwrap();
    }

    fn options(within: Duration, cancel: &Stop) -> Options {
        Options {
            program: std::env::current_exe().unwrap(),
            ready_within: within,
            cancel: cancel.clone(),
            nodes_avoid_cpu: None,
        }
    }

    fn start(&self, within: Duration) -> (Result<Running, LaunchError>, Vec<Progress>) {
        let mut seen = Vec::new();
        let cancel = Stop::new().unwrap();
        let running =
            launch::start(&self.spec, &Self::options(within, &cancel), &mut |p| seen.push(p.clone()));
        (running, seen)
    }

    /// Starts it and lets it go, as `up` does.
    fn up(&self) -> Record {
        let control = self.spec.control.clone();
        let processes = self.start(LONG).0.unwrap().detach();
        let record = Record { version: 1, control, processes, spec: self.spec.clone(), since_unix_s: 0 };
        let state = State::at(self.dir.path());
        state.cluster(&self.spec.name).unwrap().commit(&record).unwrap();
        record
    }

    fn client(&self) -> Client {
        Client::connect(&self.spec.control, &self.spec.name, &self.secret).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssivmm"));
        command.args(arguments).env("SSIVMM_STATE", self.dir.path()).env_remove("SSIVMM_CLUSTER");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

fn gone(pids: &[i32]) -> bool {
    pids.iter()
        .all(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z ")))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn pids(seen: &[Progress]) -> Vec<i32> {
    seen.iter()
        .filter_map(|p| if let Progress::Started { pid, .. } = p { Some(*pid) } else { None })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// ---- launching --------------------------------------------------------------------------------------------------

fn a_cluster_starts_when_every_agent_answers_and_a_shutdown_leaves_nothing() {
    let bench = bench("whole");
    let (running, seen) = bench.start(LONG);
    let running = running.unwrap();
    assert_eq!(seen.iter().filter(|p| matches!(p, Progress::CellReady { of: 2, .. })).count(), 2, "{seen:?}");
    let status: Status = bench.client().ask(&Request::Status).unwrap();
    assert_eq!(status.nodes.iter().map(|n| n.state.as_str()).collect::<Vec<_>>(), ["up", "up"]);
    assert!(status.nodes.iter().all(|n| n.dsm.sent_count == 7), "{:?}", status.nodes);
    assert!(status.nodes.iter().all(|n| n.vmm_overhead_bytes > 0 && n.vmm_overhead_bytes < 50 << 20));
    let mut said = Vec::new();
    bench.client().ask_with(&Request::Shutdown, |line| said.push(line.to_owned())).unwrap();
    assert_eq!(said, ["cell 0: shutting down", "cell 1: shutting down"]);
    let ended = running.wait(&Stop::new().unwrap());
    assert!(ended.well, "{ended:?}");
    assert!(gone(&pids(&seen)));
    assert!(!bench.spec.state.join("control.sock").exists());
}

fn a_node_that_fails_at_the_start_is_named_with_its_log_and_nothing_is_left() {
    let bench = bench("failing");
    bench.flaw(FAILS, 1);
    let (running, seen) = bench.start(LONG);
    let error = running.unwrap_err().to_string();
    assert!(error.contains("node-1") || error.contains("node 1"), "{error}");
    assert!(error.contains("as the test asks"), "{error}");
    assert_eq!(seen.len().min(3), 3);
    assert!(gone(&pids(&seen)));
}

fn cells_that_do_not_answer_in_time_are_named_and_nothing_is_left() {
    let bench = bench("late");
    // Both, so that the outcome does not depend on how fast the machine is.
    bench.flaw(MUTE, 0);
    bench.flaw(MUTE, 1);
    std::fs::create_dir_all(bench.spec.state.join("logs")).unwrap();
    std::fs::write(bench.spec.console_path(1), "last words of the guest\n").unwrap();
    let (running, seen) = bench.start(Duration::from_millis(500));
    let error = running.unwrap_err().to_string();
    assert!(error.contains("no answer from the agent of cell 0, cell 1\n"), "{error}");
    assert!(error.contains("last words of the guest"), "{error}");
    assert!(gone(&pids(&seen)));
}

fn a_start_that_is_given_up_leaves_nothing() {
    let bench = bench("cancelled");
    bench.flaw(MUTE, 0);
    let cancel = Stop::new().unwrap();
    let mut pids = Vec::new();
    let result = launch::start(&bench.spec, &Bench::options(LONG, &cancel), &mut |p| {
        if let Progress::Started { pid, process } = p {
            pids.push(*pid);
            if process == "node-1" {
                cancel.trigger();
            }
        }
    });
    assert!(matches!(result, Err(LaunchError::Cancelled)));
    assert!(pids.len() == 3 && gone(&pids));
}

fn a_launcher_that_is_killed_takes_its_processes_with_it() {
    let bench = bench("leash");
    let config = bench.dir.path().join("spec.json");
    std::fs::write(&config, serde_json::to_vec(&bench.spec).unwrap()).unwrap();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .arg("launch")
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(launcher.stdout.take().unwrap()), &mut line)
        .unwrap();
    let pids: Vec<i32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() == 3 && !gone(&pids), "{line}");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the processes end", || gone(&pids));
}

/// `launch` of this program.
fn launch_and_wait(config: &str) {
    let spec = ClusterSpec::load(Path::new(config)).unwrap();
    let cancel = Stop::new().unwrap();
    let mut seen = Vec::new();
    let _running =
        launch::start(&spec, &Bench::options(LONG, &cancel), &mut |p| seen.push(p.clone())).unwrap();
    println!("{}", pids(&seen).iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    loop {
        std::thread::park();
    }
}

fn the_death_of_a_node_is_seen_by_the_controller_and_by_an_exec_in_it() {
    let bench = bench("death");
    let record = bench.up();
    let exec = bench.run(&["exec", "--cell", "1", "--", "die"]);
    assert_eq!(exec.status.code(), Some(125), "{}", text(&exec.stderr));
    assert!(text(&exec.stderr).contains("lost"), "{}", text(&exec.stderr));
    wait_until("cell 1 is dead", || {
        let status: Status = bench.client().ask(&Request::Status).unwrap();
        status.nodes[1].state == "dead" && status.nodes[0].state == "up"
    });
    let exec = bench.run(&["exec", "--cell", "1", "--", "cat"]);
    assert_eq!((exec.status.code(), text(&exec.stderr)), (Some(125), "ssivmm: cat: cell 1 is dead\n".into()));
    let migrate = bench.run(&["migrate", "300", "1"]);
    assert_eq!((migrate.status.code(), text(&migrate.stderr)), (Some(6), "ssivmm: cell 1 is dead\n".into()));
    assert_eq!(bench.run(&["down"]).status.code(), Some(0));
    let pids: Vec<i32> = record.processes.iter().map(|p| p.pid).collect();
    assert!(gone(&pids));
}

// ---- the command line -------------------------------------------------------------------------------------------

fn exec_carries_bytes_ends_and_exit_statuses() {
    let bench = bench("exec");
    bench.up();
    let mut child = bench.command(&["exec", "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let body: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let (mut stdin, copy) = (child.stdin.take().unwrap(), body.clone());
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &copy).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == body);
    assert_eq!(bench.run(&["exec", "--", "exit", "42"]).status.code(), Some(42));
    assert_eq!(bench.run(&["exec", "--", "kill", "9"]).status.code(), Some(137));
    let both = bench.run(&["exec", "--cell", "1", "--user", "www-data", "-t", "--", "both"]);
    assert_eq!(text(&both.stdout), "Some(WindowSize { rows: 24, cols: 80 }) 1 Some(\"www-data\")");
    assert_eq!(text(&both.stderr), "err");
    let missing = bench.run(&["exec", "--", "nonsense"]);
    assert_eq!(
        (missing.status.code(), text(&missing.stderr)),
        (Some(127), "ssivmm: nonsense: no such program\n".into())
    );
    assert_eq!(bench.run(&["down"]).status.code(), Some(0));
}

fn ps_status_migrate_and_console_say_what_the_cells_say() {
    let bench = bench("show");
    bench.up();
    let all: Vec<Process> = serde_json::from_slice(&bench.run(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(
        all.iter().map(|p| (p.pid, p.cell, p.deputy)).collect::<Vec<_>>(),
        [(300, 0, false), (301, 1, false), (301, 0, true)]
    );
    let shown = text(&bench.run(&["ps"]).stdout);
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let status: Status = serde_json::from_slice(&bench.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!((status.name.as_str(), status.nodes[1].guests), ("show", 1));
    assert!(text(&bench.run(&["status"]).stdout).contains("cluster show"));
    assert!(text(&bench.run(&["list"]).stdout).starts_with("show "));
    // Found in cell 1, where it runs, not in cell 0, which has its deputy.
    let moved: Moved = serde_json::from_slice(&bench.run(&["migrate", "301", "0", "--json"]).stdout).unwrap();
    assert_eq!((moved.from, moved.to, moved.facts.unwrap()["moves"].as_u64()), (1, 0, Some(2)));
    let refused = bench.run(&["migrate", "300", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("process 300: EPERM: it is the cell's own"),
        "{}",
        text(&refused.stderr)
    );
    let refused = bench.run(&["migrate", "300", "1", "--json"]);
    let record: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(
        (refused.status.code(), &record["ok"], &record["code"]),
        (Some(1), &false.into(), &"EPERM".into())
    );
    let mut console = bench.command(&["console", "1"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = console.stdout.take().unwrap();
    let mut read = |len| {
        let mut bytes = vec![0; len];
        std::io::Read::read_exact(&mut out, &mut bytes).unwrap();
        text(&bytes)
    };
    assert_eq!(read(13), "console of 1\n");
    let mut stdin = console.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"abc").unwrap();
    assert_eq!(read(3), "ABC");
    std::io::Write::write_all(&mut stdin, b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    assert_eq!(bench.run(&["down"]).status.code(), Some(0));
}

/// Arguments, exit status, and what standard error says.
type Case<'a> = (&'a [&'a str], i32, &'a str);

fn every_bad_input_has_a_message_and_an_exit_status() {
    let empty = bench("none");
    std::fs::remove_dir_all(empty.dir.path().join("clusters")).unwrap();
    let without: &[Case<'_>] = &[
        (&["status"], 3, "no cluster is up; `ssivmm up` starts one"),
        (&["ps", "--json"], 3, "no cluster is up"),
        (&["down"], 3, "no cluster is up"),
        (&["-C", "x", "status"], 3, "there is no cluster x; none is up"),
        (&["-C", "../x", "status"], 2, "is not a name for a cluster"),
        (&["exec", "--", "true"], 3, "no cluster is up"),
        (&["exec"], 2, "COMMAND"),
        (&["exec", "-e", "novalue", "--", "true"], 2, "a variable is NAME=VALUE"),
        (&["migrate", "0", "1"], 2, "0 is not in 1.."),
        (&["migrate", "abc", "1"], 2, "invalid digit"),
        (&["up", "--nodes", "0"], 2, "0 nodes: a cluster has 1 to 64"),
        (&["up", "--nodes", "65"], 2, "65 nodes"),
        (&["up", "--vcpus", "9"], 2, "a node has 1 to 8"),
        (&["up", "--memory", "100M"], 2, "multiple of 128 MiB"),
        (&["up", "--memory", "much"], 2, "a size is a number"),
        (&["up", "--publish", "80"], 2, "a published port is [ADDRESS:]HOST:GUEST"),
        (&["up", "--publish", "8080:80", "--publish", "8080:81"], 2, "published twice"),
        (&["up", "--name", "Bad Name"], 2, "is not a name for a cluster"),
        (&["fly"], 2, "unrecognized subcommand"),
        (&["io", "--config", "/nonexistent"], 1, "/nonexistent"),
    ];
    check(&empty, without);

    let bench = bench("busy");
    bench.up();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    let with: &[Case<'_>] = &[
        (&["up", "--name", "busy"], 4, "cluster busy is up"),
        (&["up", "--name", "other", "--publish", &port], 5, "publish another port"),
        (&["-C", "x", "status"], 3, "there is no cluster x; there is busy"),
        (&["exec", "--cell", "7", "--", "true"], 125, "there is no cell 7; the cells are 0 to 1"),
        (&["console", "7"], 6, "there is no cell 7"),
        (&["migrate", "301", "7"], 6, "there is no cell 7; the last one is 1"),
        (&["migrate", "4711", "1"], 6, "process 4711: there is no such process"),
    ];
    check(&bench, with);
    let lock = State::at(bench.dir.path()).cluster("busy").unwrap().lock().unwrap();
    check(&bench, &[(&["down"], 4, "another command is just starting or stopping cluster busy")]);
    drop(lock);
    check(&bench, &[(&["down"], 0, "shutting down"), (&["down"], 3, "no cluster is up")]);
}

fn check(bench: &Bench, cases: &[Case<'_>]) {
    for (arguments, status, message) in cases {
        let output = bench.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?} says {said:?}, not {message:?}");
    }
}

fn a_cluster_that_was_killed_is_said_to_have_ended_and_down_tidies_up() {
    let bench = bench("crash");
    let record = bench.up();
    launch::process::end_all(&record.processes, Duration::ZERO);
    let status = bench.run(&["status"]);
    assert_eq!(status.status.code(), Some(3));
    assert!(text(&status.stderr).contains("has ended by itself"), "{}", text(&status.stderr));
    let down = bench.run(&["down"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down.stderr));
    assert!(!bench.dir.path().join("clusters/crash").exists());
    assert!(bench.dir.path().join("last/crash/logs/io.log").exists());
}

// ---- running them -----------------------------------------------------------------------------------------------

type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

const TESTS: &[Test] = tests![
    a_cluster_starts_when_every_agent_answers_and_a_shutdown_leaves_nothing,
    a_node_that_fails_at_the_start_is_named_with_its_log_and_nothing_is_left,
    cells_that_do_not_answer_in_time_are_named_and_nothing_is_left,
    a_start_that_is_given_up_leaves_nothing,
    a_launcher_that_is_killed_takes_its_processes_with_it,
    the_death_of_a_node_is_seen_by_the_controller_and_by_an_exec_in_it,
    exec_carries_bytes_ends_and_exit_statuses,
    ps_status_migrate_and_console_say_what_the_cells_say,
    every_bad_input_has_a_message_and_an_exit_status,
    a_cluster_that_was_killed_is_said_to_have_ended_and_down_tidies_up,
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("io" | "node") => {
            env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
            if let Err(error) = long_lived(&arguments) {
                eprintln!("failed: {error:#}");
                std::process::exit(1);
            }
            return;
        }
        Some("launch") => return launch_and_wait(&arguments[1]),
        _ => {}
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = TESTS
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str())));
    let list = arguments.iter().any(|a| a == "--list");
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut failed = 0;
    for (name, test) in chosen {
        if list {
            println!("{name}: test");
            continue;
        }
        let result = std::panic::catch_unwind(test);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += i32::from(result.is_err());
    }
    if !list {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        println!("\ntest result: {failed} failed; finished in {:.2}s", (now - begun).as_secs_f64());
    }
    std::process::exit(failed);
}
