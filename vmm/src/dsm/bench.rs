//! `ssivmm bench dsm`: page faults between native processes, over the raw TCP round trip of the same processes in the same
//! run. It prints what it measures and judges nothing.
//!
//! Three processes, joined over loopback TCP by the fabric's own connections: node 1 is the process that measures, node 0 is
//! the home of the pages, node 2 an owner to steal from. Raw round trips and faults alternate, so that what else the
//! machine does meets both.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use ssi_dsm::memory::{PAGE_SIZE, SliceMemory};
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_dsm::{Access, NodeId};

use super::{Dsm, Link};
use crate::fabric::link;
use crate::fabric::{Class, Kind, Peer};
use crate::machine::Mapping;
use crate::worker::{Exit, Worker};

/// Set for the processes that the measuring one starts: node number and its port.
const CHILD: &str = "SSIVMM_BENCH_DSM_CHILD";
const HOME: NodeId = NodeId(0);
const ME: NodeId = NodeId(1);
const OWNER: NodeId = NodeId(2);
const NODES: u16 = 3;
const SLICE_BYTES: u64 = 128 << 20;
const SLICE_PAGES: usize = SLICE_BYTES as usize / PAGE_SIZE;
/// Accesses of each kind in one round.
const BATCH: usize = 100;
const SHORT: usize = 64;
/// A round uses this many fresh pages.
const ROUND_PAGES: usize = 2 * BATCH;
const HOME_BYTES: usize = 64 << 20;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct BenchArgs {
    /// Rounds of 100 accesses of each kind; 1 to 150.
    pub rounds: u32,
    /// JSON instead of a table.
    pub json: bool,
}

impl Default for BenchArgs {
    fn default() -> Self {
        Self { rounds: 40, json: false }
    }
}

/// Measures, and returns what to print. Starts this program again, with the same arguments, for the other nodes; in those
/// it serves until the measuring process ends.
///
/// # Errors
/// No process, socket, memory or userfaultfd can be had.
pub fn run(args: &BenchArgs) -> anyhow::Result<String> {
    if let Ok(child) = std::env::var(CHILD) {
        serve(&child)?;
        return Ok(String::new());
    }
    let most = (SLICE_PAGES / ROUND_PAGES) as u32;
    ensure!((1..=most.min(150)).contains(&args.rounds), "rounds must be from 1 to {}", most.min(150));
    let mut rig = Rig::start()?;
    let mut samples = Samples::default();
    for round in 0..args.rounds as usize {
        rig.round(round, &mut samples)?;
    }
    let home = home_loop(rig.dsm.memory(ME).context("the own slice")?)?;
    let rows = samples.rows(home);
    Ok(if args.json { json(&rows) } else { table(&rows) })
}

/// The DSM of one process and its connections.
struct Node {
    dsm: Arc<Dsm>,
    links: Arc<Links>,
    exit: Exit,
}

#[derive(Debug, Default)]
struct Links([OnceLock<link::Link>; NODES as usize]);

impl Link for Links {
    fn send(&self, to: NodeId, frame: &[u8]) {
        let link = self.0.get(usize::from(to.0)).and_then(OnceLock::get);
        if link.is_none_or(|link| link.send(Kind::Dsm, 0, &[frame]).is_err()) {
            log::error!("{to} is gone");
        }
    }
}

impl Node {
    fn new(me: NodeId) -> anyhow::Result<Self> {
        let slices = SliceMap { base: 4 << 30, stride: 1 << 30, size: SLICE_BYTES, nodes: NODES };
        let dsm = Dsm::new(Config::new(me, slices))?;
        let (links, exit) = (Arc::new(Links::default()), Exit::new()?);
        dsm.start(links.clone(), &exit)?;
        Ok(Self { dsm, links, exit })
    }

    fn join(&self, to: NodeId, stream: TcpStream) -> anyhow::Result<()> {
        let peer = Peer::Node(to.0.into());
        let link = link::Link::start(
            peer,
            Class::Page,
            Arc::new(stream),
            self.dsm.clone(),
            Arc::new(|| {}),
            &self.exit,
            |_| {},
        )?;
        let slot = self.links.0.get(usize::from(to.0)).context("a node of the benchmark")?;
        slot.set(link).map_err(|_| anyhow::anyhow!("{to} is connected twice"))
    }

    /// A page of the home's slice, in this process.
    fn page(&self, index: usize) -> anyhow::Result<*mut u8> {
        ensure!(index < SLICE_PAGES, "page {index} is outside the slice");
        let memory = self.dsm.memory(HOME).context("the home's slice")?;
        // SAFETY: the page lies in the mapping, which lives as long as `self`.
        Ok(unsafe { memory.guest_addr().add(index * PAGE_SIZE) })
    }

    fn touch(&self, index: usize, access: Access) -> anyhow::Result<()> {
        let page = self.page(index)?;
        // SAFETY: the page is mapped memory of this process, used by nobody but volatile accesses.
        unsafe {
            match access {
                Access::Read => drop(black_box(page.read_volatile())),
                Access::Write => page.write_volatile(1),
            }
        }
        Ok(())
    }
}

fn connect(port: u16, kind: u8, from: NodeId) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind, u8::try_from(from.0)?])?;
    Ok(stream)
}

/// Lines to and from a child.
struct Control {
    lines: BufReader<TcpStream>,
}

impl Control {
    fn new(stream: TcpStream) -> Self {
        Self { lines: BufReader::new(stream) }
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(self.lines.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    /// `None` at the end.
    fn hear(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = String::new();
        let got = self.lines.read_line(&mut line)?;
        Ok((got > 0).then(|| line.trim_end().to_owned()))
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.say(line)?;
        self.hear()?.context("a process of the benchmark has ended; its messages are above")
    }
}

/// A child process: connects, then does what it is told.
fn serve(child: &str) -> anyhow::Result<()> {
    let (me, port) = child.split_once(' ').context("two numbers")?;
    let (me, port) = (NodeId(me.parse()?), port.parse()?);
    let node = Node::new(me)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut control = Control::new(connect(port, b'c', me)?);
    control.say(&listener.local_addr()?.port().to_string())?;
    let mut echoes = vec![];
    while let Some(line) = control.hear()? {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["accept"] => {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                let mut hello = [0; 2];
                stream.read_exact(&mut hello)?;
                match hello {
                    [b'r', _] => echoes.push(Worker::spawn("echo", &node.exit, move |_| {
                        echo(stream);
                        Ok(())
                    })?),
                    [_, from] => node.join(NodeId(from.into()), stream)?,
                }
            }
            ["connect", to, port] => {
                let to = NodeId(to.parse()?);
                node.join(to, connect(port.parse()?, b'd', me)?)?;
            }
            ["write", first, count] => {
                let first: usize = first.parse()?;
                for index in first..first + count.parse::<usize>()? {
                    node.touch(index, Access::Write)?;
                }
            }
            _ => bail!("unknown command {line:?}"),
        }
        control.say("ok")?;
    }
    Ok(())
}

/// Answers requests of 64 bytes with 64 or 4096 until the connection ends.
fn echo(mut stream: TcpStream) {
    let (mut request, reply) = ([0; SHORT], [7; PAGE_SIZE]);
    while stream.read_exact(&mut request).is_ok() {
        let len = if request[0] == 1 { PAGE_SIZE } else { SHORT };
        if stream.write_all(&reply[..len]).is_err() {
            return;
        }
    }
}

/// Ends with the benchmark, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Rig {
    dsm: Arc<Dsm>,
    node: Node,
    raw: TcpStream,
    owner: Control,
    _home: Control,
    // Last: the connections end before the processes are killed.
    _processes: Vec<Process>,
}

impl Rig {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let exe = std::env::current_exe()?;
        let start = |node: NodeId| -> anyhow::Result<(Process, Control, u16)> {
            let child = Command::new(&exe)
                .args(std::env::args_os().skip(1))
                .env(CHILD, format!("{} {port}", node.0))
                .spawn()
                .context("starting a process of the benchmark")?;
            let process = Process(child);
            let (mut stream, _) = listener.accept()?;
            stream.read_exact(&mut [0; 2])?;
            let mut control = Control::new(stream);
            let port = control.hear()?.context("a process of the benchmark has ended")?.parse()?;
            Ok((process, control, port))
        };
        let (home_process, mut home, home_port) = start(HOME)?;
        let (owner_process, mut owner, owner_port) = start(OWNER)?;
        let node = Node::new(ME)?;
        let dial = |control: &mut Control, port, kind| -> anyhow::Result<TcpStream> {
            let stream = connect(port, kind, ME)?;
            ensure!(control.ask("accept")? == "ok");
            Ok(stream)
        };
        node.join(HOME, dial(&mut home, home_port, b'd')?)?;
        node.join(OWNER, dial(&mut owner, owner_port, b'd')?)?;
        let raw = dial(&mut home, home_port, b'r')?;
        home.say("accept")?;
        owner.ask(&format!("connect {} {home_port}", HOME.0))?;
        home.hear()?;
        home.ask(&format!("write 0 {SLICE_PAGES}"))?;
        let dsm = node.dsm.clone();
        Ok(Self { dsm, node, raw, owner, _home: home, _processes: vec![home_process, owner_process] })
    }

    fn round(&mut self, round: usize, samples: &mut Samples) -> anyhow::Result<()> {
        let first = round * ROUND_PAGES;
        let steals = first + BATCH..first + ROUND_PAGES;
        self.owner.ask(&format!("write {} {BATCH}", steals.start))?;
        for index in 0..BATCH {
            samples.raw_page.push(self.raw_round_trip(PAGE_SIZE)?);
            samples.read.push(self.fault(first + index, Access::Read)?);
        }
        for index in 0..BATCH {
            samples.raw_short.push(self.raw_round_trip(SHORT)?);
            samples.upgrade.push(self.fault(first + index, Access::Write)?);
        }
        for index in steals {
            samples.raw_page.push(self.raw_round_trip(PAGE_SIZE)?);
            samples.steal.push(self.fault(index, Access::Write)?);
        }
        Ok(())
    }

    fn raw_round_trip(&mut self, len: usize) -> anyhow::Result<u64> {
        let mut request = [0; SHORT];
        request[0] = u8::from(len == PAGE_SIZE);
        let mut reply = [0; PAGE_SIZE];
        let start = Instant::now();
        self.raw.write_all(&request)?;
        self.raw.read_exact(&mut reply[..len])?;
        Ok(nanoseconds(start))
    }

    fn fault(&self, index: usize, access: Access) -> anyhow::Result<u64> {
        let start = Instant::now();
        self.node.touch(index, access)?;
        Ok(nanoseconds(start))
    }
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Median time of a loop over the own slice, and over memory that no DSM knows, in nanoseconds; the two take turns.
fn home_loop(own: &SliceMemory) -> anyhow::Result<(u64, u64)> {
    let plain = ssi_dsm::memory::SliceMemory::new(HOME_BYTES, ssi_dsm::memory::SliceKind::Own)?;
    let plain = Mapping::shared(plain.file(), 0, HOME_BYTES)?;
    let pass = |start: *mut u8| {
        let begin = Instant::now();
        for offset in (0..HOME_BYTES).step_by(64) {
            // SAFETY: both mappings have HOME_BYTES bytes, used by nobody else.
            unsafe { start.add(offset).cast::<u64>().write_volatile(offset as u64) };
        }
        nanoseconds(begin)
    };
    let (mut with, mut without) = (vec![], vec![]);
    for round in 0..42 {
        let pair = (pass(own.guest_addr()), pass(plain.as_ptr()));
        // The first ones touch fresh memory.
        if round >= 2 {
            with.push(pair.0);
            without.push(pair.1);
        }
    }
    Ok((percentile(&mut with, 50), percentile(&mut without, 50)))
}

#[derive(Debug, Default)]
struct Samples {
    raw_page: Vec<u64>,
    raw_short: Vec<u64>,
    read: Vec<u64>,
    upgrade: Vec<u64>,
    steal: Vec<u64>,
}

/// One line of the result. Times in nanoseconds.
struct Row {
    name: &'static str,
    unit: &'static str,
    p50: u64,
    p99: u64,
    unit_p50: u64,
    unit_p99: u64,
    bar: f64,
}

impl Row {
    fn ratio(&self) -> (f64, f64) {
        let over = |value: u64, unit: u64| value as f64 / unit.max(1) as f64;
        (over(self.p50, self.unit_p50), over(self.p99, self.unit_p99))
    }
}

impl Samples {
    fn rows(mut self, home: (u64, u64)) -> Vec<Row> {
        let both = |samples: &mut Vec<u64>| (percentile(samples, 50), percentile(samples, 99));
        let (page, short) = (both(&mut self.raw_page), both(&mut self.raw_short));
        let row = |name, unit, samples: &mut Vec<u64>, raw: (u64, u64), bar| {
            let (p50, p99) = both(samples);
            Row { name, unit, p50, p99, unit_p50: raw.0, unit_p99: raw.1, bar }
        };
        let mut rows = vec![
            row("read fault, page at home", "raw 4 KiB round trip", &mut self.read, page, 1.5),
            row("write upgrade, one sharer", "raw 64 B round trip", &mut self.upgrade, short, 2.0),
            row("write steal from a third node", "raw 4 KiB round trip", &mut self.steal, page, 3.0),
        ];
        rows.push(Row {
            name: "untouched home memory, 64 MiB",
            unit: "same loop without DSM",
            p50: home.0,
            p99: home.0,
            unit_p50: home.1,
            unit_p99: home.1,
            bar: 1.0,
        });
        rows
    }
}

/// Of samples that are not empty; they are sorted.
fn percentile(samples: &mut [u64], percent: usize) -> u64 {
    samples.sort_unstable();
    samples.get((samples.len() * percent / 100).min(samples.len().saturating_sub(1))).copied().unwrap_or(0)
}

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut line = |cells: [&str; 9]| {
        let [name, a, b, unit, c, d, e, f, bar] = cells;
        let _ = writeln!(out, "{name:<30} {a:>9} {b:>9}   {unit:<21} {c:>9} {d:>9}   {e:>9} {f:>9} {bar:>5}");
    };
    line(["measure", "p50 us", "p99 us", "unit", "p50 us", "p99 us", "ratio p50", "ratio p99", "bar"]);
    for row in rows {
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
        let (p50, p99) = row.ratio();
        line([
            row.name,
            &us(row.p50),
            &us(row.p99),
            row.unit,
            &us(row.unit_p50),
            &us(row.unit_p99),
            &format!("{p50:.2}"),
            &format!("{p99:.2}"),
            &format!("{:.1}", row.bar),
        ]);
    }
    out
}

fn json(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let (p50, p99) = row.ratio();
        serde_json::json!({
            "measure": row.name, "unit": row.unit, "p50_ns": row.p50, "p99_ns": row.p99,
            "unit_p50_ns": row.unit_p50, "unit_p99_ns": row.unit_p99,
            "ratio_p50": p50, "ratio_p99": p99, "bar_p50": row.bar,
        })
    };
    format!("{:#}\n", serde_json::Value::Array(rows.iter().map(row).collect()))
}
