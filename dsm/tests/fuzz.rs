//! Bytes that nobody should send: to the parser, and to nodes in every state.
//!
//! A mutator that knows the format makes them from messages that make sense, so that many get far. Two tests: raw bytes to the
//! parser; and a cluster of three honest nodes that work while a fourth, whose links are good, says whatever it likes. Every
//! iteration is made from its number: `SSI_FUZZ_SEED=<n>` replays one, `SSI_FUZZ_SECONDS=<n>` goes on for so long (an hour:
//! `SSI_FUZZ_SECONDS=3600 cargo test -p ssi-dsm --test fuzz`).
//!
//! Held against a liar: no panic; no action outside a slice (the simulated memory panics); no more memory than a bound for
//! one message; and the pages that the liar never had, at honest homes, stay coherent. A liar that is given a page to write
//! may have written anything into it, and one that is asked to give it on may give it to two: those pages are its own.

mod sim;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sim::{Fake, PAGE_BYTES};
use ssi_dsm::driver::{Driver, Outbox};
use ssi_dsm::protocol::{Config, Message, Refusal, SliceMap, TICKET_MAX, version};
use ssi_dsm::wire::{Body, Frame, HEADER_BYTES, HISTORY_STEPS, MAX_BYTES, Packet, Repr};
use ssi_dsm::{Access, NodeId, PageNo};

/// Counts what the current thread allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; the counter is a plain thread-local that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = ALLOCATED.try_with(|count| count.set(count.get() + layout.size()));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `work` allocates.
fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.get();
    let result = work();
    (result, ALLOCATED.get() - before)
}

const NODES: u16 = 4;
const LIAR: NodeId = NodeId(3);
const PAGES: usize = 4;
/// Pages of a slice, from this one on, that the liar may have.
const LIARS: usize = 2;
const BASE: u64 = 4 << 30;
const STRIDE: u64 = 1 << 30;
const SLICES: SliceMap =
    SliceMap { base: BASE, stride: STRIDE, size: (PAGES * PAGE_BYTES) as u64, nodes: NODES };

fn page_of(slice: u64, index: usize) -> PageNo {
    PageNo((BASE + slice * STRIDE) / 4096 + index as u64)
}

/// A number that is worth trying.
fn number(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..10) {
        0 => 0,
        1 => u64::MAX >> rng.random_range(0..64),
        2 => 1 << rng.random_range(0..64),
        3 => TICKET_MAX - rng.random_range(0..70),
        4 => version(NodeId(rng.random_range(0..5)), rng.random_range(0..40)),
        5 => rng.random(),
        _ => rng.random_range(0..100),
    }
}

fn page(rng: &mut StdRng) -> PageNo {
    match rng.random_range(0..20) {
        0 => PageNo(number(rng) & (u64::MAX >> 12)),
        1 => page_of(rng.random_range(0..5), PAGES),
        _ => page_of(rng.random_range(0..u64::from(NODES)), rng.random_range(0..PAGES)),
    }
}

/// A message whose fields have values that fields have.
fn message(rng: &mut StdRng) -> Message {
    let (page, ticket) = (page(rng), rng.random_range(1..60));
    let access = if rng.random() { Access::Write } else { Access::Read };
    let held = if rng.random() { 0 } else { number(rng) };
    let version = number(rng);
    let run = rng.random_range(1..1 << PAGES);
    match rng.random_range(0..15) {
        0 => Message::Read { page, ticket, held },
        1 => Message::Write { page, ticket, held },
        2 => Message::ReadRun { page, ticket, wanted: run },
        3 => Message::Data { page, access, ticket, version, held },
        4 => {
            let given = rng.random_range(0..1 << PAGES) & run;
            Message::DataRun { page, ticket, version, given, skipped: run & !given }
        }
        5 => Message::Same { page, access, ticket },
        6 => Message::Lost { page, ticket },
        7 => Message::Invalidate { page, ticket },
        8 => Message::Ack { page, ticket },
        9 => Message::Recall {
            page,
            ticket,
            keep: rng.random(),
            to: NodeId(rng.random_range(0..5)),
            to_ticket: rng.random_range(0..60),
            held,
            home_held: number(rng),
        },
        10 => Message::WriteBack { page, ticket, kept: rng.random(), version, held },
        11 => Message::Passed { page, ticket },
        12 => Message::Evict { page, ticket },
        13 => Message::Ask { page, ticket, confirm: rng.random() },
        _ => Message::Have { page, ticket },
    }
}

fn emit(message: &Message, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![];
    let mut frame = Frame::new(message, 0, &mut bytes);
    let one = matches!(message, Message::Data { .. } | Message::WriteBack { .. });
    if one && rng.random_range(0..3) == 0 {
        let steps: Vec<_> =
            (0..rng.random_range(0..=HISTORY_STEPS)).map(|_| (number(rng), rng.random())).collect();
        frame.history(steps);
    }
    if one && rng.random_range(0..3) == 0 {
        frame.difference(number(rng), &[7; PAGE_BYTES]);
    } else {
        (0..message.pages().count_ones()).for_each(|_| frame.page().fill(rng.random()));
    }
    frame.finish();
    bytes
}

/// Changes bytes a little, a field, or the length.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(0..4) {
        let words = (bytes.len().min(HEADER_BYTES + 4 * 8) / 8).max(1);
        match rng.random_range(0..8) {
            0 if !bytes.is_empty() => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            1 if bytes.len() >= 4 => bytes[rng.random_range(0..4)] = rng.random_range(0..20),
            2 | 3 => {
                let (at, value) = (rng.random_range(0..words) * 8, number(rng));
                if let Some(word) = bytes.get_mut(at..at + 8) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            4 => bytes.truncate(rng.random_range(0..=bytes.len())),
            5 => {
                let len = rng.random_range(0..200).min(MAX_BYTES);
                let more = (0..len).map(|_| rng.random::<u8>()).collect::<Vec<_>>();
                bytes.extend(more);
            }
            // The length that the header says, made right again: else little would get past it.
            _ if bytes.len() >= HEADER_BYTES => {
                let payload = (bytes.len() - HEADER_BYTES) as u32;
                bytes[4..8].copy_from_slice(&payload.to_le_bytes());
            }
            _ => {}
        }
    }
}

/// Runs the numbers that are asked for; prints the one that fails.
fn iterations(count: u64, each: impl Fn(u64)) {
    struct Number(u64);
    impl Drop for Number {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay with SSI_FUZZ_SEED={}", self.0);
            }
        }
    }
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let (first, mut count) = match number("SSI_FUZZ_SEED") {
        Some(seed) => (seed, 1),
        None => (0, count),
    };
    let end = number("SSI_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let mut n = first;
    while count > 0 || end.is_some_and(|end| Instant::now() < end) {
        let number = Number(n);
        each(n);
        drop(number);
        n += 1;
        count = count.saturating_sub(1);
    }
}

#[test]
fn bytes_are_a_message_that_emits_to_them_or_an_error() {
    let accepted = Cell::new(0);
    iterations(400_000, |n| {
        let mut rng = StdRng::seed_from_u64(n);
        let message = message(&mut rng);
        let mut bytes = emit(&message, &mut rng);
        mutate(&mut bytes, &mut rng);
        let (parsed, cost) =
            allocated(|| Packet::new_checked(&bytes).and_then(|packet| Repr::parse(&packet)));
        assert_eq!(cost, 0, "the parser allocates");
        let Ok(repr) = parsed else { return };
        accepted.set(accepted.get() + 1);
        let mut again = Vec::with_capacity(MAX_BYTES);
        let mut frame = Frame::new(&repr.message, repr.epoch, &mut again);
        match repr.body {
            Body::Difference { history, lines, bytes } => {
                frame.history(history.steps());
                let mut page = [0; PAGE_BYTES];
                let set = page.chunks_exact_mut(64).enumerate().filter(|(n, _)| lines >> n & 1 == 1);
                set.zip(bytes.chunks_exact(64)).for_each(|((_, to), from)| to.copy_from_slice(from));
                frame.difference(lines, &page);
            }
            Body::Pages { history, bytes } => {
                frame.history(history.steps());
                bytes.chunks_exact(PAGE_BYTES).for_each(|page| frame.page().copy_from_slice(page));
            }
            Body::Nothing => {}
        }
        assert!(frame.finish() == bytes, "{:?} from other bytes than it emits", repr.message);
        assert!(bytes.len() <= MAX_BYTES);
    });
    let few = accepted.get() < 10_000 && std::env::var_os("SSI_FUZZ_SEED").is_none();
    assert!(!few, "only {} were messages", accepted.get());
}

#[derive(Debug, Default)]
struct Out {
    frames: Vec<(NodeId, Vec<u8>)>,
    violations: Vec<(NodeId, Refusal)>,
}

impl Outbox for Out {
    fn send(&mut self, to: NodeId, frame: &[u8]) {
        self.frames.push((to, frame.to_vec()));
    }
    fn fetched(&mut self, _: u64, _: PageNo, _: Option<&[u8; PAGE_BYTES]>) {}
    fn violation(&mut self, from: NodeId, why: Refusal) {
        self.violations.push((from, why));
    }
}

#[derive(Debug, Clone, Copy)]
struct Op {
    slice: usize,
    index: usize,
    access: Access,
}

impl Op {
    /// Is it about a page that the liar never has?
    fn is_honest(&self) -> bool {
        self.slice != usize::from(LIAR.0) && self.index < LIARS
    }
}

struct World {
    rng: StdRng,
    now: u64,
    /// Of the honest nodes, by slice.
    drivers: Vec<Vec<Driver<Fake>>>,
    doing: Vec<Option<Op>>,
    links: BTreeMap<(NodeId, NodeId), VecDeque<Vec<u8>>>,
    /// What the liar has heard.
    heard: Vec<Vec<u8>>,
    /// The last value of each page that the liar never had.
    written: BTreeMap<(usize, usize), u64>,
    last_value: u64,
    violations: usize,
    done: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one_of = |choices: &[u64]| choices[rng.random_range(0..choices.len())];
        let config = Config {
            hold_us: one_of(&[0, 5]),
            hold_max_us: one_of(&[0, 20]),
            window_pages: one_of(&[u64::MAX, 1, 2]),
            prefetch_pages: one_of(&[0, 4]),
            twin_pages: one_of(&[0, 2, 64]),
            ..Config::new(NodeId(0), SLICES)
        };
        let drivers = (0..LIAR.0).map(|me| {
            let config = Config { me: NodeId(me), ..config };
            let driver = |slice: u16| Driver::new(config, NodeId(slice), Fake::new(PAGES, slice == me));
            (0..NODES).map(driver).collect()
        });
        Self {
            now: 0,
            drivers: drivers.collect(),
            doing: vec![None; usize::from(LIAR.0)],
            links: BTreeMap::new(),
            heard: vec![],
            written: BTreeMap::new(),
            last_value: 0,
            violations: 0,
            done: 0,
            rng,
        }
    }

    /// One event of one honest driver, and the bounds that hold for every one.
    fn call(
        &mut self,
        node: usize,
        slice: usize,
        event: impl FnOnce(&mut Driver<Fake>, u64, &mut Out) -> Result<(), Infallible>,
    ) {
        // A run of pages for the liar, twice (once as it is kept here), and the table of a few entries.
        const BYTES: usize = 3 * MAX_BYTES;
        let (driver, now) = (&mut self.drivers[node][slice], self.now);
        let (out, bytes) = allocated(|| {
            let mut out = Out::default();
            let Ok(()) = event(driver, now, &mut out);
            out
        });
        assert!(bytes <= BYTES, "one event allocates {bytes} bytes");
        assert!(driver.tracked_pages() <= PAGES && driver.resident_pages() <= PAGES);
        for (to, frame) in out.frames {
            assert!(to.0 < NODES && usize::from(to.0) != node, "a message to {to}");
            let packet = Packet::new_checked(&frame).expect("honest nodes send messages");
            assert_eq!(SLICES.home(PageNo(packet.page_number())), Some(NodeId(slice as u16)));
            if to == LIAR {
                self.heard.push(frame);
            } else {
                self.links.entry((NodeId(node as u16), to)).or_default().push_back(frame);
            }
        }
        for (from, why) in out.violations {
            assert!(why.is_violation());
            self.violations += usize::from(from == LIAR);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, frame: &[u8]) {
        let slice = match frame.get(8..16).and_then(|b| b.first_chunk()) {
            Some(page) => SLICES.home(PageNo(u64::from_le_bytes(*page))),
            None => None,
        };
        let slice = slice.map_or(usize::from(to.0), |slice| usize::from(slice.0));
        self.call(usize::from(to.0), slice, |d, now, out| d.message(from, frame, now, out));
    }

    /// The liar says something to somebody.
    fn lie(&mut self) {
        let rng = &mut self.rng;
        let mut frame = match rng.random_range(0..3) {
            // What it has heard, or an answer to it.
            0 if !self.heard.is_empty() => self.heard[rng.random_range(0..self.heard.len())].clone(),
            1 if !self.heard.is_empty() => {
                let heard = &self.heard[rng.random_range(0..self.heard.len())];
                let heard =
                    Repr::parse(&Packet::new_checked(heard).expect("honest")).expect("honest").message;
                let (page, ticket) = (heard.page(), heard.ticket());
                let held = match heard {
                    Message::Read { held, .. } | Message::Write { held, .. } | Message::Data { held, .. } => {
                        held
                    }
                    _ => 0,
                };
                let access = match heard {
                    Message::Write { .. } => Access::Write,
                    _ => Access::Read,
                };
                let answer = match rng.random_range(0..9) {
                    0 => Message::Data { page, access, ticket, version: number(rng), held },
                    1 => Message::Same { page, access, ticket },
                    2 => Message::Lost { page, ticket },
                    3 => Message::Ack { page, ticket },
                    4 => Message::Evict { page, ticket },
                    5 => Message::Passed { page, ticket },
                    6 => Message::WriteBack {
                        page,
                        ticket,
                        kept: rng.random(),
                        version: version(LIAR, ticket),
                        held: 0,
                    },
                    7 => Message::Have { page, ticket },
                    _ => Message::Invalidate { page, ticket },
                };
                emit(&answer, rng)
            }
            _ => {
                let message = message(rng);
                emit(&message, rng)
            }
        };
        if rng.random() {
            mutate(&mut frame, rng);
        }
        let to = NodeId(rng.random_range(0..LIAR.0));
        if let Ok(repr) = Packet::new_checked(&frame).and_then(|packet| Repr::parse(&packet)) {
            let (message, home) = (repr.message, SLICES.home(repr.message.page()));
            let index = (message.page().gpa().wrapping_sub(BASE) % STRIDE) as usize / PAGE_BYTES;
            let honest = home.is_some_and(|home| home != LIAR) && index < LIARS;
            if honest && matches!(message, Message::Write { .. } | Message::Data { .. }) {
                return;
            }
        }
        self.deliver(LIAR, to, &frame);
    }

    /// An honest cell goes on.
    fn work(&mut self, node: usize) {
        let rng = &mut self.rng;
        // What the liar has a say in may never come: another thread goes on.
        if self.doing[node].is_some_and(|op| !op.is_honest()) && rng.random_range(0..4) == 0 {
            self.doing[node] = None;
        }
        let op = *self.doing[node].get_or_insert_with(|| Op {
            slice: rng.random_range(0..usize::from(NODES)),
            index: rng.random_range(0..PAGES),
            access: if rng.random() { Access::Write } else { Access::Read },
        });
        let frame = self.drivers[node][op.slice].memory().0.borrow().frames[op.index].clone();
        if !frame.poisoned && frame.rights.is_none_or(|rights| rights < op.access) {
            return self.call(node, op.slice, |d, now, out| d.fault(op.index, op.access, now, out));
        }
        self.doing[node] = None;
        self.done += 1;
        // Pages that the liar may have had, and its own, can be anything.
        if !op.is_honest() {
            return;
        }
        assert!(!frame.poisoned, "an honest page is lost: {op:?}");
        let value = self.written.entry((op.slice, op.index)).or_default();
        assert_eq!(frame.word(64), *value, "node {node} sees a stale page: {op:?}");
        if op.access == Access::Write {
            self.last_value += 1;
            *value = self.last_value;
            for (other, drivers) in self.drivers.iter().enumerate() {
                let frame = &mut drivers[op.slice].memory().0.borrow_mut().frames[op.index];
                if other == node {
                    frame.set_word(64, *value);
                } else {
                    assert_eq!(
                        frame.rights, None,
                        "node {node} writes {op:?}, and node {other} may access it"
                    );
                }
            }
        }
    }

    fn step(&mut self, lies: bool) {
        self.now += 1;
        let node = self.rng.random_range(0..usize::from(LIAR.0));
        match self.rng.random_range(0..10) {
            0 | 1 if lies => self.lie(),
            3 => {
                let slice = self.rng.random_range(0..usize::from(NODES));
                let page = page_of(slice as u64, self.rng.random_range(0..PAGES));
                self.call(node, slice, |d, now, out| d.prefetch_run(page, 3, now, out));
            }
            4 => {
                let slice = self.rng.random_range(0..usize::from(NODES));
                let page = page_of(slice as u64, self.rng.random_range(0..PAGES));
                self.call(node, slice, |d, now, out| d.release(page, now, out));
            }
            5..=7 => self.work(node),
            _ => self.pass(),
        }
        for slice in 0..usize::from(NODES) {
            if self.drivers[node][slice].next_deadline().is_some_and(|at| at <= self.now) {
                self.call(node, slice, |d, now, out| d.tick(now, out));
            }
        }
    }

    /// One message arrives.
    fn pass(&mut self) {
        let full: Vec<_> = self.links.iter().filter(|(_, l)| !l.is_empty()).map(|(&pair, _)| pair).collect();
        if full.is_empty() {
            return;
        }
        let pair = full[self.rng.random_range(0..full.len())];
        if let Some(frame) = self.links.get_mut(&pair).and_then(VecDeque::pop_front) {
            self.deliver(pair.0, pair.1, &frame);
        }
    }

    /// The liar is found out, and its death told: nothing may wait any more.
    fn end(&mut self) {
        for node in 0..usize::from(LIAR.0) {
            for slice in 0..usize::from(NODES) {
                self.call(node, slice, |d, now, out| d.node_died(LIAR, now, out));
            }
        }
        for _ in 0..300 {
            self.now += 1;
            while self.links.values().any(|l| !l.is_empty()) {
                self.pass();
            }
            for node in 0..usize::from(LIAR.0) {
                if self.doing[node].is_some() {
                    self.work(node);
                }
                for slice in 0..usize::from(NODES) {
                    if self.drivers[node][slice].next_deadline().is_some_and(|at| at <= self.now) {
                        self.call(node, slice, |d, now, out| d.tick(now, out));
                    }
                }
            }
        }
        let waits = |op: &Option<Op>| op.is_some_and(|op| op.is_honest());
        assert!(!self.doing.iter().any(waits), "an honest page is waited for: {:?}", self.doing);
    }
}

#[test]
fn dsm_i1_i2_i4_honest_nodes_stay_coherent_whatever_another_node_says() {
    let (violations, done) = (Cell::new(0), Cell::new(0));
    iterations(2000, |n| {
        let mut world = World::new(n);
        (0..1500).for_each(|_| world.step(true));
        world.end();
        violations.set(violations.get() + world.violations);
        done.set(done.get() + world.done);
    });
    println!("{} accesses, {} violations found", done.get(), violations.get());
    let alone = std::env::var_os("SSI_FUZZ_SEED").is_some();
    assert!(alone || (done.get() > 10_000 && violations.get() > 10_000), "the fuzzer reached too little");
}
