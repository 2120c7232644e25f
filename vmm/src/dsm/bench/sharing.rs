//! Two nodes that write all the time: the same word, the same page, different pages.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::HOME;
use super::report::{Report, Sharing};
use crate::dsm::rig::{Rig, RigNode};

/// How long each pattern runs, in milliseconds.
const MS: u64 = 300;

/// Where the two nodes write.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) name: &'static str,
    page: [usize; 2],
    offset: [usize; 2],
}

pub(super) const PATTERNS: [Pattern; 3] = [
    Pattern { name: "the same word", page: [0, 0], offset: [0, 0] },
    Pattern { name: "one page, different lines", page: [1, 1], offset: [0, 2048] },
    Pattern { name: "different pages", page: [2, 3], offset: [0, 0] },
];

/// Counts up in the pattern's word of this node for `ms` milliseconds; how far it came.
pub(super) fn write_for(node: &RigNode, pattern: &Pattern, ms: u64) -> anyhow::Result<u64> {
    let side = usize::from(node.me.0) % 2;
    let page = node.page(HOME, pattern.page[side])?;
    // SAFETY: an aligned word of a mapped page, used by atomic accesses only.
    let word = unsafe { &*page.add(pattern.offset[side]).cast::<AtomicU64>() };
    let (end, mut count) = (Instant::now() + Duration::from_millis(ms), 0);
    while Instant::now() < end {
        word.fetch_add(1, Ordering::Relaxed);
        count += 1;
    }
    Ok(count)
}

pub(super) fn measure(rig: &mut Rig, hold_us: u64, report: &mut Report) -> anyhow::Result<()> {
    for (number, pattern) in PATTERNS.iter().enumerate() {
        let mut mine = 0;
        let others = rig.all(&format!("share {number} {MS}"), |node| {
            mine = write_for(node, pattern, MS)?;
            Ok(())
        })?;
        let home = others.first().context("the home's count")?.parse()?;
        report.sharing.push(Sharing {
            name: pattern.name,
            hold_us: Some(hold_us),
            ms: MS,
            writes: [home, mine],
        });
    }
    Ok(())
}
