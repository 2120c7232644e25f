//! Litmus tests on real memory: four processes, each a node with its DSM, run the classic programs of x86's memory model on pages
//! of all homes. Only outcomes that one x86 machine allows may appear (DSM-3; Sewell et al., "x86-TSO", 2010).
//!
//! A program runs once per slot of a page, the nodes at their own pace, so that its accesses meet in the middle of transfers.
//! Values only grow: "new" is the value of this round. `SSI_LITMUS_ROUNDS` runs more.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::{Context, bail, ensure};
use ssi_dsm::NodeId;
use ssi_dsm::memory::PAGE_SIZE;
use ssivmm::dsm::rig::{self, Layout, Program, Rig, RigNode};

const NODES: u16 = 4;
/// A cache line for each instance of a program.
const LINE: usize = 64;
const SLOTS: usize = PAGE_SIZE / LINE;

/// One instance's two variables. In one page they are half a line apart.
#[derive(Clone, Copy)]
struct Vars {
    x: *mut u64,
    y: *mut u64,
    new: u64,
}

impl Vars {
    /// Volatile accesses are plain `mov`s that stay in order.
    fn load(at: *mut u64) -> u64 {
        // SAFETY: a word of a slice that the node maps; other nodes are other processes.
        unsafe { at.read_volatile() }
    }

    fn store(at: *mut u64, value: u64) {
        // SAFETY: as in `load`.
        unsafe { at.write_volatile(value) };
    }

    fn is_new(&self, at: *mut u64) -> u8 {
        u8::from(Self::load(at) == self.new)
    }
}

/// A litmus program.
struct Litmus {
    name: &'static str,
    /// What each thread does; its answer is what it has seen, bit by bit.
    threads: &'static [fn(Vars) -> u8],
    /// Is this outcome, the threads' answers in order, one that x86 forbids?
    forbidden: fn(&[u8]) -> bool,
}

/// First bit first.
fn bits(first: u8, second: u8) -> u8 {
    first | second << 1
}

const PROGRAMS: &[Litmus] = &[
    Litmus {
        name: "sb",
        threads: &[store_x_fence_load_y, store_y_fence_load_x],
        forbidden: |seen| *seen == [0, 0],
    },
    Litmus {
        name: "mp",
        threads: &[
            |v| {
                Vars::store(v.x, v.new);
                Vars::store(v.y, v.new);
                0
            },
            load_y_then_x,
        ],
        // The flag, but not the message.
        forbidden: |seen| seen[1] == bits(1, 0),
    },
    Litmus {
        name: "lb",
        threads: &[
            |v| {
                let seen = v.is_new(v.x);
                Vars::store(v.y, v.new);
                seen
            },
            |v| {
                let seen = v.is_new(v.y);
                Vars::store(v.x, v.new);
                seen
            },
        ],
        forbidden: |seen| *seen == [1, 1],
    },
    Litmus {
        name: "iriw",
        threads: &[
            |v| {
                Vars::store(v.x, v.new);
                0
            },
            |v| {
                Vars::store(v.y, v.new);
                0
            },
            |v| {
                let x = v.is_new(v.x);
                bits(x, v.is_new(v.y))
            },
            load_y_then_x,
        ],
        // One saw x before y, the other y before x.
        forbidden: |seen| seen[2] == bits(1, 0) && seen[3] == bits(1, 0),
    },
    Litmus {
        // The threads' stores come to rest in an order that has no beginning: each one's first store over the other's second.
        name: "2+2w",
        threads: &[
            |v| {
                Vars::store(v.x, v.new);
                Vars::store(v.y, v.new + 1);
                0
            },
            |v| {
                Vars::store(v.y, v.new);
                Vars::store(v.x, v.new + 1);
                0
            },
        ],
        forbidden: |seen| seen.last() == Some(&bits(1, 1)),
    },
];

fn store_x_fence_load_y(v: Vars) -> u8 {
    Vars::store(v.x, v.new);
    fence(Ordering::SeqCst);
    v.is_new(v.y)
}

fn store_y_fence_load_x(v: Vars) -> u8 {
    Vars::store(v.y, v.new);
    fence(Ordering::SeqCst);
    v.is_new(v.x)
}

fn load_y_then_x(v: Vars) -> u8 {
    let y = v.is_new(v.y);
    bits(y, v.is_new(v.x))
}

/// Where a program runs in one round: which node runs which thread, whose pages hold x and y.
#[derive(Clone, Copy)]
struct Placement {
    first_node: usize,
    x: NodeId,
    y: NodeId,
    /// Both in one page, and so in one line.
    together: bool,
    new: u64,
}

impl Placement {
    fn of_round(round: u64) -> Self {
        let node = |n: u64| NodeId(u16::try_from(n % u64::from(NODES)).unwrap_or(0));
        Self {
            first_node: (round / 3 % u64::from(NODES)) as usize,
            x: node(round),
            y: node(round / u64::from(NODES)),
            together: round % 5 == 4,
            // 2+2W uses this and the next.
            new: 2 * (round + 1),
        }
    }

    fn vars(&self, node: &RigNode, slot: usize) -> anyhow::Result<Vars> {
        let (x_page, y_page) =
            (node.page(self.x, 1)?, node.page(self.y, if self.x == self.y { 2 } else { 1 })?);
        let at = slot * LINE;
        // SAFETY: the offsets lie in the page, and are multiples of eight.
        let (x, y) = unsafe {
            (x_page.add(at), if self.together { x_page.add(at + LINE / 2) } else { y_page.add(at) })
        };
        Ok(Vars { x: x.cast(), y: y.cast(), new: self.new })
    }

    /// The thread that `node` runs of a program with `threads` threads.
    fn thread(&self, node: NodeId, threads: usize) -> Option<usize> {
        let nodes = usize::from(NODES);
        Some((usize::from(node.0) + nodes - self.first_node) % nodes).filter(|thread| *thread < threads)
    }
}

fn program(name: &str) -> anyhow::Result<&'static Litmus> {
    PROGRAMS.iter().find(|p| p.name == name).with_context(|| format!("no program {name:?}"))
}

/// One round on one node. The answer has a digit for each slot.
fn run_thread(node: &RigNode, name: &str, round: u64) -> anyhow::Result<String> {
    let (program, place) = (program(name)?, Placement::of_round(round));
    let Some(thread) = place.thread(node.me, program.threads.len()) else { return Ok("-".into()) };
    let mut seen = String::with_capacity(SLOTS);
    let mut jitter = round << 8 | u64::from(node.me.0);
    for slot in 0..SLOTS {
        // Nodes that run on alone, as long as they hold the pages, never meet.
        jitter = jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (0..jitter >> 55).for_each(|_| std::hint::spin_loop());
        let _ = write!(seen, "{:x}", program.threads[thread](place.vars(node, slot)?));
    }
    Ok(seen)
}

/// The nodes that the tests start.
struct Nodes;

impl Program for Nodes {
    fn command(&self, node: &RigNode, words: &[&str]) -> anyhow::Result<String> {
        match words {
            ["run", name, round] => run_thread(node, name, round.parse()?),
            ["add", times] => add(node, times.parse()?),
            ["pair", times] => pair(node, times.parse()?),
            ["split", times] => split(node, times.parse()?),
            ["write", seed] => crossing_write(node, seed.parse()?),
            ["disturb", times] => disturb(node, times.parse()?),
            ["fill", slice, page, byte] => fill(node, slice.parse()?, page.parse()?, byte.parse()?),
            ["read", slice, page] => {
                let page = node.page(NodeId(slice.parse()?), page.parse()?)?;
                Ok(Vars::load(page.cast()).to_string())
            }
            _ => bail!("unknown command {words:?}"),
        }
    }

    fn stream(&self, _: TcpStream) {}
}

/// `None` in a process that a test has started, when it is over.
fn rig(test: &str, hold_us: u64) -> Option<Rig> {
    if rig::child(&Nodes).unwrap() {
        return None;
    }
    let layout = Layout { hold_us, ..Layout::new(NODES, 2 << 20) };
    let args: Vec<OsString> = [test, "--exact", "--nocapture"].map(OsString::from).to_vec();
    Some(Rig::start(NodeId(0), layout, &args).unwrap())
}

fn rounds(usual: u64) -> u64 {
    std::env::var("SSI_LITMUS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Runs a program in many placements, and counts its outcomes.
fn litmus(test: &str, name: &str) {
    let Some(mut rig) = rig(test, 0) else { return };
    let program = program(name).unwrap();
    let mut outcomes: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for round in 0..rounds(300) {
        let place = Placement::of_round(round);
        let mut mine = String::new();
        let line = format!("run {name} {round}");
        let others = rig
            .all(&line, |node| {
                mine = run_thread(node, name, round)?;
                Ok(())
            })
            .unwrap();
        let answers: Vec<&String> = std::iter::once(&mine).chain(&others).collect();
        for slot in 0..SLOTS {
            let mut outcome = vec![0; program.threads.len()];
            for (node, answer) in (0..).map(NodeId).zip(&answers) {
                if let Some(thread) = place.thread(node, program.threads.len()) {
                    outcome[thread] = u8::from_str_radix(&answer[slot..=slot], 16).unwrap();
                }
            }
            if name == "2+2w" {
                let vars = place.vars(&rig.node, slot).unwrap();
                outcome.push(bits(vars.is_new(vars.x), vars.is_new(vars.y)));
            }
            assert!(
                !(program.forbidden)(&outcome),
                "{name}, round {round}, slot {slot}: x86 forbids {outcome:?}"
            );
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    println!("{name}: {outcomes:?}");
    assert!(outcomes.len() > 1, "the threads never met: nothing was tested");
    no_complaints(&rig);
}

fn no_complaints(rig: &Rig) {
    for counters in rig.node.dsm.counters() {
        // Messages that are late are part of the protocol.
        assert!(!counters.refused_count.keys().any(|why| why.is_violation()), "{counters:?}");
    }
}

#[test]
fn dsm_3_store_buffering_with_fences_sees_one_of_the_stores() {
    litmus("dsm_3_store_buffering_with_fences_sees_one_of_the_stores", "sb");
}

#[test]
fn dsm_3_message_passing_sees_the_message_with_the_flag() {
    litmus("dsm_3_message_passing_sees_the_message_with_the_flag", "mp");
}

#[test]
fn dsm_3_load_buffering_sees_no_value_out_of_the_future() {
    litmus("dsm_3_load_buffering_sees_no_value_out_of_the_future", "lb");
}

#[test]
fn dsm_3_iriw_readers_agree_on_the_order_of_two_writers() {
    litmus("dsm_3_iriw_readers_agree_on_the_order_of_two_writers", "iriw");
}

#[test]
fn dsm_3_2_2w_stores_come_to_rest_in_an_order() {
    litmus("dsm_3_2_2w_stores_come_to_rest_in_an_order", "2+2w");
}

fn word(node: &RigNode, slice: u16, page: usize, offset: usize) -> anyhow::Result<*mut u64> {
    ensure!(offset + 8 <= 2 * PAGE_SIZE, "offset {offset} leaves the two pages");
    // SAFETY: the offset lies in this page or the next, and every test's pages have a next one.
    Ok(unsafe { node.page(NodeId(slice), page)?.add(offset) }.cast())
}

fn add(node: &RigNode, times: u64) -> anyhow::Result<String> {
    for _ in 0..times {
        for slice in 0..NODES {
            // SAFETY: aligned, and used by atomic accesses only.
            let counter = unsafe { &*word(node, slice, 3, 128)?.cast::<AtomicU64>() };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok("ok".into())
}

/// `lock add`: nothing is lost, and nothing counted twice.
#[test]
fn dsm_i2_locked_adds_of_four_nodes_add_up() {
    let Some(mut rig) = rig("dsm_i2_locked_adds_of_four_nodes_add_up", 0) else { return };
    let times = 20 * rounds(300);
    rig.all(&format!("add {times}"), |node| add(node, times).map(drop)).unwrap();
    for slice in 0..NODES {
        let sum = Vars::load(word(&rig.node, slice, 3, 128).unwrap());
        assert_eq!(sum, times * u64::from(NODES), "slice {slice}");
    }
    no_complaints(&rig);
}

/// Puts `new` into both halves of `at` if it holds `old`; returns what it held. (The compiler's own wants a processor that is sure
/// to have the instruction.)
fn cmpxchg16b(at: *mut u128, old: u128, new: u64) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the address is a multiple of 16 and mapped, and the caller has seen that the processor has the instruction; rbx, which
    // the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new => _,
            in("rdi") at,
            in("rcx") new,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

fn pair(node: &RigNode, times: u64) -> anyhow::Result<String> {
    ensure!(is_x86_feature_detected!("cmpxchg16b"), "this processor has no cmpxchg16b");
    for _ in 0..times {
        let at = word(node, 1, 4, 256)?.cast::<u128>();
        let mut old = 0;
        loop {
            let (low, high) = (old as u64, (old >> 64) as u64);
            ensure!(low == high, "cmpxchg16b saw a pair in halves: {low} {high}");
            let seen = cmpxchg16b(at, old, low + 1);
            if seen == old {
                break;
            }
            old = seen;
        }
    }
    Ok("ok".into())
}

#[test]
fn dsm_i2_cmpxchg16b_of_four_nodes_changes_both_halves_at_once() {
    let Some(mut rig) = rig("dsm_i2_cmpxchg16b_of_four_nodes_changes_both_halves_at_once", 0) else { return };
    let times = 10 * rounds(300);
    rig.all(&format!("pair {times}"), |node| pair(node, times).map(drop)).unwrap();
    for half in [256, 264] {
        assert_eq!(Vars::load(word(&rig.node, 1, 4, half).unwrap()), times * u64::from(NODES));
    }
    no_complaints(&rig);
}

/// Half of a word in one page, half in the next.
const SPLIT: usize = PAGE_SIZE - 4;

fn split(node: &RigNode, times: u64) -> anyhow::Result<String> {
    for _ in 0..times {
        let at = word(node, 2, 5, SPLIT)?;
        // SAFETY: both pages are mapped; x86 allows locked instructions at any address.
        unsafe { std::arch::asm!("lock add qword ptr [{}], 1", in(reg) at, options(nostack)) };
    }
    Ok("ok".into())
}

/// A locked instruction over the border of two pages needs both for writing at once: the hold is what lets it end (DSM-I3), and
/// that both are held makes it atomic.
#[test]
fn dsm_i3_locked_adds_over_a_page_border_end_and_add_up() {
    let Some(mut rig) = rig("dsm_i3_locked_adds_over_a_page_border_end_and_add_up", 300) else { return };
    let times = 2 * rounds(300);
    rig.all(&format!("split {times}"), |node| split(node, times).map(drop)).unwrap();
    let at = word(&rig.node, 2, 5, SPLIT).unwrap();
    // SAFETY: both pages are mapped.
    assert_eq!(unsafe { at.read_unaligned() }, times * u64::from(NODES));
    no_complaints(&rig);
}

/// Words over the border of two pages and of two lines, written whole: each half is the seed.
fn crossing_write(node: &RigNode, seed: u64) -> anyhow::Result<String> {
    for offset in [SPLIT, LINE - 4] {
        let at = word(node, node.me.0, 7, offset)?;
        for i in 0..SLOTS as u64 {
            let half = seed * SLOTS as u64 + i;
            // SAFETY: both pages are mapped; a plain unaligned store.
            unsafe { at.write_unaligned(half << 32 | half) };
            fence(Ordering::SeqCst);
        }
    }
    Ok("ok".into())
}

/// A store over a border may be seen in halves, but no half is torn, and none goes back in time.
#[test]
fn dsm_3_stores_over_a_border_are_seen_in_halves_at_worst() {
    let Some(mut rig) = rig("dsm_3_stores_over_a_border_are_seen_in_halves_at_worst", 0) else { return };
    let mut last = BTreeMap::new();
    for round in 1..=rounds(300) {
        rig.all(&format!("write {round}"), |node| {
            for _ in 0..SLOTS {
                for (slice, offset) in (1..NODES).flat_map(|slice| [(slice, SPLIT), (slice, LINE - 4)]) {
                    let at = word(node, slice, 7, offset)?;
                    // SAFETY: both pages are mapped; a plain unaligned load.
                    let seen = unsafe { at.read_unaligned() };
                    for (half, value) in [(0, seen & 0xffff_ffff), (1, seen >> 32)] {
                        let highest = (round + 1) * SLOTS as u64;
                        let before = last.insert((slice, offset, half), value).unwrap_or(0);
                        ensure!(
                            (before..highest).contains(&value),
                            "slice {slice} offset {offset} half {half}: {value:#x} after {before:#x}"
                        );
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    }
    no_complaints(&rig);
}

fn fill(node: &RigNode, slice: u16, page: usize, byte: u8) -> anyhow::Result<String> {
    let at = node.page(NodeId(slice), page)?;
    // SAFETY: one mapped page, and nobody else uses it meanwhile.
    unsafe { at.write_bytes(byte, PAGE_SIZE) };
    Ok("ok".into())
}

/// Where `rep movs` copies to, and where another node writes meanwhile.
const TARGET: usize = 100;

/// Takes the pages that node 0 copies to away from it, all the time.
fn disturb(node: &RigNode, times: u64) -> anyhow::Result<String> {
    for _ in 0..times {
        for page in 0..3 {
            // SAFETY: the last word of a page, aligned, used by atomic accesses only.
            let counter = unsafe { &*word(node, 2, TARGET + page, PAGE_SIZE - 8)?.cast::<AtomicU64>() };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok("ok".into())
}

/// A node, and what it does to a page.
type Step = (u16, &'static str);

/// How node 0 knows a page before it copies: as its home or through a window, with a copy or without.
const STATES: [(&str, u16, &[Step]); 7] = [
    ("home", 0, &[]),
    ("home, shared", 0, &[(1, "read")]),
    ("home, remote", 0, &[(1, "fill")]),
    ("window, invalid", 1, &[]),
    ("window, shared", 1, &[(0, "read")]),
    ("window, modified", 1, &[(0, "fill")]),
    ("window, at a third node", 1, &[(0, "fill"), (2, "fill")]),
];

fn rep_movs(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the callers' ranges are mapped and do not overlap.
    unsafe {
        std::arch::asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _,
            options(nostack));
    }
}

#[test]
fn dsm_3_rep_movs_copies_pages_in_every_state() {
    let Some(mut rig) = rig("dsm_3_rep_movs_copies_pages_in_every_state", 300) else { return };
    let apply = |rig: &mut Rig, slice: u16, page: usize, byte: u8, steps: &[(u16, &str)]| {
        // First by the home, then as the state wants it: all writers write the same.
        for (node, what) in std::iter::once(&(slice, "fill")).chain(steps) {
            let line = match *what {
                "fill" => format!("fill {slice} {page} {byte}"),
                _ => format!("read {slice} {page}"),
            };
            let words: Vec<&str> = line.split(' ').collect();
            match node {
                0 => Nodes.command(&rig.node, &words).unwrap(),
                node => rig.tell(NodeId(*node), &line).unwrap(),
            };
        }
    };
    let mut page = 8;
    for (from_name, from_slice, from_steps) in STATES {
        for (to_name, to_slice, to_steps) in STATES {
            for (part, byte) in [(0, 0x5a), (1, 0xa5)] {
                apply(&mut rig, from_slice, page + part, byte, from_steps);
                apply(&mut rig, to_slice, page + 2 + part, 0x11, to_steps);
            }
            let from = rig.node.page(NodeId(from_slice), page).unwrap();
            let to = rig.node.page(NodeId(to_slice), page + 2).unwrap();
            // SAFETY: offsets within two mapped pages.
            unsafe { rep_movs(from.add(100), to.add(300), PAGE_SIZE + 500) };
            let mut expected = vec![0x11; 2 * PAGE_SIZE];
            expected[300..300 + PAGE_SIZE - 100].fill(0x5a);
            expected[300 + PAGE_SIZE - 100..300 + PAGE_SIZE + 500].fill(0xa5);
            // SAFETY: two mapped pages that nobody writes now.
            let got = unsafe { std::slice::from_raw_parts(to, 2 * PAGE_SIZE) };
            assert!(got == expected, "from {from_name} to {to_name}");
            page += 4;
        }
    }
    // And into pages that another node keeps taking.
    let times = 10 * rounds(300);
    let source: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    rig.say(NodeId(3), &format!("disturb {times}")).unwrap();
    let to = rig.node.page(NodeId(2), TARGET).unwrap();
    for _ in 0..rounds(300) {
        for page in 0..3 {
            // Up to the word that the other node counts in.
            // SAFETY: within one page of the three.
            rep_movs(source[page * PAGE_SIZE..].as_ptr(), unsafe { to.add(page * PAGE_SIZE) }, PAGE_SIZE - 8);
        }
    }
    rig.hear(NodeId(3)).unwrap();
    for page in 0..3 {
        // SAFETY: one mapped page that nobody writes now.
        let got = unsafe { std::slice::from_raw_parts(to.add(page * PAGE_SIZE), PAGE_SIZE) };
        assert!(got[..PAGE_SIZE - 8] == source[page * PAGE_SIZE..(page + 1) * PAGE_SIZE - 8]);
        assert_eq!(u64::from_le_bytes(got[PAGE_SIZE - 8..].try_into().unwrap()), times, "page {page}");
    }
    no_complaints(&rig);
}
