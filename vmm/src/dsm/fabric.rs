//! The DSM on the fabric's `page` class.

use std::sync::{Arc, Weak};

use ssi_dsm::NodeId;

use super::{Dsm, Link};
use crate::fabric::{Class, Fabric, Handler, Header, Kind, Peer, Reader, Violation};

/// Sends frames as `Dsm` messages of the `page` class.
#[derive(Debug)]
pub struct FabricLink(Weak<Fabric>);

impl FabricLink {
    /// Over this fabric, which is not kept alive by it.
    pub fn new(fabric: &Arc<Fabric>) -> Self {
        Self(Arc::downgrade(fabric))
    }
}

impl Link for FabricLink {
    fn send(&self, to: NodeId, frame: &[u8]) {
        let Some(fabric) = self.0.upgrade() else { return };
        if let Err(error) = fabric.send(Peer::Node(to.0.into()), Class::Page, Kind::Dsm, 0, &[frame]) {
            log::debug!("no DSM message to {to}: {error}");
        }
    }
}

impl Handler for Dsm {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        match (from, header.kind) {
            (Peer::Node(node), Kind::Dsm) => {
                let node = u16::try_from(node).map_err(|_| Violation(format!("{from} is no node")))?;
                Dsm::message(self, NodeId(node), payload)
                    .map_err(|why| Violation(format!("it broke the DSM's protocol ({why:?})")))
            }
            (_, kind) => Err(Violation(format!("a {kind:?} message from {from} among those of the DSM"))),
        }
    }

    fn adopt(&self, reader: Reader) -> Option<Reader> {
        self.adopt_reader(reader)
    }
}
