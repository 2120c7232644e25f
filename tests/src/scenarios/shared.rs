//! Shared memory whose processes move: clauses DSM-5 and DSM-6. The programs are `tests/guest/shm-*.c`.

use anyhow::{Context, Result, bail, ensure};

use super::faults::{arm, wait_dead};
use super::moving::{end_counter, start_counter};
use crate::cluster::{Bench, Cluster};
use crate::terminal::Terminal;

/// Lines of `/proc/ssi/shared` that count what is lent and held now.
const NOW: &[&str] =
    &["regions_now", "lent_now_pages", "pinned_now_pages", "objects_now", "borrowed_now_pages"];

/// A number of a file in `/proc/ssi` that has a key and a value per line.
pub fn figure(told: &str, key: &str) -> Result<u64> {
    let value = told.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {key} in {told}"))
}

/// The shell's condition that nothing is lent or held in a cell.
fn nothing_held() -> String {
    let lines = NOW.join("|");
    format!("awk '/^({lines})/ {{ held += $2 }} END {{ exit held != 0 }}' /proc/ssi/shared")
}

/// Waits until nothing of any region is left in cell `cell`: what processes release, their cells tell each other late.
pub(super) fn await_nothing_held(cluster: &Cluster<'_>, cell: u32) -> Result<()> {
    let held = nothing_held();
    let script = format!(
        "i=0; until {held}; do i=$((i+1)); [ $i -lt 600 ] || {{ cat /proc/ssi/shared; exit 1; }}; sleep 0.1; done"
    );
    let output = cluster.exec_output(cell, &["sh", "-c", &script])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "cell {cell} holds on to shared memory that nobody uses: {said}");
    Ok(())
}

/// Moves that the processes of a run made, by what they print at their ends.
fn moves_in(report: &str) -> u32 {
    report
        .lines()
        .filter_map(|line| {
            line.strip_prefix("process ")?.split_once(": ")?.1.strip_suffix(" moves")?.parse::<u32>().ok()
        })
        .sum()
}

/// Runs one program unmoved, with one process moved, and in a storm of moves, the latter from either cell; afterwards nothing is
/// left of its regions.
pub fn program(cluster: &Cluster<'_>, name: &str) -> Result<()> {
    for (cell, mode) in [(0, &["stay"][..]), (0, &["once", "2", "3"]), (1, &["storm", "2", "20061"])] {
        let report = cluster.passes(cell, name, mode)?;
        let moves = moves_in(&report);
        println!("  {name} {}: {moves} moves", mode[0]);
        ensure!(
            (moves == 0) == (mode[0] == "stay"),
            "{name} {mode:?} in cell {cell}: {moves} moves: {report}"
        );
    }
    for cell in [0, 1] {
        await_nothing_held(cluster, cell)?;
    }
    Ok(())
}

/// DSM-6: a region is made by the first move that needs it and given back after the last use; pages come when they are touched.
pub fn life(cluster: &Cluster<'_>) -> Result<()> {
    for cell in [0, 1] {
        await_nothing_held(cluster, cell)?;
        for mode in ["stay", "once"] {
            cluster.passes(cell, "shm-life", &[mode, "2"])?;
        }
        await_nothing_held(cluster, 1 - cell)?;
    }
    Ok(())
}

/// DSM-5: pages in low RAM, which no other cell can reach, move into the slice when they are lent.
pub fn low_memory(cluster: &Cluster<'_>) -> Result<()> {
    let report = cluster.passes(0, "shm-low", &["once", "2"])?;
    ensure!(!report.lines().any(|line| line == "0 frames moved"), "no page was in low RAM: {report}");
    await_nothing_held(cluster, 0)
}

/// Has cell `cell` die, by offering it a process.
fn kill_cell(cluster: &Cluster<'_>, cell: u32, interval_ms: &str) -> Result<(Terminal, u32)> {
    let (terminal, process, _) = start_counter(cluster, interval_ms)?;
    arm(cluster, cell, "offer")?;
    cluster.output("migrate", &[&process.pid.to_string(), &cell.to_string()])?;
    wait_dead(cluster, cell)?;
    Ok((terminal, process.pid))
}

fn start_death(cluster: &Cluster<'_>, what: &str) -> Result<Terminal> {
    let mut terminal =
        Terminal::start(cluster.command("exec", &["-t", "--", "/usr/lib/ssi/tests/shm-death", what]))?;
    terminal.line_where(|line| line.trim() == "ready").with_context(|| format!("shm-death {what}"))?;
    Ok(terminal)
}

fn await_pass(terminal: &mut Terminal) -> Result<()> {
    while let Some(line) = terminal.line()? {
        match line.trim() {
            "PASS" => return Ok(()),
            text if text.starts_with("FAIL") => bail!("{text}"),
            _ => {}
        }
    }
    bail!("it ended without a word")
}

/// A borrower dies: what it alone had is lost, with SIGBUS for who touches it at home or in a third cell, and nothing else is.
/// Then the home of other shared memory dies: SIGBUS for who touches that elsewhere.
pub fn deaths(bench: &Bench) -> Result<()> {
    let cluster = bench.up("shmdeath", &["--nodes", "3", "--memory", "256M"])?;
    let mut losing = start_death(&cluster, "lost")?;
    let (terminal, pid) = kill_cell(&cluster, 2, "107")?;
    await_pass(&mut losing)?;
    losing.wait()?;
    end_counter(&cluster, terminal, pid)?;
    let told = cluster.exec(0, &["cat", "/proc/ssi/shared"])?;
    let lost = figure(&told, "lost_pages")?;
    let settled = figure(&told, "lost_settled_pages")? + figure(&told, "lost_renewed_pages")?;
    ensure!(lost > 0 && settled == lost, "lost pages are in use yet: {told}");
    let status = cluster.status()?;
    let of_home = status.nodes.iter().find(|node| node.node == 0).context("node 0")?;
    ensure!(of_home.dsm.lost_pages == lost, "the VMM says {:?}, its cell {told}", of_home.dsm);
    let mut touching = start_death(&cluster, "home")?;
    kill_cell(&cluster, 1, "108")?;
    await_pass(&mut touching)?;
    touching.wait()?;
    ensure!(cluster.exec(0, &["echo", "alive"])? == "alive\n", "cell 0 has outlived the others");
    Ok(())
}
