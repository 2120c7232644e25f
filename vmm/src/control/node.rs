//! What controller and nodes tell one another: JSON in messages of kind `Control`. A request and its answer have the same tag.

use serde::{Deserialize, Serialize};
use ssi_proto::request::DsmStatus;

/// Controller to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum ToNode {
    /// Say how it goes: answered with [`ToIo::Stats`].
    Stats,
    /// Another node is dead.
    Dead {
        /// Which.
        node: u32,
        /// What was seen.
        why: String,
    },
    /// Stop the machine, if it runs still, and end.
    Stop,
}

/// Node to controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum ToIo {
    /// Answer to [`ToNode::Stats`].
    Stats(Box<NodeStats>),
    /// The connections to another node broke.
    Lost {
        /// Which.
        node: u32,
        /// What was seen.
        why: String,
    },
    /// The machine ended: the guest rebooted or crashed. The node process ends next.
    Ended {
        /// How.
        why: String,
    },
}

/// What a node knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStats {
    /// PID of the VMM.
    pub pid: u32,
    /// Resident bytes of the VMM that are not guest memory.
    pub overhead_bytes: u64,
    /// Resident bytes of guest memory.
    pub guest_bytes: u64,
    /// What its coherent memory has cost.
    pub dsm: DsmStatus,
}
