//! What was measured, as tables and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Times in nanoseconds.
#[derive(Debug, Default, Clone)]
pub(super) struct Samples(Vec<u64>);

impl Samples {
    pub(super) fn push(&mut self, ns: u64) {
        self.0.push(ns);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// One.
    pub(super) fn of(ns: u64) -> Self {
        Self(vec![ns])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
    }

    fn mean(&self) -> u64 {
        self.0.iter().sum::<u64>().checked_div(self.0.len() as u64).unwrap_or(0)
    }

    fn min(&self) -> u64 {
        self.0.iter().copied().min().unwrap_or(0)
    }

    fn max(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    /// How many took less than each power of two of microseconds, and no less than the one before.
    fn histogram(&self) -> Vec<(u64, usize)> {
        let mut bins: Vec<(u64, usize)> = vec![];
        let mut limit_us = 1;
        let mut left = self.0.len();
        while left > 0 {
            let below = |limit_us: u64| self.0.iter().filter(|ns| **ns < limit_us * 1000).count();
            let count = below(limit_us) - below(limit_us / 2);
            if count > 0 || !bins.is_empty() {
                bins.push((limit_us, count));
            }
            left -= count;
            limit_us *= 2;
        }
        bins
    }

    fn json(&self) -> Value {
        json!({
            "count": self.0.len(), "min_ns": self.min(), "mean_ns": self.mean(), "p50_ns": self.percentile(50),
            "p99_ns": self.percentile(99), "max_ns": self.max(), "histogram_below_us": self.histogram(),
        })
    }
}

/// What a measure is counted in.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) samples: Samples,
}

/// What is asked of a measure, and what is hoped for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub(super) bar: f64,
    pub(super) aim: f64,
}

pub(super) fn goal(bar: f64, aim: f64) -> Option<Goal> {
    Some(Goal { bar, aim })
}

/// Bar and aim, for a table.
fn show_goal(goal: Option<Goal>) -> String {
    goal.map_or_else(
        || format!("{:>5} {:>5}", "-", "-"),
        |goal| format!("{:>5.1} {:>5.1}", goal.bar, goal.aim),
    )
}

/// Faults of one kind; less is better.
#[derive(Debug)]
pub(super) struct Measure {
    pub(super) name: &'static str,
    pub(super) samples: Samples,
    pub(super) unit: Unit,
    pub(super) goal: Option<Goal>,
}

/// Bytes; more is better.
#[derive(Debug)]
pub(super) struct Throughput {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    pub(super) took: Samples,
    pub(super) unit: &'static str,
    pub(super) unit_took: Samples,
    pub(super) goal: Option<Goal>,
}

/// Faults of several threads at once.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) threads: usize,
    pub(super) took_ns: u64,
    pub(super) samples: Samples,
}

/// Writes of two nodes.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) name: &'static str,
    /// `None`: as the cluster has it.
    pub(super) hold_us: Option<u64>,
    pub(super) ms: u64,
    pub(super) writes: [u64; 2],
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Measure>,
    pub(super) throughput: Vec<Throughput>,
    pub(super) threads: Vec<Threads>,
    pub(super) sharing: Vec<Sharing>,
}

fn over(value: u64, unit: u64) -> f64 {
    value as f64 / unit.max(1) as f64
}

/// MiB/s, a fraction of a few not lost.
fn rate(mib_per_s: f64) -> String {
    format!("{mib_per_s:.0$}", usize::from(mib_per_s < 100.0) * 2)
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

impl Throughput {
    /// Of the medians.
    fn mib_per_s(&self, took: &Samples) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / (took.percentile(50).max(1) as f64 / 1e9)
    }

    fn ratio(&self) -> f64 {
        self.mib_per_s(&self.took) / self.mib_per_s(&self.unit_took)
    }
}

impl Threads {
    fn per_s(&self) -> f64 {
        self.samples.0.len() as f64 / (self.took_ns.max(1) as f64 / 1e9)
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.text_faults(&mut out);
        let _ = writeln!(
            out,
            "\n{:<30} {:>9}   {:<25} {:>9}   {:>5} {:>5} {:>5}",
            "measure", "MiB/s", "unit", "MiB/s", "ratio", "bar", "aim"
        );
        for t in &self.throughput {
            let [mine, unit] = [&t.took, &t.unit_took].map(|took| rate(t.mib_per_s(took)));
            let _ = writeln!(
                out,
                "{:<30} {mine:>9}   {:<25} {unit:>9}   {:>5.2} {}",
                t.name,
                t.unit,
                t.ratio(),
                show_goal(t.goal)
            );
        }
        self.text_threads(&mut out);
        let _ = writeln!(out, "\ntwo nodes write             hold us   home's/ms   other's/ms");
        for s in &self.sharing {
            let [home, other] = s.writes.map(|writes| writes as f64 / s.ms as f64);
            let hold = s.hold_us.map_or_else(|| "-".to_owned(), |us| us.to_string());
            let _ = writeln!(out, "{:<27} {hold:>7} {home:>11.1} {other:>12.1}", s.name);
        }
        out
    }

    fn text_threads(&self, out: &mut String) {
        let Some(one) = self.threads.first().map(Threads::per_s) else { return };
        let _ = writeln!(out, "\nfaulting threads  faults/s  of one thread's   p50 us   p99 us");
        for t in &self.threads {
            let (p50, p99) = (us(t.samples.percentile(50)), us(t.samples.percentile(99)));
            let _ = writeln!(
                out,
                "{:>16} {:>9.0} {:>16.2} {p50:>8} {p99:>8}",
                t.threads,
                t.per_s(),
                t.per_s() / one
            );
        }
    }

    fn text_faults(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "{:<30} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}   {:<21} {:>8} {:>8}   {:>5} {:>5} {:>5} {:>5}",
            "measure",
            "count",
            "min us",
            "mean",
            "p50",
            "p99",
            "max",
            "unit",
            "p50 us",
            "p99",
            "ratio",
            "p99",
            "bar",
            "aim"
        );
        for m in &self.faults {
            let (s, u) = (&m.samples, &m.unit.samples);
            let _ = writeln!(
                out,
                "{:<30} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}   {:<21} {:>8} {:>8}   {:>5.2} {:>5.2} {}",
                m.name,
                s.0.len(),
                us(s.min()),
                us(s.mean()),
                us(s.percentile(50)),
                us(s.percentile(99)),
                us(s.max()),
                m.unit.name,
                us(u.percentile(50)),
                us(u.percentile(99)),
                over(s.percentile(50), u.percentile(50)),
                over(s.percentile(99), u.percentile(99)),
                show_goal(m.goal)
            );
        }
        let _ = writeln!(out, "\nhow many faults took less than ... us");
        for m in &self.faults {
            let _ = write!(out, "{:<30}", m.name);
            for (limit_us, count) in m.samples.histogram() {
                let _ = write!(out, "  {limit_us}:{count}");
            }
            let _ = writeln!(out);
        }
    }

    pub(super) fn json(&self) -> String {
        let fault = |m: &Measure| {
            let ratio = |percent| over(m.samples.percentile(percent), m.unit.samples.percentile(percent));
            json!({
                "measure": m.name, "fault": m.samples.json(), "unit": m.unit.name, "raw": m.unit.samples.json(),
                "ratio_p50": ratio(50), "ratio_p99": ratio(99), "bar_p50": m.goal.map(|goal| goal.bar), "aim_p50": m.goal.map(|goal| goal.aim),
            })
        };
        let throughput = |t: &Throughput| {
            json!({
                "measure": t.name, "mib_per_s": t.mib_per_s(&t.took), "unit": t.unit,
                "unit_mib_per_s": t.mib_per_s(&t.unit_took), "ratio": t.ratio(), "bar": t.goal.map(|goal| goal.bar), "aim": t.goal.map(|goal| goal.aim),
            })
        };
        let threads = |t: &Threads| json!({ "threads": t.threads, "faults_per_s": t.per_s(), "fault": t.samples.json() });
        let sharing = |s: &Sharing| {
            json!({
                "pattern": s.name, "hold_us": s.hold_us, "duration_ms": s.ms,
                "home_writes_count": s.writes[0], "other_writes_count": s.writes[1],
            })
        };
        let all = json!({
            "faults": self.faults.iter().map(fault).collect::<Vec<_>>(),
            "throughput": self.throughput.iter().map(throughput).collect::<Vec<_>>(),
            "threads": self.threads.iter().map(threads).collect::<Vec<_>>(),
            "sharing": self.sharing.iter().map(sharing).collect::<Vec<_>>(),
        });
        format!("{all:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_every_sample_once() {
        let samples = Samples(vec![500, 1_500, 1_999, 2_000, 40_000]);
        let bins: Vec<_> = samples.histogram();
        assert_eq!(bins, [(1, 1), (2, 2), (4, 1), (8, 0), (16, 0), (32, 0), (64, 1)]);
        assert_eq!((samples.min(), samples.mean(), samples.max()), (500, 9_199, 40_000));
        assert_eq!(Samples::default().histogram(), []);
    }
}
