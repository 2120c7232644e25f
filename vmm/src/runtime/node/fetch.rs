//! Page operations of the ssi device: FETCH over the fabric, both ends.
//!
//! ```text
//! PageWorker -- submit --> one FetchRequest a cell --> that node's "fetch" thread, reads RAM outside coherence
//!            <- PageDone - reader of class `fetch` <-- FetchReply, at most 64 pages each
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam_channel::{Receiver, Sender, bounded};
use ssi_proto::device::{LOST_RUNS_MAX, PAGE_REQUEST_MAX, PAGE_SIZE, PageOp, PageStatus, emit_lost};

use crate::devices::virtio::ssi::{PAGES_IN_FLIGHT_MAX, PageBytes, PageDone, PageService, PageTask};
use crate::fabric::wire::FETCH_REPLY_PAGES;
use crate::fabric::{Class, Fabric, Handler, Header, Kind, Peer, Violation};
use crate::worker::{Exit, Worker};

const PAGE: usize = PAGE_SIZE as usize;

/// The memory that other nodes fetch from: this node's low RAM and slice.
pub trait PageSource: Send + Sync {
    /// Copies the page at guest-physical `gpa` into `page`.
    fn read(&self, gpa: u64, page: &mut [u8; PAGE]) -> PageStatus;
    /// PREFETCH of a page of another cell's slice: a hint.
    fn prefetch(&self, gpa: u64);
    /// RELEASE of a page of another cell's slice: a hint.
    fn release(&self, gpa: u64);
    /// LOST: the lost pages of the own slice from `gpa` on; the first `most` runs.
    fn lost_runs(&self, gpa: u64, most: usize) -> Vec<Range<u64>>;
    /// The cell has taken a lost page of its own slice out of use.
    fn bury(&self, gpa: u64);
}

/// A request that is under way.
#[derive(Debug)]
struct Pending {
    cell: u32,
    left: usize,
    tasks: Vec<Option<PageDone>>,
}

/// What a peer asked for.
#[derive(Debug)]
struct Asked {
    from: Peer,
    tag: u64,
    addresses: Vec<u64>,
}

/// The service: asks for the device, and serves the peers.
pub struct Fetch {
    fabric: Weak<Fabric>,
    source: Arc<dyn PageSource>,
    tag: AtomicU64,
    pending: Mutex<BTreeMap<u64, Pending>>,
    asked: Sender<Asked>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("pending", &self.pending().len()).finish_non_exhaustive()
    }
}

impl Fetch {
    /// Over `fabric`, of `nodes` nodes; serves pages of `source` on a thread of its own.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        fabric: &Arc<Fabric>,
        nodes: u32,
        source: Arc<dyn PageSource>,
        exit: &Exit,
    ) -> std::io::Result<(Arc<Self>, Worker)> {
        // As many requests as all peers together may have under way, of one page each.
        let (asked, queue) = bounded(PAGES_IN_FLIGHT_MAX * nodes as usize);
        let fetch = Arc::new(Self {
            fabric: Arc::downgrade(fabric),
            source: source.clone(),
            tag: AtomicU64::new(1),
            pending: Mutex::default(),
            asked,
        });
        let replies = Arc::downgrade(fabric);
        let worker = Worker::spawn("fetch", exit, move |stop| {
            while !stop.is_triggered() {
                serve(&queue, source.as_ref(), &replies);
            }
            Ok(())
        })?;
        Ok((fetch, worker))
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `cell` is dead: everything that was asked of it is answered so.
    pub fn died(&self, cell: u32) {
        let dead: Vec<Pending> = {
            let mut pending = self.pending();
            let tags: Vec<u64> =
                pending.iter().filter(|(_, request)| request.cell == cell).map(|(tag, _)| *tag).collect();
            tags.iter().filter_map(|tag| pending.remove(tag)).collect()
        };
        for task in dead.into_iter().flat_map(|request| request.tasks).flatten() {
            task.finished(PageStatus::Dead);
        }
    }

    fn ask(&self, cell: u32, tasks: Vec<PageTask>) {
        let addresses: Vec<u8> = tasks.iter().flat_map(|task| task.remote.to_le_bytes()).collect();
        let tag = self.tag.fetch_add(1, Ordering::Relaxed);
        let tasks: Vec<Option<PageDone>> = tasks.into_iter().map(|task| Some(task.done)).collect();
        self.pending().insert(tag, Pending { cell, left: tasks.len(), tasks });
        let peer = Peer::Node(cell);
        let sent = self.fabric.upgrade().is_some_and(|fabric| {
            fabric.send(peer, Class::Fetch, Kind::FetchRequest, tag, &[&addresses]).is_ok()
                // It may have died before the request was entered: `died` has then not seen it.
                && fabric.membership().is_alive(peer)
        });
        if !sent {
            self.died(cell);
        }
    }

    fn reply(&self, from: Peer, tag: u64, payload: &[u8]) -> Result<(), Violation> {
        let bad = |why: &str| Violation(format!("a fetch reply that {why}"));
        let reply = Reply::parse(payload).ok_or_else(|| bad("does not hold what it says"))?;
        let mut pending = self.pending();
        // Of a request that was given up meanwhile.
        let Some(request) = pending.get_mut(&tag) else { return Ok(()) };
        if from != Peer::Node(request.cell) {
            return Err(bad("answers another node's request"));
        }
        let slots = request.tasks.get_mut(reply.first..reply.first + reply.status.len());
        let slots = slots.ok_or_else(|| bad("answers more than was asked"))?;
        let mut pages = reply.pages;
        let mut done = 0;
        for (slot, status) in slots.iter_mut().zip(&reply.status) {
            let task = slot.take().ok_or_else(|| bad("answers a page twice"))?;
            done += 1;
            match status {
                PageStatus::Done => {
                    let (page, rest) = pages.split_at(PAGE);
                    pages = rest;
                    let mut bytes: PageBytes = Box::new([0; PAGE]);
                    bytes.copy_from_slice(page);
                    task.fetched(bytes);
                }
                other => task.finished(*other),
            }
        }
        request.left -= done;
        if request.left == 0 {
            pending.remove(&tag);
        }
        Ok(())
    }
}

/// A reply, checked: as many pages as there are statuses that say so.
struct Reply<'a> {
    first: usize,
    status: Vec<PageStatus>,
    pages: &'a [u8],
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Reply<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (first, count) = (le32(payload, 0)? as usize, le32(payload, 4)? as usize);
        if count > FETCH_REPLY_PAGES || first > PAGE_REQUEST_MAX {
            return None;
        }
        let status = (0..count)
            .map(|index| match le32(payload, 8 + 4 * index)? {
                0 => Some(PageStatus::Done),
                1 => Some(PageStatus::Bad),
                2 => Some(PageStatus::Dead),
                3 => Some(PageStatus::Failed),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()?;
        let pages = payload.get(8 + 4 * count..)?;
        let there = status.iter().filter(|status| **status == PageStatus::Done).count();
        (pages.len() == there * PAGE).then_some(Self { first, status, pages })
    }

    /// The bytes of a reply for the entries from `first` on, with `pages` for those that are done.
    fn emit(first: usize, status: &[PageStatus], pages: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 4 * status.len() + pages.len());
        for word in [first, status.len()] {
            out.extend_from_slice(&u32::try_from(word).unwrap_or(u32::MAX).to_le_bytes());
        }
        for status in status {
            out.extend_from_slice(&(*status as u32).to_le_bytes());
        }
        out.extend_from_slice(pages);
        out
    }
}

/// Serves one request, or none within a moment.
fn serve(queue: &Receiver<Asked>, source: &dyn PageSource, fabric: &Weak<Fabric>) {
    // The stop event of a worker has no channel: look at it now and then.
    let Ok(asked) = queue.recv_timeout(std::time::Duration::from_millis(100)) else { return };
    let mut page = [0; PAGE];
    for (chunk, addresses) in asked.addresses.chunks(FETCH_REPLY_PAGES).enumerate() {
        let mut pages = Vec::with_capacity(addresses.len() * PAGE);
        let mut status = Vec::with_capacity(addresses.len());
        for gpa in addresses {
            let read = source.read(*gpa, &mut page);
            if read == PageStatus::Done {
                pages.extend_from_slice(&page);
            }
            status.push(read);
        }
        let reply = Reply::emit(chunk * FETCH_REPLY_PAGES, &status, &pages);
        let Some(fabric) = fabric.upgrade() else { return };
        // A peer that died meanwhile waits for nothing.
        if fabric.send(asked.from, Class::Fetch, Kind::FetchReply, asked.tag, &[&reply]).is_err() {
            return;
        }
    }
}

impl PageService for Fetch {
    fn submit(&self, op: PageOp, tasks: Vec<PageTask>) {
        match op {
            PageOp::Fetch => {
                let mut cells: BTreeMap<u32, Vec<PageTask>> = BTreeMap::new();
                for task in tasks {
                    cells.entry(task.cell).or_default().push(task);
                }
                cells.into_iter().for_each(|(cell, tasks)| self.ask(cell, tasks));
            }
            PageOp::Lost => {
                for task in tasks {
                    let runs = self.source.lost_runs(task.remote, LOST_RUNS_MAX);
                    task.done.fetched(emit_lost(&runs));
                }
            }
            PageOp::Prefetch | PageOp::Release => {
                for task in tasks {
                    if op == PageOp::Prefetch {
                        self.source.prefetch(task.remote);
                    } else {
                        self.source.release(task.remote);
                    }
                    task.done.finished(PageStatus::Done);
                }
            }
        }
    }

    fn bury(&self, gpa: u64) {
        self.source.bury(gpa);
    }
}

impl Handler for Fetch {
    fn message(&self, from: Peer, _: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        match header.kind {
            Kind::FetchReply => self.reply(from, header.tag, payload),
            _ => {
                let (addresses, rest) = payload.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(Violation("a fetch request that is cut short".to_owned()));
                }
                let addresses = addresses.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
                self.asked
                    .try_send(Asked { from, tag: header.tag, addresses })
                    .map_err(|_| Violation("more fetch requests than a node may have under way".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_holds_a_page_for_each_status_that_says_so() {
        let status = [PageStatus::Done, PageStatus::Bad, PageStatus::Done];
        let pages = [vec![1; PAGE], vec![2; PAGE]].concat();
        let bytes = Reply::emit(64, &status, &pages);
        let reply = Reply::parse(&bytes).unwrap();
        assert_eq!((reply.first, reply.status.as_slice(), reply.pages), (64, &status[..], &pages[..]));
        for cut in [0, 4, 8, 12, 20, bytes.len() - 1] {
            assert!(Reply::parse(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        let mut more = bytes.clone();
        more[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Reply::parse(&more).is_none());
    }
}
