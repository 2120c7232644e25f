//! Reading on and on: another node's memory against a raw stream, and the own memory against memory that no DSM knows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use anyhow::Context;
use ssi_dsm::Access;
use ssi_dsm::memory::{PAGE_SIZE, SliceKind, SliceMemory};

use super::report::{Report, Samples, Throughput, goal};
use super::{HOME, ME, STREAM_BYTES, WANT_STREAM, nanoseconds, raw_request, raw_round_trip, take};
use crate::dsm::rig::Rig;
use crate::machine::Mapping;

/// Passes; the raw stream and the pages take turns.
const PASSES: usize = 2;
const HOME_BYTES: usize = 64 << 20;
const HOME_PASSES: usize = 40;

/// Reads pages of the home in order, each for the first time.
pub(super) fn measure(
    rig: &Rig,
    raw: &mut TcpStream,
    pages: &mut Range<usize>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut faulted, mut streamed, mut kept) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..PASSES {
        streamed.push(raw_round_trip(raw, WANT_STREAM)?);
        kept.push(raw_into_memory(raw)?);
        let start = Instant::now();
        for index in take(pages, STREAM_BYTES / PAGE_SIZE)? {
            rig.node.touch(HOME, index, Access::Read)?;
        }
        faulted.push(nanoseconds(start));
    }
    for (unit, unit_took) in [("raw TCP stream, discarded", streamed), ("the same into memory", kept)] {
        report.throughput.push(Throughput {
            name: "sequential read of 64 MiB",
            bytes: STREAM_BYTES,
            took: faulted.clone(),
            unit,
            unit_took,
            goal: goal(0.5, 0.9),
        });
    }
    Ok(())
}

/// The raw stream again, into memory like a window's: fresh pages of a memfd. How long that took, in nanoseconds.
fn raw_into_memory(raw: &mut TcpStream) -> anyhow::Result<u64> {
    let memory = SliceMemory::new(STREAM_BYTES, SliceKind::Window)?;
    let memory = Mapping::shared(memory.file(), 0, STREAM_BYTES)?;
    // SAFETY: the mapping has so many bytes, and is used by nobody else while it lives.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), STREAM_BYTES) };
    let start = Instant::now();
    raw.write_all(&raw_request(WANT_STREAM))?;
    raw.read_exact(bytes)?;
    Ok(nanoseconds(start))
}

/// A loop over the own slice, which no other node has touched, and over memory that no DSM knows; the two take turns.
pub(super) fn home_memory(rig: &Rig, report: &mut Report) -> anyhow::Result<()> {
    let own = rig.node.dsm.memory(ME).context("the own slice")?;
    let plain = SliceMemory::new(HOME_BYTES, SliceKind::Own)?;
    let plain = Mapping::shared(plain.file(), 0, HOME_BYTES)?;
    let pass = |start: *mut u8| {
        let begin = Instant::now();
        for offset in (0..HOME_BYTES).step_by(64) {
            // SAFETY: both mappings have HOME_BYTES bytes, used by nobody else.
            unsafe { start.add(offset).cast::<u64>().write_volatile(offset as u64) };
        }
        nanoseconds(begin)
    };
    let (mut with, mut without) = (Samples::default(), Samples::default());
    for round in 0..HOME_PASSES + 2 {
        let pair = (pass(own.guest_addr()), pass(plain.as_ptr()));
        // The first ones touch fresh memory.
        if round >= 2 {
            with.push(pair.0);
            without.push(pair.1);
        }
    }
    report.throughput.push(Throughput {
        name: "untouched home memory, 64 MiB",
        bytes: HOME_BYTES,
        took: with,
        unit: "same loop without DSM",
        unit_took: without,
        goal: goal(1.0, 1.0),
    });
    Ok(())
}
