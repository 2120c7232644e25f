//! The protocol: a home-based directory, MSI, write-invalidate (clauses DSM-1 to DSM-3), as a pure state machine.
//!
//! [`Node::step`] takes one [`Input`] and the time, and returns the [`Action`]s to be done in their order. No socket,
//! clock, thread, randomness or unordered iteration is inside, so the same code runs in the model checker, the
//! simulator, the benchmarks and the node. Page contents are outside too: actions name the page whose bytes move.
//!
//! # States
//! ```text
//! home's view of a page                        a holder's copy
//!
//!   Home  <------ WriteBack, Evict ------+       Invalid --Read--> (wanted) --Data--> Shared
//!    |  \                                |          ^                                  |  |
//!    |   +--Read--> Shared(set) --Write--+          +---- Invalidate / Ack ------------+  |
//!    |                |  ^               |          |                                   Write
//!    |              Write Downgrade      |          +---- Recall / WriteBack ---+         |
//!    +--Write-----> Remote(n) -----------+                                  Modified <- Data, Same
//! ```
//! A page without an entry is `Home`: only its home's cell has it, nothing is protected. That is the state of all RAM.
//!
//! # Sequences
//! ```text
//! read, page at home      write, sharers S          steal, owner O
//! A   H                   A   H   S S'              A   H   O
//! |Read->                 |Write->                  |Write->
//! <-Data|                 |   |Inval->->            |   |Recall->
//!                         |   <-Ack--<-             |   <-WriteBack
//!                         <-Same / Data             <-Data
//! ```
//! The home collects: an owner answers to the home, never to the asker. That costs one message time on a steal, and keeps
//! every message about a page on the pair (home, node), whose order the links keep. Links between different pairs may
//! reorder as they like.
//!
//! # Rules
//! - The home serves the requests for one page one after the other, first come, first served; different pages never wait
//!   for each other. Invalidations go out together and acknowledgements are counted.
//! - A node has at most one request per page under way. Faults that come meanwhile wait for its answer.
//! - *Hold*: a page granted to a fault is not taken away before `hold_us` have passed, so that the access that asked for
//!   it is done (DSM-I3). The time a request waits is at most the holds and message times of the requests before it.
//! - An invalidation that overtakes the data that it is about (links that keep the order of a pair do not do it) is
//!   remembered by its version: the late data is dropped, and asked for again.
//! - A node that dies (DSM-I4): requests of it are dropped, what it shared is forgotten, acknowledgements of it are not
//!   waited for, and a page that only it had is *lost*: whoever asks is told, and its access becomes an error.
//! - Nothing a peer says is believed unchecked: what does not fit the state is refused ([`Action::Refuse`]) and changes
//!   nothing.

mod holder;
mod home;
mod message;

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Access, NodeId, PageNo};
use holder::Copy;
use home::Entry;

pub use message::Message;

/// Where the slices lie: slice n is `size` bytes at `base + n * stride`, and node n is the home of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SliceMap {
    /// Guest-physical address of slice 0, in bytes.
    pub base: u64,
    /// Bytes from one slice to the next; not 0.
    pub stride: u64,
    /// Bytes of a slice that hold memory, at most `stride`.
    pub size: u64,
    /// Number of nodes.
    pub nodes: u16,
}

impl SliceMap {
    /// The home of a page: the owner of its slice. `None` for a page of no slice.
    pub fn home(&self, page: PageNo) -> Option<NodeId> {
        let offset = page.0.checked_mul(4096)?.checked_sub(self.base)?;
        let slice = u16::try_from(offset.checked_div(self.stride)?).ok()?;
        (slice < self.nodes && offset % self.stride < self.size).then_some(NodeId(slice))
    }

    /// First page of node `n`'s slice.
    pub fn first_page(&self, n: NodeId) -> PageNo {
        PageNo::of_gpa(self.base + u64::from(n.0) * self.stride)
    }
}

/// What a node knows from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node.
    pub me: NodeId,
    /// Where the slices lie.
    pub slices: SliceMap,
    /// How long a page granted to a fault stays, in microseconds. 0: not at all.
    pub hold_us: u64,
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// An access of this node's cell waits for the page.
    Fault {
        /// Which page.
        page: PageNo,
        /// What the access needs.
        access: Access,
    },
    /// A peer said something.
    Message {
        /// Who, as the link has authenticated it.
        from: NodeId,
        /// What.
        message: Message,
    },
    /// A node will say nothing more.
    NodeDied(NodeId),
    /// The time of [`Node::next_deadline`] has come.
    Tick,
    /// Bring a page to this node, readable, though no access waits.
    Prefetch {
        /// Which page.
        page: PageNo,
    },
    /// Give this node's copy back to its home.
    Release {
        /// Which page.
        page: PageNo,
    },
    /// Bring the current bytes of a page of this node's own slice home; answered by [`Action::Fetched`].
    Fetch {
        /// Which page.
        page: PageNo,
        /// The caller's own.
        token: u64,
    },
}

/// What a step wants done. "The page's bytes" are those of the alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a message; with the page's bytes, read now, if it carries a page.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Let the cell write the page no more.
    Protect(PageNo),
    /// Let the cell write the page that it could read, and wake who waits.
    Unprotect(PageNo),
    /// Let the cell access the page no more.
    Zap(PageNo),
    /// Put the bytes of the message being handled into the page.
    Store(PageNo),
    /// Let the cell read (or write) the page, and wake who waits.
    Install {
        /// Which page.
        page: PageNo,
        /// What the cell may do.
        access: Access,
    },
    /// The page's memory is not needed any more.
    Discard(PageNo),
    /// Make every access to the page an error, and wake who waits.
    Poison(PageNo),
    /// Answer of [`Input::Fetch`]: the page's bytes are current now, or the page is lost.
    Fetched {
        /// Which page.
        page: PageNo,
        /// The caller's own.
        token: u64,
        /// Is it lost?
        lost: bool,
    },
    /// The input was refused, and nothing changed.
    Refuse(Refusal),
}

/// Why an input was refused. From an honest peer none of these comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The page belongs to no slice, or to the slice of a node that this message cannot be about.
    Page,
    /// The sender is dead, unknown, or this node itself.
    Sender,
    /// A second request while the first one waits, or one for what the sender has.
    Duplicate,
    /// An answer that nothing waits for.
    Unexpected,
    /// The message is about another version of the copy.
    Version,
}

/// One node's part of the protocol, for all pages that are given to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    config: Config,
    /// Pages whose home this node is and that are not plainly `Home`.
    directory: BTreeMap<PageNo, Entry>,
    /// Pages of other homes that this node has or waits for.
    copies: BTreeMap<PageNo, Copy>,
    dead: BTreeSet<NodeId>,
    last_version: u64,
    deadlines: BTreeSet<(u64, PageNo)>,
}

/// What is passed down a step.
struct Step {
    now: u64,
    actions: Vec<Action>,
}

impl Step {
    fn send(&mut self, to: NodeId, message: Message) {
        self.actions.push(Action::Send { to, message });
    }

    fn refuse(&mut self, why: Refusal) {
        self.actions.push(Action::Refuse(why));
    }
}

impl Node {
    /// A node at the start: every page is at its home.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            directory: BTreeMap::new(),
            copies: BTreeMap::new(),
            dead: BTreeSet::new(),
            last_version: 0,
            deadlines: BTreeSet::new(),
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes one input at time `now_us` (microseconds of any clock that does not go backwards) and returns what to do,
    /// in order.
    pub fn step(&mut self, input: Input, now_us: u64) -> Vec<Action> {
        let mut step = Step { now: now_us, actions: Vec::new() };
        match input {
            Input::Fault { page, access } => self.fault(page, access, &mut step),
            Input::Message { from, message } => self.message(from, message, &mut step),
            Input::NodeDied(node) => self.node_died(node, &mut step),
            Input::Tick => self.tick(&mut step),
            Input::Prefetch { page } => self.prefetch(page, &mut step),
            Input::Release { page } => self.release(page, &mut step),
            Input::Fetch { page, token } => self.fetch(page, token, &mut step),
        }
        step.actions
    }

    /// When the next [`Input::Tick`] is due, if one is.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Pages that are more than plainly at their home: directory entries and copies.
    pub fn tracked_pages(&self) -> usize {
        self.directory.len() + self.copies.len()
    }

    fn home(&self, page: PageNo) -> Option<NodeId> {
        self.config.slices.home(page)
    }

    fn fault(&mut self, page: PageNo, access: Access, step: &mut Step) {
        match self.home(page) {
            None => step.refuse(Refusal::Page),
            Some(home) if home == self.config.me => self.home_fault(page, access, step),
            Some(home) => self.holder_fault(page, home, access, true, step),
        }
    }

    fn prefetch(&mut self, page: PageNo, step: &mut Step) {
        match self.home(page) {
            None => step.refuse(Refusal::Page),
            Some(home) if home == self.config.me => {}
            Some(home) if self.has_copy(page) || self.dead.contains(&home) => {}
            Some(home) => self.holder_fault(page, home, Access::Read, false, step),
        }
    }

    fn message(&mut self, from: NodeId, message: Message, step: &mut Step) {
        let me = self.config.me;
        if from == me || from.0 >= self.config.slices.nodes || self.dead.contains(&from) {
            return step.refuse(Refusal::Sender);
        }
        let page = message.page();
        let Some(home) = self.home(page) else { return step.refuse(Refusal::Page) };
        let to_home = home == me;
        let from_home = home == from;
        match message {
            Message::Read { .. } if to_home => self.request(page, from, Access::Read, 0, step),
            Message::Write { held, .. } if to_home => self.request(page, from, Access::Write, held, step),
            Message::Ack { version, .. } if to_home => self.acked(page, from, version, step),
            Message::WriteBack { version, kept, .. } if to_home => {
                self.written_back(page, from, version, kept, step)
            }
            Message::Evict { version, .. } if to_home => self.evicted(page, from, version, step),
            Message::Data { access, version, .. } if from_home => {
                self.granted(page, access, version, false, step)
            }
            Message::Same { version, .. } if from_home => {
                self.granted(page, Access::Write, version, true, step)
            }
            Message::Lost { .. } if from_home => self.lost(page, step),
            Message::Invalidate { version, .. } if from_home => self.invalidate(page, home, version, step),
            Message::Downgrade { version, .. } if from_home => self.recall(page, home, version, true, step),
            Message::Recall { version, .. } if from_home => self.recall(page, home, version, false, step),
            _ => step.refuse(Refusal::Page),
        }
    }

    fn node_died(&mut self, node: NodeId, step: &mut Step) {
        if node == self.config.me || node.0 >= self.config.slices.nodes || !self.dead.insert(node) {
            return;
        }
        self.holder_node_died(node, step);
        self.home_node_died(node, step);
    }

    fn tick(&mut self, step: &mut Step) {
        while let Some(&(at, page)) = self.deadlines.first() {
            if at > step.now {
                break;
            }
            self.deadlines.pop_first();
            if self.home(page) == Some(self.config.me) {
                self.pump(page, step);
            } else {
                self.holder_tick(page, step);
            }
        }
    }

    fn new_version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }
}
