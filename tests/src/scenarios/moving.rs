//! Processes that move while they run: clauses MIG-1 to MIG-7.

use anyhow::{Context, Result, bail, ensure};
use ssi_proto::request::Process;

use crate::cluster::Cluster;
use crate::terminal::Terminal;

/// Two seeds: each repeats the pauses and cells of its storm.
pub const SEEDS: [&str; 2] = ["20061", "987654321"];

/// Checks that a line holds the next number.
pub(super) fn next_number(terminal: &mut Terminal, expected: &mut u64) -> Result<()> {
    let Some(line) = terminal.line()? else { bail!("the counter ended before {expected}") };
    let number: u64 = line.trim().parse().with_context(|| format!("{line:?} is not a number"))?;
    ensure!(
        number == *expected,
        "the counter printed {number}, not {expected}: a number was lost or came twice"
    );
    *expected += 1;
    Ok(())
}

/// A counter at a terminal, and its process. `interval_ms` tells it from others.
pub(super) fn start_counter(cluster: &Cluster<'_>, interval_ms: &str) -> Result<(Terminal, Process, u64)> {
    let mut terminal = Terminal::start(cluster.command("exec", &["-t", "--", "counter", interval_ms]))?;
    let mut expected = 0;
    for _ in 0..3 {
        next_number(&mut terminal, &mut expected)?;
    }
    let process = cluster.find(&format!("counter {interval_ms}"))?;
    Ok((terminal, process, expected))
}

/// Where the process is now; it has to keep its PID.
pub(super) fn node_of(cluster: &Cluster<'_>, pid: u32) -> Result<u32> {
    let all = cluster.ps()?;
    let mut found = all.iter().filter(|p| p.pid == pid && !p.deputy);
    match (found.next(), found.next()) {
        (Some(process), None) => Ok(process.cell),
        (None, _) => bail!("no process {pid} any more: {all:#?}"),
        _ => bail!("process {pid} is in two cells: {all:#?}"),
    }
}

pub(super) fn end_counter(cluster: &Cluster<'_>, terminal: Terminal, pid: u32) -> Result<()> {
    cluster.exec(0, &["kill", &pid.to_string()])?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(128 + 15), "a counter that SIGTERM ended shows as {status:?}");
    Ok(())
}

/// MIG-1: `migrate(pid, addr)` moves process `pid` to the node named by `addr`.
pub fn counter(cluster: &Cluster<'_>) -> Result<()> {
    let (mut terminal, process, mut expected) = start_counter(cluster, "101")?;
    ensure!(process.cell == 0, "{process:?}");
    for to in [1, 0, 1] {
        cluster.migrate_inside(process.pid, to)?;
        ensure!(node_of(cluster, process.pid)? == to, "ps does not show it on node {to}");
        for _ in 0..5 {
            next_number(&mut terminal, &mut expected)?;
        }
    }
    end_counter(cluster, terminal, process.pid)
}

pub fn outside(cluster: &Cluster<'_>) -> Result<()> {
    let (mut terminal, process, mut expected) = start_counter(cluster, "102")?;
    for (to, flags) in [(1, &[][..]), (0, &["--eager"])] {
        cluster.migrate_outside(process.pid, to, flags)?;
        ensure!(node_of(cluster, process.pid)? == to, "ps does not show it on node {to}");
        next_number(&mut terminal, &mut expected)?;
    }
    end_counter(cluster, terminal, process.pid)
}

pub fn two_hundred(cluster: &Cluster<'_>) -> Result<()> {
    let (mut terminal, process, mut expected) = start_counter(cluster, "20")?;
    let pid = process.pid;
    let script = format!("for i in $(seq 10); do migrate {pid} 1 && migrate {pid} 0 || exit 1; done");
    for _ in 0..10 {
        cluster.exec(0, &["sh", "-c", &script])?;
        // What the counter printed meanwhile is whole too, and its terminal does not fill up.
        let next = expected + 20;
        while expected < next {
            next_number(&mut terminal, &mut expected)?;
        }
    }
    for _ in 0..5 {
        next_number(&mut terminal, &mut expected)?;
    }
    let process = cluster.find("counter 20")?;
    ensure!(process.pid == pid && process.cell == 0 && process.moves == 200, "{process:?}");
    end_counter(cluster, terminal, pid)
}

/// Runs `script` at a shell in cell 0, which prints the PID of the process to move first; moves it; the rest of the output.
fn shell_and_move(cluster: &Cluster<'_>, script: &str) -> Result<Vec<String>> {
    let mut terminal = Terminal::start(cluster.command("exec", &["-t", "--", "sh", "-c", script]))?;
    let line = terminal.line_where(|line| line.starts_with("pid "))?;
    let pid: u32 = line["pid ".len()..].trim().parse().with_context(|| line.clone())?;
    cluster.migrate_inside(pid, 1)?;
    let mut rest = Vec::new();
    while let Some(line) = terminal.line()? {
        rest.push(line);
    }
    terminal.wait()?;
    Ok(rest)
}

/// MIG-2: on success the calling process becomes the migrated one; its parent waits for it as before.
pub fn wait_status(cluster: &Cluster<'_>) -> Result<()> {
    let script = "/usr/lib/ssi/tests/exits 2000 42 & echo pid $!; wait $!; echo status $?";
    let rest = shell_and_move(cluster, script)?;
    ensure!(rest.iter().any(|line| line == "status 42"), "{rest:?}");
    Ok(())
}

/// MIG-4: migration can be asked at any time from outside; so can everything else that `kill` does.
pub fn kill(cluster: &Cluster<'_>) -> Result<()> {
    for (index, from) in [0, 1].into_iter().enumerate() {
        let interval = format!("11{index}");
        let (terminal, process, _) = start_counter(cluster, &interval)?;
        cluster.migrate_inside(process.pid, 1)?;
        cluster.exec(from, &["kill", &process.pid.to_string()])?;
        let status = terminal.wait()?;
        ensure!(status.code() == Some(128 + 15), "killed from cell {from}: {status:?}");
        ensure!(cluster.find(&format!("counter {interval}")).is_err(), "it is still there");
    }
    Ok(())
}

/// `pursuit`: signals from every cell to a process that never rests, one that is moved as soon as it was refused, and some that
/// are killed as they arrive. It says what it misses.
pub fn pursuit(cluster: &Cluster<'_>, cells: &str, moves: &str, seeds: &[&str]) -> Result<()> {
    for seed in seeds {
        let report = cluster.passes(0, "pursuit", &[cells, seed, moves])?;
        println!("  pursuit: {}", report.lines().next().unwrap_or_default());
    }
    Ok(())
}

pub fn ctrl_c(cluster: &Cluster<'_>) -> Result<()> {
    let (mut terminal, process, mut expected) = start_counter(cluster, "103")?;
    cluster.migrate_inside(process.pid, 1)?;
    next_number(&mut terminal, &mut expected)?;
    terminal.type_text("\x03")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(128 + 2), "{status:?}");
    Ok(())
}

/// MIG-5: system calls that restart automatically are restarted on the destination.
pub fn sleep_goes_on(cluster: &Cluster<'_>) -> Result<()> {
    let script = "/usr/lib/ssi/tests/naps 3 & echo pid $!; wait $!; echo status $?";
    let rest = shell_and_move(cluster, script)?;
    ensure!(rest.iter().any(|line| line == "status 0"), "{rest:?}");
    Ok(())
}

/// MIG-6: what moves: open files, descriptors. Input goes to the process on the terminal where it was started.
pub fn terminal_input(cluster: &Cluster<'_>) -> Result<()> {
    let mut terminal = Terminal::start(cluster.command("exec", &["-t", "--", "cat", "-"]))?;
    terminal.type_text("before\n")?;
    terminal.line_where(|line| line == "before")?;
    terminal.line_where(|line| line == "before")?;
    let process = cluster.find("cat -")?;
    cluster.migrate_inside(process.pid, 1)?;
    terminal.type_text("after\n")?;
    // Once the echo of the terminal, once from cat, which is on another node now.
    terminal.line_where(|line| line == "after")?;
    terminal.line_where(|line| line == "after")?;
    ensure!(node_of(cluster, process.pid)? == 1, "it is not on node 1");
    terminal.type_text("\x04")?;
    ensure!(terminal.wait()?.success(), "end of file at the terminal did not end cat");
    Ok(())
}

pub fn pipes(cluster: &Cluster<'_>) -> Result<()> {
    let script = "seq 200000 | (read a; echo pid $$; exec sha256sum) & wait";
    let expected = cluster.exec(0, &["sh", "-c", "seq 200000 | (read a; cat) | sha256sum"])?;
    // A reader in the middle of a pipeline: the writer blocks on the pipe until it is read.
    let script =
        script.replace("echo pid $$", "exec sh -c 'echo pid $$ >&2; read go </dev/tty; exec sha256sum'");
    let mut terminal = Terminal::start(cluster.command("exec", &["-t", "--", "sh", "-c", &script]))?;
    let line = terminal.line_where(|line| line.starts_with("pid "))?;
    let pid: u32 = line["pid ".len()..].trim().parse()?;
    cluster.migrate_inside(pid, 1)?;
    terminal.type_text("go\n")?;
    let sum = terminal.line_where(|line| line.ends_with('-'))?;
    ensure!(sum.trim() == expected.trim(), "{sum} is not {expected}");
    terminal.wait()?;
    Ok(())
}

/// MIG-6, one guest program per resource: it checks its own state all the time, and says PASS at its end. Unmoved first, then
/// moved at random points until it ends. A seed repeats the pauses between the moves; two are tried.
pub fn resource(cluster: &Cluster<'_>, program: &str, rounds: &str) -> Result<()> {
    let path = format!("/usr/lib/ssi/tests/{program}");
    cluster.passes(0, program, &["20"])?;
    for seed in SEEDS {
        let report = cluster.passes(0, "storm", &[seed, "2", &path, rounds])?;
        println!("  {program}: {}", report.lines().find(|line| line.contains(" moves")).unwrap_or_default());
        ensure!(!report.contains(" 0 moves"), "{program} was never moved: {report}");
        // A program that is about to end has removed its files, and cannot move any more; it ends all the same.
        let mut refusals = report.lines().filter(|line| line.starts_with("storm: refused"));
        ensure!(refusals.all(|line| line.contains("deleted")), "{program}: a move was refused: {report}");
    }
    Ok(())
}

fn heap(cluster: &Cluster<'_>, flags: &[&str], rounds: &str) -> Result<()> {
    let mut terminal = Terminal::start(cluster.command("exec", &["-t", "--", "heap100", rounds]))?;
    let first = terminal.line_where(|line| line.contains("round"))?;
    let process = cluster.find(&format!("heap100 {rounds}"))?;
    for to in [1, 0] {
        let report = cluster.migrate_outside(process.pid, to, flags)?;
        ensure!(node_of(cluster, process.pid)? == to, "it is not on node {to}: {report}");
        terminal.line_where(|line| line.contains("round") && *line != first)?;
    }
    let status = terminal.wait()?;
    ensure!(status.success(), "heap100 found its heap changed: {status:?}");
    Ok(())
}

/// MIG-7: pages that do not exist and pages that were never modified are not transferred; the others arrive whole.
pub fn heap_lazy(cluster: &Cluster<'_>) -> Result<()> {
    heap(cluster, &[], "12")
}

pub fn heap_eager(cluster: &Cluster<'_>) -> Result<()> {
    heap(cluster, &["--eager"], "13")
}
