//! Nodes that die: at every step of a move, and what is left of the cluster then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::moving::{end_counter, next_number, node_of, start_counter};
use crate::cluster::{Bench, Cluster};

/// A bound on how long a dead node may look alive: on a hang, not on speed.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);

/// Has cell `cell` die when it comes to `step` of a move (`/proc/ssi/fault`).
pub(super) fn arm(cluster: &Cluster<'_>, cell: u32, step: &str) -> Result<()> {
    cluster.exec(cell, &["sh", "-c", &format!("echo {step} > /proc/ssi/fault")]).map(drop)
}

/// Waits until the controller says that `node` is not up.
pub(super) fn wait_dead(cluster: &Cluster<'_>, node: u32) -> Result<()> {
    let since = Instant::now();
    loop {
        let status = cluster.status()?;
        let found = status.nodes.iter().find(|n| n.node == node);
        if found.with_context(|| format!("{status:?}"))?.state != "up" {
            return Ok(());
        }
        ensure!(since.elapsed() < NOTICED_WITHIN, "node {node} still counts as up: {status:?}");
    }
}

/// A destination that dies before the commit: the process goes on at the source, and nothing it printed is lost. One that
/// dies after it takes the process along, and the parent is told.
pub fn destination_dies(bench: &Bench) -> Result<()> {
    let cluster = bench.up("faults", &["--nodes", "8", "--memory", "256M"])?;
    let (mut terminal, process, mut expected) = start_counter(&cluster, "104")?;
    for (cell, step) in [(1, "offer"), (2, "image"), (3, "build"), (4, "ready")] {
        arm(&cluster, cell, step)?;
        let refused = cluster.output("migrate", &[&process.pid.to_string(), &cell.to_string()])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "a move to a cell that died at {step:?} succeeded");
        ensure!(!said.is_empty(), "a move to a cell that died at {step:?} says nothing");
        wait_dead(&cluster, cell)?;
        ensure!(node_of(&cluster, process.pid)? == 0, "it is not where it was after {step:?}");
        for _ in 0..5 {
            next_number(&mut terminal, &mut expected)?;
        }
    }
    // The others are there, and it can still move.
    cluster.migrate_inside(process.pid, 5)?;
    for _ in 0..5 {
        next_number(&mut terminal, &mut expected)?;
    }
    cluster.migrate_inside(process.pid, 0)?;
    end_counter(&cluster, terminal, process.pid)?;

    for (cell, step, interval) in [(5, "commit", "105"), (6, "run", "106")] {
        let (terminal, process, _) = start_counter(&cluster, interval)?;
        arm(&cluster, cell, step)?;
        cluster.output("migrate", &[&process.pid.to_string(), &cell.to_string()])?;
        let status = terminal.wait()?;
        ensure!(status.code() == Some(128 + 9), "lost with its cell at {step:?}, its parent sees {status:?}");
        wait_dead(&cluster, cell)?;
    }
    // So is one with threads, and their numbers can be given out again.
    arm(&cluster, 7, "run")?;
    cluster.passes(0, "threads", &["lost", "7"])?;
    ensure!(cluster.exec(0, &["echo", "here"])? == "here\n", "cell 0 does not work any more");
    Ok(())
}

/// A source that dies after its process has left, before its pages have: the process ends, the cell goes on.
pub fn source_dies(bench: &Bench) -> Result<()> {
    let cluster = bench.up("sources", &["--nodes", "3", "--memory", "512M"])?;
    // The process's home is cell 1, which stays; it is cell 0 that it has gone to, and which dies when it leaves.
    cluster.exec(1, &["sh", "-c", "heap100 1000 > /var/tmp/heap.out 2>&1 & echo $! > /var/tmp/heap.pid"])?;
    let pid: u32 = cluster.exec(1, &["cat", "/var/tmp/heap.pid"])?.trim().parse()?;
    cluster.exec(1, &["sh", "-c", "until grep -q round /var/tmp/heap.out; do :; done"])?;
    cluster.migrate_outside(pid, 0, &["--eager"])?;
    arm(&cluster, 0, "left")?;
    cluster.exec_output(1, &["migrate", &pid.to_string(), "2"])?;
    wait_dead(&cluster, 0)?;
    cluster.exec(1, &["sh", "-c", &format!("while kill -0 {pid} 2>/dev/null; do :; done")])?;
    for cell in [1, 2] {
        ensure!(cluster.exec(cell, &["echo", "here"])? == "here\n", "cell {cell} does not work any more");
    }
    let left = cluster.ps()?;
    ensure!(!left.iter().any(|p| p.pid == pid), "process {pid} is still there: {left:#?}");
    Ok(())
}
