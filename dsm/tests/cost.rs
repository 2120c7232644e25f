//! What each kind of access costs among a thousand nodes: messages, bytes and one-way message times, exactly, so that a
//! change of cost shows on any machine. Real drivers and frames; messages that are on their way together make one hop.
//!
//! `SSI_RENEW=1 cargo test -p ssi-dsm --test cost` writes the snapshot anew.

mod sim;

use std::convert::Infallible;
use std::fmt::Write as _;

use sim::{Fake, PAGE_BYTES};
use ssi_dsm::driver::{Driver, Outbox};
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_dsm::{Access, NodeId, PageNo};

const NODES: u16 = 1000;
const PAGES: usize = 128;
const SLICES: SliceMap =
    SliceMap { base: 0, stride: 1 << 30, size: (PAGES * PAGE_BYTES) as u64, nodes: NODES };
const HOME: usize = 0;
const A: usize = 1;
const B: usize = 2;
const SNAPSHOT: &str = "tests/snapshots/cost.txt";

/// Who sends what to whom.
#[derive(Debug, Default)]
struct Out(Vec<(NodeId, Vec<u8>)>);

impl Outbox for Out {
    fn send(&mut self, to: NodeId, frame: &[u8]) {
        self.0.push((to, frame.to_vec()));
    }

    fn fetched(&mut self, _: u64, _: PageNo, _: Option<&[u8; PAGE_BYTES]>) {}
}

/// Everybody's driver of slice 0.
struct Cluster {
    drivers: Vec<Driver<Fake>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    messages: usize,
    bytes: usize,
    /// Until the access goes on.
    hops: usize,
    /// Until nothing is under way.
    all_hops: usize,
}

impl Cluster {
    fn new(change: impl Fn(Config) -> Config) -> Self {
        let driver = |me: u16| {
            let config = change(Config::new(NodeId(me), SLICES));
            Driver::new(config, NodeId(0), Fake::new(PAGES, me == 0))
        };
        Self { drivers: (0..NODES).map(driver).collect() }
    }

    fn rights(&self, node: usize, index: usize) -> Option<Access> {
        self.drivers[node].memory().0.borrow().frames[index].rights
    }

    /// Something happens at `node`, and then everything that comes of it. The answer is there when `node` may do `access` to
    /// the page.
    fn cost(
        &mut self,
        node: usize,
        answer: Option<(usize, Access)>,
        event: impl FnOnce(&mut Driver<Fake>, &mut Out) -> Result<(), Infallible>,
    ) -> Cost {
        let (mut cost, mut out) = (Cost::default(), Out::default());
        let Ok(()) = event(&mut self.drivers[node], &mut out);
        let mut round: Vec<_> = out.0.into_iter().map(|(to, frame)| (node, to, frame)).collect();
        let mut answered = false;
        loop {
            if !answered && answer.is_none_or(|(index, access)| self.rights(node, index) >= Some(access)) {
                (answered, cost.hops) = (true, cost.all_hops);
            }
            if round.is_empty() {
                assert!(answered, "no answer");
                return cost;
            }
            cost.all_hops += 1;
            cost.messages += round.len();
            cost.bytes += round.iter().map(|(.., frame)| frame.len()).sum::<usize>();
            let mut next = vec![];
            for (from, to, frame) in round {
                let (mut out, to) = (Out::default(), usize::from(to.0));
                let Ok(()) = self.drivers[to].message(NodeId(from as u16), &frame, 0, &mut out);
                next.extend(out.0.into_iter().map(|(other, frame)| (to, other, frame)));
            }
            round = next;
        }
    }

    /// An access, if it faults.
    fn access(&mut self, node: usize, index: usize, access: Access) -> Cost {
        if self.rights(node, index) >= Some(access) {
            return Cost::default();
        }
        self.cost(node, Some((index, access)), |driver, out| driver.fault(index, access, 0, out))
    }

    /// Writes the word at `offset`.
    fn write(&mut self, node: usize, index: usize, offset: usize, value: u64) -> Cost {
        let cost = self.access(node, index, Access::Write);
        self.drivers[node].memory().0.borrow_mut().frames[index].set_word(offset, value);
        cost
    }
}

fn table() -> String {
    const PAGE: usize = 5;
    let (read, write) = (Access::Read, Access::Write);
    let mut out =
        String::from("access                                       messages    bytes  hops  hops in all\n");
    let mut row = |name: &str, cost: Cost| {
        let Cost { messages, bytes, hops, all_hops } = cost;
        writeln!(out, "{name:<44} {messages:>8} {bytes:>8} {hops:>5} {all_hops:>12}").unwrap();
    };
    let plain = || Cluster::new(|config| config);
    // What is before the access, by whom, and the access.
    let mut after = |name: &str, before: &[(usize, Access)], node, access| {
        let mut cluster = plain();
        for &(node, access) in before {
            cluster.access(node, PAGE, access);
        }
        row(name, cluster.access(node, PAGE, access));
    };
    let sharers = |count: usize| (1..=count).map(|n| (n, read)).collect::<Vec<_>>();
    after("home, untouched", &[], HOME, write);
    after("read, at home", &[], A, read);
    after("read, shared by 998", &sharers(999)[1..], A, read);
    after("read, owned elsewhere", &[(B, write)], A, read);
    after("home reads, owned elsewhere", &[(A, write)], HOME, read);
    after("write, at home", &[], A, write);
    for count in [1, 15, 999] {
        after(&format!("upgrade, one of {count} sharers"), &sharers(count), A, write);
    }
    for count in [1, 15, 998] {
        after(&format!("write, shared by {count} others"), &sharers(count + 1)[1..], A, write);
    }
    after("steal", &[(B, write)], A, write);
    for count in [1, 999] {
        after(&format!("home writes, {count} sharers"), &sharers(count), HOME, write);
    }
    after("home steals back", &[(A, write)], HOME, write);
    for lines in [1, 8, 32, 33] {
        let mut cluster = Cluster::new(|config| Config { twin_pages: 8, ..config });
        for turn in 0..8 {
            cluster.write(if turn % 2 == 0 { A } else { B }, PAGE, 0, turn);
        }
        for line in 0..lines {
            cluster.write(B, PAGE, line * 64, 99);
        }
        row(&format!("steal, {lines} lines changed"), cluster.access(A, PAGE, write));
        let frame = &cluster.drivers[A].memory().0.borrow().frames[PAGE];
        assert_eq!([frame.word(0), frame.word((lines - 1) * 64)], [99, 99], "what came is what was written");
    }
    for count in [1, 16, 64] {
        let mut cluster = plain();
        let run = |driver: &mut Driver<Fake>, out: &mut Out| driver.prefetch_run(PageNo(0), count, 0, out);
        row(&format!("run of {count}"), cluster.cost(A, Some((count as usize - 1, read)), run));
    }
    let mut cluster = plain();
    for index in (0..64).step_by(2) {
        cluster.access(B, index, write);
    }
    let run = |driver: &mut Driver<Fake>, out: &mut Out| driver.prefetch_run(PageNo(0), 64, 0, out);
    row("run of 64, half of it owned elsewhere", cluster.cost(A, Some((63, read)), run));
    let mut cluster = Cluster::new(|config| Config { prefetch_pages: 64, ..config });
    let mut all = Cost::default();
    for index in 0..PAGES {
        let cost = cluster.access(A, index, read);
        (all.messages, all.bytes) = (all.messages + cost.messages, all.bytes + cost.bytes);
        (all.hops, all.all_hops) = (all.hops + cost.hops, all.all_hops + cost.all_hops);
    }
    row("128 pages read in order", all);
    for (name, access) in [("eviction of a page to read", read), ("eviction of a page to write", write)] {
        let mut cluster = plain();
        cluster.access(A, PAGE, access);
        let cost = cluster.cost(A, None, |driver, out| driver.release(PageNo(PAGE as u64), 0, out));
        row(name, cost);
    }
    out
}

/// A page that nodes use in turn: who accesses it, and how. Bytes sent for each turn, with whole pages and with differences.
fn patterns() -> String {
    const TURNS: u64 = 1000;
    const PAGE: usize = 3;
    let mut out =
        String::from("pattern, bytes for each of 1000 turns                    whole  differences\n");
    // In turn n, what each node writes (offsets) or reads.
    type Turn = Box<dyn Fn(u64) -> Vec<(usize, Vec<usize>)>>;
    let mut row = |name: &str, turn: Turn| {
        let bytes = [0, 8].map(|twin_pages| {
            let mut cluster = Cluster::new(|config| Config { twin_pages, ..config });
            let mut sum = 0;
            for n in 0..TURNS {
                for (node, offsets) in turn(n) {
                    if offsets.is_empty() {
                        sum += cluster.access(node, PAGE, Access::Read).bytes;
                    }
                    for offset in offsets {
                        sum += cluster.write(node, PAGE, offset, n + 1).bytes;
                    }
                }
            }
            sum / TURNS as usize
        });
        writeln!(out, "{name:<54} {:>7} {:>12}", bytes[0], bytes[1]).unwrap();
    };
    for nodes in [2, 4, 8, 12] {
        let turn = move |n: u64| vec![(A + n as usize % nodes, vec![n as usize % nodes * 128])];
        row(&format!("scoreboard of {nodes} nodes, a line each"), Box::new(turn));
    }
    row(
        "scoreboard of the home and another node",
        Box::new(|n| vec![(n as usize % 2, vec![n as usize % 2 * 128])]),
    );
    row("a lock and a counter, 4 nodes", Box::new(|n| vec![(A + n as usize % 4, vec![0, 64])]));
    row(
        "one writes 4 lines, 3 read",
        Box::new(|_| vec![(A, vec![0, 256, 512, 768]), (B, vec![]), (3, vec![]), (4, vec![])]),
    );
    row(
        "the home writes a line, 3 read",
        Box::new(|_| vec![(HOME, vec![0]), (B, vec![]), (3, vec![]), (4, vec![])]),
    );
    row(
        "2 nodes rewrite the whole page",
        Box::new(|n| vec![(A + n as usize % 2, (0..64).map(|line| line * 64).collect())]),
    );
    out
}

#[test]
fn dsm_cost_of_each_kind_of_access_among_a_thousand_nodes() {
    let (now, path) =
        (format!("{}\n{}", table(), patterns()), format!("{}/{SNAPSHOT}", env!("CARGO_MANIFEST_DIR")));
    if std::env::var_os("SSI_RENEW").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let mut changes = String::new();
    let lines = before.lines().count().max(now.lines().count());
    for (old, new) in before
        .lines()
        .chain([""].into_iter().cycle())
        .zip(now.lines().chain([""].into_iter().cycle()))
        .take(lines)
    {
        if old != new {
            writeln!(changes, "- {old}\n+ {new}").unwrap();
        }
    }
    assert!(
        changes.is_empty(),
        "the cost has changed:\n{changes}If that is meant, SSI_RENEW=1 cargo test -p ssi-dsm --test cost writes it to {SNAPSHOT}"
    );
}
