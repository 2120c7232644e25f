//! Memory that processes of several cells share, as a program sees it.

use anyhow::{Result, ensure};

use crate::cluster::{Bench, Cluster};

/// Runs a program whose last word is PASS.
fn passes(cluster: &Cluster<'_>, program: &str, arguments: &[&str]) -> Result<()> {
    let said = cluster.passes(0, program, arguments)?;
    ensure!(said.lines().last() == Some("PASS"), "{program} {arguments:?}: {said}");
    Ok(())
}

/// The classic litmus programs, by processes in two cells.
pub fn litmus(cluster: &Cluster<'_>) -> Result<()> {
    passes(cluster, "litmus", &["2", "5"])
}

/// Four cells, each with little memory for the pages of the others: all is still there, and the bound holds.
pub fn small_windows(bench: &Bench) -> Result<()> {
    const WINDOW_MIB: u64 = 6;
    let cluster = bench
        .up("four", &["--nodes", "4", "--memory", "256M", "--window-memory", &format!("{WINDOW_MIB}M")])?;
    passes(&cluster, "litmus", &["4", "5"])?;
    passes(&cluster, "window", &["8", "2"])?;
    let status = cluster.status()?;
    for node in &status.nodes {
        ensure!(
            node.dsm.window_pages <= WINDOW_MIB << 8,
            "node {} keeps more than it may: {:?}",
            node.node,
            node.dsm
        );
        ensure!(node.dsm.lost_pages == 0, "node {} has lost pages: {:?}", node.node, node.dsm);
    }
    // Cell 2 has gone through four times what it may keep, four times.
    let there = &status.nodes[2].dsm;
    ensure!(there.discarded_pages > 4 << 8, "cell 2 gave nothing back: {there:?}");
    ensure!(there.read.count + there.write.count > 0 && there.read.max_us >= there.read.min_us, "{there:?}");
    Ok(())
}
