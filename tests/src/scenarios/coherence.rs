//! Memory that processes of several cells share, as a program sees it.

use anyhow::{Context, Result, ensure};

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

/// What faults between cells cost is measured, with a yardstick of the same run, and told as tables or JSON.
pub fn bench(cluster: &Cluster<'_>) -> Result<()> {
    let said = cluster.run("bench", &["dsm", "--cells", "--rounds", "1", "--json"])?;
    let report: serde_json::Value = serde_json::from_str(&said).context("bench dsm --cells --json")?;
    for (number, name) in ["read fault, page at home", "write upgrade, one sharer"].iter().enumerate() {
        let measure = &report["faults"][number];
        let count = |what: &str| measure[what]["count"].as_u64();
        ensure!(measure["measure"] == *name, "{said}");
        ensure!((count("fault"), count("raw")) == (Some(64), Some(64)), "a pair for each page: {measure}");
        ensure!(measure["ratio_p50"].as_f64() > Some(0.0), "{measure}");
    }
    let read = &report["throughput"][0];
    ensure!(read["measure"] == "sequential read" && read["ratio"].as_f64() > Some(0.0), "{read}");
    ensure!(report["sharing"].as_array().is_some_and(|patterns| patterns.len() == 3), "{said}");
    for wrong in [["dsm", "--cells", "--rounds", "101"], ["net", "--cells", "--rounds", "1"]] {
        let output = cluster.output("bench", &wrong)?;
        ensure!(output.status.code() == Some(2), "{wrong:?} ended with {}", output.status);
    }
    Ok(())
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
