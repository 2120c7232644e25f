//! The protocol step by step: the races that have a name, what each kind of fault costs, and peers that lie.

use proptest::prelude::*;
use ssi_dsm::protocol::{Action, Config, Input, Message, Node, Refusal, SliceMap};
use ssi_dsm::{Access, NodeId, PageNo};

const HOME: NodeId = NodeId(0);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const PAGE: PageNo = PageNo(5);
const SLICES: SliceMap = SliceMap { base: 0, stride: 1 << 20, size: 1 << 20, nodes: 4 };

fn node(me: NodeId) -> Node {
    Node::new(Config { me, slices: SLICES, hold_us: 0 })
}

fn fault(node: &mut Node, access: Access) -> Vec<Action> {
    node.step(Input::Fault { page: PAGE, access }, 0)
}

fn from(node: &mut Node, from: NodeId, message: Message) -> Vec<Action> {
    node.step(Input::Message { from, message }, 0)
}

fn send(to: NodeId, message: Message) -> Action {
    Action::Send { to, message }
}

const READ: Message = Message::Read { page: PAGE };

fn write(held: u64) -> Message {
    Message::Write { page: PAGE, held }
}

fn data(access: Access, version: u64) -> Message {
    Message::Data { page: PAGE, access, version }
}

fn invalidate(version: u64) -> Message {
    Message::Invalidate { page: PAGE, version }
}

fn ack(version: u64) -> Message {
    Message::Ack { page: PAGE, version }
}

/// A holder whose read request was answered with `version`.
fn sharer(version: u64) -> Node {
    let mut node = node(A);
    fault(&mut node, Access::Read);
    from(&mut node, HOME, data(Access::Read, version));
    node
}

/// A home whose page the nodes share, in this order, from version 1.
fn shared_by(nodes: &[NodeId]) -> Node {
    let mut home = node(HOME);
    for &node in nodes {
        from(&mut home, node, READ);
    }
    home
}

#[test]
fn a_page_belongs_to_the_slice_that_its_address_lies_in() {
    let map = SliceMap { base: 4 << 30, stride: 1 << 30, size: 128 << 20, nodes: 2 };
    let home = |gpa: u64| map.home(PageNo::of_gpa(gpa));
    assert_eq!(home((4 << 30) - 1), None);
    assert_eq!(home(4 << 30), Some(NodeId(0)));
    assert_eq!(home((4 << 30) + (128 << 20) - 1), Some(NodeId(0)));
    assert_eq!(home((4 << 30) + (128 << 20)), None, "between two slices");
    assert_eq!(home(5 << 30), Some(NodeId(1)));
    assert_eq!(home(6 << 30), None, "there is no third node");
    assert_eq!(map.home(PageNo(u64::MAX)), None);
    assert_eq!(
        SliceMap { stride: 0, ..map }.home(PageNo(1 << 20)),
        None,
        "a layout that cannot be does not panic"
    );
}

#[test]
fn dsm_i3_an_invalidation_that_overtakes_the_data_makes_it_be_asked_for_again() {
    let mut node = node(A);
    assert_eq!(fault(&mut node, Access::Read), [send(HOME, READ)]);
    assert_eq!(from(&mut node, HOME, invalidate(7)), [send(HOME, ack(7))]);
    assert_eq!(
        from(&mut node, HOME, data(Access::Read, 7)),
        [send(HOME, READ)],
        "late data must not be installed"
    );
    let installed = from(&mut node, HOME, data(Access::Read, 9));
    assert_eq!(installed, [Action::Store(PAGE), Action::Install { page: PAGE, access: Access::Read }]);
}

#[test]
fn dsm_i3_a_recall_that_overtakes_the_data_is_answered_when_it_has_come() {
    let mut node = node(A);
    fault(&mut node, Access::Write);
    assert_eq!(from(&mut node, HOME, Message::Recall { page: PAGE, version: 4 }), []);
    let actions = from(&mut node, HOME, data(Access::Write, 4));
    let back = Message::WriteBack { page: PAGE, version: 4, kept: false };
    assert_eq!(
        actions,
        [
            Action::Store(PAGE),
            Action::Install { page: PAGE, access: Access::Write },
            Action::Zap(PAGE),
            send(HOME, back)
        ]
    );
}

#[test]
fn a_fault_that_comes_again_while_its_page_is_asked_for_sends_nothing() {
    let mut node = node(A);
    fault(&mut node, Access::Read);
    assert_eq!(fault(&mut node, Access::Read), []);
    assert_eq!(fault(&mut node, Access::Write), [], "the writer is woken by the read copy, and faults again");
    from(&mut node, HOME, data(Access::Read, 3));
    assert_eq!(fault(&mut node, Access::Write), [send(HOME, write(3))]);
}

#[test]
fn a_fault_reported_before_its_page_was_installed_is_woken_again() {
    let mut node = sharer(3);
    assert_eq!(fault(&mut node, Access::Read), [Action::Install { page: PAGE, access: Access::Read }]);
    let mut home = self::node(HOME);
    let plain = [Action::Install { page: PAGE, access: Access::Write }];
    assert_eq!(fault(&mut home, Access::Read), plain, "a page that is plainly at home is mapped again");
    assert_eq!(home.tracked_pages(), 0);
}

#[test]
fn dsm_1_a_writer_that_lost_its_copy_to_another_writer_gets_the_data() {
    let mut home = shared_by(&[A, B]);
    assert_eq!(from(&mut home, B, write(2)), [send(A, invalidate(1)), Action::Zap(PAGE)]);
    assert_eq!(from(&mut home, A, write(1)), [], "queued: B was first");
    let granted = Message::Same { page: PAGE, version: 3 };
    let recall = Message::Recall { page: PAGE, version: 3 };
    assert_eq!(from(&mut home, A, ack(1)), [send(B, granted), send(B, recall)]);
    let back = Message::WriteBack { page: PAGE, version: 3, kept: false };
    assert_eq!(from(&mut home, B, back), [Action::Store(PAGE), send(A, data(Access::Write, 4))]);
}

#[test]
fn dsm_i3_invalidations_go_out_together_and_acknowledgements_are_counted() {
    let mut home = shared_by(&[A, B, C]);
    let out = [send(A, invalidate(1)), send(B, invalidate(2)), send(C, invalidate(3))];
    assert_eq!(fault(&mut home, Access::Write), out);
    assert_eq!(from(&mut home, B, ack(2)), []);
    assert_eq!(from(&mut home, A, ack(1)), []);
    assert_eq!(from(&mut home, C, ack(3)), [Action::Install { page: PAGE, access: Access::Write }]);
    assert_eq!(home.tracked_pages(), 0);
}

#[test]
fn dsm_i3_a_page_is_held_for_the_access_that_asked() {
    let mut node = Node::new(Config { me: A, slices: SLICES, hold_us: 100 });
    node.step(Input::Fault { page: PAGE, access: Access::Write }, 0);
    node.step(Input::Message { from: HOME, message: data(Access::Write, 1) }, 50);
    let recall = Input::Message { from: HOME, message: Message::Recall { page: PAGE, version: 1 } };
    assert_eq!(node.step(recall, 60), []);
    assert_eq!(node.next_deadline(), Some(150));
    assert_eq!(node.step(Input::Tick, 149), []);
    let back = Message::WriteBack { page: PAGE, version: 1, kept: false };
    assert_eq!(node.step(Input::Tick, 150), [Action::Zap(PAGE), send(HOME, back)]);
    assert_eq!(node.next_deadline(), None);
}

#[test]
fn dsm_i3_the_homes_own_cell_is_given_its_time_too() {
    let mut home = Node::new(Config { me: HOME, slices: SLICES, hold_us: 100 });
    home.step(Input::Message { from: A, message: write(0) }, 0);
    home.step(Input::Fault { page: PAGE, access: Access::Write }, 1);
    let back = Message::WriteBack { page: PAGE, version: 1, kept: false };
    let installed = [Action::Store(PAGE), Action::Install { page: PAGE, access: Access::Write }];
    assert_eq!(home.step(Input::Message { from: A, message: back }, 10), installed);
    assert_eq!(home.step(Input::Message { from: A, message: READ }, 11), []);
    assert_eq!(home.next_deadline(), Some(110));
    assert_eq!(home.step(Input::Tick, 110), [Action::Protect(PAGE), send(A, data(Access::Read, 2))]);
}

#[test]
fn dsm_i4_requests_of_the_dead_are_dropped_and_their_acknowledgements_not_waited_for() {
    let mut home = shared_by(&[A, B]);
    fault(&mut home, Access::Write);
    from(&mut home, A, ack(1));
    from(&mut home, C, READ);
    let done = home.step(Input::NodeDied(B), 0);
    let protect = [
        Action::Install { page: PAGE, access: Access::Write },
        Action::Protect(PAGE),
        send(C, data(Access::Read, 3)),
    ];
    assert_eq!(done, protect);
    assert_eq!(from(&mut home, B, READ), [Action::Refuse(Refusal::Sender)]);
}

#[test]
fn dsm_i4_a_page_whose_only_copy_died_is_lost_for_all() {
    let mut home = node(HOME);
    from(&mut home, A, write(0));
    fault(&mut home, Access::Read);
    from(&mut home, B, READ);
    let told = home.step(Input::NodeDied(A), 0);
    assert_eq!(told, [Action::Poison(PAGE), send(B, Message::Lost { page: PAGE })]);
    assert_eq!(from(&mut home, C, READ), [send(C, Message::Lost { page: PAGE })]);
    let fetched = home.step(Input::Fetch { page: PAGE, token: 8 }, 0);
    assert_eq!(fetched, [Action::Fetched { page: PAGE, token: 8, lost: true }]);
    let mut asker = node(B);
    fault(&mut asker, Access::Read);
    assert_eq!(from(&mut asker, HOME, Message::Lost { page: PAGE }), [Action::Poison(PAGE)]);
}

#[test]
fn dsm_i4_who_waits_for_a_dead_home_waits_no_more() {
    let mut node = node(A);
    fault(&mut node, Access::Read);
    assert_eq!(node.step(Input::NodeDied(HOME), 0), [Action::Poison(PAGE)]);
    let other = PageNo(6);
    assert_eq!(node.step(Input::Fault { page: other, access: Access::Read }, 0), [Action::Poison(other)]);
    let mut sharer = sharer(3);
    assert_eq!(sharer.step(Input::NodeDied(HOME), 0), [], "a copy that is here stays readable");
    assert_eq!(fault(&mut sharer, Access::Write), [Action::Poison(PAGE)]);
}

#[test]
fn a_release_that_crosses_the_invalidation_is_acknowledged_once() {
    let mut node = sharer(1);
    let evict = Message::Evict { page: PAGE, version: 1 };
    let released = node.step(Input::Release { page: PAGE }, 0);
    assert_eq!(released, [Action::Zap(PAGE), send(HOME, evict), Action::Discard(PAGE)]);
    assert_eq!(from(&mut node, HOME, invalidate(1)), [send(HOME, ack(1))]);
    let mut home = shared_by(&[A]);
    from(&mut home, B, write(0));
    assert_eq!(from(&mut home, A, evict), [], "the acknowledgement is on its way");
    assert_eq!(from(&mut home, A, ack(1)), [send(B, data(Access::Write, 2))]);
}

#[test]
fn a_page_given_back_while_it_is_recalled_has_answered() {
    let mut home = node(HOME);
    from(&mut home, A, write(0));
    from(&mut home, B, READ);
    let back = Message::WriteBack { page: PAGE, version: 1, kept: false };
    assert_eq!(from(&mut home, A, back), [Action::Store(PAGE), send(B, data(Access::Read, 2))]);
    let mut owner = node(A);
    assert_eq!(from(&mut owner, HOME, Message::Downgrade { page: PAGE, version: 1 }), [], "it has answered");
}

/// Messages, bytes and one-way message times from the fault to its answer: exact, so that a change of cost shows.
#[test]
fn dsm_cost_of_each_kind_of_fault() {
    use ssi_dsm::wire::length;
    struct Cost {
        messages: usize,
        bytes: usize,
        hops: usize,
    }
    /// Runs until nothing is on its way; messages in flight together make one hop.
    fn cost(nodes: &mut [Node], who: NodeId, access: Access) -> Cost {
        let mut cost = Cost { messages: 0, bytes: 0, hops: 0 };
        let mut round = vec![(who, Input::Fault { page: PAGE, access })];
        loop {
            let mut next = vec![];
            for (to, input) in round {
                for action in nodes[usize::from(to.0)].step(input, 0) {
                    if let Action::Send { to: next_to, message } = action {
                        cost.messages += 1;
                        cost.bytes += length(&message);
                        next.push((next_to, Input::Message { from: to, message }));
                    }
                }
            }
            if next.is_empty() {
                return cost;
            }
            cost.hops += 1;
            round = next;
        }
    }
    let mut out = String::new();
    let mut row = |name: &str, before: &[(NodeId, Access)], who, access| {
        let mut nodes: Vec<Node> = (0..4).map(|n| node(NodeId(n))).collect();
        for &(who, access) in before {
            cost(&mut nodes, who, access);
        }
        let cost = cost(&mut nodes, who, access);
        out += &format!("{name}: {} messages, {} bytes, {} hops\n", cost.messages, cost.bytes, cost.hops);
    };
    let (read, write) = (Access::Read, Access::Write);
    row("home, untouched", &[], HOME, write);
    row("read, page at home", &[], A, read);
    row("read, shared", &[(B, read)], A, read);
    row("read, owned elsewhere", &[(B, write)], A, read);
    row("write, page at home", &[], A, write);
    row("write, the one sharer", &[(A, read)], A, write);
    row("write, one of three sharers", &[(A, read), (B, read), (C, read)], A, write);
    row("write, owned elsewhere", &[(B, write)], A, write);
    row("home writes, one sharer", &[(A, read)], HOME, write);
    row("home reads, owned elsewhere", &[(A, write)], HOME, read);
    assert_eq!(
        out,
        "home, untouched: 0 messages, 0 bytes, 0 hops
read, page at home: 2 messages, 4144 bytes, 2 hops
read, shared: 2 messages, 4144 bytes, 2 hops
read, owned elsewhere: 4 messages, 8288 bytes, 4 hops
write, page at home: 2 messages, 4144 bytes, 2 hops
write, the one sharer: 2 messages, 48 bytes, 2 hops
write, one of three sharers: 6 messages, 144 bytes, 4 hops
write, owned elsewhere: 4 messages, 8288 bytes, 4 hops
home writes, one sharer: 2 messages, 48 bytes, 2 hops
home reads, owned elsewhere: 2 messages, 4144 bytes, 2 hops
"
    );
}

fn any_message() -> impl Strategy<Value = Message> {
    let page =
        prop_oneof![4 => Just(PAGE), 1 => any::<u64>().prop_map(PageNo), 1 => (0..2048_u64).prop_map(PageNo)];
    (0..11_u8, page, prop_oneof![0..6_u64, any::<u64>()], any::<bool>()).prop_map(
        |(kind, page, version, flag)| {
            let access = if flag { Access::Write } else { Access::Read };
            match kind {
                0 => Message::Read { page },
                1 => Message::Write { page, held: version },
                2 => Message::Data { page, access, version },
                3 => Message::Same { page, version },
                4 => Message::Lost { page },
                5 => Message::Invalidate { page, version },
                6 => Message::Ack { page, version },
                7 => Message::Downgrade { page, version },
                8 => Message::Recall { page, version },
                9 => Message::WriteBack { page, version, kept: flag },
                _ => Message::Evict { page, version },
            }
        },
    )
}

proptest! {
    /// Whatever a peer says: no panic, no page given away twice, no memory beyond one entry a page.
    #[test]
    fn a_peer_that_lies_changes_nothing_that_is_not_its_own(
        me in prop_oneof![Just(HOME), Just(A)],
        lies in prop::collection::vec((0..6_u16, any_message(), any::<bool>()), 1..60),
    ) {
        let mut node = node(me);
        let mut queued = 0;
        for (n, (liar, message, faults)) in lies.into_iter().enumerate() {
            if faults {
                fault(&mut node, Access::Write);
            }
            let actions = from(&mut node, NodeId(liar), message);
            for action in &actions {
                if let Action::Send { to, .. } = action {
                    prop_assert!(*to != me && to.0 < SLICES.nodes, "{:?}", action);
                }
                // Only the home of a page says who owns it.
                if me != HOME && liar != 0 && message.page() == PAGE {
                    let moves = matches!(action, Action::Store(_) | Action::Zap(_) | Action::Install { .. });
                    prop_assert!(!moves, "{:?}", action);
                }
            }
            queued += 1;
            prop_assert!(node.tracked_pages() <= queued + 1, "after {n} messages");
        }
    }
}

#[test]
fn a_second_request_of_a_node_that_waits_is_refused() {
    let mut home = shared_by(&[A]);
    from(&mut home, B, write(0));
    assert_eq!(from(&mut home, C, READ), []);
    assert_eq!(from(&mut home, C, READ), [Action::Refuse(Refusal::Duplicate)]);
    assert_eq!(from(&mut home, B, write(0)), [Action::Refuse(Refusal::Duplicate)]);
    from(&mut home, A, ack(1));
    assert_eq!(from(&mut home, A, ack(1)), [Action::Refuse(Refusal::Unexpected)]);
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let mut node = node(A);
    for message in
        [data(Access::Write, 1), Message::Same { page: PAGE, version: 1 }, Message::Lost { page: PAGE }]
    {
        assert_eq!(from(&mut node, HOME, message), [Action::Refuse(Refusal::Unexpected)]);
        assert_eq!(from(&mut node, B, message), [Action::Refuse(Refusal::Page)], "B is not the home");
    }
    let mut home = self::node(HOME);
    let back = Message::WriteBack { page: PAGE, version: 1, kept: false };
    assert_eq!(from(&mut home, A, back), [Action::Refuse(Refusal::Unexpected)]);
    from(&mut home, A, write(0));
    assert_eq!(from(&mut home, B, back), [Action::Refuse(Refusal::Version)], "B does not own the page");
    let kept = Message::WriteBack { page: PAGE, version: 1, kept: true };
    assert_eq!(
        from(&mut home, A, kept),
        [Action::Refuse(Refusal::Unexpected)],
        "nobody asked for a downgrade"
    );
}
