/// A cell under KVM.
pub mod cell;
/// Page fetches between nodes.
pub mod fetch;
/// Guest RAM.
pub mod memory;
/// Messages between kernels.
pub mod messages;
/// Card and file system.
pub mod services;
/// Streams into a cell.
pub mod streams;

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use ssi_proto::request::DsmStatus;

use crate::control::node::{ToIo, ToNode};
use crate::fabric::stream::wait_readable;
use crate::fabric::{Class, Fabric, Handler, Handlers, Header, Kind, Peer, View, Violation};
use crate::launch::ClusterSpec;
use crate::runtime::io::{JOIN_WITHIN, fabric_config};
use crate::runtime::stats::of_this_process;
use crate::worker::{Exit, Stop};

/// Why a node ends: set once.
#[derive(Debug, Clone)]
pub struct Outcome {
    stop: Stop,
    why: Arc<Mutex<Option<String>>>,
}

impl Outcome {
    /// Not ended.
    ///
    /// # Errors
    /// If no eventfd can be had.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { stop: Stop::new()?, why: Arc::default() })
    }

    /// The node ends because of `why`; later calls change nothing.
    pub fn end(&self, why: &str) {
        let mut set = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if set.is_none() {
            *set = Some(why.to_owned());
        }
        drop(set);
        self.stop.trigger();
    }

    /// The event.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Why, if it has ended.
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The cell of a node: a machine with its devices and its part of the DSM; or a test's fake.
pub trait Cell: Send + Sync {
    /// Adds what it handles: every class between nodes (Control messages never reach it), those of its devices, streams.
    fn handlers(&self, handlers: Handlers) -> Handlers;
    /// Handles Ssi messages, which share the class `ctl` with control.
    fn messages(&self) -> Arc<dyn Handler>;
    /// Everybody is connected: the machine runs from here.
    ///
    /// # Errors
    /// If it cannot.
    fn run(&self) -> anyhow::Result<()>;
    /// A node died.
    fn changed(&self, dead: u32, view: View);
    /// Host addresses of guest RAM.
    fn ram(&self) -> Vec<Range<u64>>;
    /// What its coherent memory has cost so far.
    fn dsm(&self) -> DsmStatus;
    /// The machine stops; the fabric still works. Idempotent.
    fn stop(&self);
}

/// Class `ctl` of a node.
struct Ctl {
    fabric: std::sync::Weak<Fabric>,
    cell: Arc<dyn Cell>,
    messages: Arc<dyn Handler>,
    outcome: Outcome,
}

impl Handler for Ctl {
    fn message(&self, from: Peer, class: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        match (header.kind, from) {
            (Kind::Ssi, Peer::Node(_)) => self.messages.message(from, class, header, payload),
            (Kind::Control, Peer::Io) => {
                let told: ToNode = serde_json::from_slice(payload)
                    .map_err(|error| Violation(format!("a control message that is none: {error}")))?;
                let Some(fabric) = self.fabric.upgrade() else { return Ok(()) };
                match told {
                    ToNode::Stats => {
                        let mut stats = of_this_process(&self.cell.ram());
                        stats.dsm = self.cell.dsm();
                        tell(&fabric, header.tag, &ToIo::Stats(Box::new(stats)));
                    }
                    ToNode::Dead { node, why } => fabric.declare_dead(Peer::Node(node), &why),
                    ToNode::Stop => self.outcome.end("told to stop"),
                }
                Ok(())
            }
            (kind, _) => Err(Violation(format!("{kind:?} message from {from}"))),
        }
    }
}

fn tell(fabric: &Fabric, tag: u64, message: &ToIo) {
    if let Ok(json) = serde_json::to_vec(message) {
        let _ = fabric.send(Peer::Io, Class::Ctl, Kind::Control, tag, &[&json]);
    }
}

/// What a cell is made with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The cluster.
    pub spec: &'a ClusterSpec,
    /// Number of node and cell.
    pub node: u32,
    /// The fabric, not yet listening.
    pub fabric: &'a Arc<Fabric>,
    /// To be told when the machine ends.
    pub outcome: &'a Outcome,
    /// Triggered when a thread fails.
    pub exit: &'a Exit,
}

/// Runs node `node` until its machine ends, it is told to, the I/O server is gone, or `exit` is triggered.
///
/// # Errors
/// If it cannot start, or lost the I/O server.
pub fn run(
    spec: &ClusterSpec,
    node: u32,
    exit: &Exit,
    make: impl FnOnce(Parts<'_>) -> anyhow::Result<Arc<dyn Cell>>,
) -> anyhow::Result<()> {
    anyhow::ensure!(node < spec.nodes, "there is no node {node}: the cluster has {}", spec.nodes);
    let fabric = Fabric::new(fabric_config(spec, Peer::Node(node))?, exit);
    let outcome = Outcome::new()?;
    let cell = make(Parts { spec, node, fabric: &fabric, outcome: &outcome, exit })?;
    let ctl = Ctl {
        fabric: Arc::downgrade(&fabric),
        cell: cell.clone(),
        messages: cell.messages(),
        outcome: outcome.clone(),
    };
    let handlers = cell.handlers(Handlers::default()).with(Class::Ctl, Arc::new(ctl));
    let (ends, watched, weak) = (outcome.clone(), cell.clone(), Arc::downgrade(&fabric));
    fabric.membership().on_death(move |death| match death.peer {
        Peer::Node(dead) => {
            watched.changed(dead, death.view);
            if let Some(fabric) = weak.upgrade() {
                tell(&fabric, 0, &ToIo::Lost { node: dead, why: death.why.clone() });
            }
        }
        _ => ends.end("lost the I/O server"),
    });
    fabric.listen(handlers)?;
    fabric.join(JOIN_WITHIN).context("the cluster did not come together")?;
    log::info!("node {node} is connected");
    cell.run().context("the machine does not start")?;
    wait_readable(outcome.stop().as_raw_fd(), exit)?;
    let why = outcome.why().unwrap_or_else(|| "told to end, or a thread failed".to_owned());
    log::info!("node {node} ends: {why}");
    tell(&fabric, 0, &ToIo::Ended { why });
    cell.stop();
    fabric.stop();
    Ok(())
}
