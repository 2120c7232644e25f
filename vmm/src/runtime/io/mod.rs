/// The root file system.
pub mod root;
/// Files and network.
pub mod services;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::control::Controller;
use crate::control::node::ToNode;
use crate::fabric::stream::wait_readable;
use crate::fabric::{Class, Config, Fabric, Handlers, Identity, Peer, Secret};
use crate::launch::ClusterSpec;
use crate::runtime::cells::FabricCells;
use crate::worker::{Exit, Stop};
use std::os::fd::AsRawFd;

/// Nodes connect within this, or the cluster does not start. The launcher has the user's time limit, which is shorter.
pub const JOIN_WITHIN: Duration = Duration::from_secs(600);

/// What a process of `spec` tells its fabric: it is `me`.
///
/// # Errors
/// If the secret cannot be read.
pub fn fabric_config(spec: &ClusterSpec, me: Peer) -> anyhow::Result<Config> {
    let secret = Secret::load(&spec.secret).context("the cluster's secret")?;
    Ok(Config {
        identity: Identity { cluster: spec.name.clone(), me, secret },
        nodes: spec.nodes,
        listen: match me {
            Peer::Node(n) => spec.node_address(n),
            _ => spec.io_address(),
        },
        io: spec.io_address(),
        node: (0..spec.nodes).map(|n| spec.node_address(n)).collect(),
    })
}

/// What else the I/O server serves: network and files. Made before the fabric listens; ends when dropped.
pub trait Services: Send {
    /// Adds what it handles.
    fn handlers(&self, handlers: Handlers) -> Handlers;
}

/// No services: a cluster of nodes that need neither files nor network.
#[derive(Debug)]
pub struct NoServices;

impl Services for NoServices {
    fn handlers(&self, handlers: Handlers) -> Handlers {
        handlers
    }
}

/// Runs the I/O server until the cluster is shut down, or `exit` is triggered.
///
/// # Errors
/// If it cannot start, or one of its threads failed.
pub fn run(
    spec: &ClusterSpec,
    exit: &Exit,
    services: impl FnOnce(&ClusterSpec, &Arc<Fabric>, &Exit) -> anyhow::Result<Box<dyn Services>>,
) -> anyhow::Result<()> {
    let config = fabric_config(spec, Peer::Io)?;
    let identity = config.identity.clone();
    let fabric = Fabric::new(config, exit);
    let cells = FabricCells::new(&fabric, spec.nodes);
    let services = services(spec, &fabric, exit)?;
    let others = cells.clone();
    fabric.membership().on_death(move |death| {
        let Peer::Node(node) = death.peer else { return };
        for other in (0..others_count(&others)).filter(|other| *other != node) {
            others.tell(other, 0, &ToNode::Dead { node, why: death.why.clone() });
        }
    });
    fabric.listen(services.handlers(Handlers::default().with(Class::Ctl, cells.clone())))?;
    let done = Stop::new()?;
    let controller = Controller::start(spec, identity, cells, done.clone(), exit)?;
    log::info!("the I/O server of {} listens; the controller is at {}", spec.name, spec.control);
    let result = match fabric.join(JOIN_WITHIN) {
        Ok(()) => {
            log::info!("all {} nodes are connected", spec.nodes);
            wait_readable(done.as_raw_fd(), exit).map_err(Into::into)
        }
        Err(_) if exit.is_triggered() || done.is_triggered() => Ok(()),
        Err(error) => Err(error).context("the nodes did not all connect"),
    };
    drop(controller);
    fabric.stop();
    drop(services);
    result
}

fn others_count(cells: &FabricCells) -> u32 {
    crate::control::Cells::count(cells)
}
