//! Protocol and back end put together, without threads: what a node does for one slice.
//!
//! A [`Driver`] serves one slice, its own or a window. It is called with one event at a time (its owner locks it) and
//! hands what it has to say to an [`Outbox`], in order. Calls for different slices never wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::{Action, Config, Input, Message, Node, Refusal};
use crate::types::{Access, NodeId, PageNo};
use crate::wire::{self, HEADER_BYTES, MAX_BYTES, Packet, Repr};

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
}

/// Takes what a [`Driver`] has to say. Neither method may block or call the driver.
pub trait Outbox {
    /// A message for a peer: a whole frame of [`crate::wire`]. Frames for one peer keep their order.
    fn send(&mut self, to: NodeId, frame: &[u8]);

    /// The answer to [`Driver::fetch`]: the page's current bytes, or `None` if the page is lost.
    fn fetched(&mut self, token: u64, page: PageNo, bytes: Option<&[u8; PAGE_BYTES]>);
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
    /// Messages sent, with a page.
    pub sent_page_count: u64,
    /// Messages received, good or bad.
    pub received_count: u64,
    /// Frames that are no message, or about a page that is not of this slice.
    pub malformed_count: u64,
    /// Messages that did not fit the state, by reason.
    pub refused_count: BTreeMap<Refusal, u64>,
    /// Pages lost with a node.
    pub lost_pages_count: u64,
}

/// One slice of one node: see the [module](self).
#[derive(Debug)]
pub struct Driver<M> {
    node: Node,
    slice: NodeId,
    first: PageNo,
    memory: M,
    counters: Counters,
    /// Pages of the slice that accesses of the cell wait for.
    awaited: BTreeSet<usize>,
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
            counters: Counters::default(),
            awaited: BTreeSet::new(),
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
        self.awaited.insert(index);
        self.step(Input::Fault { page, access }, None, now_us, out)
    }

    /// A frame came from a peer. One that makes no sense is counted, and changes nothing.
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
        let Some((message, bytes)) = self.parse(frame) else {
            self.counters.malformed_count += 1;
            return Ok(());
        };
        self.step(Input::Message { from, message }, bytes, now_us, out)
    }

    /// A node will say nothing more.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn node_died(&mut self, node: NodeId, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        self.step(Input::NodeDied(node), None, now_us, out)
    }

    /// The time of [`Driver::next_deadline`] has come.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn tick(&mut self, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        self.step(Input::Tick, None, now_us, out)
    }

    /// Brings a page of a window here, readable, if it is not here in some way. A hint.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn prefetch(&mut self, page: PageNo, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        if self.index(page).is_none() {
            return Ok(());
        }
        self.step(Input::Prefetch { page }, None, now_us, out)
    }

    /// Gives a copy back to its home, if it is here.
    ///
    /// # Errors
    /// See [`Driver::fault`].
    pub fn release(&mut self, page: PageNo, now_us: u64, out: &mut impl Outbox) -> Result<(), M::Error> {
        if self.index(page).is_none() {
            return Ok(());
        }
        self.step(Input::Release { page }, None, now_us, out)
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
        self.step(Input::Fetch { page, token }, None, now_us, out)
    }

    fn parse<'f>(&self, frame: &'f [u8]) -> Option<(Message, Option<&'f [u8; PAGE_BYTES]>)> {
        let packet = Packet::new_checked(frame).ok()?;
        let message = Repr::parse(&packet).ok()?.message;
        self.index(message.page()).map(|_| (message, packet.payload()))
    }

    /// The page's place in this slice.
    fn index(&self, page: PageNo) -> Option<usize> {
        let is_ours = self.node.config().slices.home(page) == Some(self.slice);
        is_ours.then(|| (page.0 - self.first.0) as usize)
    }

    fn step(
        &mut self,
        input: Input,
        bytes: Option<&[u8; PAGE_BYTES]>,
        now_us: u64,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        for action in self.node.step(input, now_us) {
            self.act(action, bytes, out)?;
        }
        Ok(())
    }

    fn act(
        &mut self,
        action: Action,
        bytes: Option<&[u8; PAGE_BYTES]>,
        out: &mut impl Outbox,
    ) -> Result<(), M::Error> {
        // The protocol acts only on pages it was asked about, and those were checked to be of this slice.
        let first = self.first.0;
        let place = |page: PageNo| page.0.wrapping_sub(first) as usize;
        match action {
            Action::Send { to, message } => {
                let mut buffer = [0; MAX_BYTES];
                let frame = wire::emit(&message, &mut buffer);
                if let Some(page) = frame[HEADER_BYTES..].first_chunk_mut() {
                    self.memory.read(place(message.page()), page)?;
                    self.counters.sent_page_count += 1;
                } else {
                    self.counters.sent_short_count += 1;
                }
                out.send(to, frame);
            }
            Action::Protect(page) => self.memory.protect(place(page))?,
            Action::Unprotect(page) => {
                self.awaited.remove(&place(page));
                self.memory.unprotect(place(page))?;
            }
            Action::Zap(page) => self.memory.zap(place(page))?,
            Action::Store(page) => {
                if let Some(bytes) = bytes {
                    self.memory.store(place(page), bytes)?;
                }
            }
            Action::Install { page, access } => {
                self.awaited.remove(&place(page));
                self.memory.install(place(page), access)?;
            }
            Action::Discard(page) => self.memory.discard(place(page))?,
            Action::Poison(page) => {
                log::error!("{page} is lost: the only copy died with its node");
                self.counters.lost_pages_count += 1;
                self.awaited.remove(&place(page));
                self.memory.poison(place(page))?;
            }
            Action::Fetched { page, token, lost } => {
                let mut bytes = [0; PAGE_BYTES];
                if !lost {
                    self.memory.read(place(page), &mut bytes)?;
                }
                out.fetched(token, page, (!lost).then_some(&bytes));
            }
            Action::Refuse(why) => *self.counters.refused_count.entry(why).or_default() += 1,
        }
        Ok(())
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
}
