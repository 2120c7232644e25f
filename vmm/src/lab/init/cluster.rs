//! The launcher, in an emulated host.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::cluster::READY;
use super::{NO_CELL_ON, say};
use crate::launch::{self, ClusterSpec, Options};
use crate::worker::Stop;

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
