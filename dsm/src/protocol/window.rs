//! What of a window stays here: the order in which pages are given up when there are more than the budget.
//!
//! The kernel tells nobody which mapped pages are accessed, so the order is that of their coming; a page that was faulted on
//! again since then (for more rights, or after it was taken away) gets a second chance.

use super::holder::Copy;
use super::{Action, Node, Step};
use crate::types::PageNo;

/// Pages are given up in batches, so that neighbours go together.
const BATCH_PAGES: u64 = 16;

impl Node {
    /// Pages of other homes whose bytes take memory here, be they current or not.
    pub fn resident_pages(&self) -> usize {
        self.order.len()
    }

    /// Changes [`super::Config::window_pages`]; takes effect with the next page that comes.
    pub fn set_window_pages(&mut self, pages: u64) {
        self.config.window_pages = pages;
    }

    /// The page's bytes take memory from now on.
    pub(super) fn enlist(&mut self, page: PageNo) {
        let Some(copy) = self.copies.get_mut(&page) else { return };
        if copy.turn == 0 {
            self.last_turn += 1;
            copy.turn = self.last_turn;
            self.order.insert(copy.turn, page);
        }
    }

    /// They do not any more.
    pub(super) fn delist(&mut self, page: PageNo) {
        if let Some(copy) = self.copies.get(&page) {
            self.order.remove(&copy.turn);
        }
    }

    /// Gives up pages if there are too many, but not `keep`.
    pub(super) fn trim(&mut self, keep: PageNo, step: &mut Step) {
        self.trim_but(Some(keep), step);
    }

    pub(super) fn trim_all(&mut self, step: &mut Step) {
        self.trim_but(None, step);
    }

    fn trim_but(&mut self, keep: Option<PageNo>, step: &mut Step) {
        let budget = self.config.window_pages;
        let count = self.order.len() as u64;
        if count <= budget {
            return;
        }
        let wanted = count - budget + (budget / 8).min(BATCH_PAGES);
        let mut victims = vec![];
        // Each page is looked at once, and once more if it gets its second chance.
        let mut looks = self.order.len() * 2;
        while (victims.len() as u64) < wanted && looks > 0 {
            looks -= 1;
            let Some((_, page)) = self.order.pop_first() else { break };
            let Some(copy) = self.copies.get_mut(&page) else { continue };
            copy.turn = 0;
            match copy.evictable(step.now) {
                _ if Some(page) == keep => {}
                Ok(()) if !std::mem::take(&mut copy.missed) => {
                    victims.push(page);
                    continue;
                }
                Ok(()) | Err(None) => {}
                Err(Some(at)) => drop(self.deadlines.insert((at, page))),
            }
            self.enlist(page);
        }
        victims.sort_unstable();
        for &page in &victims {
            if let Some(home) = self.home(page) {
                self.drop_copy(page, home, step);
            }
        }
        step.actions.extend(victims.into_iter().map(Action::Discard));
    }

    /// Pages of other homes of which more is known than bytes that are kept.
    pub(super) fn live_copies(&self) -> usize {
        self.copies.values().filter(|copy: &&Copy| copy.is_live()).count()
    }
}
