//! The same between cells: what a guest program has measured (`tests/guest/faults.c`, which says what its lines are).

use anyhow::{Context, bail, ensure};
use ssi_dsm::memory::PAGE_SIZE;

use super::report::{Measure, Report, Samples, Sharing, Throughput, Unit};
use super::sharing::PATTERNS;

/// The program, in a cell.
pub const PROGRAM: &str = "/usr/lib/ssi/tests/faults";

/// Rounds that it can make.
pub const ROUNDS_MAX: u32 = 100;

/// Most that a program may say: 100 rounds of a number for each access are less.
const OUTPUT_MAX: usize = 4 << 20;

/// Makes a report of what the program has printed.
///
/// # Errors
/// It has failed, or printed something else.
pub fn report(output: &str, json: bool) -> anyhow::Result<String> {
    let report = parse(output)?;
    Ok(if json { report.json() } else { report.text() })
}

fn numbers<'a>(words: impl Iterator<Item = &'a str>, line: &str) -> anyhow::Result<Vec<u64>> {
    words.map(|word| word.parse().with_context(|| format!("no number in {line:?}"))).collect()
}

fn parse(output: &str) -> anyhow::Result<Report> {
    ensure!(output.len() <= OUTPUT_MAX, "{PROGRAM} has printed {} bytes", output.len());
    let (mut page, mut short, mut read, mut upgrade, mut steal) = Default::default();
    let mut report = Report::default();
    let (mut stream, mut passed) = ((0, Samples::default()), false);
    for line in output.lines() {
        let mut words = line.split_whitespace();
        let what = words.next().unwrap_or_default();
        let target = match what {
            "page" => &mut page,
            "short" => &mut short,
            "read" => &mut read,
            "upgrade" => &mut upgrade,
            "steal" => &mut steal,
            "stream" => {
                stream.0 = words
                    .next()
                    .and_then(|pages| pages.parse::<usize>().ok())
                    .context("pages of a stream")?;
                &mut stream.1
            }
            "write" => {
                report.sharing.push(sharing(&numbers(words, line)?)?);
                continue;
            }
            "PASS" => {
                passed = true;
                continue;
            }
            _ => bail!("{PROGRAM} says: {line}"),
        };
        numbers(words, line)?.into_iter().for_each(|ns| target.push(ns));
    }
    ensure!(passed, "{PROGRAM} has not come to its end");
    let pages = Unit { name: "4 KiB cell to cell", samples: page };
    let shorts = Unit { name: "64 B cell to cell", samples: short };
    let one = Samples::of(read.percentile(50) * stream.0 as u64);
    for (name, samples, unit) in [
        ("read fault, page at home", read, &pages),
        ("write upgrade, one sharer", upgrade, &shorts),
        ("write steal from a third cell", steal, &pages),
    ] {
        if !samples.is_empty() {
            report.faults.push(Measure { name, samples, unit: unit.clone(), goal: None });
        }
    }
    report.throughput.push(Throughput {
        name: "sequential read",
        bytes: stream.0 * PAGE_SIZE,
        took: stream.1,
        unit: "a read fault for each page",
        unit_took: one,
        goal: None,
    });
    Ok(report)
}

fn sharing(numbers: &[u64]) -> anyhow::Result<Sharing> {
    let &[pattern, ms, home, other] = numbers else { bail!("{} numbers about writes", numbers.len()) };
    let pattern = usize::try_from(pattern)
        .ok()
        .and_then(|n| PATTERNS.get(n))
        .context("an unknown pattern of writes")?;
    ensure!(ms > 0, "writes in no time");
    Ok(Sharing { name: pattern.name, hold_us: None, ms, writes: [home, other] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "page 1000 3000 2000\nshort 500\nread 4000 4000 9000\nupgrade 1000\nstream 10 20000\n\
                          write 1 500 1000 2000\nPASS\n";

    #[test]
    fn what_the_program_prints_becomes_ratios() {
        let report = parse(OUTPUT).unwrap();
        assert_eq!(report.faults.len(), 2, "two cells have no third one to steal from");
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["faults"][0]["ratio_p50"], 2.0);
        assert_eq!(json["faults"][1]["ratio_p50"], 2.0);
        assert_eq!(json["faults"][0]["bar_p50"], serde_json::Value::Null);
        assert_eq!(json["throughput"][0]["ratio"], 2.0, "ten faults of 4 us would have taken 40 us");
        assert_eq!(json["sharing"][0]["pattern"], "one page, different lines");
        assert!(report.text().contains("sequential read"));
    }

    #[test]
    fn a_program_that_failed_or_says_something_else_is_an_error_that_quotes_it() {
        let failed = parse("page 1\nFAIL faults.c:1: page 3 has 7\n").unwrap_err();
        assert!(failed.to_string().contains("page 3 has 7"), "{failed}");
        for bad in
            ["", "page 1\n", "read x\nPASS", "stream\nPASS", "write 9 1 1 1\nPASS", "write 1 0 1 1\nPASS"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
