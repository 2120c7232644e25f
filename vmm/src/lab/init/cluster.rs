//! The launcher, in an emulated host.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::cluster::READY;
use super::say;
use crate::launch::{self, ClusterSpec, Options};
use crate::worker::Stop;

/// QEMU changes a flag word of its first processor from any other one, whenever that restores its FPU registers, with a plain
/// read and write (`cpu_clear_ignne`, up to QEMU 10 at least). The same word says whether a guest runs there and whether
/// its memory is translated: a cell on that processor is lost now and then (`docs/lab.md`). Without one the word does not
/// change, and the race has no effect.
const NO_CELL_ON: usize = 0;

/// Starts the cluster, says when it is up, and returns when it has ended well.
pub(super) fn run(spec: &ClusterSpec, ready_within: Duration) -> Result<()> {
    // `/proc/self/exe` would be another program in a process that has changed.
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/init"));
    let cancel = Stop::new().context("no event")?;
    let options =
        Options { program, ready_within, cancel: cancel.clone(), nodes_avoid_cpu: Some(NO_CELL_ON) };
    let running = launch::start(spec, &options, &mut |progress| say(&progress.to_string()))?;
    say(READY);
    let ended = running.wait(&cancel);
    if !ended.well {
        bail!("{}\n{}", ended.how, launch::tail(&spec.log_path("io")));
    }
    Ok(())
}
