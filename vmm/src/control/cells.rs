//! What the controller needs of the cluster: behind it is the fabric, or a test's fake.

use super::node::NodeStats;
use crate::fabric::stream::SharedStream;

/// The cells, as the controller reaches them.
pub trait Cells: Send + Sync {
    /// How many there are.
    fn count(&self) -> u32;
    /// Is the node of `cell` connected and alive?
    fn is_alive(&self, cell: u32) -> bool;
    /// A stream to vsock port `port` of `cell`.
    ///
    /// # Errors
    /// Why not, for a person.
    fn connect(&self, cell: u32, port: u32) -> Result<SharedStream, String>;
    /// A stream to the serial console of `cell`.
    ///
    /// # Errors
    /// Why not, for a person.
    fn console(&self, cell: u32) -> Result<SharedStream, String>;
    /// What the node of `cell` says of itself; `None` if it does not answer.
    fn stats(&self, cell: u32) -> Option<NodeStats>;
    /// Tells the nodes to end.
    fn stop(&self);
}

/// Where a cell is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellState {
    /// Its agent has not answered yet.
    Starting,
    /// Its agent has answered.
    Up,
    /// Its node is gone.
    Dead,
}

impl CellState {
    /// The word in `status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Dead => "dead",
        }
    }
}
