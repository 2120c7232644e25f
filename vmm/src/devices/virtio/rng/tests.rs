use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::worker::RngWorker;
use super::{CHAIN_BYTES_MAX, QUEUE_SIZES};
use crate::devices::virtio::testing::{Recorder, Rings, hostile, ram, readable, writable};

struct Bench {
    worker: RngWorker,
    rings: Rings,
    interrupt: Arc<Recorder>,
}

fn bench() -> Bench {
    let ram = ram();
    let rings = Rings::new(&ram, 0x1000, QUEUE_SIZES[0]);
    let interrupt = Arc::new(Recorder::default());
    let worker =
        RngWorker { shared: Arc::default(), ram, queue: rings.active(), interrupt: interrupt.clone() };
    Bench { worker, rings, interrupt }
}

#[test]
fn verify_spec_5_4_6_writable_buffers_are_filled_with_random_bytes() {
    let mut bench = bench();
    let head = bench.rings.push(&[writable(0x10_0000, 32), writable(0x11_0000, 32)]);
    bench.worker.process_queue();
    assert_eq!(bench.rings.pop_used(), Some((u32::from(head), 64)));
    assert_eq!(bench.interrupt.used_count(), 1);
    let mut bytes = [0; 32];
    for at in [0x10_0000, 0x11_0000] {
        bench.worker.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_ne!(bytes, [0; 32]);
    }
}

#[test]
fn a_request_is_bounded_and_a_readable_buffer_gets_nothing() {
    let mut bench = bench();
    bench.rings.push(&[writable(0x10_0000, 1 << 20)]);
    bench.rings.push(&[readable(0x10_0000, 64)]);
    bench.worker.process_queue();
    assert_eq!(bench.rings.pop_used().unwrap().1 as usize, CHAIN_BYTES_MAX);
    assert_eq!(bench.rings.pop_used().unwrap().1, 0);
    assert_eq!(bench.worker.shared.metrics.malformed_chains_count.get(), 1);
}

proptest! {
    // A case is a whole ring of hostile chains.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_chain_breaks_the_device(hostile in hostile(QUEUE_SIZES[0])) {
        let mut bench = bench();
        hostile.fill(&mut bench.rings);
        bench.worker.process_queue();
    }
}
