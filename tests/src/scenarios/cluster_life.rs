//! Boot, status, exec, clocks, the DSM self-test, and the end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Bench, Cluster, free_port};

pub fn status(cluster: &Cluster<'_>) -> Result<()> {
    let status = cluster.status()?;
    ensure!(status.name == cluster.name(), "{status:?}");
    ensure!(status.nodes.len() == 2, "{status:?}");
    for (index, node) in status.nodes.iter().enumerate() {
        ensure!(node.node as usize == index && node.state == "up", "{node:?}");
        ensure!(node.vcpus >= 1 && node.memory_bytes >= 128 << 20, "{node:?}");
        ensure!(node.vmm_overhead_bytes > 0 && node.vmm_overhead_bytes < 50 << 20, "overhead: {node:?}");
    }
    let all = cluster.ps()?;
    for cell in 0..2 {
        ensure!(
            all.iter().any(|p| p.cell == cell && p.comm == "migrationd"),
            "no migrationd in cell {cell}: {all:#?}"
        );
    }
    Ok(())
}

pub fn exec(cluster: &Cluster<'_>) -> Result<()> {
    ensure!(cluster.exec(1, &["cat", "/proc/cmdline"])?.contains("ssi.cell=1"), "--cell 1 is not cell 1");
    let output = cluster.exec_output(0, &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(output.status.code() == Some(7), "status {:?}", output.status);
    ensure!(output.stdout == b"out\n" && output.stderr == b"err\n", "{output:?}");
    let mut child = cluster
        .command("exec", &["--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting exec")?;
    let data: Vec<u8> = (0u32..300_000).flat_map(u32::to_le_bytes).collect();
    child.stdin.take().context("stdin")?.write_all(&data)?;
    let output = child.wait_with_output()?;
    let mut here =
        std::process::Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    here.stdin.take().context("stdin")?.write_all(&data)?;
    ensure!(output.stdout == here.wait_with_output()?.stdout, "1.2 MB through exec came out changed");
    Ok(())
}

/// DSM-1: at most one node may write a page, and while it may, no other may read it.
pub fn selftest(cluster: &Cluster<'_>) -> Result<()> {
    cluster.exec(0, &["sh", "-c", "echo run 2000 > /proc/ssi/selftest"])?;
    let report = cluster.exec(0, &["cat", "/proc/ssi/selftest"])?;
    ensure!(report.contains("PASS") && !report.contains("FAIL"), "{report}");
    Ok(())
}

/// Cells with more than one vCPU: coherence, calls between cells, and moves.
pub fn two_vcpus(bench: &Bench) -> Result<()> {
    let cluster = bench.up("smp", &["--nodes", "2", "--vcpus", "2"])?;
    ensure!(cluster.exec(1, &["nproc"])?.trim() == "2", "a cell does not have two processors");
    selftest(&cluster)?;
    cluster.exec(1, &["sh", "-c", "echo rpc > /proc/ssi/selftest"])?;
    let report = cluster.exec(1, &["cat", "/proc/ssi/selftest"])?;
    ensure!(report.contains("PASS") && !report.contains("FAIL"), "{report}");
    super::moving::resource(&cluster, "res-regs", "100")?;
    super::moving::resource(&cluster, "res-threads", "200")
}

pub fn clock(cluster: &Cluster<'_>) -> Result<()> {
    let uptime = |cell| -> Result<f64> {
        let text = cluster.exec(cell, &["cat", "/proc/uptime"])?;
        Ok(text.split_ascii_whitespace().next().context("empty /proc/uptime")?.parse()?)
    };
    // Whatever is asked later has the later time, in whichever cell it is asked.
    let times = [uptime(0)?, uptime(1)?, uptime(0)?, uptime(1)?];
    ensure!(times.windows(2).all(|pair| pair[0] <= pair[1]), "time goes backwards between cells: {times:?}");
    Ok(())
}

pub fn down_twice(bench: &Bench) -> Result<()> {
    let cluster = bench.up("once", &["--nodes", "1"])?;
    let first = cluster.output("down", &[])?;
    ensure!(first.status.success(), "down: {first:?}");
    ensure!(
        TcpListener::bind((Ipv4Addr::LOCALHOST, cluster.port)).is_ok(),
        "the published port is still taken"
    );
    let second = cluster.output("down", &[])?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(3) && said.contains("once"), "second down: {second:?}");
    Ok(())
}

pub fn in_use(bench: &Bench) -> Result<()> {
    let cluster = bench.up("taken", &["--nodes", "1"])?;
    let again = bench.run(&["up", "--name", "taken", "--nodes", "1"])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && said.contains("taken"), "same name: {again:?}");
    let publish = format!("{}:80", cluster.port);
    let port = bench.run(&["up", "--name", "other", "--nodes", "1", "--publish", &publish])?;
    let said = String::from_utf8_lossy(&port.stderr).into_owned();
    ensure!(!port.status.success() && said.contains(&cluster.port.to_string()), "same port: {port:?}");
    ensure!(bench.run(&["-C", "other", "status"])?.status.code() == Some(3), "a failed up left a cluster");
    Ok(())
}

/// Ctrl-C at the first sign of life, and when the nodes run.
pub fn interrupted(bench: &Bench) -> Result<()> {
    for sign in ["", "node-1 started"] {
        let port = free_port()?;
        let publish = format!("{port}:80");
        let mut up = bench
            .command(120, &["up", "--name", "cut", "--nodes", "2", "--publish", &publish])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(up.stderr.take().context("stderr")?);
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "up ended before it said {sign:?}");
            if line.contains(sign) {
                break;
            }
        }
        // `timeout` passes SIGINT on to the command.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(up.id())?),
            nix::sys::signal::Signal::SIGINT,
        )?;
        let mut rest = String::new();
        said.read_to_string(&mut rest)?;
        ensure!(!up.wait()?.success(), "up went on after Ctrl-C at {sign:?}: {rest}");
        // What builds is ended by the signal itself; what runs is taken down, and said so.
        ensure!(
            sign.is_empty() || rest.contains("interrupted"),
            "up does not say that it was interrupted: {rest}"
        );
        ensure!(bench.run(&["-C", "cut", "status"])?.status.code() == Some(3), "Ctrl-C left a cluster");
        ensure!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "Ctrl-C left the port taken");
    }
    Ok(())
}
