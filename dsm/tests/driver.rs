//! What a driver makes of frames: which are refused, under which name, and whether the link has to be closed for it.

mod sim;

use sim::{Fake, PAGE_BYTES};
use ssi_dsm::driver::{Driver, Outbox};
use ssi_dsm::protocol::{Config, Message, Refusal, SliceMap};
use ssi_dsm::wire::{Frame, HEADER_BYTES, Packet, Repr};
use ssi_dsm::{Access, NodeId, PageNo};

const SLICES: SliceMap = SliceMap { base: 1 << 30, stride: 1 << 30, size: 8 * PAGE_BYTES as u64, nodes: 3 };
const HOME: NodeId = NodeId(0);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

#[derive(Debug, Default)]
struct Out {
    sent: Vec<(NodeId, Vec<u8>)>,
    violations: Vec<(NodeId, Refusal)>,
}

impl Outbox for Out {
    fn send(&mut self, to: NodeId, frame: &[u8]) {
        self.sent.push((to, frame.to_vec()));
    }
    fn fetched(&mut self, _: u64, _: PageNo, _: Option<&[u8; PAGE_BYTES]>) {}
    fn violation(&mut self, from: NodeId, why: Refusal) {
        self.violations.push((from, why));
    }
}

impl Out {
    fn messages(&self) -> Vec<Message> {
        let parse = |frame: &Vec<u8>| Repr::parse(&Packet::new_checked(frame).unwrap()).unwrap().message;
        self.sent.iter().map(|(_, frame)| parse(frame)).collect()
    }
}

fn driver(me: NodeId) -> Driver<Fake> {
    let config = Config { twin_pages: 4, ..Config::new(me, SLICES) };
    Driver::new(config, HOME, Fake::new(8, me == HOME))
}

fn page(n: u64) -> PageNo {
    PageNo(SLICES.first_page(HOME).0 + n)
}

fn frame(message: &Message, epoch: u32) -> Vec<u8> {
    let mut bytes = vec![];
    let mut frame = Frame::new(message, epoch, &mut bytes);
    (0..message.pages().count_ones()).for_each(|_| frame.page().fill(7));
    frame.finish();
    bytes
}

fn read(n: u64, ticket: u64) -> Message {
    Message::Read { page: page(n), ticket, held: 0 }
}

/// Hands over what `out` has for `to`.
fn carry(out: &Out, from: NodeId, to: NodeId, driver: &mut Driver<Fake>) -> Out {
    let mut answer = Out::default();
    for (_, frame) in out.sent.iter().filter(|(node, _)| *node == to) {
        driver.message(from, frame, 0, &mut answer).unwrap();
    }
    assert_eq!(answer.violations, []);
    answer
}

#[test]
fn a_message_of_another_life_of_its_sender_is_refused_and_its_link_kept() {
    let (mut home, mut out) = (driver(HOME), Out::default());
    home.set_epoch(A, 2);
    for epoch in [0, 1, 3] {
        home.message(A, &frame(&read(1, 1), epoch), 0, &mut out).unwrap();
    }
    assert_eq!((out.sent.len(), home.tracked_pages()), (0, 0));
    assert_eq!(home.counters().refused_count[&Refusal::Epoch], 3);
    assert_eq!(out.violations, [], "it may have been sent before the node came back");
    home.message(A, &frame(&read(1, 1), 2), 0, &mut out).unwrap();
    assert_eq!(out.sent.len(), 1);
    home.set_epoch(HOME, 9);
    home.message(A, &frame(&read(2, 2), 2), 0, &mut out).unwrap();
    assert_eq!(
        Packet::new_checked(&out.sent[1].1).unwrap().epoch(),
        9,
        "its own life goes with what it says"
    );
}

#[test]
fn what_no_honest_node_sends_is_counted_and_its_link_closed() {
    let (mut home, mut out) = (driver(HOME), Out::default());
    let mut bad = |frame: &[u8]| {
        home.message(A, frame, 0, &mut out).unwrap();
        out.violations.pop()
    };
    let malformed = Some((A, Refusal::Malformed));
    assert_eq!(bad(&[]), malformed);
    assert_eq!(bad(&[0; HEADER_BYTES]), malformed);
    let mut long = frame(&read(1, 1), 0);
    long.push(0);
    assert_eq!(bad(&long), malformed, "oversized");
    let other = Message::Read { page: SLICES.first_page(A), ticket: 1, held: 0 };
    assert_eq!(bad(&frame(&other, 0)), malformed, "a page of another slice");
    let over = Message::ReadRun { page: page(7), ticket: 1, wanted: 0b101 };
    assert_eq!(bad(&frame(&over, 0)), malformed, "a run that leaves the slice");
    let ack = Message::Ack { page: page(1), ticket: 1 };
    assert_eq!(bad(&frame(&ack, 0)), Some((A, Refusal::Unexpected)));
    let same = Message::Same { page: page(1), access: Access::Read, ticket: 1 };
    assert_eq!(bad(&frame(&same, 0)), Some((A, Refusal::Page)), "A is not the home");
    assert_eq!(home.counters().malformed_count, 5);
    assert_eq!(home.counters().refused_count.values().sum::<u64>(), 7, "{:?}", home.counters());
    assert_eq!(home.tracked_pages(), 0);
}

#[test]
fn a_message_of_a_dead_node_is_late_and_no_more() {
    let (mut home, mut out) = (driver(HOME), Out::default());
    home.node_died(A, 0, &mut out).unwrap();
    home.message(A, &frame(&read(1, 1), 0), 0, &mut out).unwrap();
    assert_eq!(home.counters().refused_count[&Refusal::Dead], 1);
    assert_eq!((out.sent.len(), out.violations.len()), (0, 0));
}

/// A page that is written by two nodes in turn goes as a difference, and comes out as it was written.
#[test]
fn a_page_that_changed_a_little_goes_as_its_lines() {
    let (mut home, mut a, mut b) = (driver(HOME), driver(A), driver(B));
    let mut last = 0;
    for turn in 0..10_u64 {
        let (me, (writer, owner), other) =
            if turn % 2 == 0 { (A, (&mut a, &mut b), B) } else { (B, (&mut b, &mut a), A) };
        let mut out = Out::default();
        writer.fault(1, Access::Write, 0, &mut out).unwrap();
        let asked = carry(&out, me, HOME, &mut home);
        let answer = if turn == 0 { asked } else { carry(&asked, HOME, other, owner) };
        carry(&answer, other, HOME, &mut home);
        last = answer.sent.iter().find(|(to, _)| *to == me).unwrap().1.len();
        carry(&answer, if turn == 0 { HOME } else { other }, me, writer);
        let mut slice = writer.memory().0.borrow_mut();
        let words: Vec<u64> = (0..8).map(|line| slice.frames[1].word(line * 512)).collect();
        let written = |line: u64| (0..turn).rev().find(|t| t % 8 == line).map_or(0, |t| t + 1);
        assert_eq!(words, (0..8).map(written).collect::<Vec<_>>(), "turn {turn}");
        slice.frames[1].set_word((turn as usize % 8) * 512, turn + 1);
    }
    assert!(last < 512, "{last} bytes for the last turn");
    assert_eq!((a.counters().sent_difference_count, b.counters().sent_difference_count), (3, 2));
}

#[test]
fn neighbours_are_sent_in_one_frame_and_kept_in_one_piece() {
    let (mut home, mut a) = (driver(HOME), driver(A));
    for index in 0..8 {
        home.memory().0.borrow_mut().frames[index].set_word(0, index as u64 + 50);
    }
    let mut out = Out::default();
    a.prefetch_run(page(0), 64, 0, &mut out).unwrap();
    assert!(matches!(out.messages()[..], [Message::ReadRun { wanted: 0xff, .. }]), "to the end of the slice");
    let answer = carry(&out, A, HOME, &mut home);
    assert!(matches!(answer.messages()[..], [Message::DataRun { given: 0xff, skipped: 0, .. }]));
    carry(&answer, HOME, A, &mut a);
    for index in 0..8 {
        let frame = &a.memory().0.borrow().frames[index];
        assert_eq!((frame.rights, frame.word(0)), (Some(Access::Read), index as u64 + 50));
    }
    assert_eq!(a.counters().run_pages_count, 8);
}
