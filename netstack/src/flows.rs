//! The flow table: which cell owns a flow (design: "The parts of the switch"; clause NET-1). Bounded and aged: each
//! class of flow has its own time to live and its own list, oldest first, so that ageing and eviction take constant
//! time, and a full table gives up what is over before what lives.

use core::net::Ipv4Addr;
use std::collections::HashMap;

use smoltcp::time::{Duration, Instant};

use crate::Cell;
use crate::view::Proto;

/// What names a flow. The cluster has one address, so that its own port and the other end are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Protocol.
    pub proto: Proto,
    /// Port of the cluster's end.
    pub local_port: u16,
    /// Address of the other end; the cluster's own for a flow between cells.
    pub remote: Ipv4Addr,
    /// Port of the other end; 0 for ICMP.
    pub remote_port: u16,
}

/// How far a flow is; decides how long it is kept unseen, and who goes first from a full table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Reset, or closed from both sides.
    Closing,
    /// A SYN was seen and no answer yet.
    Embryonic,
    /// UDP or ICMP echo.
    Datagram,
    /// TCP past its handshake.
    Established,
}

const CLASSES: usize = 4;
const NIL: u32 = u32::MAX;

/// Bounds of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// Most flows.
    pub max_flows: usize,
    /// Time to live of [`Class::Closing`].
    pub closing: Duration,
    /// Time to live of [`Class::Embryonic`]: longer than the longest pause between two SYNs of one connect.
    pub embryonic: Duration,
    /// Time to live of [`Class::Datagram`] (RFC 4787, REQ-5: at least 2 minutes).
    pub datagram: Duration,
    /// Time to live of [`Class::Established`] (RFC 5382, REQ-5: at least 2 hours 4 minutes).
    pub established: Duration,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self {
            max_flows: 262_144,
            closing: Duration::from_secs(60),
            embryonic: Duration::from_secs(75),
            datagram: Duration::from_secs(180),
            established: Duration::from_secs(7500),
        }
    }
}

impl FlowLimits {
    fn ttl(&self, class: Class) -> Duration {
        match class {
            Class::Closing => self.closing,
            Class::Embryonic => self.embryonic,
            Class::Datagram => self.datagram,
            Class::Established => self.established,
        }
    }
}

/// A flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The cell that owns it.
    pub cell: Cell,
    /// How far it is.
    pub class: Class,
    /// Its cell has sent a FIN.
    pub fin_out: bool,
    /// The other end has sent a FIN.
    pub fin_in: bool,
}

impl Flow {
    /// A flow of `cell`.
    pub fn new(cell: Cell, class: Class) -> Self {
        Self { cell, class, fin_out: false, fin_in: false }
    }
}

#[derive(Debug)]
struct Slot {
    key: FlowKey,
    flow: Flow,
    seen: Instant,
    prev: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
}

/// The table.
#[derive(Debug)]
pub struct FlowTable {
    limits: FlowLimits,
    /// Looked up, never iterated: its order is not part of any result.
    index: HashMap<FlowKey, u32>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    lists: [List; CLASSES],
    per_cell: [u32; crate::MAX_CELLS as usize],
    evicted: u64,
    expired: u64,
}

impl FlowTable {
    /// An empty table. It takes memory as it fills.
    pub fn new(limits: FlowLimits) -> Self {
        Self {
            limits,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            lists: [List { head: NIL, tail: NIL, len: 0 }; CLASSES],
            per_cell: [0; crate::MAX_CELLS as usize],
            evicted: 0,
            expired: 0,
        }
    }

    /// Flows in it.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Flows that `cell` owns.
    pub fn of_cell(&self, cell: Cell) -> u32 {
        self.per_cell.get(cell as usize).copied().unwrap_or(0)
    }

    /// Flows of a class.
    pub fn of_class(&self, class: Class) -> usize {
        self.lists[class as usize].len
    }

    /// Flows that were given up because the table was full, since the start.
    pub fn evicted_count(&self) -> u64 {
        self.evicted
    }

    /// Flows that were given up because nobody used them, since the start.
    pub fn expired_count(&self) -> u64 {
        self.expired
    }

    /// The flow of `key`.
    pub fn get(&self, key: &FlowKey) -> Option<&Flow> {
        let slot = *self.index.get(key)?;
        self.slots[slot as usize].as_ref().map(|slot| &slot.flow)
    }

    /// Notes that `key` was seen at `now`, applies `change` to its flow and returns the result.
    /// `change` may move the flow to another cell or class.
    pub fn update<R>(
        &mut self,
        key: &FlowKey,
        now: Instant,
        change: impl FnOnce(&mut Flow) -> R,
    ) -> Option<R> {
        let at = *self.index.get(key)?;
        let slot = self.slots[at as usize].as_mut()?;
        let (class, cell) = (slot.flow.class, slot.flow.cell);
        let result = change(&mut slot.flow);
        slot.seen = now;
        let (new_class, new_cell) = (slot.flow.class, slot.flow.cell);
        self.unlink(at, class);
        self.link(at, new_class);
        self.count(cell, -1);
        self.count(new_cell, 1);
        Some(result)
    }

    /// Puts `flow` under `key`, in place of what was there; gives up another flow if the table is full.
    pub fn insert(&mut self, key: FlowKey, flow: Flow, now: Instant) {
        self.remove(&key);
        if self.index.len() >= self.limits.max_flows.max(1) {
            self.evict();
        }
        let (class, cell) = (flow.class, flow.cell);
        let slot = Slot { key, flow, seen: now, prev: NIL, next: NIL };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(slot);
                at
            }
            None => {
                self.slots.push(Some(slot));
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(key, at);
        self.link(at, class);
        self.count(cell, 1);
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &FlowKey) -> Option<Flow> {
        let at = self.index.remove(key)?;
        let class = self.slots[at as usize].as_ref()?.flow.class;
        self.unlink(at, class);
        let slot = self.slots[at as usize].take()?;
        self.free.push(at);
        self.count(slot.flow.cell, -1);
        Some(slot.flow)
    }

    /// Takes out every flow of `cell`; returns how many.
    pub fn remove_cell(&mut self, cell: Cell) -> usize {
        let keys: Vec<FlowKey> =
            self.slots.iter().flatten().filter(|slot| slot.flow.cell == cell).map(|slot| slot.key).collect();
        keys.iter().for_each(|key| {
            self.remove(key);
        });
        keys.len()
    }

    /// Takes out what was not used for its time to live.
    pub fn expire(&mut self, now: Instant) {
        for class in [Class::Closing, Class::Embryonic, Class::Datagram, Class::Established] {
            while let Some(slot) = self.oldest(class)
                && slot.seen + self.limits.ttl(class) <= now
            {
                let key = slot.key;
                self.remove(&key);
                self.expired += 1;
            }
        }
    }

    /// When [`FlowTable::expire`] will next have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        [Class::Closing, Class::Embryonic, Class::Datagram, Class::Established]
            .into_iter()
            .filter_map(|class| Some(self.oldest(class)?.seen + self.limits.ttl(class)))
            .min()
    }

    fn oldest(&self, class: Class) -> Option<&Slot> {
        let head = self.lists[class as usize].head;
        self.slots.get(head as usize)?.as_ref()
    }

    /// Gives up one flow: what is over, then what has not begun (so that a flood of SYNs drowns itself), then
    /// datagrams, and connections last.
    fn evict(&mut self) {
        let victim = [Class::Closing, Class::Embryonic, Class::Datagram, Class::Established]
            .into_iter()
            .find_map(|class| self.oldest(class).map(|slot| slot.key));
        if let Some(key) = victim {
            self.remove(&key);
            self.evicted += 1;
        }
    }

    fn count(&mut self, cell: Cell, change: i32) {
        if let Some(count) = self.per_cell.get_mut(cell as usize) {
            *count = count.saturating_add_signed(change);
        }
    }

    fn link(&mut self, at: u32, class: Class) {
        let tail = self.lists[class as usize].tail;
        if let Some(slot) = self.slots[at as usize].as_mut() {
            slot.prev = tail;
            slot.next = NIL;
        }
        match self.slots.get_mut(tail as usize).and_then(Option::as_mut) {
            Some(last) => last.next = at,
            None => self.lists[class as usize].head = at,
        }
        let list = &mut self.lists[class as usize];
        list.tail = at;
        list.len += 1;
    }

    fn unlink(&mut self, at: u32, class: Class) {
        let Some((prev, next)) = self.slots[at as usize].as_ref().map(|slot| (slot.prev, slot.next)) else {
            return;
        };
        match self.slots.get_mut(prev as usize).and_then(Option::as_mut) {
            Some(slot) => slot.next = next,
            None => self.lists[class as usize].head = next,
        }
        match self.slots.get_mut(next as usize).and_then(Option::as_mut) {
            Some(slot) => slot.prev = prev,
            None => self.lists[class as usize].tail = prev,
        }
        self.lists[class as usize].len -= 1;
    }
}

#[cfg(test)]
mod tests;
