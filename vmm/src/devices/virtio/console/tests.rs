use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::state::Shared;
use super::worker::ConsoleWorker;
use super::{QUEUE_RX, QUEUE_SIZES, QUEUE_TX};
use crate::devices::terminal::Terminal;
use crate::devices::virtio::testing::{Recorder, Rings, hostile, ram, readable, writable};

struct Bench {
    worker: ConsoleWorker,
    rx: Rings,
    tx: Rings,
    terminal: Terminal,
    interrupt: Arc<Recorder>,
}

fn bench() -> Bench {
    let ram = ram();
    let rx = Rings::new(&ram, 0x1_0000, QUEUE_SIZES[QUEUE_RX]);
    let tx = Rings::new(&ram, 0x2_0000, QUEUE_SIZES[QUEUE_TX]);
    let terminal = Terminal::new();
    let interrupt = Arc::new(Recorder::default());
    let worker = ConsoleWorker {
        shared: Arc::new(Shared::new(&terminal).unwrap()),
        ram,
        rx: rx.active(),
        tx: tx.active(),
        interrupt: interrupt.clone(),
    };
    Bench { worker, rx, tx, terminal, interrupt }
}

#[test]
fn verify_spec_5_3_6_transmitted_characters_reach_the_terminal_in_order() {
    let mut bench = bench();
    let (_, live) = bench.terminal.subscribe();
    bench.worker.ram.write_slice(b"hello world", GuestAddress(0x10_0000)).unwrap();
    bench.tx.push(&[readable(0x10_0000, 6), readable(0x10_0006, 5)]);
    bench.worker.process_tx();
    let seen: Vec<u8> = live.try_iter().flat_map(|piece| piece.to_vec()).collect();
    assert_eq!(seen, b"hello world");
    assert_eq!(bench.tx.pop_used().unwrap().1, 0);
    assert_eq!(bench.interrupt.used_count(), 1);
}

#[test]
fn verify_spec_5_3_6_input_waits_for_receive_buffers_and_fills_them_in_order() {
    let mut bench = bench();
    bench.terminal.push_input(b"abcdef");
    bench.worker.process_rx();
    assert_eq!(bench.interrupt.used_count(), 0, "no buffer yet");
    bench.rx.push(&[writable(0x10_0000, 4)]);
    bench.rx.push(&[writable(0x10_1000, 4)]);
    bench.worker.process_rx();
    assert_eq!(bench.rx.pop_used().unwrap().1, 4);
    assert_eq!(bench.rx.pop_used().unwrap().1, 2);
    let mut bytes = [0; 4];
    bench.worker.ram.read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
    assert_eq!(&bytes, b"abcd");
    bench.worker.ram.read_slice(&mut bytes[..2], GuestAddress(0x10_1000)).unwrap();
    assert_eq!(&bytes[..2], b"ef");
}

#[test]
fn a_receive_buffer_that_is_not_writable_costs_no_input() {
    let mut bench = bench();
    bench.terminal.push_input(b"x");
    bench.rx.push(&[readable(0x10_0000, 4)]);
    bench.rx.push(&[writable(0x10_0000, 4)]);
    bench.worker.process_rx();
    assert_eq!(bench.rx.pop_used().unwrap().1, 0);
    assert_eq!(bench.rx.pop_used().unwrap().1, 1);
    assert_eq!(bench.worker.shared.metrics.malformed_chains_count.get(), 1);
}

proptest! {
    // A case is a whole ring of hostile chains.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_chain_breaks_the_device(rx in hostile(QUEUE_SIZES[QUEUE_RX]), tx in hostile(QUEUE_SIZES[QUEUE_TX])) {
        let mut bench = bench();
        bench.terminal.push_input(&[1; 1000]);
        rx.fill(&mut bench.rx);
        tx.fill(&mut bench.tx);
        bench.worker.process_tx();
        bench.worker.process_rx();
    }
}
