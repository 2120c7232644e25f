//! One fault after the other, of each kind.

use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use ssi_dsm::Access;

use super::report::{Measure, Report, Samples, Unit, goal};
use super::{HOME, OWNER, WANT_PAGE, WANT_SHORT, nanoseconds, raw_round_trip, take};
use crate::dsm::rig::Rig;

/// Accesses of each kind in one round.
const BATCH: usize = 100;
/// A round uses this many fresh pages.
const ROUND_PAGES: usize = 2 * BATCH;
pub(super) const ROUNDS_MAX: u32 = 150;

/// An even stride over the pages of a round: no two faults in a row are of neighbours, so that none is answered ahead.
fn scattered(first: usize, i: usize) -> usize {
    first + i * 37 % BATCH
}

pub(super) fn measure(
    rig: &mut Rig,
    raw: &mut TcpStream,
    rounds: u32,
    pages: &mut Range<usize>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut raw_page, mut raw_short) = (Samples::default(), Samples::default());
    let (mut read, mut upgrade, mut steal) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let first = take(pages, ROUND_PAGES)?.start;
        let steals = first + BATCH;
        rig.tell(OWNER, &format!("write {steals} {BATCH}"))?;
        for i in 0..BATCH {
            raw_page.push(raw_round_trip(raw, WANT_PAGE)?);
            read.push(fault(rig, scattered(first, i), Access::Read)?);
        }
        for i in 0..BATCH {
            raw_short.push(raw_round_trip(raw, WANT_SHORT)?);
            upgrade.push(fault(rig, scattered(first, i), Access::Write)?);
        }
        for i in 0..BATCH {
            raw_page.push(raw_round_trip(raw, WANT_PAGE)?);
            steal.push(fault(rig, scattered(steals, i), Access::Write)?);
        }
    }
    let page = Unit { name: "raw 4 KiB round trip", samples: raw_page };
    let short = Unit { name: "raw 64 B round trip", samples: raw_short };
    report.faults = vec![
        Measure { name: "read fault, page at home", samples: read, unit: page.clone(), goal: goal(1.5, 1.2) },
        Measure { name: "write upgrade, one sharer", samples: upgrade, unit: short, goal: goal(2.0, 1.5) },
        Measure { name: "write steal from a third node", samples: steal, unit: page, goal: goal(3.0, 2.0) },
    ];
    Ok(())
}

fn fault(rig: &Rig, index: usize, access: Access) -> anyhow::Result<u64> {
    let start = Instant::now();
    rig.node.touch(HOME, index, access)?;
    Ok(nanoseconds(start))
}
