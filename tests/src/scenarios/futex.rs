//! Futexes in memory that processes of several cells share: DSM-5. The programs check themselves; see `tests/guest/crowd.h` for
//! their modes.

use anyhow::{Result, ensure};

use super::faults::{arm, wait_dead};
use super::moving::{SEEDS, end_counter, pursuit, start_counter};
use super::shared::figure;
use crate::cluster::{Bench, Cluster};
use crate::terminal::Terminal;

/// A number of `/proc/ssi/futex` in `cell`.
fn counter(cluster: &Cluster<'_>, cell: u32, name: &str) -> Result<u64> {
    let all = cluster.exec(cell, &["cat", "/proc/ssi/futex"])?;
    figure(&all, name)
}

fn run(cluster: &Cluster<'_>, program: &str, arguments: &[&str]) -> Result<String> {
    let report = cluster.passes(0, program, arguments)?;
    println!("  {program} {}: {}", arguments.join(" "), report.lines().next().unwrap_or_default());
    Ok(report)
}

/// What the memory is: `KIND` of `tests/guest/crowd.h`.
const ANONYMOUS: &str = "anonymous";
const FILE: &str = "file";

/// `program` in one cell, spread over `cells`, and, for each of `seeds`, moved about among them all the time, on memory of `kind`.
/// Nobody waits at the home in the end.
fn everywhere(
    cluster: &Cluster<'_>,
    program: &str,
    kind: &str,
    cells: &str,
    rounds: &str,
    seeds: &[&str],
) -> Result<()> {
    run(cluster, program, &["stay", "2", "1", rounds, kind])?;
    let before = counter(cluster, 0, "proxies_count")?;
    run(cluster, program, &["once", cells, "1", rounds, kind])?;
    ensure!(counter(cluster, 0, "proxies_count")? > before, "nobody waited from another cell");
    let before = counter(cluster, 0, "wakes_for_others_count")?;
    run(cluster, program, &["away", cells, "1", rounds, kind])?;
    ensure!(counter(cluster, 0, "wakes_for_others_count")? > before, "nobody woke from another cell");
    for seed in seeds {
        let report = run(cluster, program, &["storm", cells, seed, rounds, kind])?;
        ensure!(!report.contains(" 0 moves"), "{program} was never moved: {report}");
    }
    ensure!(counter(cluster, 0, "proxies_now")? == 0, "{program} has ended, and somebody waits for it");
    Ok(())
}

/// DSM-5: each operation of futex(2), with exact counts.
pub fn operations(cluster: &Cluster<'_>) -> Result<()> {
    everywhere(cluster, "futex", ANONYMOUS, "2", "2", &SEEDS)
}

/// DSM-5: what POSIX shares between processes, with owners that die.
pub fn posix(cluster: &Cluster<'_>) -> Result<()> {
    everywhere(cluster, "pshared", ANONYMOUS, "2", "4", &SEEDS)
}

/// DSM-5: both in a file of the root that is mapped shared, by some before they moved, by others where they are.
pub fn in_files(cluster: &Cluster<'_>) -> Result<()> {
    everywhere(cluster, "futex", FILE, "2", "2", &SEEDS)?;
    everywhere(cluster, "pshared", FILE, "2", "3", &SEEDS[..1])
}

/// The same, and the locks of a database server, on four cells; and signals, where a process may be in neither of two cells.
pub fn four_cells(bench: &Bench) -> Result<()> {
    let cluster = bench.up("futex4", &["--nodes", "4", "--memory", "256M"])?;
    everywhere(&cluster, "futex", ANONYMOUS, "4", "1", &SEEDS)?;
    everywhere(&cluster, "pshared", ANONYMOUS, "4", "3", &[])?;
    everywhere(&cluster, "futex", FILE, "4", "1", &SEEDS[..1])?;
    everywhere(&cluster, "pg", ANONYMOUS, "4", "6", &SEEDS[..1])?;
    for mode in ["once", "storm"] {
        cluster.passes(0, "shm-race", &[mode, "4", "20061", "3"])?;
    }
    pursuit(&cluster, "4", "15", &SEEDS[..1])
}

/// Has `cell` die, in the middle of a move to it.
fn kill_cell(cluster: &Cluster<'_>, cell: u32, interval: &str) -> Result<()> {
    let (terminal, process, _) = start_counter(cluster, interval)?;
    arm(cluster, cell, "offer")?;
    cluster.output("migrate", &[&process.pid.to_string(), &cell.to_string()])?;
    wait_dead(cluster, cell)?;
    end_counter(cluster, terminal, process.pid)
}

/// A waiter whose cell dies is in no queue any more; one that waits in memory of a cell that dies is told.
pub fn deaths(bench: &Bench) -> Result<()> {
    let cluster = bench.up("futexdead", &["--nodes", "4", "--memory", "256M"])?;
    let program = "/usr/lib/ssi/tests/futex-lost";
    let mut terminal =
        Terminal::start(cluster.command("exec", &["-t", "--", program, "1", "/var/tmp/unused"]))?;
    terminal.line_where(|line| line.starts_with("waits "))?;
    ensure!(counter(&cluster, 0, "proxies_now")? == 1, "it does not wait at its home");
    kill_cell(&cluster, 1, "107")?;
    let end = terminal.line_where(|line| line.starts_with("ended "))?;
    ensure!(end == "ended 0x9, 0 wait", "a waiter that died with its cell: {end}");
    terminal.wait()?;
    ensure!(counter(&cluster, 0, "proxies_now")? == 0, "the dead one is still queued");
    ensure!(counter(&cluster, 0, "proxies_dropped_count")? == 1, "it was not dropped");

    let script = format!("{program} 3 /var/tmp/lost > /var/tmp/lost.log 2>&1 &");
    cluster.exec(2, &["sh", "-c", &script])?;
    cluster.exec(2, &["sh", "-c", "until grep -q waits /var/tmp/lost.log; do :; done"])?;
    kill_cell(&cluster, 2, "108")?;
    cluster.exec(3, &["sh", "-c", "until grep -q wake /var/tmp/lost; do :; done"])?;
    let told = cluster.exec(3, &["cat", "/var/tmp/lost"])?;
    ensure!(told == "wait EFAULT, wake EFAULT\n", "a waiter whose memory was lost: {told}");
    Ok(())
}
