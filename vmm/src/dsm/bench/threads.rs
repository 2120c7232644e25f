//! Many threads that fault in one window at the same time, as the vCPUs of a cell do.

use std::ops::Range;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};
use ssi_dsm::Access;

use super::report::{Report, Samples, Threads};
use super::{HOME, nanoseconds, take};
use crate::dsm::rig::{Rig, RigNode};
use crate::worker::Worker;

/// Faults of each measurement, shared by its threads.
const FAULTS: usize = 1600;
const COUNTS: [usize; 5] = [1, 2, 4, 8, 16];

/// What one thread has measured.
type Heard = Sender<anyhow::Result<Samples>>;

/// Faults on `pages`, in an order in which no two are neighbours.
fn faults(node: &RigNode, pages: Range<usize>) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for i in 0..pages.len() {
        let start = Instant::now();
        node.touch(HOME, pages.start + i * 37 % pages.len(), Access::Read)?;
        samples.push(nanoseconds(start));
    }
    Ok(samples)
}

/// Starts a thread that faults on `pages` once all have come to the barrier.
fn start(
    node: &Arc<RigNode>,
    pages: Range<usize>,
    barrier: &Arc<Barrier>,
    heard: &Heard,
) -> anyhow::Result<Worker> {
    let (mine, barrier, heard) = (node.clone(), barrier.clone(), heard.clone());
    Ok(node.spawn("bench-fault", move || {
        barrier.wait();
        // Nobody hears it any more if another thread has failed.
        let _ = heard.send(faults(&mine, pages));
    })?)
}

pub(super) fn measure(rig: &Rig, pages: &mut Range<usize>, report: &mut Report) -> anyhow::Result<()> {
    for threads in COUNTS {
        let pages = take(pages, FAULTS)?;
        let barrier = Arc::new(Barrier::new(threads + 1));
        let (sender, receiver) = unbounded();
        let share = pages.len() / threads;
        // Each has pages of its own, far from the others'.
        let _workers = (0..threads)
            .map(|thread| pages.start + thread * share)
            .map(|first| start(&rig.node, first..first + share, &barrier, &sender))
            .collect::<anyhow::Result<Vec<Worker>>>()?;
        barrier.wait();
        let begin = Instant::now();
        let mut samples = Samples::default();
        for _ in 0..threads {
            samples.append(receiver.recv()??);
        }
        report.threads.push(Threads { threads, took_ns: nanoseconds(begin), samples });
    }
    Ok(())
}
