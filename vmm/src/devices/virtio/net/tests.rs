//! The card against a driver written by hand (section 5.1.6).

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use proptest::prelude::*;

use super::*;
use crate::devices::lock;
use crate::devices::terminal::Waker;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::{BUFFERS, Driver, RAM_END};
use crate::worker::Exit;

const EVENT_IDX: u64 = 1 << 29;
const MAC: [u8; 6] = [2, 0x53, 0x53, 0x49, 0, 2];

/// A link that hands frames to the test, and has room for as many as `room` says.
struct Out {
    frames: Sender<Vec<u8>>,
    room: Mutex<usize>,
    wake: Mutex<Option<Waker>>,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out").finish_non_exhaustive()
    }
}

impl FrameLink for Out {
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut room = lock(&self.room);
        if *room == 0 {
            return Err(frame);
        }
        *room -= 1;
        self.frames.send(frame).unwrap();
        Ok(())
    }

    fn on_room(&self, wake: Waker) {
        *lock(&self.wake) = Some(wake);
    }
}

impl Out {
    fn make_room(&self, room: usize) {
        *lock(&self.room) = room;
        lock(&self.wake).as_ref().unwrap()();
    }
}

struct Card {
    net: Net,
    link: Arc<Out>,
    out: Receiver<Vec<u8>>,
    driver: Driver,
}

fn card(features: u64) -> Card {
    let (frames, out) = unbounded();
    let link = Arc::new(Out { frames, room: Mutex::new(usize::MAX), wake: Mutex::default() });
    let config = NetConfig { mac: MAC, mtu: Some(1500) };
    let mut net = Net::new(config, link.clone(), &Exit::new().unwrap()).unwrap();
    let (driver, activation) = Driver::new(&QUEUE_SIZES, features);
    net.activate(activation).unwrap();
    Card { net, link, out, driver }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(7).wrapping_add(seed)).collect();
    frame[..HEADER_BYTES].fill(0);
    frame
}

/// "5.1.4 Device configuration layout".
#[test]
fn verify_5_1_4_configuration_space() {
    let card = card(0);
    let mut config = [0xff; 16];
    card.net.read_config(0, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..12], [1, 0, 1, 0, 0xdc, 5]);
    assert_eq!(config[12..], [0; 4]);
    assert_ne!(card.net.features() & F_MRG_RXBUF, 0);
    assert_eq!(card.net.features() & (1 << 14 | 1 << 10), 0, "UFO is not offered");
}

#[test]
fn sent_frames_are_gathered_whole_and_in_order() {
    for features in [0, EVENT_IDX] {
        let mut card = card(features);
        for (n, len) in [(0u8, 60), (1, 1526), (2, FRAME_BYTES_MAX)] {
            let bytes = frame(len, n);
            card.driver.write(BUFFERS, &bytes);
            let (a, b) = (HEADER_BYTES as u32, 20);
            let head = card.driver.rings[QUEUE_TX].add(&[
                (BUFFERS, a, false),
                (BUFFERS + u64::from(a), b, false),
                (BUFFERS + u64::from(a + b), len as u32 - a - b, false),
            ]);
            card.driver.rings[QUEUE_TX].kick();
            assert_eq!(card.out.recv().unwrap(), bytes);
            assert_eq!(card.driver.wait_used(QUEUE_TX), (head, 0));
        }
    }
}

#[test]
fn a_full_link_stops_the_transmit_queue_and_loses_nothing() {
    let mut card = card(0);
    *lock(&card.link.room) = 1;
    for n in 0..5u8 {
        let at = BUFFERS + u64::from(n) * 0x1000;
        card.driver.write(at, &frame(100, n));
        card.driver.rings[QUEUE_TX].add(&[(at, 100, false)]);
    }
    card.driver.rings[QUEUE_TX].kick();
    assert_eq!(card.out.recv().unwrap(), frame(100, 0));
    // The second is held by the card; the others stay in the queue.
    card.driver.wait_used(QUEUE_TX);
    card.driver.wait_used(QUEUE_TX);
    assert!(card.out.is_empty());
    for n in 1..5u8 {
        card.link.make_room(1);
        assert_eq!(card.out.recv().unwrap(), frame(100, n));
    }
    assert!(card.net.metrics().tx_throttled_count.get() >= 1);
}

/// "5.1.6.4: num_buffers says in how many descriptor chains the packet is; all but the last are filled."
#[test]
fn verify_5_1_6_4_a_frame_is_merged_from_several_buffers() {
    for features in [F_MRG_RXBUF, F_MRG_RXBUF | EVENT_IDX] {
        let mut card = card(features);
        let bytes = frame(2500, 3);
        // The frame is there first, then two buffers too few, and only then enough.
        assert!(card.net.input().deliver(bytes.clone()));
        let mut heads = Vec::new();
        for n in 0..3u64 {
            heads.push(card.driver.rings[QUEUE_RX].add(&[(BUFFERS + n * 0x1000, 1000, true)]));
            card.driver.rings[QUEUE_RX].kick();
        }
        let used: Vec<_> = (0..3).map(|_| card.driver.wait_used(QUEUE_RX)).collect();
        assert_eq!(used, [(heads[0], 1000), (heads[1], 1000), (heads[2], 500)]);
        let mut got = card.driver.read(BUFFERS, 1000);
        got.extend(card.driver.read(BUFFERS + 0x1000, 1000));
        got.extend(card.driver.read(BUFFERS + 0x2000, 500));
        assert_eq!(got[10..12], [3, 0]);
        got[10] = 0;
        assert_eq!(got, bytes);
        // And again: the rings went on.
        for n in 0..3u64 {
            card.driver.rings[QUEUE_RX].add(&[(BUFFERS + n * 0x1000, 1526, true)]);
        }
        card.driver.rings[QUEUE_RX].kick();
        for n in 0..3u8 {
            assert!(card.net.input().deliver(frame(1526, n)));
            assert_eq!(card.driver.wait_used(QUEUE_RX).1, 1526);
        }
        assert_eq!(card.net.metrics().rx_frames_count.get(), 4);
    }
}

#[test]
fn without_merging_a_frame_goes_into_one_chain_or_is_dropped() {
    let mut card = card(0);
    card.driver.rings[QUEUE_RX].add(&[(BUFFERS, 12, true), (BUFFERS + 0x1000, 100, true)]);
    card.driver.rings[QUEUE_RX].add(&[(BUFFERS, 12, true), (BUFFERS + 0x1000, 100, true)]);
    card.driver.rings[QUEUE_RX].kick();
    assert!(card.net.input().deliver(frame(113, 1)));
    assert!(card.net.input().deliver(frame(112, 2)));
    assert_eq!(card.driver.wait_used(QUEUE_RX).1, 0, "too large: the driver gets its buffer back");
    assert_eq!(card.driver.wait_used(QUEUE_RX).1, 112);
    assert_eq!(card.driver.read(BUFFERS + 10, 2), [1, 0]);
    assert_eq!(card.driver.read(BUFFERS + 0x1000, 100), frame(112, 2)[12..]);
    assert_eq!(card.net.metrics().rx_bad_buffers_count.get(), 1);
}

#[test]
fn frames_without_room_are_dropped_and_counted() {
    let mut card = card(F_MRG_RXBUF);
    let input = card.net.input();
    let taken = (0..3 * WAITING_FRAMES_MAX).filter(|_| input.deliver(frame(60, 0))).count();
    // One may already wait outside of the queue.
    assert!((WAITING_FRAMES_MAX..=WAITING_FRAMES_MAX + 1).contains(&taken));
    assert_eq!(card.net.metrics().rx_dropped_count.get(), (3 * WAITING_FRAMES_MAX - taken) as u64);
    assert!(!input.deliver(vec![0; HEADER_BYTES + ETHERNET_BYTES - 1]));
    assert!(!input.deliver(vec![0; FRAME_BYTES_MAX + 1]));
    card.net.reset();
    assert!(!input.deliver(frame(60, 0)), "the card is down");
    let (mut driver, activation) = Driver::new(&QUEUE_SIZES, 0);
    card.net.activate(activation).unwrap();
    driver.rings[QUEUE_RX].add(&[(BUFFERS, 2000, true)]);
    driver.rings[QUEUE_RX].kick();
    assert!(input.deliver(frame(77, 0)));
    assert_eq!(driver.wait_used(QUEUE_RX).1, 77, "nothing old came");
}

#[test]
fn malformed_chains_are_returned_and_counted() {
    let mut card = card(0);
    let bad: [&[(u64, u32, bool)]; 4] = [
        &[(BUFFERS, 25, false)],
        &[(BUFFERS, 100, true)],
        &[(RAM_END, 100, false)],
        &[(BUFFERS, 1 << 20, false)],
    ];
    for chain in bad {
        let head = card.driver.rings[QUEUE_TX].add(chain);
        card.driver.rings[QUEUE_TX].kick();
        assert_eq!(card.driver.wait_used(QUEUE_TX), (head, 0));
    }
    assert_eq!(card.net.metrics().tx_malformed_count.get(), 4);
    assert!(card.out.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever descriptors a driver writes, in both queues: the card goes on, and sends a sound frame after them.
    #[test]
    fn arbitrary_chains_do_not_stop_the_card(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20, any::<bool>()), 32),
        heads in prop::collection::vec(prop_oneof![0u16..20, any::<u16>()], 1..8),
    ) {
        let mut card = card(F_MRG_RXBUF | EVENT_IDX);
        for (n, &(address, len, flags, next, near)) in descriptors.iter().enumerate() {
            let (address, len) = if near { (address % RAM_END, len % 0x2000) } else { (address, len) };
            card.driver.rings[n % 2].descriptor((n / 2) as u16, address.max(BUFFERS), len, flags, next);
        }
        for _ in 0..4 {
            card.net.input().deliver(frame(3000, 1));
        }
        for index in [QUEUE_RX, QUEUE_TX] {
            for &head in &heads {
                card.driver.rings[index].offer(head);
            }
            card.driver.rings[index].kick();
        }
        let sound = frame(1000, 9);
        card.driver.write(RAM_END - 4096, &sound);
        card.driver.rings[QUEUE_TX].add(&[(RAM_END - 4096, 1000, false)]);
        card.driver.rings[QUEUE_TX].kick();
        prop_assert!(card.out.iter().any(|frame| frame.len() == 1000));
    }
}
