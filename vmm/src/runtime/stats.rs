//! What a process knows of itself.

use std::ops::Range;

use crate::control::node::NodeStats;

/// Resident bytes of guest RAM (the mappings inside `ram`, host addresses) and of all the rest, from `/proc/self/smaps`.
pub fn of_this_process(ram: &[Range<u64>]) -> NodeStats {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let (guest_bytes, overhead_bytes) = resident(&text, ram);
    NodeStats { pid: std::process::id(), overhead_bytes, guest_bytes, ..NodeStats::default() }
}

/// Resident bytes inside and outside `ram`.
fn resident(smaps: &str, ram: &[Range<u64>]) -> (u64, u64) {
    let (mut inside, mut outside) = (0, 0);
    let mut guest = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((begin, end)) = first.split_once('-')
            && let (Ok(begin), Ok(end)) = (u64::from_str_radix(begin, 16), u64::from_str_radix(end, 16))
        {
            guest = ram.iter().any(|range| range.start < end && begin < range.end);
        } else if first == "Rss:" {
            let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
            *(if guest { &mut inside } else { &mut outside }) += kib << 10;
        }
    }
    (inside, outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_counted_as_overhead() {
        let smaps = "7f0000000000-7f0000200000 rw-s 00000000 00:01 2 /memfd:ram (deleted)\nSize: 2048 kB\nRss:  1024 kB\n\
                     Pss: 9 kB\n7f0000200000-7f0000300000 rw-p 00000000 00:00 0\nRss:  12 kB\n";
        assert_eq!(
            resident(smaps, std::slice::from_ref(&(0x7f00_0000_0000..0x7f00_0020_0000))),
            (1 << 20, 12 << 10)
        );
        assert_eq!(resident(smaps, &[]), (0, (1 << 20) + (12 << 10)));
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(of_this_process(&[]).overhead_bytes > 100 << 10);
    }
}
