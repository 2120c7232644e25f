//! Runs of accesses: found by their faults, and fetched ahead.
//!
//! Two faults on neighbours make a stream; the pages after them are asked for in one message. The first page of what is asked
//! for stays unmapped when it comes (a *marker*): the fault on it costs no message, says that what was fetched is used, and
//! has the next pages asked for, twice as many, while the accesses go through what is here. A marker that goes unused halves
//! the stream's run.

use super::message::RUN_PAGES;
use super::{Node, Step};
use crate::types::{NodeId, PageNo};

/// Streams that are followed at once.
const STREAMS: usize = 4;
/// Pages of a stream's first run.
const FIRST_PAGES: u64 = 4;

/// One stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stream {
    /// The page after the last fault; the stream's next fault without a run.
    next: u64,
    /// The page after those that were asked for.
    ahead: u64,
    /// An access to this page asks for the next run.
    marker: u64,
    /// Pages of the last run; 0: none yet.
    run: u64,
}

/// The streams of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Streams {
    known: Vec<Stream>,
    /// Which one is replaced next.
    oldest: usize,
}

impl Streams {
    /// A marker was given up unused.
    pub(super) fn wasted(&mut self, page: PageNo) {
        for stream in self.known.iter_mut().filter(|s| s.marker == page.0) {
            stream.run /= 2;
        }
    }

    /// A fault on `page`: what is to be asked for, as first page and number, if anything, and whose stream it is.
    fn fault(&mut self, page: u64, most: u64) -> Option<(usize, u64, u64)> {
        let at = |s: &Stream| s.marker == page || (s.next..=s.ahead).contains(&page);
        let Some(index) = self.known.iter().position(at) else {
            let stream = Stream { next: page + 1, ahead: page + 1, marker: u64::MAX, run: 0 };
            if self.known.len() < STREAMS {
                self.known.push(stream);
            } else {
                self.known[self.oldest] = stream;
                self.oldest = (self.oldest + 1) % STREAMS;
            }
            return None;
        };
        let stream = &mut self.known[index];
        stream.next = page + 1;
        let ran_dry = page >= stream.ahead;
        if stream.run != 0 && page != stream.marker && !ran_dry && stream.ahead > page + 1 {
            return None;
        }
        stream.ahead = stream.ahead.max(page + 1);
        stream.run = if stream.run == 0 { FIRST_PAGES } else { stream.run * 2 }.min(most);
        Some((index, stream.ahead, stream.run))
    }
}

impl Node {
    /// A read of `page` has faulted: asks for what comes after it, if it is part of a stream.
    pub(super) fn run_ahead(&mut self, page: PageNo, home: NodeId, step: &mut Step) {
        // What is fetched ahead must not push out what is used.
        let most = self.config.prefetch_pages.min(RUN_PAGES as u64).min(self.config.window_pages / 4);
        if most == 0 {
            return;
        }
        let Some((index, first, count)) = self.streams.fault(page.0, most) else { return };
        let (looked, marker) = self.ask_run(PageNo(first), home, count, true, step);
        let stream = &mut self.streams.known[index];
        stream.ahead = first + looked;
        stream.marker = marker.map_or(u64::MAX, |page| page.0);
    }
}
