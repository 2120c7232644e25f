//! `ssivmm bench dsm`: page faults between native processes, over the raw TCP round trip of the same processes in the same
//! run. It prints what it measures and judges nothing.
//!
//! Three nodes ([`rig`](super::rig)): node 1 is the process that measures, node 0 is the home of the pages, node 2 an owner to steal
//! from. Each has processors of its own. Raw round trips and faults alternate, so that what else the machine does meets both.

mod cells;
mod faults;
mod report;
mod sharing;
mod stream;
mod threads;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use ssi_dsm::memory::PAGE_SIZE;
use ssi_dsm::{Access, NodeId};

use super::rig::{self, Layout, Program, Rig, RigNode};
use super::{HOLD_MAX_US, PREFETCH_PAGES, measured_hold_us};
use report::Report;

pub use cells::{PROGRAM as CELLS_PROGRAM, ROUNDS_MAX as CELLS_ROUNDS_MAX, report as report_of_cells};

const HOME: NodeId = NodeId(0);
const ME: NodeId = NodeId(1);
const OWNER: NodeId = NodeId(2);
const SLICE_BYTES: u64 = 256 << 20;
const SHORT: usize = 64;
/// First byte of a raw request: what is wanted.
const WANT_SHORT: u8 = 0;
const WANT_PAGE: u8 = 1;
const WANT_STREAM: u8 = 2;
const STREAM_BYTES: usize = 64 << 20;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct BenchArgs {
    /// Rounds of 100 accesses of each kind; 1 to 150.
    pub rounds: u32,
    /// JSON instead of tables.
    pub json: bool,
}

impl Default for BenchArgs {
    fn default() -> Self {
        Self { rounds: 40, json: false }
    }
}

/// Measures, and returns what to print. Starts this program again, with the same arguments, for the other nodes; in those
/// it serves until the measuring process ends, and there is nothing to print.
///
/// # Errors
/// No process, socket, memory or userfaultfd can be had.
pub fn run(args: &BenchArgs) -> anyhow::Result<String> {
    if rig::child(&Nodes)? {
        return Ok(String::new());
    }
    ensure!(
        (1..=faults::ROUNDS_MAX).contains(&args.rounds),
        "rounds must be from 1 to {}",
        faults::ROUNDS_MAX
    );
    let mut report = Report::default();
    {
        let mut rig = start(3, 0)?;
        let mut raw = rig.stream(HOME)?;
        rig.tell(HOME, &format!("write 0 {}", SLICE_BYTES as usize / PAGE_SIZE))?;
        let mut pages = 0..SLICE_BYTES as usize / PAGE_SIZE;
        faults::measure(&mut rig, &mut raw, args.rounds, &mut pages, &mut report)?;
        stream::measure(&rig, &mut raw, &mut pages, &mut report)?;
        threads::measure(&rig, &mut pages, &mut report)?;
        stream::home_memory(&rig, &mut report)?;
    }
    let hold_us = measured_hold_us()?;
    for hold_us in [0, hold_us] {
        sharing::measure(&mut start(2, hold_us)?, hold_us, &mut report)?;
    }
    Ok(if args.json { report.json() } else { report.text() })
}

fn start(nodes: u16, hold_us: u64) -> anyhow::Result<Rig> {
    let hold_max_us = if hold_us == 0 { 0 } else { HOLD_MAX_US };
    let layout = Layout {
        hold_us,
        hold_max_us,
        prefetch_pages: PREFETCH_PAGES,
        apart: true,
        ..Layout::new(nodes, SLICE_BYTES)
    };
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    Rig::start(ME, layout, &args)
}

/// The pages that a measurement uses, fresh ones.
fn take(pages: &mut std::ops::Range<usize>, count: usize) -> anyhow::Result<std::ops::Range<usize>> {
    let first = pages.start;
    ensure!(first + count <= pages.end, "the benchmark uses more pages than the slice has");
    pages.start += count;
    Ok(first..first + count)
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What the other nodes do.
struct Nodes;

impl Program for Nodes {
    fn command(&self, node: &RigNode, words: &[&str]) -> anyhow::Result<String> {
        match words {
            ["write", first, count] => {
                let first: usize = first.parse()?;
                for index in first..first + count.parse::<usize>()? {
                    node.touch(HOME, index, Access::Write)?;
                }
                Ok("ok".into())
            }
            ["share", pattern, ms] => {
                let pattern = pattern.parse::<usize>()?;
                let pattern = sharing::PATTERNS.get(pattern).context("a pattern of the benchmark")?;
                Ok(sharing::write_for(node, pattern, ms.parse()?)?.to_string())
            }
            _ => bail!("unknown command {words:?}"),
        }
    }

    /// Answers requests of 64 bytes with 64, 4096 or 64 Mi until the connection ends.
    fn stream(&self, mut stream: TcpStream) {
        let (mut request, reply) = ([0; SHORT], vec![7; 64 << 10]);
        while stream.read_exact(&mut request).is_ok() {
            let mut left = answer_bytes(request[0]);
            while left > 0 {
                let part = left.min(reply.len());
                if stream.write_all(&reply[..part]).is_err() {
                    return;
                }
                left -= part;
            }
        }
    }
}

/// Bytes of the answer to a raw request.
fn answer_bytes(want: u8) -> usize {
    match want {
        WANT_PAGE => PAGE_SIZE,
        WANT_STREAM => STREAM_BYTES,
        _ => SHORT,
    }
}

/// The 64 bytes that ask for something.
fn raw_request(want: u8) -> [u8; SHORT] {
    let mut request = [0; SHORT];
    request[0] = want;
    request
}

/// One raw request and its answer; how long that took, in nanoseconds.
fn raw_round_trip(raw: &mut TcpStream, want: u8) -> anyhow::Result<u64> {
    let mut reply = vec![0; 64 << 10];
    let mut left = answer_bytes(want);
    let start = Instant::now();
    raw.write_all(&raw_request(want))?;
    while left > 0 {
        let room = left.min(reply.len());
        left -= match raw.read(&mut reply[..room])? {
            0 => bail!("the home has ended"),
            got => got,
        };
    }
    Ok(nanoseconds(start))
}
