//! Stressors of stress-ng, moved while they run and verify what they do: DSM-5. `tests/guest/stress.c` moves their leaves.

use anyhow::{Result, ensure};

use super::moving::SEEDS;
use super::shared::await_nothing_held;
use crate::cluster::{Bench, Cluster};

/// A stressor, how small it is made, and the moves that it has to survive.
struct Stressor {
    name: &'static str,
    options: &'static [&'static str],
    moves: u32,
}

const MOVED: &[Stressor] = &[
    Stressor { name: "mmap", options: &["--mmap-bytes", "256k"], moves: 3 },
    // Its file is on the root, which all cells have.
    Stressor { name: "msync", options: &["--msync-bytes", "1m", "--temp-path", "/var/tmp"], moves: 3 },
    Stressor { name: "futex", options: &[], moves: 3 },
    Stressor { name: "memfd", options: &["--memfd-fds", "8", "--memfd-bytes", "2m"], moves: 3 },
    Stressor { name: "shm", options: &["--shm-bytes", "1m", "--shm-objs", "4"], moves: 3 },
    Stressor { name: "shm-sysv", options: &["--shm-sysv-segs", "2", "--shm-sysv-bytes", "1m"], moves: 3 },
    // Its semaphores are shared by the threads of one process.
    Stressor { name: "sem", options: &[], moves: 3 },
];
/// Names of POSIX shared memory are each cell's own (`/dev/shm`), and `shm` opens and removes them wherever it is: here they are in
/// a folder of the root, which all cells have.
const NAMES: &str = "mkdir -p /var/tmp/shm && chmod 1777 /var/tmp/shm && mount --bind /var/tmp/shm /dev/shm";

fn run(cluster: &Cluster<'_>, stressor: &Stressor) -> Result<()> {
    let (program, moves) = ("/usr/lib/ssi/tests/stress", stressor.moves.to_string());
    let argv = [&[program, SEEDS[0], "2", &moves, stressor.name], stressor.options].concat();
    let output = cluster.exec_output(0, &argv)?;
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.starts_with("stress: ")) {
        println!("  seed {}, {line}", SEEDS[0]);
    }
    let whole = output.status.success() && said.lines().any(|line| line == "PASS");
    ensure!(whole && !said.contains("fail:"), "{}: {}: {said}", stressor.name, output.status);
    Ok(())
}

/// Each one has to end well, after it was moved; nothing of what it shared is left.
pub fn moved(bench: &Bench) -> Result<()> {
    let cluster = bench.up_with("stress", &["--nodes", "2"], &[("SSIVMM_EXTRA", "stress-ng")])?;
    for cell in [0, 1] {
        cluster.exec(cell, &["sh", "-c", NAMES])?;
    }
    for stressor in MOVED {
        run(&cluster, stressor)?;
        for cell in [0, 1] {
            await_nothing_held(&cluster, cell)?;
        }
    }
    Ok(())
}
