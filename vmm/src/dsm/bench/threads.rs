//! Many threads that fault in one window at the same time, as the vCPUs of a cell do.

use std::ops::Range;
use std::sync::Barrier;
use std::time::Instant;

use ssi_dsm::Access;

use super::report::{Report, Samples, Threads};
use super::{HOME, nanoseconds, take};
use crate::dsm::rig::Rig;

/// Faults of each measurement, shared by its threads.
const FAULTS: usize = 1600;
const COUNTS: [usize; 5] = [1, 2, 4, 8, 16];

pub(super) fn measure(rig: &Rig, pages: &mut Range<usize>, report: &mut Report) -> anyhow::Result<()> {
    for threads in COUNTS {
        let pages = take(pages, FAULTS)?;
        let node = &rig.node;
        let barrier = Barrier::new(threads + 1);
        let (took, samples) = std::thread::scope(|scope| -> anyhow::Result<(u64, Samples)> {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let (pages, barrier) = (pages.clone(), &barrier);
                    scope.spawn(move || -> anyhow::Result<Samples> {
                        let mut samples = Samples::default();
                        barrier.wait();
                        // Each in an order of its own, far from the others'.
                        let share = pages.len() / threads;
                        for i in 0..share {
                            let start = Instant::now();
                            let index = pages.start + thread * share + i * 37 % share;
                            node.touch(HOME, index, Access::Read)?;
                            samples.push(nanoseconds(start));
                        }
                        Ok(samples)
                    })
                })
                .collect();
            barrier.wait();
            let start = Instant::now();
            let mut all = Samples::default();
            for worker in workers {
                all.append(worker.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??);
            }
            Ok((nanoseconds(start), all))
        })?;
        report.threads.push(Threads { threads, took_ns: took, samples });
    }
    Ok(())
}
