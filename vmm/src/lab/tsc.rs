use std::time::{Duration, Instant};

/// How long to count. An interruption of 1 us between the two readings of a sample is then an error of 20 ppm.
const WINDOW: Duration = Duration::from_millis(50);
/// Readings of which the quickest counts, at each end.
const READINGS: u32 = 8;

/// Frequency of this machine's time stamp counter in kHz, measured against the monotonic clock. An emulated host is told
/// so (`tsc_early_khz`): QEMU hands it our counter, and its own calibration against an emulated timer is unreliable.
pub fn measure_khz() -> u64 {
    let (start_ticks, start) = reading();
    std::thread::sleep(WINDOW);
    let (end_ticks, end) = reading();
    let nanoseconds = end.duration_since(start).as_nanos().max(1);
    let khz = u128::from(end_ticks.wrapping_sub(start_ticks)) * 1_000_000 / nanoseconds;
    u64::try_from(khz).unwrap_or(u64::MAX)
}

/// The counter and the clock at the same moment: of several readings the one that took the fewest ticks.
fn reading() -> (u64, Instant) {
    let mut best: Option<(u64, u64, Instant)> = None;
    for _ in 0..READINGS {
        let before = ticks();
        let now = Instant::now();
        let took = ticks().wrapping_sub(before);
        if best.is_none_or(|(least, ..)| took < least) {
            best = Some((took, before + took / 2, now));
        }
    }
    best.map_or_else(|| (ticks(), Instant::now()), |(_, ticks, now)| (ticks, now))
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it only reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (measure_khz(), measure_khz());
        assert!(a > 100_000 && a < 10_000_000, "{a} kHz");
        assert!(a.abs_diff(b) * 100 < a, "{a} kHz, then {b} kHz");
    }
}
