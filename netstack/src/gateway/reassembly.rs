//! Puts datagrams together that cells send in parts. Bounded in datagrams, bytes and time; parts that overlap spoil
//! their datagram (as RFC 5722 asks of IPv6, and for the same reason).

use std::collections::{BTreeMap, VecDeque};

use smoltcp::time::{Duration, Instant};

use crate::frags::DatagramKey;
use crate::view::Fragment;

/// Most datagrams in the making.
pub const MAX_DATAGRAMS: usize = 64;
/// How long one may take.
pub const TTL: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
struct Partial {
    parts: BTreeMap<u16, Vec<u8>>,
    total: Option<usize>,
}

/// The datagrams in the making.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: BTreeMap<DatagramKey, Partial>,
    ages: VecDeque<(Instant, DatagramKey)>,
}

impl Reassembly {
    /// A part came; returns the payload of the datagram if it is whole now.
    pub fn add(&mut self, key: DatagramKey, part: Fragment, payload: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.expire(now);
        let end = usize::from(part.offset) + payload.len();
        if payload.is_empty()
            || end > usize::from(u16::MAX)
            || (part.more && !payload.len().is_multiple_of(8))
        {
            return None;
        }
        if !self.partial.contains_key(&key) {
            while self.partial.len() >= MAX_DATAGRAMS
                && let Some((_, oldest)) = self.ages.pop_front()
            {
                self.partial.remove(&oldest);
            }
            self.ages.push_back((now, key));
        }
        let partial = self.partial.entry(key).or_default();
        let before = partial.parts.range(..=part.offset).next_back();
        let overlaps = before
            .is_some_and(|(at, bytes)| usize::from(*at) + bytes.len() > usize::from(part.offset))
            || partial.parts.range(part.offset..).next().is_some_and(|(at, _)| usize::from(*at) < end)
            || partial.total.is_some_and(|total| end > total);
        if overlaps {
            self.partial.remove(&key);
            return None;
        }
        partial.parts.insert(part.offset, payload.to_vec());
        if !part.more {
            partial.total = Some(end);
        }
        let whole = partial.parts.values().map(Vec::len).sum::<usize>();
        // No two parts overlap: as many bytes as the last part's end says means that none is missing.
        if partial.total != Some(whole) {
            return None;
        }
        let partial = self.partial.remove(&key)?;
        Some(partial.parts.into_values().flatten().collect())
    }

    /// Gives up what takes too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(born, key)) = self.ages.front()
            && born + TTL <= now
        {
            self.ages.pop_front();
            self.partial.remove(&key);
        }
        // Entries of datagrams that became whole: no more of them than of those in the making.
        while self.ages.len() > 2 * MAX_DATAGRAMS {
            if let Some((_, key)) = self.ages.pop_front() {
                self.partial.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Instant = Instant::ZERO;

    fn key(ident: u16) -> DatagramKey {
        DatagramKey { src: crate::CLUSTER_IP, dst: crate::GATEWAY_IP, proto: 17, ident }
    }

    fn part(offset: u16, more: bool) -> Fragment {
        Fragment { ident: 0, proto: 17, offset, more }
    }

    proptest! {
        #[test]
        fn parts_in_any_order_make_the_datagram(len in 1usize..9000, step in 1usize..180, seed: u64) {
            let whole: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            let step = step * 8;
            let mut parts: Vec<(usize, &[u8])> = whole.chunks(step).enumerate().map(|(at, c)| (at * step, c)).collect();
            parts.sort_by_key(|(at, _)| (*at as u64).wrapping_mul(seed | 1).rotate_left(17));
            let mut table = Reassembly::default();
            let mut got = None;
            for (index, (at, bytes)) in parts.iter().enumerate() {
                prop_assert!(got.is_none(), "whole after {} of {}", index, parts.len());
                got = table.add(key(1), part(*at as u16, at + bytes.len() < len), bytes, NOW);
            }
            prop_assert_eq!(got, Some(whole));
        }

        #[test]
        fn arbitrary_parts_are_bounded(parts in proptest::collection::vec((0u16..200, any::<u16>(), any::<bool>(), 0usize..64), 0..300)) {
            let mut table = Reassembly::default();
            for (ident, offset, more, len) in parts {
                if let Some(whole) = table.add(key(ident), part(offset, more), &vec![1; len], NOW) {
                    prop_assert!(whole.len() <= usize::from(u16::MAX));
                }
                prop_assert!(table.partial.len() <= MAX_DATAGRAMS && table.ages.len() <= 2 * MAX_DATAGRAMS + 1);
            }
        }
    }

    #[test]
    fn parts_that_overlap_or_take_too_long_spoil_their_datagram() {
        let mut table = Reassembly::default();
        assert_eq!(table.add(key(1), part(0, true), &[1; 16], NOW), None);
        assert_eq!(table.add(key(1), part(8, true), &[2; 8], NOW), None);
        assert_eq!(
            table.add(key(1), part(24, false), &[2; 8], NOW),
            None,
            "as many bytes as it has, but not those"
        );
        assert_eq!(table.add(key(2), part(0, true), &[1; 8], NOW), None);
        assert_eq!(table.add(key(2), part(8, false), &[2; 8], NOW + TTL), None);
    }
}
