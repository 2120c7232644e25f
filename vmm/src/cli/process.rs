use std::path::Path;

use super::{Outcome, ProcessArgs};
use crate::launch::ClusterSpec;
use crate::runtime::{self, leash};
use crate::worker::{Exit, Worker};

/// What every long-lived process begins with.
fn begin(args: &ProcessArgs) -> anyhow::Result<(ClusterSpec, Exit, Vec<Worker>)> {
    let exit = Exit::new()?;
    let mut workers = vec![leash::on_signals(&exit)?];
    if args.leash {
        workers.push(leash::leash(&exit)?);
    }
    Ok((load(&args.config)?, exit, workers))
}

fn load(config: &Path) -> anyhow::Result<ClusterSpec> {
    Ok(ClusterSpec::load(config)?)
}

/// `io`.
pub fn io(args: &ProcessArgs) -> Outcome {
    let (spec, exit, _workers) = begin(args)?;
    runtime::io::run(&spec, &exit, runtime::io::services::IoServices::start)?;
    Ok(0)
}

/// `node`.
pub fn node(args: &ProcessArgs, node: u32) -> Outcome {
    let (spec, exit, _workers) = begin(args)?;
    runtime::node::run(&spec, node, &exit, runtime::node::cell::MachineCell::build)?;
    Ok(0)
}
