//! A map by page in which neighbours lie together: runs of pages are looked up, made and freed with few allocations.

use std::collections::BTreeMap;

use crate::types::PageNo;

/// Pages of a chunk.
const CHUNK: u64 = u64::BITS as u64;

/// Up to 64 neighbours: a bit for each that is there, and their values in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Chunk<T> {
    bits: u64,
    values: Vec<T>,
}

impl<T> Chunk<T> {
    fn bit(page: PageNo) -> u64 {
        1 << (page.0 % CHUNK)
    }

    fn has(&self, page: PageNo) -> bool {
        self.bits & Self::bit(page) != 0
    }

    /// Where the page's value is, or would be.
    fn index(&self, page: PageNo) -> usize {
        (self.bits & (Self::bit(page) - 1)).count_ones() as usize
    }

    fn get(&self, page: PageNo) -> Option<&T> {
        if self.has(page) { self.values.get(self.index(page)) } else { None }
    }

    fn get_mut(&mut self, page: PageNo) -> Option<&mut T> {
        let index = self.index(page);
        if self.has(page) { self.values.get_mut(index) } else { None }
    }

    fn pages(&self, chunk: u64) -> impl Iterator<Item = PageNo> + use<T> {
        super::run_pages(PageNo(chunk * CHUNK), self.bits).map(|(_, page)| page)
    }
}

/// The map. Iterates in the order of the pages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pages<T> {
    /// By page / 64; none is empty.
    chunks: BTreeMap<u64, Chunk<T>>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { chunks: BTreeMap::new() }
    }
}

impl<T> Pages<T> {
    pub(super) fn get(&self, page: &PageNo) -> Option<&T> {
        self.chunks.get(&(page.0 / CHUNK))?.get(*page)
    }

    pub(super) fn get_mut(&mut self, page: &PageNo) -> Option<&mut T> {
        self.chunks.get_mut(&(page.0 / CHUNK))?.get_mut(*page)
    }

    /// The page's value, made by `make` if there is none.
    pub(super) fn get_or_insert_with(&mut self, page: PageNo, make: impl FnOnce() -> T) -> &mut T {
        let empty = || Chunk { bits: 0, values: vec![] };
        let chunk = self.chunks.entry(page.0 / CHUNK).or_insert_with(empty);
        let index = chunk.index(page);
        if !chunk.has(page) {
            chunk.values.insert(index, make());
            chunk.bits |= Chunk::<T>::bit(page);
        }
        &mut chunk.values[index]
    }

    pub(super) fn insert(&mut self, page: PageNo, value: T) {
        let mut value = Some(value);
        // What was made just now is the value itself.
        let slot = self.get_or_insert_with(page, || value.take().expect("made once"));
        if let Some(value) = value {
            *slot = value;
        }
    }

    pub(super) fn remove(&mut self, page: &PageNo) -> Option<T> {
        let chunk = self.chunks.get_mut(&(page.0 / CHUNK)).filter(|chunk| chunk.has(*page))?;
        let value = chunk.values.remove(chunk.index(*page));
        chunk.bits &= !Chunk::<T>::bit(*page);
        if chunk.bits == 0 {
            self.chunks.remove(&(page.0 / CHUNK));
        }
        Some(value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = PageNo> {
        self.chunks.iter().flat_map(|(&n, chunk)| chunk.pages(n))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.chunks.values().flat_map(|chunk| &chunk.values)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PageNo, &mut T)> {
        self.chunks.iter_mut().flat_map(|(&n, chunk)| chunk.pages(n).zip(&mut chunk.values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_in_order(steps in prop::collection::vec((0_u64..200, 0_u8..4, any::<u16>()), 1..400)) {
            let (mut pages, mut map) = (Pages::default(), BTreeMap::new());
            for (page, what, value) in steps {
                let page = PageNo(page);
                match what {
                    0 => {
                        pages.insert(page, value);
                        map.insert(page, value);
                    }
                    1 => prop_assert_eq!(pages.remove(&page), map.remove(&page)),
                    2 => prop_assert_eq!(
                        pages.get_or_insert_with(page, || value),
                        map.entry(page).or_insert(value)
                    ),
                    _ => prop_assert_eq!(pages.get_mut(&page), map.get_mut(&page)),
                }
                prop_assert_eq!(pages.get(&page), map.get(&page));
            }
            prop_assert!(pages.keys().eq(map.keys().copied()));
            prop_assert!(pages.values().eq(map.values()));
            prop_assert!(pages.iter_mut().map(|(page, value)| (page, *value)).eq(map.clone()));
            let mut again = Pages::default();
            map.iter().rev().for_each(|(page, value)| again.insert(*page, *value));
            prop_assert_eq!(again, pages, "equal however it was made");
        }
    }
}
