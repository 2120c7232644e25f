//! What the service knows about who wrote what, and who may have a directory's name cached.
//!
//! Invariants, that the tests are named after:
//! - COH-1: after cell A's write to a file was answered, the next open by any other cell does not keep cached pages.
//! - COH-2: a cell's own writes never make it drop its own pages.
//! - COH-3: forgetting old entries never loses a write: at worst a cell drops pages that were good.
//! - COH-4: while a directory's name is being changed, nobody is granted it, and the change begins only after every other
//!   cell's grant has run out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A file of the served tree: device and inode number on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileKey {
    pub dev: u64,
    pub ino: u64,
}

/// One file's history, as far as anybody can ask for it.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// Who wrote last.
    cell: u16,
    /// When, on the table's own count.
    at: u64,
    /// When somebody else than `cell` wrote last.
    others_at: u64,
}

/// Which cell wrote which file when, on a count of writes that only grows.
#[derive(Debug)]
pub(super) struct Versions {
    files: BTreeMap<FileKey, Written>,
    count: u64,
    /// Everything forgotten was written at this count or before.
    floor: u64,
    most: usize,
}

impl Versions {
    /// A table that remembers at most `most` files.
    pub fn new(most: usize) -> Self {
        Self { files: BTreeMap::new(), count: 0, floor: 0, most: most.max(2) }
    }

    /// `cell` has written the file. To be called when the data is there and the write not yet answered: before would let
    /// another cell cache the old data under the new count.
    pub fn wrote(&mut self, file: FileKey, cell: u16) {
        self.count += 1;
        let (at, floor) = (self.count, self.floor);
        let entry = self.files.entry(file).or_insert(Written { cell, at, others_at: floor });
        if entry.cell != cell {
            entry.others_at = entry.at;
            entry.cell = cell;
        }
        entry.at = at;
        if self.files.len() > self.most {
            self.forget_older_half();
        }
    }

    /// The count at which somebody else than `cell` last wrote the file.
    pub fn others_wrote_at(&self, file: FileKey, cell: u16) -> u64 {
        match self.files.get(&file) {
            Some(written) if written.cell != cell => written.at,
            Some(written) => written.others_at,
            None => self.floor,
        }
    }

    fn forget_older_half(&mut self) {
        let mut counts: Vec<u64> = self.files.values().map(|written| written.at).collect();
        let middle = counts.len() / 2;
        let floor = *counts.select_nth_unstable(middle).1;
        self.files.retain(|_, written| written.at > floor);
        self.floor = floor;
    }
}

#[derive(Debug, Default)]
struct Grants {
    /// Cell, and when it was last granted the name.
    to: Vec<(u16, Instant)>,
    /// Changes that wait or run.
    changing: u32,
}

/// Which cell may have which directory's name cached, and until when.
#[derive(Debug)]
pub(super) struct Leases {
    grants: BTreeMap<FileKey, Grants>,
    length: Duration,
    /// Sweep when there are more entries than this.
    sweep_at: usize,
}

const SWEEP_AT_LEAST: usize = 4096;

impl Leases {
    /// Grants last `length`; zero grants nothing.
    pub fn new(length: Duration) -> Self {
        Self { grants: BTreeMap::new(), length, sweep_at: SWEEP_AT_LEAST }
    }

    /// How long `cell` may cache the directory's name from `now` on: zero while it is being changed.
    pub fn grant(&mut self, dir: FileKey, cell: u16, now: Instant) -> Duration {
        if self.length.is_zero() {
            return Duration::ZERO;
        }
        if self.grants.len() > self.sweep_at {
            let length = self.length;
            self.grants.retain(|_, grants| {
                grants.to.retain(|&(_, at)| now.saturating_duration_since(at) < 2 * length);
                grants.changing > 0 || !grants.to.is_empty()
            });
            self.sweep_at = (2 * self.grants.len()).max(SWEEP_AT_LEAST);
        }
        let grants = self.grants.entry(dir).or_default();
        if grants.changing > 0 {
            return Duration::ZERO;
        }
        match grants.to.iter_mut().find(|(to, _)| *to == cell) {
            Some(found) => found.1 = now,
            None => grants.to.push((cell, now)),
        }
        self.length
    }

    /// `cell` is about to change the directory's name; nobody is granted it until [`Self::end_change`].
    /// Returns how long to wait, a quarter more than the grant for the way of the last reply.
    pub fn begin_change(&mut self, dir: FileKey, cell: u16, now: Instant) -> Duration {
        let until = self.length + self.length / 4;
        let grants = self.grants.entry(dir).or_default();
        grants.changing += 1;
        let others = grants.to.iter().filter(|&&(to, _)| to != cell);
        others.map(|&(_, at)| (at + until).saturating_duration_since(now)).max().unwrap_or(Duration::ZERO)
    }

    /// The change is done, or was refused.
    pub fn end_change(&mut self, dir: FileKey) {
        if let Some(grants) = self.grants.get_mut(&dir) {
            grants.changing = grants.changing.saturating_sub(1);
            if grants.changing == 0 {
                self.grants.remove(&dir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F: FileKey = FileKey { dev: 1, ino: 2 };

    #[test]
    fn coh1_a_foreign_write_is_seen_at_the_next_open() {
        let mut versions = Versions::new(100);
        let seen = versions.others_wrote_at(F, 1);
        versions.wrote(F, 0);
        assert!(versions.others_wrote_at(F, 1) > seen);
    }

    #[test]
    fn coh2_own_writes_do_not_count() {
        let mut versions = Versions::new(100);
        versions.wrote(F, 0);
        let seen = versions.others_wrote_at(F, 1);
        versions.wrote(F, 1);
        versions.wrote(F, 1);
        assert_eq!(versions.others_wrote_at(F, 1), seen);
    }

    proptest! {
        /// COH-1 and COH-3 against a full record of all writes, with a table far too small to remember them.
        #[test]
        fn coh3_a_small_table_never_loses_a_foreign_write(
            steps in prop::collection::vec((0u64..12, 0u16..3, any::<bool>()), 1..200),
        ) {
            let mut versions = Versions::new(4);
            let mut record: Vec<(u64, u16)> = Vec::new();
            let mut seen: BTreeMap<(u64, u16), (u64, usize)> = BTreeMap::new();
            for (ino, cell, write) in steps {
                let file = FileKey { dev: 1, ino };
                if write {
                    versions.wrote(file, cell);
                    record.push((ino, cell));
                    continue;
                }
                let now = versions.others_wrote_at(file, cell);
                if let Some(&(then, length)) = seen.get(&(ino, cell))
                    && then == now
                {
                    prop_assert!(record[length..].iter().all(|&(i, c)| i != ino || c == cell));
                }
                seen.insert((ino, cell), (now, record.len()));
            }
        }
    }

    #[test]
    fn coh4_a_change_waits_for_the_grants_of_others_and_stops_new_ones() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut leases = Leases::new(second);
        assert_eq!(leases.grant(F, 0, start), second);
        assert_eq!(leases.grant(F, 1, start + second / 2), second);
        // Cell 1 changes it: only cell 0's grant matters.
        let wait = leases.begin_change(F, 1, start + second / 2);
        assert_eq!(wait, second * 3 / 4);
        assert_eq!(leases.grant(F, 0, start + second), Duration::ZERO);
        leases.end_change(F);
        assert_eq!(leases.grant(F, 0, start + second), second);
        // Alone, a cell never waits.
        let alone = FileKey { dev: 1, ino: 9 };
        leases.grant(alone, 0, start);
        assert_eq!(leases.begin_change(alone, 0, start), Duration::ZERO);
    }
}
