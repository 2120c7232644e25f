//! Many nodes, random delays, random accesses, crashes: drivers and wire format on simulated memory and simulated links.
//!
//! Every run is made from one seed, printed when it fails; `SSI_DSM_SEED=<seed>` runs that one alone, `SSI_DSM_RUNS=<n>`
//! runs more of them. Each access that is done goes into a history, which is checked at the end: accesses happen at one
//! point of simulated time, and in the order of these every read has to return the last write of its word, whose values are
//! unique. So each page is linearizable (DSM-I1, DSM-I2), and since that order is one for all pages and has every thread's
//! accesses in the order of its program, the whole is sequentially consistent. And nothing waits at the end (DSM-I3, DSM-I4).

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sim::{Fake, PAGE_BYTES};
use ssi_dsm::driver::{Counters, Driver, Outbox};
use ssi_dsm::protocol::{Config, Refusal, SliceMap};
use ssi_dsm::{Access, NodeId, PageNo};

const PAGES: usize = 6;
const BASE: u64 = 4 << 30;
const STRIDE: u64 = 1 << 30;
const SLICE: u64 = (PAGES * PAGE_BYTES) as u64;
/// The words of a page that are accessed: lines of their own, and two in one line.
const WORDS: [usize; 5] = [0, 64, 72, 2048, 4088];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Op {
    slice: usize,
    index: usize,
    word: usize,
    access: Access,
}

/// One access that was done.
#[derive(Debug, Clone, Copy)]
struct Done {
    at: u64,
    node: usize,
    op: Op,
    /// That was read, or written.
    value: u64,
}

#[derive(Debug, Clone)]
struct Thread {
    left: u32,
    doing: Option<Op>,
    asleep: bool,
    /// Reads one page after the other.
    scans: bool,
    last: usize,
}

#[derive(Debug)]
enum Event {
    /// A thread goes on.
    Run {
        node: usize,
        thread: usize,
    },
    Frame {
        from: NodeId,
        to: NodeId,
        bytes: Vec<u8>,
    },
    Tick {
        node: usize,
        slice: usize,
    },
    Die {
        node: usize,
    },
    Told {
        node: usize,
        dead: NodeId,
    },
}

/// What a driver says in one call.
#[derive(Debug, Default)]
struct Said {
    frames: Vec<(NodeId, Vec<u8>)>,
    fetched: Vec<(PageNo, Option<Box<[u8; PAGE_BYTES]>>)>,
}

impl Outbox for Said {
    fn send(&mut self, to: NodeId, frame: &[u8]) {
        self.frames.push((to, frame.to_vec()));
    }

    fn fetched(&mut self, _: u64, page: PageNo, bytes: Option<&[u8; PAGE_BYTES]>) {
        self.fetched.push((page, bytes.map(|b| Box::new(*b))));
    }

    fn violation(&mut self, from: NodeId, why: Refusal) {
        panic!("an honest node, {from}, is accused: {why:?}");
    }
}

struct Node {
    drivers: Vec<Driver<Fake>>,
    memories: Vec<Fake>,
    threads: Vec<Thread>,
    alive: bool,
    /// Fetches that were asked for and not answered.
    fetches: usize,
}

struct World {
    rng: StdRng,
    nodes: Vec<Node>,
    /// By time in microseconds, then by order of making.
    events: BTreeMap<(u64, u64), Event>,
    made: u64,
    now: u64,
    /// Arrival of the last frame of each pair: the next one comes later.
    last: BTreeMap<(NodeId, NodeId), u64>,
    /// Value last written to each word; writes of the dead, unseen by all others, included.
    written: Vec<[[u64; WORDS.len()]; PAGES]>,
    last_value: u64,
    history: Vec<Done>,
    delay_us: u64,
    poisoned: BTreeSet<(usize, usize)>,
}

/// What is different from run to run.
fn config(rng: &mut StdRng, slices: SliceMap) -> Config {
    let mut one_of = |choices: &[u64]| choices[rng.random_range(0..choices.len())];
    let hold_us = one_of(&[0, 20, 200]);
    Config {
        hold_us,
        hold_max_us: one_of(&[0, 4, 16]) * hold_us,
        window_pages: one_of(&[u64::MAX, 1, 2, 5]),
        prefetch_pages: one_of(&[0, 4, 64]),
        twin_pages: one_of(&[0, 2, 64]),
        ..Config::new(NodeId(0), slices)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = match rng.random_range(0..10) {
            0 => rng.random_range(7..=64_u16),
            _ => rng.random_range(2..=6),
        };
        let homes = rng.random_range(1..=3.min(count));
        let delay_us = [5, 100, 2000][rng.random_range(0..3)];
        let slices = SliceMap { base: BASE, stride: STRIDE, size: SLICE, nodes: count };
        let config = config(&mut rng, slices);
        let (threads, left) = if count > 6 { (1, 8) } else { (2, 30) };
        let nodes = (0..count).map(|me| {
            let config = Config { me: NodeId(me), ..config };
            let memories: Vec<Fake> = (0..homes).map(|slice| Fake::new(PAGES, slice == me)).collect();
            let drivers = (0..homes).zip(&memories);
            let drivers = drivers.map(|(slice, m)| Driver::new(config, NodeId(slice), m.clone())).collect();
            let thread = Thread { left, doing: None, asleep: false, scans: false, last: 0 };
            Node { drivers, memories, threads: vec![thread; threads], alive: true, fetches: 0 }
        });
        let nodes: Vec<Node> = nodes.collect();
        let mut world = Self {
            written: vec![[[0; WORDS.len()]; PAGES]; nodes.len()],
            nodes,
            events: BTreeMap::new(),
            made: 0,
            now: 0,
            last: BTreeMap::new(),
            last_value: 0,
            history: vec![],
            delay_us,
            poisoned: BTreeSet::new(),
            rng,
        };
        for node in 0..world.nodes.len() {
            for thread in 0..threads {
                world.nodes[node].threads[thread].scans = world.rng.random_bool(0.3);
                world.after(0, Event::Run { node, thread });
            }
        }
        for _ in 0..[0, 0, 1, 2][world.rng.random_range(0..4)] {
            let node = world.rng.random_range(0..world.nodes.len());
            let at = world.rng.random_range(0..40 * delay_us);
            world.after(at, Event::Die { node });
        }
        world
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.made += 1;
        self.events.insert((self.now + delay, self.made), event);
    }

    fn run(&mut self) {
        let mut steps = 0;
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            steps += 1;
            assert!(steps < 3_000_000, "no end: livelock");
            self.handle(event);
        }
        let dead = self.nodes.iter().any(|n| !n.alive);
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            assert!(
                node.threads.iter().all(|t| t.doing.is_none() && t.left == 0),
                "node {n}: {:?}",
                node.threads
            );
            assert_eq!(node.fetches, 0, "node {n} waits for fetches");
            for driver in &node.drivers {
                let refused = &driver.counters().refused_count;
                assert!(refused.keys().all(|why| *why == Refusal::Late || dead), "{refused:?}");
            }
        }
        check(&self.history);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Run { node, thread } => self.run_thread(node, thread),
            Event::Frame { from, to, bytes } => {
                let page = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) << 12;
                let slice = ((page - BASE) / STRIDE) as usize;
                self.call(usize::from(to.0), slice, |d, now, out| d.message(from, &bytes, now, out));
            }
            Event::Tick { node, slice } => self.call(node, slice, |d, now, out| d.tick(now, out)),
            Event::Die { node } => {
                self.nodes[node].alive = false;
                let dead = NodeId(node as u16);
                for other in 0..self.nodes.len() {
                    let delay = self.rng.random_range(0..5 * self.delay_us);
                    self.after(delay, Event::Told { node: other, dead });
                }
            }
            Event::Told { node, dead } => {
                for slice in 0..self.nodes[node].drivers.len() {
                    self.call(node, slice, |d, now, out| d.node_died(dead, now, out));
                }
            }
        }
    }

    fn call(
        &mut self,
        node: usize,
        slice: usize,
        what: impl FnOnce(&mut Driver<Fake>, u64, &mut Said) -> Result<(), Infallible>,
    ) {
        if !self.nodes[node].alive {
            return;
        }
        let mut said = Said::default();
        let Ok(()) = what(&mut self.nodes[node].drivers[slice], self.now, &mut said);
        let me = NodeId(node as u16);
        for (to, bytes) in said.frames {
            let delay = self.rng.random_range(1..=self.delay_us);
            let last = self.last.entry((me, to)).or_default();
            let at = (self.now + delay).max(*last + 1);
            *last = at;
            self.after(at - self.now, Event::Frame { from: me, to, bytes });
        }
        for (page, bytes) in said.fetched {
            self.nodes[node].fetches -= 1;
            let index = ((page.gpa() - BASE) % STRIDE) as usize / PAGE_BYTES;
            if let Some(bytes) = bytes {
                let frame = sim::Frame { bytes: Some(bytes), ..sim::Frame::default() };
                let words = WORDS.map(|offset| frame.word(offset));
                assert_eq!(words, self.written[node][index], "a fetch of {page} returned stale bytes");
            }
        }
        if let Some(at) = self.nodes[node].drivers[slice].next_deadline() {
            self.after(at.saturating_sub(self.now), Event::Tick { node, slice });
        }
        let woken = std::mem::take(&mut self.nodes[node].memories[slice].0.borrow_mut().woken);
        for index in woken {
            for thread in 0..self.nodes[node].threads.len() {
                let t = &mut self.nodes[node].threads[thread];
                if t.asleep && t.doing.is_some_and(|op| (op.slice, op.index) == (slice, index)) {
                    t.asleep = false;
                    // A vCPU takes a moment to come back; with a hold, less than that.
                    self.after(1, Event::Run { node, thread });
                }
            }
        }
    }

    fn run_thread(&mut self, node: usize, thread: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let op = match self.nodes[node].threads[thread].doing {
            Some(op) => op,
            None if self.nodes[node].threads[thread].left == 0 => return,
            None => self.next_op(node, thread),
        };
        let (rights, poisoned) = {
            let frame = &self.nodes[node].memories[op.slice].0.borrow().frames[op.index];
            (frame.rights, frame.poisoned)
        };
        if !poisoned && rights.is_none_or(|r| r < op.access) {
            self.nodes[node].threads[thread].asleep = true;
            return self.call(node, op.slice, |d, now, out| d.fault(op.index, op.access, now, out));
        }
        if poisoned {
            self.poisoned.insert((op.slice, op.index));
        } else {
            self.access(node, op);
        }
        self.nodes[node].threads[thread].doing = None;
        let delay = self.rng.random_range(0..=self.delay_us);
        self.after(delay, Event::Run { node, thread });
    }

    fn next_op(&mut self, node: usize, thread: usize) -> Op {
        let slices = self.nodes[node].drivers.len();
        let (rng, t) = (&mut self.rng, &mut self.nodes[node].threads[thread]);
        t.left -= 1;
        t.last = if t.scans { (t.last + 1) % (PAGES * slices) } else { rng.random_range(0..PAGES * slices) };
        let (slice, index) = (t.last / PAGES, t.last % PAGES);
        let write = rng.random_bool(if t.scans { 0.1 } else { 0.4 });
        let access = if write { Access::Write } else { Access::Read };
        let op = Op { slice, index, word: rng.random_range(0..WORDS.len()), access };
        t.doing = Some(op);
        self.sometimes_more(node, slice, index);
        op
    }

    /// Evictions, prefetches and fetches, now and then.
    fn sometimes_more(&mut self, node: usize, slice: usize, index: usize) {
        let page = PageNo((BASE + slice as u64 * STRIDE) / 4096 + index as u64);
        match self.rng.random_range(0..10) {
            0 => self.call(node, slice, |d, now, out| d.release(page, now, out)),
            1 => self.call(node, slice, |d, now, out| d.prefetch_run(page, 3, now, out)),
            2 if slice == node => {
                self.nodes[node].fetches += 1;
                self.call(node, slice, |d, now, out| d.fetch(page, 0, now, out));
            }
            _ => {}
        }
    }

    fn access(&mut self, node: usize, op: Op) {
        let rights = |n: &Node| n.memories[op.slice].0.borrow().frames[op.index].rights;
        let mut memory = self.nodes[node].memories[op.slice].0.borrow_mut();
        let frame = &mut memory.frames[op.index];
        let mut value = frame.word(WORDS[op.word]);
        if op.access == Access::Write {
            self.last_value += 1;
            value = self.last_value;
            frame.set_word(WORDS[op.word], value);
            self.written[op.slice][op.index][op.word] = value;
            drop(memory);
            let others = self.nodes.iter().enumerate().filter(|(n, other)| *n != node && other.alive);
            for (n, other) in others {
                assert_eq!(rights(other), None, "node {node} writes {op:?} while node {n} may access it");
            }
        }
        self.history.push(Done { at: self.now, node, op, value });
    }

    fn counters(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.nodes.iter().flat_map(|n| &n.drivers).map(|d| of(d.counters())).sum()
    }
}

/// Is this what memory would have shown that does one access after the other?
fn check(history: &[Done]) {
    let mut memory = BTreeMap::new();
    for done in history {
        let word = (done.op.slice, done.op.index, done.op.word);
        if done.op.access == Access::Write {
            memory.insert(word, done.value);
        } else {
            let last = memory.get(&word).copied().unwrap_or(0);
            assert_eq!(
                done.value, last,
                "node {} reads {} of {:?} at {} us; the last write was of {last}",
                done.node, done.value, done.op, done.at
            );
        }
    }
}

fn run(seed: u64) -> World {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay with SSI_DSM_SEED={}", self.0);
            }
        }
    }
    let _seed = Seed(seed);
    let mut world = World::new(seed);
    world.run();
    world
}

/// What the runs came by.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    accesses: u64,
    lost: u64,
    nodes_max: usize,
    late: u64,
    run_pages: u64,
    differences: u64,
    discarded: u64,
}

fn runs(seeds: impl Iterator<Item = u64>) -> Totals {
    let mut totals = Totals::default();
    for seed in seeds {
        let world = run(seed);
        totals.accesses += world.history.len() as u64;
        totals.lost += world.poisoned.len() as u64;
        totals.nodes_max = totals.nodes_max.max(world.nodes.len());
        totals.late += world.counters(|c| c.refused_count.get(&Refusal::Late).copied().unwrap_or(0));
        totals.run_pages += world.counters(|c| c.run_pages_count);
        totals.differences += world.counters(|c| c.sent_difference_count);
        totals.discarded += world.counters(|c| c.discarded_pages_count);
    }
    totals
}

#[test]
fn dsm_i1_to_i4_random_runs_of_up_to_64_nodes() {
    const THREADS: u64 = 2;
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SSI_DSM_SEED") {
        println!("{:?}", runs(std::iter::once(seed)));
        return;
    }
    let count = number("SSI_DSM_RUNS").unwrap_or(10_000);
    let all: Vec<Totals> = std::thread::scope(|scope| {
        let part = |n: u64| scope.spawn(move || runs((n..count).step_by(THREADS as usize)));
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        parts.into_iter().map(|part| part.join().expect("see above for the seed")).collect()
    });
    println!("{all:?}");
    for shown in [
        |t: &Totals| t.accesses > 10_000,
        |t: &Totals| t.nodes_max > 60 && t.lost > 0,
        |t: &Totals| t.late > 0,
        |t: &Totals| t.run_pages > 1000,
        |t: &Totals| t.differences > 1000,
        |t: &Totals| t.discarded > 1000,
    ] {
        assert!(all.iter().all(shown) || count < 10_000, "the runs show too little: {all:?}");
    }
}

#[test]
fn a_seed_replays_its_run() {
    let trace = |seed| {
        let world = run(seed);
        (world.now, world.made, world.history.len(), world.written)
    };
    assert_eq!(trace(17), trace(17));
    assert_ne!(trace(17), trace(18));
}

#[test]
#[should_panic(expected = "the last write was of 1")]
fn a_history_that_no_memory_would_show_is_found() {
    let op = |access| Op { slice: 0, index: 0, word: 0, access };
    let at = |at, access, value| Done { at, node: 0, op: op(access), value };
    check(&[at(1, Access::Write, 1), at(2, Access::Read, 1), at(3, Access::Read, 0)]);
}
