//! Protocol and back end put together, without threads: what a node does for one slice.
//!
//! A [`Driver`] serves one slice, its own or a window. It is called with one event at a time (its owner locks it) and
//! hands what it has to say to an [`Outbox`], in order. Calls for different slices never wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::delta::{self, Deltas};
use crate::protocol::{Action, Config, Input, Message, Node, Refusal, run_pages};
use crate::types::{Access, NodeId, PageNo};
use crate::wire::{Body, Frame, Packet, Repr};

const PAGE_BYTES: usize = 4096;

/// Memory whose pages can be taken from the cell and given to it. Pages are counted from the start of the slice. The
/// operations are those of [`crate::memory`], whose `SliceMemory` is the real one; a simulator has another.
pub trait Memory {
    /// Why an operation failed. Nothing that a peer or a cell does makes one fail.
    type Error;

    /// Pages of the slice.
    fn pages(&self) -> usize;
    /// No write succeeds any more.
    ///
    /// # Errors
    /// If the memory cannot do it; so for all of these.
    fn protect(&self, index: usize) -> Result<(), Self::Error>;
    /// Writes succeed again; waiters wake.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn unprotect(&self, index: usize) -> Result<(), Self::Error>;
    /// No access succeeds any more.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn zap(&self, index: usize) -> Result<(), Self::Error>;
    /// Accesses succeed; waiters wake.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn install(&self, index: usize, access: Access) -> Result<(), Self::Error>;
    /// Every access is an error; waiters wake.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn poison(&self, index: usize) -> Result<(), Self::Error>;
    /// The page's memory is not needed.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn discard(&self, index: usize) -> Result<(), Self::Error>;
    /// Copies the page out.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn read(&self, index: usize, bytes: &mut [u8; PAGE_BYTES]) -> Result<(), Self::Error>;
    /// Copies bytes into the page.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn store(&self, index: usize, bytes: &[u8; PAGE_BYTES]) -> Result<(), Self::Error>;

    /// Copies as many whole pages out as `bytes` holds, from page `index` on.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn read_run(&self, index: usize, bytes: &mut [u8]) -> Result<(), Self::Error> {
        let pages = bytes.chunks_exact_mut(PAGE_BYTES).zip(index..);
        pages
            .filter_map(|(page, n)| Some((page.first_chunk_mut()?, n)))
            .try_for_each(|(page, n)| self.read(n, page))
    }
    /// Copies as many whole pages as `bytes` holds into the pages from `index` on.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn store_run(&self, index: usize, bytes: &[u8]) -> Result<(), Self::Error> {
        let pages = bytes.chunks_exact(PAGE_BYTES).zip(index..);
        pages
            .filter_map(|(page, n)| Some((page.first_chunk()?, n)))
            .try_for_each(|(page, n)| self.store(n, page))
    }
    /// [`Memory::store_run`], and then [`Memory::install_run`] to read.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn place_run(&self, index: usize, bytes: &[u8]) -> Result<(), Self::Error> {
        self.store_run(index, bytes)?;
        self.install_run(index, bytes.len() / PAGE_BYTES, Access::Read)
    }
    /// [`Memory::protect`] for `count` pages from `index` on; so for all of these.
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn protect_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        (index..index + count).try_for_each(|index| self.protect(index))
    }
    /// See [`Memory::protect_run`].
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn zap_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        (index..index + count).try_for_each(|index| self.zap(index))
    }
    /// See [`Memory::protect_run`].
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn install_run(&self, index: usize, count: usize, access: Access) -> Result<(), Self::Error> {
        (index..index + count).try_for_each(|index| self.install(index, access))
    }
    /// See [`Memory::protect_run`].
    ///
    /// # Errors
    /// See [`Memory::protect`].
    fn discard_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        (index..index + count).try_for_each(|index| self.discard(index))
    }
}

/// Takes what a [`Driver`] has to say. Neither method may block or call the driver.
pub trait Outbox {
    /// A message for a peer: a whole frame of [`crate::wire`]. Frames for one peer keep their order.
    fn send(&mut self, to: NodeId, frame: &[u8]);

    /// The answer to [`Driver::fetch`]: the page's current bytes, or `None` if the page is lost.
    fn fetched(&mut self, token: u64, page: PageNo, bytes: Option<&[u8; PAGE_BYTES]>);

    /// A page of this node's own slice is lost: [`Driver::lost_pages`] has it from now on.
    fn lost(&mut self, _page: PageNo) {}

    /// A peer has said what no honest node says ([`Refusal::is_violation`]): its link has to be closed.
    fn violation(&mut self, from: NodeId, why: Refusal) {
        log::error!("{from} has broken the DSM protocol: {why:?}");
    }
}

/// What has happened so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reported accesses that wanted to read.
    pub read_faults_count: u64,
    /// Reported accesses that wanted to write.
    pub write_faults_count: u64,
    /// Messages sent, without pages.
    pub sent_short_count: u64,
    /// Messages sent, with pages or a difference.
    pub sent_page_count: u64,
    /// Those of them with a difference.
    pub sent_difference_count: u64,
    /// Bytes of all messages sent.
    pub sent_bytes: u64,
    /// Messages received, good or bad.
    pub received_count: u64,
    /// Frames that are no message, or about a page that is not of this slice: counted as [`Refusal::Malformed`] too.
    pub malformed_count: u64,
    /// Messages that did not fit the state, by reason.
    pub refused_count: BTreeMap<Refusal, u64>,
    /// Pages lost with a node: of the own slice when that node died, of a window when an access met them.
    pub lost_pages_count: u64,
    /// Pages that came as part of a run.
    pub run_pages_count: u64,
    /// Pages whose memory was given back to the host.
    pub discarded_pages_count: u64,
    /// How long accesses waited, from the report of the fault until the page was there; in the order of [`FaultKind`].
    pub fault_times: [FaultTimes; 3],
}

/// What an access that waited needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The page, to read it.
    Read,
    /// The page, to write it.
    Write,
    /// The right to write a page that was here.
    Upgrade,
}

impl FaultKind {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Upgrade];

    fn of(access: Access) -> Self {
        match access {
            Access::Read => Self::Read,
            Access::Write => Self::Write,
        }
    }
}

/// How long faults of one kind took, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultTimes {
    /// How many there were.
    pub count: u64,
    /// All of them together.
    pub total_us: u64,
    /// The shortest; 0 if there was none.
    pub min_us: u64,
    /// The longest.
    pub max_us: u64,
    /// How many took less than 1, 2, 4, ... microseconds, and no less than half of that; the last one has the rest.
    pub below_us: [u64; 24],
}

impl FaultTimes {
    /// Those of `other` too.
    pub fn merge(&mut self, other: &Self) {
        self.min_us = match (self.count, other.count) {
            (_, 0) => self.min_us,
            (0, _) => other.min_us,
            _ => self.min_us.min(other.min_us),
        };
        self.max_us = self.max_us.max(other.max_us);
        self.count += other.count;
        self.total_us += other.total_us;
        for (mine, more) in self.below_us.iter_mut().zip(&other.below_us) {
            *mine += more;
        }
    }

    fn add(&mut self, us: u64) {
        self.min_us = if self.count == 0 { us } else { self.min_us.min(us) };
        self.max_us = self.max_us.max(us);
        self.count += 1;
        self.total_us += us;
        let bin = (u64::BITS - us.leading_zeros()) as usize;
        self.below_us[bin.min(self.below_us.len() - 1)] += 1;
    }
}

/// One slice of one node: see the [module](self).
#[derive(Debug)]
pub struct Driver<M> {
    node: Node,
    slice: NodeId,
    first: PageNo,
    memory: M,
    deltas: Deltas,
    /// Which life each node is in; 0 unless said otherwise.
    epochs: BTreeMap<NodeId, u32>,
    /// For the next frame to be sent.
    frame: Vec<u8>,
    counters: Counters,
    /// Pages of the slice that accesses of the cell wait for, and since when, in microseconds.
    awaited: BTreeMap<usize, u64>,
    /// Pages of the own slice that are lost; they stay so.
    lost: BTreeSet<PageNo>,
}

impl<M: Memory> Driver<M> {
    /// For the slice of node `slice`, with its memory.
    ///
    /// # Panics
    /// If the memory has not the size that `config` says: a mistake of the program.
    pub fn new(config: Config, slice: NodeId, memory: M) -> Self {
        let pages = config.slices.size / PAGE_BYTES as u64;
        assert_eq!(memory.pages() as u64, pages, "the memory of a slice has the size of a slice");
        let first = config.slices.first_page(slice);
        Self {
            node: Node::new(config),
            slice,
            first,
            memory,
            deltas: Deltas::new(config.twin_pages),
            epochs: BTreeMap::new(),
            frame: vec![],
            counters: Counters::default(),
            awaited: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    /// The slice's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Pages that are not plainly at their home.
    pub fn tracked_pages(&self) -> usize {
        self.node.tracked_pages()
    }

    /// Pages that an access of the cell waits for: something is under way to them.
    pub fn awaited_pages(&self) -> usize {
        self.awaited.len()
    }

    /// Pages of the own slice whose only copy died, from `page` on, in order.
    pub fn lost_pages(&self, page: PageNo) -> impl Iterator<Item = PageNo> {
        self.lost.range(page..).copied()
    }

    /// Pages of the window that take memory here.
    pub fn resident_pages(&self) -> usize {
        self.node.resident_pages()
    }

    /// Changes how many pages of the window may take memory ([`Config::window_pages`]) from the next page on that comes.
    pub fn set_window_pages(&mut self, pages: u64) {
        self.node.set_window_pages(pages);
    }

    /// Says which life a node, this one or another, is in: its messages carry the number, and others of it are refused. 0
    /// unless said otherwise.
    pub fn set_epoch(&mut self, node: NodeId, epoch: u32) {
        self.epochs.insert(node, epoch);
    }

    /// Page `index` is there, or the right that was wanted.
    fn came(&mut self, index: usize, kind: FaultKind, now_us: u64) {
        if let Some(since) = self.awaited.remove(&index) {
            self.counters.fault_times[kind as usize].add(now_us.saturating_sub(since));
        }
    }

    /// When [`Driver::tick`] is due, in microseconds of the caller's clock.
    pub fn next_deadline(&self) -> Option<u64> {
        self.node.next_deadline()
    }

    /// An access of the cell waits for page `index` of the slice.
    ///
    /// # Errors
    /// Of the memory; the slice is of no use afterwards. So for all of these.
    pub fn fault(
        &mut self,
        index: usize,
        access: Access,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        match access {
            Access::Read => self.counters.read_faults_count += 1,
            Access::Write => self.counters.write_faults_count += 1,
        }
        let page = PageNo(self.first.0 + index as u64);
        self.awaited.entry(index).or_insert(now_us);
        self.step(Input::Fault { page, access }, now_us, out)
    }

    /// A frame came from a peer. One that makes no sense is counted, changes nothing, and if no honest peer would have sent
    /// it, [`Outbox::violation`] says so.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn message(
        &mut self,
        from: NodeId,
        frame: &[u8],
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        self.counters.received_count += 1;
        let Some(repr) = self.parse(frame) else {
            self.counters.malformed_count += 1;
            self.refuse(from, Refusal::Malformed, out);
            return Ok(());
        };
        if repr.epoch != self.epoch(from) {
            self.refuse(from, Refusal::Epoch, out);
            return Ok(());
        }
        let actions = self.node.step(Input::Message { from, message: repr.message }, now_us);
        self.act_all(&actions, Some((from, &repr)), now_us, out)
    }

    /// A node will say nothing more.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn node_died(&mut self, node: NodeId, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        self.step(Input::NodeDied(node), now_us, out)
    }

    /// The time of [`Driver::next_deadline`] has come.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn tick(&mut self, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        self.step(Input::Tick, now_us, out)
    }

    /// Brings a page of a window here, readable, if it is not here in some way and can be had at once. A hint.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn prefetch(&mut self, page: PageNo, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        self.prefetch_run(page, 1, now_us, out)
    }

    /// [`Driver::prefetch`] for `count` pages, at most [`crate::protocol::RUN_PAGES`], from `page` on.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn prefetch_run(
        &mut self,
        page: PageNo,
        count: u64,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        if self.index(page).is_none() {
            return Ok(());
        }
        self.step(Input::Prefetch { page, count }, now_us, out)
    }

    /// Gives a copy back to its home, if it is here.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn release(&mut self, page: PageNo, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        if self.index(page).is_none() {
            return Ok(());
        }
        self.step(Input::Release { page }, now_us, out)
    }

    /// The cell has taken a page of its own slice, which is lost, out of use: it may touch it from now on, and finds zeros. To
    /// other nodes it stays lost. A page that is not lost is left as it is.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn bury(&mut self, page: PageNo, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        if !self.lost.contains(&page) {
            return Ok(());
        }
        self.step(Input::Bury { page }, now_us, out)
    }

    /// Asks for the current bytes of a page of the own slice, wherever they are: [`Outbox::fetched`] gets them, now or
    /// in a later call, with `token`.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn fetch(
        &mut self,
        page: PageNo,
        token: u64,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        if self.index(page).is_none() || self.slice != self.node.config().me {
            out.fetched(token, page, None);
            return Ok(());
        }
        self.step(Input::Fetch { page, token }, now_us, out)
    }

    /// A message about pages of this slice.
    fn parse<'f>(&self, frame: &'f [u8]) -> Option<Repr<'f>> {
        let repr = Repr::parse(&Packet::new_checked(frame).ok()?).ok()?;
        let run = run_pages(repr.message.page(), repr.message.run());
        let (_, last) = run.last()?;
        self.index(repr.message.page()).and(self.index(last)).map(|_| repr)
    }

    /// The page's place in this slice.
    fn index(&self, page: PageNo) -> Option<usize> {
        let is_ours = self.node.config().slices.home(page) == Some(self.slice);
        is_ours.then(|| (page.0 - self.first.0) as usize)
    }

    /// The same, of a page that the protocol acts on: it was asked about it, and that was checked to be of this slice.
    fn place(&self, page: PageNo) -> usize {
        page.0.wrapping_sub(self.first.0) as usize
    }

    fn epoch(&self, node: NodeId) -> u32 {
        self.epochs.get(&node).copied().unwrap_or(0)
    }

    fn refuse(&mut self, from: NodeId, why: Refusal, out: &mut impl Outbox) {
        *self.counters.refused_count.entry(why).or_default() += 1;
        if why.is_violation() {
            out.violation(from, why);
        }
    }

    fn step(&mut self, input: Input, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        let actions = self.node.step(input, now_us);
        self.act_all(&actions, None, now_us, out)
    }

    /// Does all of it in order; what is the same for neighbours, at once. `said` is the message being handled, and whose.
    fn act_all(
        &mut self,
        mut actions: &[Action],
        said: Option<(NodeId, &Repr<'_>)>,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        while let Some(&action) = actions.first() {
            let mut count = 1;
            while actions.get(count).is_some_and(|&next| follows(action, next, count as u64)) {
                count += 1;
            }
            actions = &actions[count..];
            match action {
                Action::Protect(page) => self.memory.protect_run(self.place(page), count)?,
                Action::Zap(page) => self.memory.zap_run(self.place(page), count)?,
                Action::Install { page, access } => {
                    let (index, kind) = (self.place(page), FaultKind::of(access));
                    (index..index + count).for_each(|index| self.came(index, kind, now_us));
                    self.memory.install_run(index, count, access)?;
                }
                Action::Discard(page) => {
                    let index = self.place(page);
                    (index..index + count).for_each(|index| self.deltas.forget(index));
                    self.counters.discarded_pages_count += count as u64;
                    self.memory.discard_run(index, count)?;
                }
                Action::Store(page) => {
                    if let Some((_, repr)) = said {
                        self.store(page, count, repr, false)?;
                    }
                }
                Action::Place(page) => {
                    if let Some((_, repr)) = said {
                        let first = self.place(page);
                        (first..first + count).for_each(|index| self.came(index, FaultKind::Read, now_us));
                        self.store(page, count, repr, true)?;
                    }
                }
                other => self.act(other, said, now_us, out)?,
            }
        }
        Ok(())
    }

    fn act(
        &mut self,
        action: Action,
        said: Option<(NodeId, &Repr<'_>)>,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        match action {
            Action::Send { to, message } => self.send(to, &message, out)?,
            Action::Unprotect(page) => {
                let index = self.place(page);
                self.came(index, FaultKind::Upgrade, now_us);
                self.memory.unprotect(index)?;
            }
            Action::Twin { page, version } => {
                let index = self.place(page);
                if let Some(twin) = self.deltas.twin(index, version) {
                    self.memory.read(index, twin)?;
                }
            }
            Action::Poison(page) => {
                if self.slice != self.node.config().me {
                    log::error!("{page} is lost: the only copy died with its node");
                    self.counters.lost_pages_count += 1;
                }
                self.deltas.forget(self.place(page));
                self.awaited.remove(&self.place(page));
                self.memory.poison(self.place(page))?;
            }
            Action::Lost(page) => {
                self.counters.lost_pages_count += 1;
                self.lost.insert(page);
                out.lost(page);
            }
            Action::Fetched { page, token, lost } => {
                let mut bytes = [0; PAGE_BYTES];
                if !lost {
                    self.memory.read(self.place(page), &mut bytes)?;
                }
                out.fetched(token, page, (!lost).then_some(&bytes));
            }
            Action::Refuse(why) => match said {
                Some((from, _)) => self.refuse(from, why, out),
                None => *self.counters.refused_count.entry(why).or_default() += 1,
            },
            // Done in runs.
            Action::Protect(_)
            | Action::Zap(_)
            | Action::Store(_)
            | Action::Place(_)
            | Action::Install { .. }
            | Action::Discard(_) => {}
        }
        Ok(())
    }

    /// Puts the bytes of `count` pages, as they came with the message, in their place, and has them installed to read if
    /// `install` says so.
    fn store(&mut self, page: PageNo, count: usize, repr: &Repr<'_>, install: bool) -> Result<(), M::Error> {
        let index = self.place(page);
        let version = match repr.message {
            Message::Data { version, .. }
            | Message::DataRun { version, .. }
            | Message::WriteBack { version, .. } => version,
            _ => return Ok(()),
        };
        match repr.body {
            Body::Nothing => {}
            Body::Pages { history, bytes } => {
                let nth = page.0 - repr.message.page().0;
                let before = repr.message.pages() & ((1_u64 << nth) - 1);
                let start = before.count_ones() as usize * PAGE_BYTES;
                // Neighbours that are given follow each other in the message.
                let bytes = bytes.get(start..start + count * PAGE_BYTES).unwrap_or_default();
                match bytes.first_chunk() {
                    _ if install => self.memory.place_run(index, bytes)?,
                    Some(page) if count == 1 => self.memory.store(index, page)?,
                    _ => self.memory.store_run(index, bytes)?,
                }
                (index..index + count).for_each(|index| self.deltas.comes(index, version, history.steps()));
                if matches!(repr.message, Message::DataRun { .. }) {
                    self.counters.run_pages_count += count as u64;
                }
            }
            Body::Difference { history, lines, bytes } => {
                let mut whole = [0; PAGE_BYTES];
                self.memory.read(index, &mut whole)?;
                delta::patch(&mut whole, lines, bytes);
                self.memory.store(index, &whole)?;
                self.deltas.comes(index, version, history.steps());
            }
        }
        Ok(())
    }

    fn send(&mut self, to: NodeId, message: &Message, out: &mut impl Outbox) -> Result<(), M::Error> {
        let epoch = self.epoch(self.node.config().me);
        let mut buffer = std::mem::take(&mut self.frame);
        let mut frame = Frame::new(message, epoch, &mut buffer);
        match *message {
            Message::Data { page, version, held, .. } | Message::WriteBack { page, version, held, .. } => {
                let index = self.place(page);
                let mut bytes = [0; PAGE_BYTES];
                self.memory.read(index, &mut bytes)?;
                self.deltas.leaves(index, version, &bytes);
                frame.history(self.deltas.history(index));
                match self.deltas.since(index, held).filter(|_| held != 0) {
                    Some(lines) => {
                        self.counters.sent_difference_count += 1;
                        frame.difference(lines, &bytes);
                    }
                    None => *frame.page() = bytes,
                }
            }
            _ => {
                let mut pages = run_pages(message.page(), message.pages()).peekable();
                while let Some((_, first)) = pages.next() {
                    let mut count = 1;
                    while pages.next_if(|&(_, page)| page.0 == first.0 + count as u64).is_some() {
                        count += 1;
                    }
                    self.memory.read_run(self.place(first), frame.pages(count))?;
                }
            }
        }
        let frame = frame.finish();
        match message.pages() {
            0 => self.counters.sent_short_count += 1,
            _ => self.counters.sent_page_count += 1,
        }
        self.counters.sent_bytes += frame.len() as u64;
        out.send(to, frame);
        self.frame = buffer;
        Ok(())
    }
}

/// Is `next` the same as `action`, for the page `count` pages later?
fn follows(action: Action, next: Action, count: u64) -> bool {
    let after = |page: PageNo| PageNo(page.0 + count);
    match action {
        Action::Protect(page) => next == Action::Protect(after(page)),
        Action::Zap(page) => next == Action::Zap(after(page)),
        Action::Discard(page) => next == Action::Discard(after(page)),
        Action::Store(page) => next == Action::Store(after(page)),
        Action::Place(page) => next == Action::Place(after(page)),
        Action::Install { page, access } => next == Action::Install { page: after(page), access },
        _ => false,
    }
}

#[cfg(target_os = "linux")]
impl Memory for std::sync::Arc<crate::memory::SliceMemory> {
    type Error = crate::memory::Error;

    fn pages(&self) -> usize {
        self.as_ref().pages()
    }
    fn protect(&self, index: usize) -> Result<(), Self::Error> {
        self.as_ref().protect(index)
    }
    fn unprotect(&self, index: usize) -> Result<(), Self::Error> {
        self.as_ref().unprotect(index)
    }
    fn zap(&self, index: usize) -> Result<(), Self::Error> {
        self.as_ref().zap(index)
    }
    fn install(&self, index: usize, access: Access) -> Result<(), Self::Error> {
        self.as_ref().install(index, access)
    }
    fn poison(&self, index: usize) -> Result<(), Self::Error> {
        self.as_ref().poison(index)
    }
    fn discard(&self, index: usize) -> Result<(), Self::Error> {
        self.as_ref().discard(index)
    }
    fn read(&self, index: usize, bytes: &mut [u8; PAGE_BYTES]) -> Result<(), Self::Error> {
        self.as_ref().read(index, bytes)
    }
    fn store(&self, index: usize, bytes: &[u8; PAGE_BYTES]) -> Result<(), Self::Error> {
        self.as_ref().store(index, bytes)
    }
    fn protect_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        self.as_ref().protect_run(index, count)
    }
    fn zap_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        self.as_ref().zap_run(index, count)
    }
    fn install_run(&self, index: usize, count: usize, access: Access) -> Result<(), Self::Error> {
        self.as_ref().install_run(index, count, access)
    }
    fn discard_run(&self, index: usize, count: usize) -> Result<(), Self::Error> {
        self.as_ref().discard_run(index, count)
    }
    fn read_run(&self, index: usize, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.as_ref().read_run(index, bytes)
    }
    fn store_run(&self, index: usize, bytes: &[u8]) -> Result<(), Self::Error> {
        self.as_ref().store_run(index, bytes)
    }
    fn place_run(&self, index: usize, bytes: &[u8]) -> Result<(), Self::Error> {
        self.as_ref().place_run(index, bytes)
    }
}
