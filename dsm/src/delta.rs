//! What has changed in a page from version to version, in lines of 64 bytes, so that a page that changed a little goes as a
//! difference.
//!
//! A page that is taken from its writers again and again is copied before it is written (a *twin*). When its bytes leave, the
//! twin tells which lines were written, and that becomes the last step of the page's *history*, which goes with it. Whoever
//! has the page now can tell an asker that still has an older version which lines it lacks. A lost history costs nothing but
//! a whole page: every step names the version that it starts from.

use std::collections::BTreeMap;

use crate::wire::{DIFFERENCE_LINES, HISTORY_STEPS, LINE_BYTES};

const PAGE_BYTES: usize = 4096;

/// What is known of one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Delta {
    /// The version that the last step leads to.
    current: u64,
    /// The bytes of that version, while they may be changing.
    twin: Option<Box<[u8; PAGE_BYTES]>>,
    /// Version before, lines changed; the oldest first.
    steps: Vec<(u64, u64)>,
}

/// What is known of the pages of a slice, at most so many of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deltas {
    limit: usize,
    pages: BTreeMap<usize, Delta>,
}

impl Deltas {
    /// For at most `limit` pages.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit: usize::try_from(limit).unwrap_or(usize::MAX), pages: BTreeMap::new() }
    }

    /// Nothing is known of the page any more.
    pub(crate) fn forget(&mut self, index: usize) {
        self.pages.remove(&index);
    }

    fn entry(&mut self, index: usize, current: u64) -> Option<&mut Delta> {
        if self.limit == 0 {
            return None;
        }
        if self.pages.len() >= self.limit && !self.pages.contains_key(&index) {
            self.pages.pop_first();
        }
        let delta = self.pages.entry(index).or_default();
        if delta.current != current {
            *delta = Delta { current, twin: delta.twin.take(), steps: vec![] };
        }
        Some(delta)
    }

    /// The page, whose bytes have this version, is about to be written. The caller fills the twin.
    pub(crate) fn twin(&mut self, index: usize, version: u64) -> Option<&mut [u8; PAGE_BYTES]> {
        let delta = self.entry(index, version)?;
        Some(&mut **delta.twin.get_or_insert_with(|| Box::new([0; PAGE_BYTES])))
    }

    /// The page's bytes leave under this version.
    pub(crate) fn leaves(&mut self, index: usize, version: u64, bytes: &[u8; PAGE_BYTES]) {
        let Some(delta) = self.pages.get_mut(&index) else { return };
        if delta.current == version {
            return;
        }
        let Some(twin) = delta.twin.take() else { return self.forget(index) };
        if delta.steps.len() == HISTORY_STEPS {
            delta.steps.remove(0);
        }
        delta.steps.push((delta.current, changed_lines(&twin, bytes)));
        delta.current = version;
    }

    /// The page has come under this version.
    pub(crate) fn comes(&mut self, index: usize, version: u64, history: impl Iterator<Item = (u64, u64)>) {
        let steps: Vec<_> = history.take(HISTORY_STEPS).collect();
        if steps.is_empty() {
            return self.forget(index);
        }
        if let Some(delta) = self.entry(index, version) {
            delta.twin = None;
            delta.steps = steps;
        }
    }

    /// How the page came to its version, as far as that is known.
    pub(crate) fn history(&self, index: usize) -> impl Iterator<Item = (u64, u64)> {
        self.pages.get(&index).into_iter().flat_map(|delta| delta.steps.iter().copied())
    }

    /// The lines that one lacks who has version `held`, if that is known and they are few.
    pub(crate) fn since(&self, index: usize, held: u64) -> Option<u64> {
        let steps = &self.pages.get(&index)?.steps;
        let from = steps.iter().position(|&(version, _)| version == held)?;
        let lines = steps[from..].iter().fold(0, |all, (_, lines)| all | lines);
        (lines.count_ones() <= DIFFERENCE_LINES).then_some(lines)
    }
}

fn changed_lines(old: &[u8; PAGE_BYTES], new: &[u8; PAGE_BYTES]) -> u64 {
    let pairs = old.chunks_exact(LINE_BYTES).zip(new.chunks_exact(LINE_BYTES));
    pairs.enumerate().filter(|(_, (a, b))| a != b).fold(0, |lines, (n, _)| lines | 1 << n)
}

/// Puts the lines of a difference into a page.
pub(crate) fn patch(page: &mut [u8; PAGE_BYTES], lines: u64, bytes: &[u8]) {
    let set = page.chunks_exact_mut(LINE_BYTES).enumerate().filter(|(n, _)| lines >> n & 1 == 1);
    for ((_, to), from) in set.zip(bytes.chunks_exact(LINE_BYTES)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(marks: &[usize]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        marks.iter().for_each(|&at| page[at] = 1);
        page
    }

    #[test]
    fn steps_add_up_to_the_lines_that_an_older_version_lacks() {
        let mut deltas = Deltas::new(2);
        *deltas.twin(7, 1).unwrap() = page(&[]);
        deltas.leaves(7, 2, &page(&[0, 4095]));
        assert_eq!(deltas.since(7, 1), Some(1 | 1 << 63));
        *deltas.twin(7, 2).unwrap() = page(&[0, 4095]);
        deltas.leaves(7, 3, &page(&[0, 64, 4095]));
        assert_eq!(deltas.since(7, 2), Some(2));
        assert_eq!(deltas.since(7, 1), Some(3 | 1 << 63));
        assert_eq!(deltas.since(7, 9), None, "a version that it never heard of");
        let mut other = Deltas::new(2);
        other.comes(7, 3, deltas.history(7));
        assert_eq!(other.since(7, 1), Some(3 | 1 << 63));
        deltas.leaves(7, 4, &page(&[]));
        assert_eq!(deltas.since(7, 3), None, "it was written without a twin");
    }

    #[test]
    fn no_more_pages_are_followed_than_allowed_and_no_longer_histories_kept() {
        let mut deltas = Deltas::new(2);
        for index in 0..9 {
            deltas.twin(index, 1);
        }
        assert_eq!(deltas.pages.len(), 2);
        for version in 1..40 {
            deltas.twin(8, version);
            deltas.leaves(8, version + 1, &page(&[version as usize]));
        }
        assert_eq!(deltas.history(8).count(), HISTORY_STEPS);
        assert!(Deltas::new(0).twin(1, 1).is_none());
    }

    #[test]
    fn much_that_changed_is_no_difference() {
        let mut deltas = Deltas::new(1);
        deltas.twin(0, 1).unwrap().fill(0);
        deltas.leaves(0, 2, &[1; PAGE_BYTES]);
        assert_eq!(deltas.since(0, 1), None);
        let (mut old, new) = (page(&[]), page(&[100, 700]));
        let lines = changed_lines(&old, &new);
        let bytes: Vec<u8> = new.chunks_exact(64).filter(|l| l.contains(&1)).flatten().copied().collect();
        patch(&mut old, lines, &bytes);
        assert_eq!(old, new);
    }

    /// What a difference costs the processor: `cargo test --release -p ssi-dsm --lib delta -- --ignored --nocapture`.
    #[test]
    #[ignore = "prints times, and judges nothing"]
    fn times_of_a_twin_and_a_comparison() {
        const ROUNDS: u32 = 100_000;
        let (mut deltas, bytes) = (Deltas::new(1), page(&[100]));
        let start = std::time::Instant::now();
        for version in 1..=u64::from(ROUNDS) {
            *deltas.twin(0, version).unwrap() = std::hint::black_box(bytes);
            deltas.leaves(0, version + 1, std::hint::black_box(&bytes));
        }
        println!("{:?} for a twin and its comparison", start.elapsed() / ROUNDS);
    }
}
