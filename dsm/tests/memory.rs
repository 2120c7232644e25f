//! The back end against the real kernel: what `memory::SliceMemory` promises for each state of a page.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use ssi_dsm::Access;
use ssi_dsm::memory::{Error, FaultKind, PAGE_SIZE, RUN_SIZE, SliceFault, SliceKind, SliceMemory, probe};

/// A thread that touches guest memory; what it saw, when it ends.
fn access(memory: &Arc<SliceMemory>, index: usize, write: Option<u8>) -> thread::JoinHandle<u8> {
    let memory = memory.clone();
    thread::spawn(move || {
        // SAFETY: `index` is a page of the slice, which the thread keeps alive.
        unsafe {
            let byte = memory.guest_addr().add(index * PAGE_SIZE);
            match write {
                Some(value) => {
                    byte.write_volatile(value);
                    value
                }
                None => byte.read_volatile(),
            }
        }
    })
}

/// The next access that waits.
fn fault(memory: &SliceMemory) -> SliceFault {
    loop {
        if let Some(fault) = memory.faults(1).unwrap().pop() {
            return fault;
        }
        let mut poll = libc::pollfd { fd: memory.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 20_000) }, 1, "no access was reported");
    }
}

fn slice(kind: SliceKind) -> Arc<SliceMemory> {
    Arc::new(SliceMemory::new(2 * RUN_SIZE, kind).unwrap())
}

#[test]
fn the_probe_finds_every_feature_that_the_back_end_needs() {
    let probe = probe().unwrap();
    assert_eq!(probe.missing, []);
}

#[test]
fn a_size_that_is_no_multiple_of_a_run_is_refused() {
    for size in [0, 1, PAGE_SIZE, RUN_SIZE + PAGE_SIZE] {
        let error = SliceMemory::new(size, SliceKind::Own).unwrap_err();
        assert!(matches!(error, Error::Size(s) if s == size), "{error}");
    }
}

#[test]
fn dsm_2_an_own_page_is_plain_memory_until_it_is_asked_for() {
    let memory = slice(SliceKind::Own);
    assert_eq!(access(&memory, 3, Some(7)).join().unwrap(), 7);
    assert!(!memory.is_watched(3));
    assert_eq!(memory.faults(1).unwrap(), []);
    memory.protect(3).unwrap();
    assert!(memory.is_watched(3) && memory.is_watched(4) && !memory.is_watched(RUN_SIZE / PAGE_SIZE));
    // A page of the watched run that was never touched is still served by the kernel.
    assert_eq!(access(&memory, 4, Some(9)).join().unwrap(), 9);
}

#[test]
fn dsm_2_a_write_to_a_shared_page_waits_and_a_read_does_not() {
    let memory = slice(SliceKind::Own);
    access(&memory, 0, Some(1)).join().unwrap();
    memory.protect(0).unwrap();
    assert_eq!(access(&memory, 0, None).join().unwrap(), 1);
    let writer = access(&memory, 0, Some(2));
    let seen = fault(&memory);
    assert_eq!(seen, SliceFault { index: 0, access: Access::Write, kind: FaultKind::WriteProtected });
    let mut bytes = [0; PAGE_SIZE];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 1, "the write must not have happened yet");
    memory.unprotect(0).unwrap();
    writer.join().unwrap();
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 2);
}

#[test]
fn dsm_2_an_access_to_an_invalid_page_waits_until_it_is_installed() {
    let memory = slice(SliceKind::Own);
    access(&memory, 5, Some(1)).join().unwrap();
    memory.zap(5).unwrap();
    let reader = access(&memory, 5, None);
    assert_eq!(fault(&memory), SliceFault { index: 5, access: Access::Read, kind: FaultKind::Minor });
    memory.store(5, &[42; PAGE_SIZE]).unwrap();
    memory.install(5, Access::Read).unwrap();
    assert_eq!(reader.join().unwrap(), 42);
    let writer = access(&memory, 5, Some(43));
    assert_eq!(fault(&memory).kind, FaultKind::WriteProtected, "installed Shared: a write still waits");
    memory.install(5, Access::Write).unwrap();
    writer.join().unwrap();
}

#[test]
fn dsm_2_a_hole_of_an_own_slice_can_be_taken_away() {
    let memory = slice(SliceKind::Own);
    memory.zap(9).unwrap();
    let reader = access(&memory, 9, None);
    assert_eq!(
        fault(&memory).kind,
        FaultKind::Minor,
        "a hole must not be filled by the kernel behind our back"
    );
    memory.install(9, Access::Write).unwrap();
    assert_eq!(reader.join().unwrap(), 0);
    memory.protect(10).unwrap();
    let writer = access(&memory, 10, Some(1));
    assert_eq!(fault(&memory).index, 10);
    memory.install(10, Access::Write).unwrap();
    writer.join().unwrap();
}

#[test]
fn dsm_2_a_window_reports_the_first_access_and_every_one_after_a_zap() {
    let memory = slice(SliceKind::Window);
    let reader = access(&memory, 0, None);
    assert_eq!(fault(&memory), SliceFault { index: 0, access: Access::Read, kind: FaultKind::Missing });
    memory.store(0, &[5; PAGE_SIZE]).unwrap();
    memory.install(0, Access::Write).unwrap();
    assert_eq!(reader.join().unwrap(), 5);
    access(&memory, 0, Some(6)).join().unwrap();
    memory.zap(0).unwrap();
    let mut bytes = [0; PAGE_SIZE];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 6);
    memory.discard(0).unwrap();
    let writer = access(&memory, 0, Some(1));
    assert_eq!(fault(&memory), SliceFault { index: 0, access: Access::Write, kind: FaultKind::Missing });
    memory.install(0, Access::Write).unwrap();
    writer.join().unwrap();
}

#[test]
fn eexist_installing_a_page_that_is_mapped_changes_its_protection_and_wakes() {
    let memory = slice(SliceKind::Window);
    memory.install(0, Access::Write).unwrap();
    access(&memory, 0, Some(1)).join().unwrap();
    memory.install(0, Access::Read).unwrap();
    let writer = access(&memory, 0, Some(2));
    assert_eq!(fault(&memory).kind, FaultKind::WriteProtected);
    memory.install(0, Access::Write).unwrap();
    assert_eq!(writer.join().unwrap(), 2);
}

#[test]
fn dsm_i4_a_poisoned_page_wakes_its_waiters_and_unwatched_neighbours_are_untouched() {
    let memory = slice(SliceKind::Window);
    memory.install(0, Access::Write).unwrap();
    access(&memory, 0, Some(1)).join().unwrap();
    memory.poison(0).unwrap();
    assert_is_poisoned(&memory);
}

#[test]
fn dsm_i4_a_page_that_was_there_to_read_and_was_taken_away_can_be_poisoned() {
    for kind in [SliceKind::Window, SliceKind::Own] {
        let memory = slice(kind);
        memory.install(0, Access::Read).unwrap();
        access(&memory, 0, None).join().unwrap();
        memory.protect(0).unwrap();
        memory.zap(0).unwrap();
        memory.poison(0).unwrap();
        assert_is_poisoned(&memory);
        // And again, and a page once more.
        memory.poison(0).unwrap();
        memory.zap(0).unwrap();
        memory.install(0, Access::Write).unwrap();
        assert_eq!(access(&memory, 0, Some(3)).join().unwrap(), 3);
    }
}

fn assert_is_poisoned(memory: &SliceMemory) {
    // What an access meets now is a SIGBUS; the kernel says so to a system call as EFAULT.
    let mut pipe = [0; 2];
    // SAFETY: `pipe` has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the kernel reads guest memory, which is ours; a poisoned page makes it fail, not crash.
    let written = unsafe { libc::write(pipe[1], memory.guest_addr().cast(), 1) };
    let error = std::io::Error::last_os_error();
    assert_eq!((written, error.raw_os_error()), (-1, Some(libc::EFAULT)));
    // SAFETY: our own descriptors.
    assert_eq!(unsafe { libc::close(pipe[0]) | libc::close(pipe[1]) }, 0);
}

/// With `shmem_enabled` at `advise` the run is one huge page at first; without, 512 pages. The same must hold.
#[test]
fn dsm_2_taking_one_page_of_a_touched_run_leaves_its_neighbours_mapped() {
    let memory = slice(SliceKind::Own);
    let pages = RUN_SIZE / PAGE_SIZE;
    for index in 0..pages {
        access(&memory, index, Some(index as u8)).join().unwrap();
    }
    memory.zap(pages / 2).unwrap();
    for index in (0..pages).filter(|&index| index != pages / 2) {
        assert_eq!(access(&memory, index, None).join().unwrap(), index as u8);
        access(&memory, index, Some(1)).join().unwrap();
    }
    assert_eq!(memory.faults(1).unwrap(), []);
    let reader = access(&memory, pages / 2, None);
    assert_eq!(fault(&memory).index, pages / 2);
    memory.install(pages / 2, Access::Write).unwrap();
    assert_eq!(reader.join().unwrap(), (pages / 2) as u8);
}

#[test]
fn a_run_of_pages_is_protected_across_the_end_of_a_watched_run_and_its_neighbours_are_not() {
    let memory = slice(SliceKind::Own);
    let pages = RUN_SIZE / PAGE_SIZE;
    for index in 0..2 * pages {
        access(&memory, index, Some(index as u8)).join().unwrap();
    }
    let run = pages - 3..pages + 3;
    memory.protect_run(run.start, run.len()).unwrap();
    for index in (0..2 * pages).filter(|index| !run.contains(index)) {
        access(&memory, index, Some(1)).join().unwrap();
    }
    assert_eq!(memory.faults(1).unwrap(), [], "no neighbour waits");
    for index in run.clone() {
        assert_eq!(access(&memory, index, None).join().unwrap(), index as u8, "reads go through");
        let writer = access(&memory, index, Some(2));
        let found = fault(&memory);
        assert_eq!((found.index, found.access), (index, Access::Write));
        memory.unprotect(index).unwrap();
        writer.join().unwrap();
    }
    assert!(matches!(memory.protect_run(2 * pages - 1, 2), Err(Error::OutOfRange { .. })));
    assert!(matches!(memory.zap_run(usize::MAX, 2), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_run_comes_with_its_bytes_to_be_read_and_wakes_its_waiters_whether_or_not_its_pages_have_memory() {
    let memory = slice(SliceKind::Window);
    let bytes: Vec<u8> = (0..8).flat_map(|index| [index as u8 + 1; PAGE_SIZE]).collect();
    // Old bytes, invalid; the pages before have no memory.
    memory.store(4, &[99; PAGE_SIZE]).unwrap();
    let readers = [2, 4].map(|index| {
        let reader = access(&memory, index, None);
        assert_eq!(fault(&memory).index, index);
        reader
    });
    memory.place_run(0, &bytes).unwrap();
    for (reader, byte) in readers.into_iter().zip([3, 5]) {
        assert_eq!(reader.join().unwrap(), byte, "who waited is awake, and reads what came");
    }
    for index in 0..8 {
        assert_eq!(access(&memory, index, None).join().unwrap(), index as u8 + 1);
        let writer = access(&memory, index, Some(0));
        assert_eq!(fault(&memory).kind, FaultKind::WriteProtected, "page {index} is to be read only");
        memory.unprotect(index).unwrap();
        writer.join().unwrap();
    }
    assert!(matches!(memory.place_run(usize::MAX, &bytes), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_run_of_pages_comes_at_once_around_those_that_are_here_and_goes_at_once() {
    let memory = slice(SliceKind::Window);
    let bytes: Vec<u8> = (0..6).flat_map(|index| [index as u8 + 1; PAGE_SIZE]).collect();
    memory.store_run(0, &bytes).unwrap();
    memory.store(7, &[8; PAGE_SIZE]).unwrap();
    let mut read = vec![0; 6 * PAGE_SIZE];
    memory.read_run(0, &mut read).unwrap();
    assert!(read == bytes);
    // Page 6 has no memory yet, and is mapped all the same.
    let expected = |index: usize| if index == 6 { 0 } else { index as u8 + 1 };
    memory.install(3, Access::Write).unwrap();
    let reader = access(&memory, 5, None);
    assert_eq!(fault(&memory).index, 5);
    memory.install_run(0, 8, Access::Read).unwrap();
    assert_eq!(reader.join().unwrap(), 6, "who waited is awake");
    for index in 0..8 {
        assert_eq!(access(&memory, index, None).join().unwrap(), expected(index));
    }
    let writer = access(&memory, 3, Some(9));
    assert_eq!(fault(&memory).kind, FaultKind::WriteProtected, "the page that was here is to be read now");
    memory.unprotect(3).unwrap();
    writer.join().unwrap();
    memory.zap_run(0, 8).unwrap();
    for index in [0, 3, 7] {
        assert!(!memory.is_resident(index).unwrap());
    }
    assert_eq!(memory.faults(1).unwrap(), []);
}

#[test]
fn discarded_pages_give_their_memory_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let memory = slice(SliceKind::Window);
    let kib = || memory.file().metadata().unwrap().blocks() / 2;
    assert_eq!(kib(), 0);
    for index in 0..64 {
        memory.store(index, &[7; PAGE_SIZE]).unwrap();
    }
    memory.install_run(0, 64, Access::Read).unwrap();
    assert_eq!(kib(), 256);
    memory.zap_run(0, 48).unwrap();
    memory.discard_run(0, 48).unwrap();
    assert_eq!(kib(), 64);
    assert_eq!(access(&memory, 48, None).join().unwrap(), 7, "the others stay");
    let reader = access(&memory, 0, None);
    assert_eq!(fault(&memory).kind, FaultKind::Missing);
    memory.store(0, &[8; PAGE_SIZE]).unwrap();
    memory.install(0, Access::Read).unwrap();
    assert_eq!(reader.join().unwrap(), 8);
}
