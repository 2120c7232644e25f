//! Who has copies of one page.

use smallvec::SmallVec;

use crate::types::NodeId;

/// What is known of each node that has a copy, in the order of the nodes. Most pages have one or two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Sharers<T>(SmallVec<[(NodeId, T); 2]>);

impl<T> Sharers<T> {
    pub(super) fn none() -> Self {
        Self(SmallVec::new())
    }

    pub(super) fn one(node: NodeId, value: T) -> Self {
        let mut sharers = Self::none();
        sharers.insert(node, value);
        sharers
    }

    fn find(&self, node: NodeId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&node, |(node, _)| *node)
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&T> {
        self.find(node).ok().map(|index| &self.0[index].1)
    }

    pub(super) fn has(&self, node: NodeId) -> bool {
        self.find(node).is_ok()
    }

    pub(super) fn insert(&mut self, node: NodeId, value: T) {
        match self.find(node) {
            Ok(index) => self.0[index].1 = value,
            Err(index) => self.0.insert(index, (node, value)),
        }
    }

    /// Was it there?
    pub(super) fn remove(&mut self, node: NodeId) -> bool {
        self.find(node).map(|index| self.0.remove(index)).is_ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &T)> {
        self.0.iter().map(|(node, value)| (*node, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut T)> {
        self.0.iter_mut().map(|(node, value)| (*node, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_in_order_and_each_is_there_once() {
        let mut sharers = Sharers::one(NodeId(7), 'a');
        for (node, value) in [(3, 'b'), (9, 'c'), (3, 'd'), (5, 'e')] {
            sharers.insert(NodeId(node), value);
        }
        assert!(sharers.remove(NodeId(9)) && !sharers.remove(NodeId(9)));
        assert!(sharers.iter().eq([(NodeId(3), &'d'), (NodeId(5), &'e'), (NodeId(7), &'a')]));
        assert!(sharers.has(NodeId(5)) && !sharers.has(NodeId(9)));
        assert_eq!(sharers.get(NodeId(7)), Some(&'a'));
    }
}
