//! Later fragments of a datagram carry no ports: they follow the first (design: "UDP sockets and ICMP errors follow
//! their owner"). Those that come before it are kept, bounded in bytes, in datagrams and in time.

use core::net::Ipv4Addr;
use std::collections::{BTreeMap, VecDeque};

use smoltcp::time::{Duration, Instant};

use crate::Cell;

/// What the parts of one datagram have in common (RFC 791).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatagramKey {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Protocol number.
    pub proto: u8,
    /// Identification.
    pub ident: u16,
}

/// Most datagrams that are followed at once.
pub const MAX_DATAGRAMS: usize = 1024;
/// Most bytes kept for parts whose first is missing: of one datagram, and of all.
pub const MAX_KEPT_BYTES: usize = 1 << 20;
const MAX_KEPT_BYTES_EACH: usize = 1 << 17;
/// How long a datagram is followed (RFC 1122 asks for 60 s at most of a reassembler; Linux has 30 s).
pub const TTL: Duration = Duration::from_secs(30);

/// What becomes of a later part.
#[derive(Debug, PartialEq, Eq)]
pub enum Later {
    /// It goes to this cell, as the first did.
    To(Cell, Vec<u8>),
    /// It is kept until the first comes.
    Kept,
    /// The bounds of what is kept are reached.
    Dropped,
}

#[derive(Debug)]
struct Entry {
    to: Option<Cell>,
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
}

/// The table of datagrams that are on their way in parts.
#[derive(Debug, Default)]
pub struct FragTable {
    entries: BTreeMap<DatagramKey, Entry>,
    /// In order of arrival.
    ages: VecDeque<(Instant, DatagramKey)>,
    kept_bytes: usize,
}

impl FragTable {
    /// The first part of `key` went to `to`: later ones follow. Returns those that were kept, in order of arrival.
    pub fn first(&mut self, key: DatagramKey, to: Cell, now: Instant) -> Vec<Vec<u8>> {
        let entry = self.entry(key, now);
        entry.to = Some(to);
        let (kept, bytes) = (core::mem::take(&mut entry.kept), core::mem::take(&mut entry.kept_bytes));
        self.kept_bytes -= bytes;
        kept
    }

    /// A later part of `key` came.
    pub fn later(&mut self, key: DatagramKey, frame: Vec<u8>, now: Instant) -> Later {
        let bytes = frame.len();
        let room = MAX_KEPT_BYTES - self.kept_bytes;
        let entry = self.entry(key, now);
        if let Some(to) = entry.to {
            return Later::To(to, frame);
        }
        if bytes > room || entry.kept_bytes + bytes > MAX_KEPT_BYTES_EACH {
            return Later::Dropped;
        }
        entry.kept.push(frame);
        entry.kept_bytes += bytes;
        self.kept_bytes += bytes;
        Later::Kept
    }

    /// Gives up what is too old.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(born, key)) = self.ages.front()
            && born + TTL <= now
        {
            self.ages.pop_front();
            self.forget(&key);
        }
    }

    /// When [`FragTable::expire`] will next have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.ages.front().map(|(born, _)| *born + TTL)
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Datagrams that are followed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is none followed?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&mut self, key: DatagramKey, now: Instant) -> &mut Entry {
        if !self.entries.contains_key(&key) {
            while self.entries.len() >= MAX_DATAGRAMS
                && let Some((_, oldest)) = self.ages.pop_front()
            {
                self.forget(&oldest);
            }
            self.ages.push_back((now, key));
        }
        self.entries.entry(key).or_insert(Entry { to: None, kept: Vec::new(), kept_bytes: 0 })
    }

    fn forget(&mut self, key: &DatagramKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.kept_bytes -= entry.kept_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ident: u16) -> DatagramKey {
        DatagramKey { src: Ipv4Addr::new(10, 64, 0, 9), dst: crate::CLUSTER_IP, proto: 17, ident }
    }

    #[test]
    fn later_parts_follow_the_first_in_either_order() {
        let mut table = FragTable::default();
        let now = Instant::ZERO;
        assert_eq!(table.later(key(1), vec![2], now), Later::Kept);
        assert_eq!(table.later(key(1), vec![3], now), Later::Kept);
        assert_eq!(table.first(key(1), 7, now), [vec![2], vec![3]]);
        assert_eq!(table.kept_bytes(), 0);
        assert_eq!(table.later(key(1), vec![4], now), Later::To(7, vec![4]));
    }

    #[test]
    fn parts_without_a_first_are_bounded_in_bytes_datagrams_and_time() {
        let mut table = FragTable::default();
        let part = vec![0u8; 1500];
        let mut refused = 0;
        for round in 0..3000u32 {
            let now = Instant::from_millis(i64::from(round));
            refused += u32::from(table.later(key(round as u16), part.clone(), now) == Later::Dropped);
            refused += u32::from(table.later(key(1), part.clone(), now) == Later::Dropped);
            assert!(table.kept_bytes() <= MAX_KEPT_BYTES && table.len() <= MAX_DATAGRAMS);
        }
        assert!(refused > 0);
        table.expire(Instant::from_millis(3000) + TTL);
        assert_eq!((table.len(), table.kept_bytes(), table.deadline()), (0, 0, None));
    }
}
