//! Every interleaving of a few nodes, pages and accesses, checked: DSM-I1 (single writer), DSM-I2 (a read returns the last
//! write), DSM-I3 and DSM-I4 (nothing waits for ever). Links keep the order of a pair and nothing else.
//!
//! The number of reachable states is pinned: a change of the protocol shows here, and is then looked at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ssi_dsm::protocol::{Action, Config, Input, Message, Node, Refusal, SliceMap, run_pages, version};
use ssi_dsm::{Access, NodeId, PageNo};
use stateright::{Checker, Model, Property};

/// What is explored.
#[derive(Debug, Clone)]
struct Setup {
    nodes: u16,
    /// Pages, all in slice 0 but the second, which is in slice 1, unless they are `neighbours`.
    pages: u16,
    /// All pages are in slice 0, one after the other.
    neighbours: bool,
    /// Threads of each node, and how many accesses each of them makes.
    threads: Vec<Vec<u8>>,
    /// How many copies each node may give back.
    releases: u8,
    /// How often each node may fetch all pages ahead.
    prefetches: u8,
    hold_us: u64,
    hold_max_us: u64,
    /// Pages of other nodes that a node may have.
    window_pages: u64,
    /// Runs of reads are found, and fetched ahead.
    streams: bool,
    /// How often each thread may find its page taken away again before it could try its access. More than the hold time
    /// allows; without a bound the state space has none either.
    bad_luck: u8,
    /// May this node die, at any time?
    mortal: Option<NodeId>,
    /// Beyond what every setup shows: what this one has to come by.
    shows: Vec<Shown>,
}

/// Interleavings that are worth coming by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// An invalidation is on its way to a node whose data is on its way from the owner.
    InvalidationMayOvertake,
    /// So is a recall.
    RecallMayOvertake,
    /// Something came late, and was dropped.
    Late,
    /// An asker has the page that a dead owner gave it, for writing.
    HasFromTheDead,
    /// For reading, and sends it home.
    BringsHomeFromTheDead,
    /// It has not got it, and asks again.
    LacksFromTheDead,
    /// A page of a run is given, and one is not.
    Given,
    Skipped,
    /// An access waits for a page of a run that is skipped.
    WaitsForSkipped,
    /// A page made room for another.
    MadeRoom,
}

impl Shown {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidationMayOvertake => "an invalidation and its data are on their way together",
            Self::RecallMayOvertake => "a recall and its data are on their way together",
            Self::Late => "what came late is dropped",
            Self::HasFromTheDead => "a page to write from a dead owner is kept",
            Self::BringsHomeFromTheDead => "a page to read from a dead owner is brought home",
            Self::LacksFromTheDead => "a page from a dead owner is asked for again",
            Self::Given => "a page of a run is given",
            Self::Skipped => "a page of a run is skipped",
            Self::WaitsForSkipped => "an access waits for a page of a run that is skipped",
            Self::MadeRoom => "a page made room for another",
        }
    }

    /// As a function without captures, which is what a property takes.
    fn property(self) -> Property<Setup> {
        let name = self.name();
        match self {
            Self::InvalidationMayOvertake => Property::sometimes(name, |_, w: &World| {
                together(w, |m, t| matches!(m, Message::Invalidate { ticket, .. } if *ticket == t))
            }),
            Self::RecallMayOvertake => Property::sometimes(name, |_, w: &World| {
                together(w, |m, t| matches!(m, Message::Recall { ticket, .. } if *ticket == t))
            }),
            Self::Late => Property::sometimes(name, |_, w: &World| w.late),
            Self::HasFromTheDead => {
                Property::sometimes(name, |_, w: &World| in_flight(w, |m| matches!(m, Message::Have { .. })))
            }
            Self::BringsHomeFromTheDead => Property::sometimes(name, |_, w: &World| {
                w.links.iter().any(|(&(from, _), link)| link.iter().any(|(m, _)| {
                    matches!(m, Message::WriteBack { kept: true, ticket, version: v, .. } if *v != version(from, *ticket))
                }))
            }),
            Self::LacksFromTheDead => Property::sometimes(name, |_, w: &World| {
                !w.dead.is_empty() && in_flight(w, |m| matches!(m, Message::Evict { .. }))
            }),
            Self::Given => Property::sometimes(name, |_, w: &World| {
                in_flight(w, |m| matches!(m, Message::DataRun { given, .. } if *given != 0))
            }),
            Self::Skipped => Property::sometimes(name, |_, w: &World| {
                in_flight(w, |m| matches!(m, Message::DataRun { skipped, .. } if *skipped != 0))
            }),
            Self::WaitsForSkipped => Property::sometimes(name, |_, w: &World| {
                w.links.iter().any(|(&(_, to), link)| {
                    link.iter().any(|(m, _)| match m {
                        Message::DataRun { page, skipped, .. } => {
                            run_pages(*page, *skipped).any(|(_, page)| {
                                let waits = |t: &Thread| t.asleep && t.doing.is_some_and(|(p, _)| p == page);
                                w.threads[usize::from(to.0)].iter().any(waits)
                            })
                        }
                        _ => false,
                    })
                })
            }),
            Self::MadeRoom => Property::sometimes(name, |_, w: &World| {
                w.frames.iter().any(|f| f.values().any(|f| f.value == GARBAGE))
            }),
        }
    }
}

/// Is data on its way to a node, and something like this about the same ticket, on another link?
fn together(world: &World, like: impl Fn(&Message, u64) -> bool) -> bool {
    world.links.iter().any(|(&(from, to), link)| {
        let mut data = link.iter().filter(|(m, _)| matches!(m, Message::Data { .. }));
        data.any(|(data, _)| {
            let others = world.links.iter().filter(|&(&(f, t), _)| t == to && f != from);
            others.flat_map(|(_, l)| l).any(|(m, _)| like(m, data.ticket()))
        })
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Thread {
    left: u8,
    doing: Option<(PageNo, Access)>,
    /// Sleeps in the kernel until its page is woken.
    asleep: bool,
    /// Has slept for this access before.
    woken: bool,
    bad_luck: u8,
}

/// What a cell sees of a page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Frame {
    rights: Option<Access>,
    poisoned: bool,
    value: u8,
}

/// What is on its way from one node to another: messages, and the values of the pages that go with them.
type Link = VecDeque<(Message, Vec<u8>)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    nodes: Vec<Node>,
    frames: Vec<BTreeMap<PageNo, Frame>>,
    threads: Vec<Vec<Thread>>,
    releases: Vec<u8>,
    prefetches: Vec<u8>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// How often each page was written, which is also the value last written.
    written: BTreeMap<PageNo, u8>,
    dead: BTreeSet<NodeId>,
    /// Who has yet to hear of the death.
    untold: BTreeSet<NodeId>,
    /// What must never be: a stale read or a lost update; an honest input refused.
    stale: bool,
    refused: bool,
    /// What came late was refused, as it has to be.
    late: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Begin(NodeId, usize, PageNo, Access),
    Try(NodeId, usize),
    Deliver(NodeId, NodeId),
    Tick(NodeId),
    Release(NodeId, PageNo),
    Prefetch(NodeId),
    Die(NodeId),
    Tell(NodeId),
}

const SLICE: u64 = 0x10_0000;
/// What a page without memory has.
const GARBAGE: u8 = 0xee;

impl Setup {
    fn page_list(&self) -> Vec<PageNo> {
        let apart = if self.neighbours { 1 } else { SLICE >> 12 };
        (0..self.pages).map(|i| PageNo(u64::from(i) * apart)).collect()
    }

    fn config(&self, me: NodeId, slices: SliceMap) -> Config {
        let prefetch_pages = if self.streams { 4 } else { 0 };
        let (hold_us, hold_max_us, window_pages) = (self.hold_us, self.hold_max_us, self.window_pages);
        Config { hold_us, hold_max_us, window_pages, prefetch_pages, ..Config::new(me, slices) }
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes).map(NodeId)
    }
}

impl World {
    fn frame(&mut self, node: NodeId, page: PageNo) -> &mut Frame {
        self.frames[usize::from(node.0)].get_mut(&page).expect("a page of the setup")
    }

    fn step(&mut self, node: NodeId, input: Input, now: u64, bytes: &[u8]) {
        for action in self.nodes[usize::from(node.0)].step(input, now) {
            match action {
                Action::Send { to, message } => {
                    let pages = run_pages(message.page(), message.pages());
                    let values = pages.map(|(_, page)| self.frame(node, page).value).collect();
                    if !self.dead.contains(&to) {
                        self.links.entry((node, to)).or_default().push_back((message, values));
                    }
                }
                Action::Protect(page) => {
                    let frame = self.frame(node, page);
                    frame.rights = frame.rights.map(|_| Access::Read);
                }
                Action::Unprotect(page) => {
                    let frame = self.frame(node, page);
                    frame.rights = frame.rights.map(|_| Access::Write);
                    self.wake(node, page);
                }
                Action::Zap(page) => self.frame(node, page).rights = None,
                Action::Store(page) | Action::Place(page) => {
                    let Input::Message { message, .. } = input else { panic!("bytes of nothing") };
                    let nth = run_pages(message.page(), message.pages()).position(|(_, p)| p == page);
                    self.frame(node, page).value = bytes[nth.expect("a page of the message")];
                    if action == Action::Place(page) {
                        self.frame(node, page).rights = Some(Access::Read);
                        self.wake(node, page);
                    }
                }
                Action::Install { page, access } => {
                    self.frame(node, page).rights = Some(access);
                    self.wake(node, page);
                }
                Action::Discard(page) => {
                    assert_eq!(self.frame(node, page).rights, None, "memory that is in use");
                    self.frame(node, page).value = GARBAGE;
                }
                Action::Poison(page) => {
                    *self.frame(node, page) = Frame { rights: None, poisoned: true, value: 0 };
                    self.wake(node, page);
                }
                Action::Fetched { .. } | Action::Twin { .. } | Action::Lost(_) => {}
                Action::Refuse(Refusal::Late) => self.late = true,
                Action::Refuse(_) => self.refused = true,
            }
        }
    }

    fn wake(&mut self, node: NodeId, page: PageNo) {
        for index in 0..self.threads[usize::from(node.0)].len() {
            let frame = self.frame(node, page).clone();
            let thread = &mut self.threads[usize::from(node.0)][index];
            let Some((p, access)) = thread.doing else { continue };
            if p == page && thread.asleep {
                thread.asleep = false;
                if thread.bad_luck == 0 && frame.rights.is_some_and(|r| r >= access) {
                    self.try_access(node, index);
                }
            }
        }
    }

    /// A thread tries its access: it does it, dies of a lost page, or faults.
    fn try_access(&mut self, node: NodeId, index: usize) {
        let n = usize::from(node.0);
        let Some((page, access)) = self.threads[n][index].doing else { return };
        let written = self.written[&page];
        let frame = self.frame(node, page);
        if !frame.poisoned && frame.rights.is_none_or(|r| r < access) {
            let thread = &mut self.threads[n][index];
            thread.bad_luck = thread.bad_luck.saturating_sub(u8::from(thread.woken));
            thread.asleep = true;
            thread.woken = true;
            return self.step(node, Input::Fault { page, access }, 0, &[]);
        }
        if !frame.poisoned {
            let stale = frame.value != written;
            if access == Access::Write {
                frame.value = written + 1;
                self.written.insert(page, written + 1);
            }
            self.stale |= stale;
        }
        let thread = &mut self.threads[n][index];
        (thread.doing, thread.woken) = (None, false);
    }
}

impl Model for Setup {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let size = if self.neighbours { u64::from(self.pages) << 12 } else { SLICE };
        let slices = SliceMap { base: 0, stride: SLICE, size, nodes: self.nodes };
        let frames = |me: NodeId| {
            let frame = |page| {
                let rights = (slices.home(page) == Some(me)).then_some(Access::Write);
                (page, Frame { rights, poisoned: false, value: 0 })
            };
            self.page_list().into_iter().map(frame).collect()
        };
        vec![World {
            nodes: self.ids().map(|me| Node::new(self.config(me, slices))).collect(),
            frames: self.ids().map(frames).collect(),
            threads: self
                .threads
                .iter()
                .map(|t| {
                    t.iter()
                        .map(|&left| Thread {
                            left,
                            doing: None,
                            asleep: false,
                            woken: false,
                            bad_luck: self.bad_luck,
                        })
                        .collect()
                })
                .collect(),
            releases: vec![self.releases; usize::from(self.nodes)],
            prefetches: vec![self.prefetches; usize::from(self.nodes)],
            links: BTreeMap::new(),
            written: self.page_list().into_iter().map(|page| (page, 0)).collect(),
            dead: BTreeSet::new(),
            untold: BTreeSet::new(),
            stale: false,
            refused: false,
            late: false,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        for id in self.ids().filter(|id| !world.dead.contains(id)) {
            let n = usize::from(id.0);
            for (index, thread) in world.threads[n].iter().enumerate() {
                if thread.doing.is_some() && !thread.asleep {
                    events.push(Event::Try(id, index));
                } else if thread.doing.is_none() && thread.left > 0 {
                    for page in self.page_list() {
                        events.push(Event::Begin(id, index, page, Access::Read));
                        events.push(Event::Begin(id, index, page, Access::Write));
                    }
                }
            }
            if world.releases[n] > 0 {
                let held = |page: &PageNo| world.frames[n][page].rights.is_some();
                let away = |page: &PageNo| world.nodes[n].config().slices.home(*page) != Some(id);
                let pages = self.page_list().into_iter().filter(|p| held(p) && away(p));
                events.extend(pages.map(|page| Event::Release(id, page)));
            }
            if world.prefetches[n] > 0 && id != NodeId(0) {
                events.push(Event::Prefetch(id));
            }
            if world.nodes[n].next_deadline().is_some() {
                events.push(Event::Tick(id));
            }
        }
        for (&(from, to), link) in &world.links {
            if !link.is_empty() {
                events.push(Event::Deliver(from, to));
            }
        }
        events.extend(world.untold.iter().map(|&id| Event::Tell(id)));
        events.extend(self.mortal.filter(|id| !world.dead.contains(id)).map(Event::Die));
    }

    fn next_state(&self, last: &World, event: Event) -> Option<World> {
        let mut world = last.clone();
        match event {
            Event::Begin(id, index, page, access) => {
                let thread = &mut world.threads[usize::from(id.0)][index];
                thread.left -= 1;
                thread.doing = Some((page, access));
                world.try_access(id, index);
            }
            Event::Try(id, index) => world.try_access(id, index),
            Event::Deliver(from, to) => {
                let link = world.links.get_mut(&(from, to))?;
                let (message, values) = link.pop_front()?;
                if link.is_empty() {
                    world.links.remove(&(from, to));
                }
                world.step(to, Input::Message { from, message }, 0, &values);
            }
            Event::Tick(id) => {
                let now = world.nodes[usize::from(id.0)].next_deadline()?;
                world.step(id, Input::Tick, now, &[]);
            }
            Event::Release(id, page) => {
                world.releases[usize::from(id.0)] -= 1;
                world.step(id, Input::Release { page }, 0, &[]);
            }
            Event::Prefetch(id) => {
                world.prefetches[usize::from(id.0)] -= 1;
                let count = if self.neighbours { u64::from(self.pages) } else { 1 };
                world.step(id, Input::Prefetch { page: PageNo(0), count }, 0, &[]);
            }
            Event::Die(id) => {
                world.dead.insert(id);
                world.untold = self.ids().filter(|&other| other != id).collect();
                world.links.retain(|&(_, to), _| to != id);
                for frame in world.frames[usize::from(id.0)].values_mut() {
                    frame.rights = None;
                }
            }
            Event::Tell(id) => {
                world.untold.remove(&id);
                // The link is down when the death is known: what was still in it is gone.
                let dead = &world.dead;
                world.links.retain(|&(from, to), _| to != id || !dead.contains(&from));
                let dead = self.mortal?;
                world.step(id, Input::NodeDied(dead), 0, &[]);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<Property<Self>> = vec![
            Property::always("DSM-I1 while one node may write a page, no other may access it", single_writer),
            Property::always("DSM-I2 a read returns the last write, and no write is lost", |_, w: &World| {
                !w.stale
            }),
            Property::always("DSM-I3 nothing waits when nothing is under way", |_, w: &World| !stuck(w)),
            Property::always("an honest input is never refused", |_, w: &World| !w.refused),
            Property::sometimes("all accesses are done", |_, w: &World| {
                w.threads.iter().flatten().all(|t| t.left == 0 && t.doing.is_none())
            }),
            Property::sometimes("a node writes another's page", |_, w: &World| away(w, Access::Write)),
            Property::sometimes("an upgrade moves no data", |_, w: &World| {
                in_flight(w, |m| matches!(m, Message::Same { .. }))
            }),
            Property::sometimes("an owner is asked for its page", |_, w: &World| {
                in_flight(w, |m| matches!(m, Message::Recall { .. }))
            }),
            Property::sometimes("a sharer is invalidated", |_, w: &World| {
                in_flight(w, |m| matches!(m, Message::Invalidate { .. }))
            }),
        ];
        if self.nodes > 2 && self.mortal.is_none() {
            properties.push(Property::sometimes("invalidations go out in parallel", |_, w: &World| {
                let to = |l: &Link| l.iter().any(|(m, _)| matches!(m, Message::Invalidate { .. }));
                w.links.values().filter(|l| to(l)).count() > 1
            }));
        }
        if self.releases > 0 {
            properties.push(Property::sometimes("a page comes home and is forgotten", |_, w: &World| {
                w.written.values().any(|&v| v > 0) && w.nodes.iter().all(|n| n.tracked_pages() == 0)
            }));
        }
        if self.hold_us > 0 {
            properties.push(Property::sometimes("a page is held", |_, w: &World| {
                w.nodes.iter().any(|n| n.next_deadline().is_some())
            }));
        }
        if self.mortal.is_some() {
            properties.push(Property::sometimes("DSM-I4 an access meets a lost page", |_, w: &World| {
                w.frames.iter().any(|f| f.values().any(|f| f.poisoned))
            }));
        }
        properties.extend(self.shows.iter().map(|shown| shown.property()));
        properties
    }
}

fn single_writer(setup: &Setup, world: &World) -> bool {
    setup.page_list().iter().all(|page| {
        let rights = || world.frames.iter().filter_map(|f| f[page].rights);
        rights().all(|r| r == Access::Read) || rights().count() == 1
    })
}

fn stuck(world: &World) -> bool {
    let quiet = world.links.is_empty()
        && world.untold.is_empty()
        && world.nodes.iter().enumerate().all(|(i, n)| is_dead(world, i) || n.next_deadline().is_none());
    quiet && world.threads.iter().enumerate().any(|(i, t)| !is_dead(world, i) && t.iter().any(|t| t.asleep))
}

fn is_dead(world: &World, index: usize) -> bool {
    world.dead.iter().any(|id| usize::from(id.0) == index)
}

fn away(world: &World, access: Access) -> bool {
    world.nodes.iter().zip(&world.frames).any(|(node, frames)| {
        let config = node.config();
        frames.iter().any(|(&p, f)| f.rights == Some(access) && config.slices.home(p) != Some(config.me))
    })
}

fn in_flight(world: &World, like: impl Fn(&Message) -> bool) -> bool {
    world.links.values().flatten().any(|(m, _)| like(m))
}

fn check(setup: Setup, states: usize) {
    let checker = setup.checker().threads(1).spawn_bfs().join();
    checker.assert_properties();
    assert_eq!(
        checker.unique_state_count(),
        states,
        "the state space has changed: look at why, then pin the new count"
    );
}

fn setup(nodes: u16, pages: u16, accesses: u8) -> Setup {
    let threads = vec![vec![accesses]; usize::from(nodes)];
    Setup {
        nodes,
        pages,
        neighbours: false,
        threads,
        releases: 0,
        prefetches: 0,
        hold_us: 0,
        hold_max_us: 0,
        window_pages: u64::MAX,
        streams: false,
        bad_luck: 0,
        mortal: None,
        shows: vec![],
    }
}

#[test]
fn dsm_i1_i2_two_nodes_one_page() {
    check(Setup { bad_luck: 1, ..setup(2, 1, 4) }, 41509);
}

#[test]
fn dsm_i1_i2_two_nodes_two_pages() {
    check(setup(2, 2, 3), 22370);
}

#[test]
fn dsm_i1_i2_three_nodes_one_page() {
    let shows = vec![Shown::InvalidationMayOvertake, Shown::RecallMayOvertake, Shown::Late];
    check(Setup { shows, ..setup(3, 1, 2) }, 48047);
}

#[test]
fn dsm_i1_i2_three_nodes_lose_pages_before_they_could_use_them() {
    let threads = vec![vec![1], vec![2], vec![2]];
    check(Setup { threads, bad_luck: 1, ..setup(3, 1, 0) }, 299992);
}

#[test]
fn dsm_i1_i2_three_nodes_two_pages() {
    let threads = vec![vec![2], vec![2], vec![1]];
    check(Setup { threads, ..setup(3, 2, 0) }, 67651);
}

#[test]
fn dsm_i1_i2_four_nodes_one_page() {
    let threads = vec![vec![1], vec![1], vec![2], vec![2]];
    let shows = vec![Shown::InvalidationMayOvertake, Shown::RecallMayOvertake, Shown::Late];
    check(Setup { threads, shows, ..setup(4, 1, 0) }, 423173);
}

#[test]
fn dsm_i1_i2_two_threads_of_a_node_fault_on_one_page() {
    let threads = vec![vec![1, 1], vec![2, 2]];
    check(Setup { threads, ..setup(2, 1, 0) }, 9386);
}

#[test]
fn dsm_i1_i2_copies_are_given_back_at_any_time() {
    let shows = vec![Shown::RecallMayOvertake, Shown::Late];
    check(Setup { releases: 1, shows, ..setup(3, 1, 2) }, 567695);
}

#[test]
fn dsm_i3_pages_are_held_for_the_access_that_asked() {
    check(Setup { hold_us: 1, bad_luck: 1, ..setup(2, 1, 4) }, 88856);
}

#[test]
fn dsm_i3_pages_of_three_nodes_are_held() {
    let threads = vec![vec![1], vec![2], vec![2]];
    check(Setup { threads, hold_us: 1, ..setup(3, 1, 0) }, 19247);
}

#[test]
fn dsm_i1_i2_pages_are_fetched_ahead_by_three_nodes() {
    let threads = vec![vec![1], vec![1], vec![1]];
    let shows = vec![Shown::Given, Shown::Skipped, Shown::WaitsForSkipped];
    check(Setup { threads, prefetches: 1, neighbours: true, shows, ..setup(3, 2, 0) }, 130526);
}

#[test]
fn dsm_i1_i2_runs_of_reads_are_fetched_ahead() {
    let threads = vec![vec![1], vec![4]];
    let shows = vec![Shown::Given];
    check(Setup { threads, streams: true, neighbours: true, shows, ..setup(2, 4, 0) }, 153879);
}

#[test]
fn dsm_i1_i3_a_window_of_one_page_makes_room() {
    let threads = vec![vec![1], vec![2], vec![2]];
    let shows = vec![Shown::MadeRoom];
    check(Setup { threads, window_pages: 1, neighbours: true, shows, ..setup(3, 2, 0) }, 239630);
}

#[test]
fn dsm_i1_i3_a_window_of_one_page_that_is_held_makes_room_later() {
    let threads = vec![vec![1], vec![3]];
    let shows = vec![Shown::MadeRoom];
    check(Setup { threads, window_pages: 1, hold_us: 1, neighbours: true, shows, ..setup(2, 2, 0) }, 6685);
}

#[test]
fn dsm_i4_a_holder_dies_at_any_time() {
    let shows = vec![Shown::Late];
    check(Setup { mortal: Some(NodeId(2)), shows, ..setup(3, 1, 2) }, 318092);
}

#[test]
fn dsm_i4_an_owner_dies_while_it_gives_the_page_away() {
    let threads = vec![vec![0], vec![2], vec![1], vec![1]];
    let shows = vec![
        Shown::HasFromTheDead,
        Shown::BringsHomeFromTheDead,
        Shown::LacksFromTheDead,
        Shown::RecallMayOvertake,
        Shown::InvalidationMayOvertake,
    ];
    check(Setup { threads, mortal: Some(NodeId(2)), shows, ..setup(4, 1, 0) }, 76701);
}

#[test]
fn dsm_i4_an_owner_dies_while_copies_are_given_back() {
    let threads = vec![vec![0], vec![2], vec![2]];
    let shows = vec![Shown::HasFromTheDead, Shown::BringsHomeFromTheDead];
    check(Setup { threads, releases: 1, mortal: Some(NodeId(2)), shows, ..setup(3, 1, 0) }, 85406);
}

#[test]
fn dsm_i4_a_node_dies_while_pages_are_fetched_ahead() {
    let threads = vec![vec![0], vec![1], vec![1]];
    let shows = vec![Shown::Given, Shown::Skipped];
    let mortal = Some(NodeId(2));
    check(Setup { threads, prefetches: 1, mortal, neighbours: true, shows, ..setup(3, 2, 0) }, 51106);
}

#[test]
fn dsm_i4_a_home_dies_at_any_time() {
    let threads = vec![vec![1], vec![2], vec![2]];
    check(Setup { threads, mortal: Some(NodeId(0)), ..setup(3, 1, 0) }, 99290);
}
