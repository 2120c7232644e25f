//! The protocol: a home-based directory, MSI, write-invalidate (clauses DSM-1 to DSM-3), as a pure state machine.
//!
//! [`Node::step`] takes one [`Input`] and the time, and returns the [`Action`]s to be done in their order. No socket,
//! clock, thread, randomness or unordered iteration is inside, so the same code runs in the model checker, the
//! simulator, the benchmarks and the node. Page contents are outside too: actions name the page whose bytes move.
//!
//! # States
//! ```text
//! home's view of a page                            a holder's copy
//!
//!   Home  <------ WriteBack, Evict ------+           Invalid --Read--> (wanted) --Data, DataRun--> Shared
//!    |  \                                |            |  ^                                        |  |
//!    |   +--Read--> Shared(set) --Write--+            |  +------ Invalidate / Ack ----------------+  |
//!    |                |  ^               |            |  |                                        Write
//!    |              Write Recall(keep)   |            |  +-- Recall / Data to the asker --+         |
//!    +--Write-----> Remote(n) -----------+          Write                             Modified <- Data, Same
//!                     |  ^                            +---------------------------------^
//!                     Recall / Passed: another n
//! ```
//! A page without an entry is `Home`: only its home's cell has it, nothing is protected. That is the state of all RAM.
//!
//! # Sequences
//! ```text
//! read, page at home      write, sharers S          steal, owner O            read, owner O
//! A   H                   A   H   S S'              A   H   O                 A   H   O
//! |Read->                 |Write->                  |Write->                  |Read->
//! <-Data|                 |   |Inval->->            |   |Recall->             |   |Recall (keep)->
//!                         |   <-Ack--<-             <------Data               <------Data
//!                         <-Same / Data             |   <-Passed              |   <-WriteBack
//! ```
//! An owner answers the asker, and tells the home. So a page that is owned elsewhere costs three message times, and messages
//! about one copy of a page come over two links, which do not keep each other's order. Links between one pair keep theirs.
//!
//! # Names
//! An asker numbers its requests: the *ticket*. The copy that a request brings has its ticket, and all that is said about a
//! copy says which one, so that what comes early or late is known for what it is. Bytes have a *version* ([`version`]):
//! whoever asks says which version it still has, and is not sent what it has.
//!
//! # Rules
//! - The home serves the requests for one page one after the other, first come, first served; different pages never wait
//!   for each other. Invalidations go out together and acknowledgements are counted.
//! - A node has at most one request per page under way. Faults that come meanwhile wait for its answer.
//! - *Hold*: a page granted to a fault is not taken away before its hold has passed, so that the access that asked for
//!   it is done (DSM-I3). The hold is `hold_us` at first, doubles while the page plays ping-pong, up to `hold_max_us`, and
//!   comes back when it is calm. The time a request waits is at most the holds (`hold_max_us` each) and message times of
//!   the requests before it.
//! - *Overtaken*: an invalidation that comes before the data that it is about is acknowledged at once, and what waits
//!   asks again; a recall that comes before the data is done when the data has come, and has been held.
//! - *Crossed*: a copy that was given back while the home asked for it: the giving back is the answer.
//! - *Ahead*: pages of a run ([`Message::ReadRun`]) are given if nobody has to lose anything for it; what cannot be had at once
//!   is skipped.
//! - *Budget*: a window that has more than `window_pages` pages gives up the oldest, but none that is held, asked for, or
//!   being taken. So a budget smaller than what one access needs is exceeded for the time of a hold.
//! - A node that dies (DSM-I4): requests of it are dropped, what it shared is forgotten, acknowledgements of it are not
//!   waited for, and a page that only it had is *lost*: whoever asks is told, and its access becomes an error. If it may have
//!   given the page to an asker before it died, the asker is asked ([`Message::Ask`]); who was promised data by it and has
//!   not got it asks again.
//! - Nothing a peer says is believed unchecked: what does not fit the state is refused ([`Action::Refuse`]) and changes
//!   nothing.

mod holder;
mod home;
mod message;
mod pace;
mod pages;
mod sharers;
mod stream;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::types::{Access, NodeId, PageNo};
use holder::{Answer, Copy};
use home::Entry;
use pages::Pages;
use stream::Streams;

pub use message::{Message, RUN_DATA_PAGES, RUN_PAGES, TICKET_MAX, run_pages, version};

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
    /// How long a page granted to a fault stays at least, in microseconds. 0: not at all.
    pub hold_us: u64,
    /// How long it stays at most while it plays ping-pong, in microseconds. Not more than `hold_us`: holds do not adapt.
    pub hold_max_us: u64,
    /// Pages of another node's slice that take memory here at most; the oldest are given back. `u64::MAX`: no bound.
    pub window_pages: u64,
    /// Pages that a run of reads has fetched ahead at most, up to [`RUN_PAGES`]. 0: nothing is fetched ahead.
    pub prefetch_pages: u64,
    /// Pages of a slice at most whose changes are followed, so that they can go as differences. 0: pages go whole.
    pub twin_pages: u64,
}

impl Config {
    /// Node `me`, with nothing but the protocol: no hold, no bound, nothing fetched ahead.
    pub fn new(me: NodeId, slices: SliceMap) -> Self {
        Self {
            me,
            slices,
            hold_us: 0,
            hold_max_us: 0,
            window_pages: u64::MAX,
            prefetch_pages: 0,
            twin_pages: 0,
        }
    }
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
    /// Bring pages of one slice to this node, readable, though no access waits; those that can be had at once.
    Prefetch {
        /// The first.
        page: PageNo,
        /// How many, up to [`RUN_PAGES`].
        count: u64,
    },
    /// Give this node's copy back to its home.
    Release {
        /// Which page.
        page: PageNo,
    },
    /// This node's cell has no use for what was in a lost page of its own slice: its accesses succeed from now on, and find zeros.
    /// To other nodes it stays lost.
    Bury {
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
    /// Put the bytes of the message being handled, those of this page, into the page.
    Store(PageNo),
    /// [`Action::Store`], and then [`Action::Install`] to read: the page comes with its bytes.
    Place(PageNo),
    /// The page is about to be written, and is soon asked for by others: its bytes have this version still, and what changes
    /// from now on is worth knowing.
    Twin {
        /// Which page.
        page: PageNo,
        /// Of its bytes.
        version: u64,
    },
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
    /// A page of the own slice has just been lost: its only copy died. Said once of each.
    Lost(PageNo),
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

/// Why an input was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The page belongs to no slice, or to the slice of a node that this message cannot be about.
    Page,
    /// The sender, or the node that the message names, is unknown, or this node itself.
    Sender,
    /// The sender is dead, as this node was told.
    Dead,
    /// The message is of another life of its sender. Found by the driver.
    Epoch,
    /// The bytes are no message. Found by the driver.
    Malformed,
    /// A second request while the first one waits, or one for what the sender has; a thing that was said already.
    Duplicate,
    /// An answer to what was never asked.
    Unexpected,
    /// The bytes, or what the sender says about them, are of another version than the page's.
    Version,
    /// The page is in a state in which the message makes no sense.
    State,
    /// About a copy that is no more, and was when it was sent.
    Late,
}

impl Refusal {
    /// Does no honest peer say such a thing? Then its link has to be closed. The others are late: the sender could not
    /// know better.
    pub fn is_violation(self) -> bool {
        !matches!(self, Self::Dead | Self::Epoch | Self::Late)
    }
}

/// One node's part of the protocol, for all pages that are given to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    config: Config,
    /// Pages whose home this node is and that are not plainly `Home`.
    directory: Pages<Entry>,
    /// Pages of other homes that this node has or waits for.
    copies: Pages<Copy>,
    dead: BTreeSet<NodeId>,
    /// The last request's ticket.
    last_ticket: u64,
    /// The last name that this home gave to bytes of its own.
    last_version: u64,
    deadlines: BTreeSet<(u64, PageNo)>,
    /// Copies that take memory, the oldest first: see `window`.
    order: BTreeMap<u64, PageNo>,
    /// Pages of the own slice that are plainly at home and likely to be taken again, the oldest first: see `home`.
    remembered: VecDeque<PageNo>,
    last_turn: u64,
    streams: Streams,
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
            directory: Pages::default(),
            copies: Pages::default(),
            dead: BTreeSet::new(),
            last_ticket: 0,
            last_version: 0,
            deadlines: BTreeSet::new(),
            order: BTreeMap::new(),
            remembered: VecDeque::new(),
            last_turn: 0,
            streams: Streams::default(),
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
            Input::Prefetch { page, count } => self.prefetch(page, count, &mut step),
            Input::Release { page } => self.release(page, &mut step),
            Input::Bury { page } => self.bury(page, &mut step),
            Input::Fetch { page, token } => self.fetch(page, token, &mut step),
        }
        step.actions
    }

    /// When the next [`Input::Tick`] is due, if one is.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Pages that are more than plainly at their home: shared, owned or busy at home, and copies that are here or
    /// asked for.
    pub fn tracked_pages(&self) -> usize {
        self.directory.values().filter(|entry: &&Entry| entry.is_live()).count() + self.live_copies()
    }

    fn home(&self, page: PageNo) -> Option<NodeId> {
        self.config.slices.home(page)
    }

    fn fault(&mut self, page: PageNo, access: Access, step: &mut Step) {
        match self.home(page) {
            None => step.refuse(Refusal::Page),
            Some(home) if home == self.config.me => self.home_fault(page, access, step),
            Some(home) => self.holder_fault(page, home, access, step),
        }
    }

    fn prefetch(&mut self, page: PageNo, count: u64, step: &mut Step) {
        match self.home(page) {
            None => step.refuse(Refusal::Page),
            Some(home) if home == self.config.me => {}
            Some(home) => drop(self.ask_run(page, home, count, false, step)),
        }
    }

    fn message(&mut self, from: NodeId, message: Message, step: &mut Step) {
        let me = self.config.me;
        if from == me || from.0 >= self.config.slices.nodes {
            return step.refuse(Refusal::Sender);
        }
        if self.dead.contains(&from) {
            return step.refuse(Refusal::Dead);
        }
        let page = message.page();
        let Some(home) = self.home(page) else { return step.refuse(Refusal::Page) };
        // The last page of a run; of all other messages, the page.
        let last = PageNo(page.0 + u64::from(message.run().checked_ilog2().unwrap_or(0)));
        if self.home(last) != Some(home) {
            return step.refuse(Refusal::Page);
        }
        if home == me {
            self.message_to_home(from, message, step);
        } else if home == from {
            self.message_from_home(home, message, step);
        } else if let Message::Data { access, ticket, version, held, .. } = message {
            self.granted(page, home, access, ticket, Answer::Bytes(version, held), step);
        } else {
            step.refuse(Refusal::Page);
        }
    }

    /// From another node, about a page of ours.
    fn message_to_home(&mut self, from: NodeId, message: Message, step: &mut Step) {
        let page = message.page();
        match message {
            Message::Read { ticket, held, .. } => self.request(page, from, Access::Read, ticket, held, step),
            Message::Write { ticket, held, .. } => {
                self.request(page, from, Access::Write, ticket, held, step)
            }
            Message::ReadRun { ticket, wanted, .. } => self.run_request(page, from, ticket, wanted, step),
            Message::Ack { ticket, .. } => self.acked(page, from, ticket, step),
            Message::WriteBack { ticket, kept, version, held, .. } => {
                self.written_back(page, from, (ticket, kept), version, held, step)
            }
            Message::Passed { ticket, .. } => self.passed(page, from, ticket, step),
            Message::Evict { ticket, .. } => self.evicted(page, from, ticket, step),
            Message::Have { ticket, .. } => self.confirmed(page, from, ticket, step),
            _ => step.refuse(Refusal::Page),
        }
    }

    /// From its home, about a page of that.
    fn message_from_home(&mut self, home: NodeId, message: Message, step: &mut Step) {
        let page = message.page();
        match message {
            Message::Data { access, ticket, version, held, .. } => {
                self.granted(page, home, access, ticket, Answer::Bytes(version, held), step)
            }
            Message::Same { access, ticket, .. } => {
                self.granted(page, home, access, ticket, Answer::Same, step)
            }
            Message::DataRun { ticket, version, given, skipped, .. } => {
                self.run_granted(page, home, ticket, version, (given, skipped), step)
            }
            Message::Lost { ticket, .. } => self.lost(page, ticket, step),
            Message::Invalidate { ticket, .. } => self.invalidate(page, home, ticket, step),
            Message::Recall { .. } => self.recall(home, message, step),
            Message::Ask { ticket, confirm, .. } => self.asked(page, home, ticket, confirm, step),
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
}
