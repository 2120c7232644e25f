//! How long a granted page stays: long enough for the access that asked for it, on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ssi_dsm::Access;
use ssi_dsm::memory::{PAGE_SIZE, RUN_SIZE, SliceKind, SliceMemory};
use vmm_sys_util::poll::PollContext;

use crate::worker::{Exit, Worker};

/// The shortest hold, in microseconds.
pub const HOLD_MIN_US: u64 = 200;
/// The longest hold, in microseconds: how long another node may wait for a page beyond its messages.
pub const HOLD_MAX_US: u64 = 10_000;
/// A vCPU has further to go than the thread that is measured: it enters the guest again, and the guest's own page tables
/// may fault first.
const MARGIN: u32 = 20;
const SAMPLES: usize = 15;

/// A hold for this machine, in microseconds: a multiple of the median time from the installation of a page to the end of
/// the access that waited for it. An emulated host, where that takes a hundred times as long, gets a longer one.
///
/// # Errors
/// No memory, userfaultfd or thread can be had.
pub fn measured_hold_us() -> anyhow::Result<u64> {
    let memory = Arc::new(SliceMemory::new(RUN_SIZE, SliceKind::Window)?);
    let poll: PollContext<u32> = PollContext::new()?;
    poll.add(memory.as_ref(), 0)?;
    let (exit, (sender, done)) = (Exit::new()?, crossbeam_channel::bounded(1));
    let waiting = memory.clone();
    let _waiter = Worker::spawn("dsm-hold", &exit, move |_| {
        for index in 0..SAMPLES {
            // SAFETY: the page lies in the mapping, which `waiting` keeps.
            std::hint::black_box(unsafe { waiting.guest_addr().add(index * PAGE_SIZE).read_volatile() });
            sender.send(Instant::now())?;
        }
        Ok(())
    })?;
    let mut times = vec![];
    while times.len() < SAMPLES {
        poll.wait()?;
        for fault in memory.faults(1)? {
            let begin = Instant::now();
            memory.install(fault.index, Access::Read)?;
            let end = done.recv().context("the thread that measures the hold has ended")?;
            times.push(end.saturating_duration_since(begin));
        }
    }
    Ok(hold_us(&mut times))
}

fn hold_us(times: &mut [Duration]) -> u64 {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    u64::try_from((median * MARGIN).as_micros()).unwrap_or(HOLD_MAX_US).clamp(HOLD_MIN_US, HOLD_MAX_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hold_follows_the_median_within_its_bounds() {
        let of = |times: &[u64]| {
            hold_us(&mut times.iter().map(|&us| Duration::from_micros(us)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[1, 2, 3]), HOLD_MIN_US);
        assert_eq!(of(&[9000, 100, 90]), 2000);
        assert_eq!(of(&[5000]), HOLD_MAX_US);
    }

    #[test]
    fn a_hold_can_be_measured() {
        let hold = measured_hold_us().unwrap();
        assert!((HOLD_MIN_US..=HOLD_MAX_US).contains(&hold));
    }
}
