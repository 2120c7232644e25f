//! First frames of flows whose cell has not answered yet: if it refuses, another is asked. Bounded; the oldest goes
//! first, and its flow then keeps the cell it has.

use std::collections::{HashMap, VecDeque};

use crate::Cell;
use crate::flows::FlowKey;
use crate::vnet::VnetRepr;

/// Most frames that are kept.
pub const MAX_PROBES: usize = 4096;
/// Longest frame that is kept.
pub const MAX_BYTES: usize = 512;

#[derive(Debug)]
struct Probe {
    serial: u64,
    tried: u64,
    frame: Vec<u8>,
    repr: VnetRepr,
}

#[derive(Debug, Default)]
pub struct Probes {
    /// Looked up, never iterated.
    probes: HashMap<FlowKey, Probe>,
    order: VecDeque<(u64, FlowKey)>,
    serial: u64,
}

impl Probes {
    /// Keeps `frame`, that the cells whose bits are in `tried` have had.
    pub fn insert(&mut self, key: FlowKey, tried: u64, frame: &[u8], repr: VnetRepr) {
        if frame.len() > MAX_BYTES {
            self.remove(&key);
            return;
        }
        while (self.probes.len() >= MAX_PROBES || self.order.len() >= 2 * MAX_PROBES)
            && let Some((serial, oldest)) = self.order.pop_front()
        {
            if self.probes.get(&oldest).is_some_and(|probe| probe.serial == serial) {
                self.probes.remove(&oldest);
            }
        }
        self.serial += 1;
        self.order.push_back((self.serial, key));
        self.probes.insert(key, Probe { serial: self.serial, tried, frame: frame.to_vec(), repr });
    }

    /// Who has had it, and the frame.
    pub fn get(&self, key: &FlowKey) -> Option<(u64, Vec<u8>, VnetRepr)> {
        self.probes.get(key).map(|probe| (probe.tried, probe.frame.clone(), probe.repr))
    }

    /// `cell` gets it now.
    pub fn tried(&mut self, key: &FlowKey, cell: Cell) {
        if let Some(probe) = self.probes.get_mut(key) {
            probe.tried |= 1 << cell;
        }
    }

    /// Forgets it; returns whether it was there.
    pub fn remove(&mut self, key: &FlowKey) -> bool {
        self.probes.remove(key).is_some()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.probes.len().max(self.order.len() / 2)
    }
}
