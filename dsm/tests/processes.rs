//! DSM-I1 and DSM-I2 on real memory: two processes, each with its slice and a window onto the other's.

mod common;

use std::sync::atomic::Ordering;
use std::thread;

use common::{TestNode, in_two_processes};
use ssi_dsm::memory::PAGE_SIZE;

const PAGES: usize = 3;

#[test]
fn dsm_i2_counters_in_both_slices_incremented_by_two_processes_add_up() {
    const TIMES: u64 = 1000;
    const THREADS: u64 = 2;
    in_two_processes("dsm_i2_counters_in_both_slices_incremented_by_two_processes_add_up", |node| {
        node.meet();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..TIMES {
                        for slice in 0..2 {
                            for page in 0..PAGES {
                                node.counter(slice, page).fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        node.meet();
        sums(node, 2 * THREADS * TIMES);
    });
}

/// Every counter has reached `expected`, as both nodes see it.
fn sums(node: &TestNode, expected: u64) {
    for slice in 0..2 {
        for page in 0..PAGES {
            assert_eq!(
                node.counter(slice, page).load(Ordering::Relaxed),
                expected,
                "slice {slice} page {page}"
            );
        }
    }
    node.check();
    node.meet();
}

/// DSM-1: "at most one node may write a page, and while it may, no other may read it". Two words in one page, each written
/// by one node before it reads the other's: with one writer at a time, both never read the old value.
#[test]
fn dsm_3_store_then_load_is_never_reordered_between_nodes() {
    const ROUNDS: usize = 200;
    in_two_processes("dsm_3_store_then_load_is_never_reordered_between_nodes", |node| {
        let (mine, other) = (usize::from(node.me.0), usize::from(1 - node.me.0));
        for round in 1..=ROUNDS as u64 {
            node.meet();
            // Words in two pages of two slices: neither node is the home of both.
            node.counter(mine, 7).store(round, Ordering::SeqCst);
            let seen = node.counter(other, 7).load(Ordering::SeqCst);
            node.counter(0, 8 + mine).store(seen, Ordering::SeqCst);
            node.meet();
            let both = (node.counter(0, 8).load(Ordering::SeqCst), node.counter(0, 9).load(Ordering::SeqCst));
            assert!(
                both.0 == round || both.1 == round,
                "round {round}: both nodes read an old value: {both:?}"
            );
        }
        node.check();
        node.meet();
    });
}

/// The pages of slice 0, whose home is the other process, read in order.
fn read_all(node: &TestNode, pages: usize) {
    for page in 0..pages {
        assert_eq!(node.counter(0, page).load(Ordering::Relaxed), page as u64 + 1);
    }
}

#[test]
fn dsm_2_a_run_of_reads_is_fetched_ahead_and_a_small_window_gives_its_memory_back() {
    const RUN: usize = 2048;
    const WINDOW: u64 = 256;
    let name = "dsm_2_a_run_of_reads_is_fetched_ahead_and_a_small_window_gives_its_memory_back";
    in_two_processes(name, |node| {
        if node.me.0 == 0 {
            for page in 0..RUN {
                node.counter(0, page).store(page as u64 + 1, Ordering::Relaxed);
            }
            node.meet();
        } else {
            use std::os::unix::fs::MetadataExt;
            node.meet();
            node.set_window_pages(0, WINDOW);
            read_all(node, RUN);
            let counters = node.counters(0);
            assert!(counters.read_faults_count < RUN as u64 / 8, "{counters:?}");
            assert!(counters.run_pages_count > RUN as u64 * 3 / 4, "{counters:?}");
            assert!(counters.discarded_pages_count > RUN as u64 / 2, "{counters:?}");
            let kib = node.memories[0].file().metadata().unwrap().blocks() / 2;
            assert!(kib <= 2 * 4 * WINDOW, "{kib} KiB for a window of {WINDOW} pages");
            read_all(node, RUN);
        }
        node.meet();
        node.check();
        node.meet();
    });
}

/// `cargo test --release -p ssi-dsm --test processes stream -- --ignored --nocapture`
#[test]
#[ignore = "prints times, and judges nothing"]
fn a_stream_of_64_mib_beside_raw_tcp() {
    use std::io::{Read, Write};
    use std::time::Instant;
    const BYTES: usize = 64 << 20;
    let raw = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let start = Instant::now();
        let sender = thread::spawn(move || {
            let mut to = std::net::TcpStream::connect(address).unwrap();
            (0..BYTES / 65536).for_each(|_| to.write_all(&[7; 65536]).unwrap());
        });
        let mut buffer = vec![0; 65536];
        let mut from = listener.accept().unwrap().0;
        while from.read(&mut buffer).unwrap() > 0 {}
        sender.join().unwrap();
        start.elapsed()
    };
    in_two_processes("a_stream_of_64_mib_beside_raw_tcp", |node| {
        let pages = BYTES / PAGE_SIZE;
        if node.me.0 == 0 {
            for page in 0..pages {
                node.counter(0, page).store(page as u64 + 1, Ordering::Relaxed);
            }
            let yardstick = raw();
            node.meet();
            let start = Instant::now();
            node.meet();
            let dsm = start.elapsed();
            let ratio = yardstick.as_secs_f64() / dsm.as_secs_f64();
            println!("64 MiB: {dsm:?} page by page in order, {yardstick:?} over raw TCP: {ratio:.2} of it");
        } else {
            node.meet();
            read_all(node, pages);
            node.meet();
        }
        node.meet();
        node.check();
        node.meet();
    });
}

#[cfg(target_arch = "x86_64")]
mod guest {
    use super::*;

    use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

    /// `lock inc qword [rdi]; dec rcx; jnz back; mov [rsi], eax`: counts, then leaves by an access to no memory.
    const CODE: [u8; 12] = [0xf0, 0x48, 0xff, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf7, 0x89, 0x06, 0xf4];
    const CODE_AT: u64 = 0xa000;
    const PML4_AT: u64 = 0x1000;
    const PDPT_AT: u64 = 0x2000;
    const DIRECTORIES_AT: u64 = 0x3000;
    const NOWHERE: u64 = 0xd000_0000;

    /// Private low memory of the guest: code and page tables.
    #[repr(align(4096))]
    struct Low([u8; 0x10000]);

    struct Guest<'a> {
        vcpu: VcpuFd,
        // Dropped after the vCPU.
        _vm: VmFd,
        _low: Box<Low>,
        _node: &'a TestNode,
    }

    impl<'a> Guest<'a> {
        fn new(kvm: &Kvm, node: &'a TestNode) -> Self {
            let vm = kvm.create_vm().unwrap();
            let mut low = Box::new(Low([0; 0x10000]));
            let mut put = |at: u64, bytes: &[u8]| low.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
            put(CODE_AT, &CODE);
            // Identity map of the first 6 GiB for CPL 3 in 2 MiB pages; present, writable, user (+ page size).
            put(PML4_AT, &(PDPT_AT | 0x7).to_le_bytes());
            for gib in 0..6_u64 {
                let directory = DIRECTORIES_AT + gib * 0x1000;
                put(PDPT_AT + gib * 8, &(directory | 0x7).to_le_bytes());
                for page in 0..512_u64 {
                    put(directory + page * 8, &(gib << 30 | page << 21 | 0x87).to_le_bytes());
                }
            }
            let mut regions = vec![(0, low.0.as_ptr() as u64, low.0.len() as u64)];
            for (slice, memory) in (0..).zip(&node.memories) {
                let gpa = common::SLICES.first_page(ssi_dsm::NodeId(slice)).gpa();
                regions.push((gpa, memory.guest_addr() as u64, memory.size() as u64));
            }
            for (slot, (guest_phys_addr, userspace_addr, memory_size)) in (0..).zip(regions) {
                let flags = 0;
                let region =
                    kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
                // SAFETY: `low` and the node's memories outlive the VM.
                unsafe { vm.set_user_memory_region(region) }.unwrap();
            }
            let vcpu = vm.create_vcpu(0).unwrap();
            let mut cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
            // Asynchronous page faults need a guest that knows them.
            cpuid.as_mut_slice().retain_kvm_features(0);
            vcpu.set_cpuid2(&cpuid).unwrap();
            let mut sregs = vcpu.get_sregs().unwrap();
            let flat = |selector, type_, long: u8| kvm_segment {
                base: 0,
                limit: 0xffff_ffff,
                selector,
                type_,
                present: 1,
                dpl: 3,
                db: 1 - long,
                s: 1,
                l: long,
                g: 1,
                ..kvm_segment::default()
            };
            sregs.cs = flat(0x33, 11, 1);
            let data = flat(0x2b, 3, 0);
            (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
            sregs.cr3 = PML4_AT;
            sregs.cr4 = 1 << 5; // PAE
            sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
            sregs.efer = 0x500; // LME, LMA
            vcpu.set_sregs(&sregs).unwrap();
            Self { vcpu, _vm: vm, _low: low, _node: node }
        }

        /// The guest, at CPL 3, increments the counter at guest-physical address `gpa`.
        fn increment(&mut self, gpa: u64, times: u64) {
            let regs = kvm_regs {
                rip: CODE_AT,
                rdi: gpa,
                rcx: times,
                rsi: NOWHERE,
                rflags: 2,
                ..kvm_regs::default()
            };
            self.vcpu.set_regs(&regs).unwrap();
            match self.vcpu.run().unwrap() {
                VcpuExit::MmioWrite(NOWHERE, _) => {}
                other => panic!("the guest left by {other:?}"),
            }
        }
    }

    trait KvmFeatures {
        fn retain_kvm_features(&mut self, keep: u32);
    }

    impl KvmFeatures for [kvm_bindings::kvm_cpuid_entry2] {
        fn retain_kvm_features(&mut self, keep: u32) {
            for entry in self.iter_mut().filter(|entry| entry.function == 0x4000_0001) {
                entry.eax &= keep;
            }
        }
    }

    #[test]
    fn dsm_i2_counters_incremented_by_guests_of_two_nodes_at_cpl_3_add_up() {
        const TIMES: u64 = 400;
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => return eprintln!("SKIP: /dev/kvm cannot be used: {error}"),
        };
        in_two_processes(
            "guest::dsm_i2_counters_incremented_by_guests_of_two_nodes_at_cpl_3_add_up",
            |node| {
                let mut guest = Guest::new(&kvm, node);
                node.meet();
                for _ in 0..10 {
                    for slice in 0..2 {
                        let first = common::SLICES.first_page(ssi_dsm::NodeId(slice)).gpa();
                        for page in 0..PAGES {
                            guest.increment(first + (page * PAGE_SIZE) as u64, TIMES / 10);
                        }
                    }
                }
                node.meet();
                sums(node, 2 * TIMES);
            },
        );
    }
}
