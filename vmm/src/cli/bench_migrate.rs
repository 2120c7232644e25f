//! `bench migrate`: moves of the paper's two test programs (Table 3), in a cluster that runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ssi_proto::frame::{Frame, Kind};
use ssi_proto::request::{Exec, Request, Signal, Started};

use super::bench_cluster::Cluster;
use super::state::refusal;
use super::{Fail, exit};
use crate::control::Client;
use crate::worker::{Stop, Worker};

/// The paper's test programs: prints numbers; increments 100 MB.
const PROGRAMS: [&str; 2] = ["counter", "heap100"];
/// A move is over, all pages included, within this.
const MOVE_WITHIN: Duration = Duration::from_secs(120);
/// What the kernel measures of a move, in the order of the table.
const PHASES: [&str; 6] = ["t0_us", "t1_us", "t2_us", "t3_us", "stop_us", "total_us"];

/// Fields of `/proc/ssi/PID/stat`.
type Facts = BTreeMap<String, u64>;

fn facts_of(text: &str) -> Facts {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            Some((key.trim().to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// A program that runs in the cluster; killed when dropped.
struct Program {
    session: Client,
    pid: u32,
    _reader: Worker,
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(frame) = Frame::json(Kind::Signal, &Signal { signal: libc::SIGKILL }) {
            let _ = self.session.send(&frame);
        }
        self.session.stream().shutdown_write();
        self.session.stream().shutdown();
    }
}

/// What a benchmark of moves asks of a cluster.
struct Mover<'a>(Cluster<'a>);

impl Mover<'_> {
    /// Starts a test program in cell 0 and waits until it has printed something: its memory is touched then.
    fn start(&self, program: &str) -> Result<Program, Fail> {
        let session = self.0.session()?;
        let argv = vec![program.to_owned()];
        let started: Started =
            session.ask(&Request::Exec(Exec { argv, ..Exec::default() })).map_err(refusal)?;
        let (sender, first) = crossbeam_channel::bounded(1);
        let reader = Client::over(session.stream().clone());
        let worker = Worker::spawn("output", &Stop::new()?, move |_| {
            while let Ok(Some(frame)) = reader.receive() {
                let _ = sender.try_send(frame.kind);
                if frame.kind == Kind::Exit {
                    break;
                }
            }
            Ok(())
        })?;
        match first.recv_timeout(MOVE_WITHIN) {
            Ok(Kind::Stdout) => Ok(Program { session, pid: started.pid, _reader: worker }),
            other => {
                session.stream().shutdown();
                Err(Fail::new(exit::FAILED, format!("{program} did not start: {other:?}")))
            }
        }
    }

    /// What the kernel of `cell` says of the last move of `pid`; nothing if it does not know the process.
    fn facts(&self, pid: u32, cell: u32) -> Result<Facts, Fail> {
        let path = format!("/proc/ssi/{pid}/stat");
        Ok(facts_of(&self.0.run(cell, &["cat", &path])?.stdout))
    }

    /// Moves `pid` and returns what was measured, once its last page has arrived.
    fn go(&self, pid: u32, cell: u32, eager: bool) -> Result<Facts, Fail> {
        self.0.session()?.ask_with(&Request::Migrate { pid, cell, eager }, |_| {}).map_err(refusal)?;
        let deadline = Instant::now() + MOVE_WITHIN;
        loop {
            // Source and destination each know a part.
            let mut facts = self.facts(pid, 1 - cell)?;
            let there = self.facts(pid, cell)?;
            let moving = there.get("moving").is_none_or(|moving| *moving != 0);
            for (key, value) in there {
                let known = facts.entry(key).or_default();
                *known = (*known).max(value);
            }
            if !moving && facts.get("total_us").is_some_and(|total| *total > 0) {
                return Ok(facts);
            }
            if Instant::now() > deadline {
                return Err(Fail::new(
                    exit::FAILED,
                    format!("process {pid}: the pages are not there yet: {facts:?}"),
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Medians of some moves.
struct Row {
    program: &'static str,
    mode: &'static str,
    median: Facts,
}

fn median(all: &[Facts], key: &str) -> u64 {
    let mut values: Vec<u64> = all.iter().map(|facts| facts.get(key).copied().unwrap_or(0)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Measures, and returns what to print.
pub fn run(rounds: u32, json: bool, name: Option<&str>) -> Result<String, Fail> {
    let cluster = Mover(Cluster::open(name)?);
    let mut rows = Vec::new();
    for program in PROGRAMS {
        for (mode, eager) in [("lazy", false), ("eager", true)] {
            let running = cluster.start(program)?;
            let mut all = Vec::new();
            for round in 0..rounds.max(1) {
                eprintln!("{program}, {mode}: move {} of {rounds}", round + 1);
                all.push(cluster.go(running.pid, 1 - round % 2, eager)?);
            }
            let keys = PHASES.iter().chain(&["pages_sent", "pages_absent", "image_bytes"]);
            let median = keys.map(|key| ((*key).to_owned(), median(&all, key))).collect();
            rows.push(Row { program, mode, median });
        }
    }
    if json {
        let list: Vec<_> = rows
            .iter()
            .map(|row| serde_json::json!({"program": row.program, "mode": row.mode, "rounds": rounds, "median": row.median}))
            .collect();
        return Ok(serde_json::to_string_pretty(&list)?);
    }
    Ok(table(&rows))
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from("program  mode  ");
    for phase in PHASES {
        let _ = write!(out, "{phase:>12}");
    }
    out.push_str("  pages sent\n");
    for row in rows {
        let _ = write!(out, "{:<8} {:<5} ", row.program, row.mode);
        for phase in PHASES {
            let _ = write!(out, "{:>12}", row.median[phase]);
        }
        let _ = writeln!(out, "{:>12}", row.median["pages_sent"]);
    }
    let stop = |program: &str| {
        rows.iter()
            .find(|row| (row.program, row.mode) == (program, "lazy"))
            .map_or(0, |row| row.median["stop_us"])
    };
    let (counter, heap) = (stop("counter"), stop("heap100"));
    if counter > 0 {
        let _ = writeln!(
            out,
            "lazy stop time of heap100 over that of counter: {:.2}",
            heap as f64 / counter as f64
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_the_numbers_of_the_kernels_file() {
        let facts = facts_of("role: runner\nmoves: 2\nstop_us: 1500\n");
        assert_eq!(facts.get("stop_us"), Some(&1500));
        assert_eq!(facts.len(), 2, "a word is no number");
    }

    #[test]
    fn the_median_of_an_odd_number_of_moves_is_the_middle_one() {
        let all: Vec<Facts> = [30, 10, 20].map(|n| Facts::from([("stop_us".to_owned(), n)])).into();
        assert_eq!(median(&all, "stop_us"), 20);
        assert_eq!(median(&all, "absent"), 0);
    }
}
