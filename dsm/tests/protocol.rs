//! The protocol step by step: the races that have a name, and peers that lie.

use proptest::prelude::*;
use ssi_dsm::protocol::{Action, Config, Input, Message, Node, Refusal, SliceMap, version};
use ssi_dsm::{Access, NodeId, PageNo};

const HOME: NodeId = NodeId(0);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const PAGE: PageNo = PageNo(5);
const SLICES: SliceMap = SliceMap { base: 0, stride: 1 << 20, size: 1 << 20, nodes: 4 };

fn node(me: NodeId) -> Node {
    Node::new(Config::new(me, SLICES))
}

fn fault(node: &mut Node, access: Access) -> Vec<Action> {
    node.step(Input::Fault { page: PAGE, access }, 0)
}

fn from(node: &mut Node, from: NodeId, message: Message) -> Vec<Action> {
    node.step(Input::Message { from, message }, 0)
}

fn died(node: &mut Node, dead: NodeId) -> Vec<Action> {
    node.step(Input::NodeDied(dead), 0)
}

fn send(to: NodeId, message: Message) -> Action {
    Action::Send { to, message }
}

fn refuse(why: Refusal) -> [Action; 1] {
    [Action::Refuse(why)]
}

fn read(ticket: u64, held: u64) -> Message {
    Message::Read { page: PAGE, ticket, held }
}

fn write(ticket: u64, held: u64) -> Message {
    Message::Write { page: PAGE, ticket, held }
}

fn data(access: Access, ticket: u64, version: u64, held: u64) -> Message {
    Message::Data { page: PAGE, access, ticket, version, held }
}

fn same(ticket: u64) -> Message {
    Message::Same { page: PAGE, access: Access::Write, ticket }
}

fn invalidate(ticket: u64) -> Message {
    Message::Invalidate { page: PAGE, ticket }
}

fn ack(ticket: u64) -> Message {
    Message::Ack { page: PAGE, ticket }
}

fn evict(ticket: u64) -> Message {
    Message::Evict { page: PAGE, ticket }
}

fn passed(ticket: u64) -> Message {
    Message::Passed { page: PAGE, ticket }
}

fn have(ticket: u64) -> Message {
    Message::Have { page: PAGE, ticket }
}

fn ask(ticket: u64, confirm: bool) -> Message {
    Message::Ask { page: PAGE, ticket, confirm }
}

fn lost(ticket: u64) -> Message {
    Message::Lost { page: PAGE, ticket }
}

/// The owner's copy, for `to`.
fn recall(ticket: u64, keep: bool, to: NodeId, to_ticket: u64, home_held: u64) -> Message {
    Message::Recall { page: PAGE, ticket, keep, to, to_ticket, held: 0, home_held }
}

fn back(ticket: u64, kept: bool, version: u64, held: u64) -> Message {
    Message::WriteBack { page: PAGE, ticket, kept, version, held }
}

fn install(access: Access) -> Action {
    Action::Install { page: PAGE, access }
}

/// The n-th version that the home itself names.
fn of_home(n: u64) -> u64 {
    version(HOME, n)
}

/// A holder whose read request, its first, was answered by the home.
fn sharer() -> Node {
    let mut node = node(A);
    fault(&mut node, Access::Read);
    from(&mut node, HOME, data(Access::Read, 1, of_home(1), 0));
    node
}

/// A holder, `A`, that may write, by its first request.
fn owner() -> Node {
    let mut node = node(A);
    fault(&mut node, Access::Write);
    from(&mut node, HOME, data(Access::Write, 1, of_home(1), 0));
    node
}

/// A home whose page the nodes share, each by its first request.
fn shared_by(nodes: &[NodeId]) -> Node {
    let mut home = node(HOME);
    for &node in nodes {
        from(&mut home, node, read(1, 0));
    }
    home
}

/// A home whose page node `B` may write, by its first request.
fn owned_by_b() -> Node {
    let mut home = node(HOME);
    from(&mut home, B, write(1, 0));
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

mod three_hops {
    use super::*;

    #[test]
    fn an_owner_answers_the_asker_and_tells_the_home() {
        let mut home = owned_by_b();
        assert_eq!(from(&mut home, A, write(1, 0)), [send(B, recall(1, false, A, 1, of_home(1)))]);
        let mut owner = owner();
        let steal = recall(1, false, B, 7, of_home(1));
        let owned = version(A, 1);
        assert_eq!(
            from(&mut owner, HOME, steal),
            [Action::Zap(PAGE), send(B, data(Access::Write, 7, owned, 0)), send(HOME, passed(1))]
        );
        assert_eq!(from(&mut home, B, passed(1)), []);
        assert_eq!(from(&mut home, C, read(1, 0)), [send(A, recall(1, true, C, 1, of_home(1)))], "A owns it");
        let mut owner = super::owner();
        assert_eq!(
            from(&mut owner, HOME, recall(1, true, B, 7, 0)),
            [
                Action::Protect(PAGE),
                send(B, data(Access::Read, 7, owned, 0)),
                send(HOME, back(1, true, owned, 0))
            ]
        );
    }

    #[test]
    fn dsm_i3_an_invalidation_that_overtakes_the_data_makes_it_be_asked_for_again() {
        let mut node = node(A);
        assert_eq!(fault(&mut node, Access::Read), [send(HOME, read(1, 0))]);
        assert_eq!(from(&mut node, HOME, invalidate(1)), [send(HOME, ack(1)), send(HOME, read(2, 0))]);
        let late = data(Access::Read, 1, version(B, 1), 0);
        assert_eq!(from(&mut node, B, late), refuse(Refusal::Late), "it must not be installed");
        let installed = from(&mut node, C, data(Access::Read, 2, version(C, 4), 0));
        assert_eq!(installed, [Action::Store(PAGE), install(Access::Read)]);
    }

    #[test]
    fn dsm_i3_a_recall_that_overtakes_the_data_is_done_when_it_has_come() {
        let mut node = node(A);
        fault(&mut node, Access::Write);
        assert_eq!(from(&mut node, HOME, recall(1, false, C, 9, 0)), []);
        let actions = from(&mut node, B, data(Access::Write, 1, version(B, 1), 0));
        assert_eq!(
            actions,
            [
                Action::Store(PAGE),
                install(Access::Write),
                Action::Zap(PAGE),
                send(C, data(Access::Write, 9, version(A, 1), 0)),
                send(HOME, passed(1))
            ]
        );
    }

    #[test]
    fn data_that_comes_before_the_owners_word_can_be_built_on_at_once() {
        let mut home = owned_by_b();
        from(&mut home, A, read(1, 0));
        let owned = version(B, 1);
        assert_eq!(from(&mut home, A, write(2, owned)), [], "A has it, and the home does not know yet");
        let told = from(&mut home, B, back(1, true, owned, of_home(1)));
        assert_eq!(told, [Action::Store(PAGE), send(B, invalidate(1))]);
        assert_eq!(from(&mut home, B, ack(1)), [send(A, same(2))]);
    }

    #[test]
    fn a_page_that_its_new_owner_gives_back_before_the_old_ones_word_is_home() {
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        assert_eq!(from(&mut home, A, back(1, false, version(A, 1), 0)), [Action::Store(PAGE)]);
        assert_eq!(home.tracked_pages(), 0);
        assert_eq!(from(&mut home, B, passed(1)), refuse(Refusal::Late));
    }

    #[test]
    fn a_copy_that_is_dropped_before_the_owners_word_is_not_counted() {
        let mut home = owned_by_b();
        from(&mut home, A, read(1, 0));
        assert_eq!(from(&mut home, A, evict(1)), []);
        from(&mut home, B, back(1, true, version(B, 1), 0));
        assert_eq!(fault(&mut home, Access::Write), [send(B, invalidate(1))], "and not A");
    }

    #[test]
    fn an_owner_that_gives_the_page_back_while_it_is_asked_for_has_answered() {
        let mut home = owned_by_b();
        from(&mut home, A, read(1, 0));
        let owned = version(B, 1);
        assert_eq!(
            from(&mut home, B, back(1, false, owned, 0)),
            [Action::Store(PAGE), send(A, data(Access::Read, 1, owned, 0))]
        );
        let mut owner = owner();
        owner.step(Input::Release { page: PAGE }, 0);
        assert_eq!(from(&mut owner, HOME, recall(1, true, B, 1, 0)), [], "it has answered");
    }

    #[test]
    fn dsm_i4_an_owner_that_dies_may_have_given_the_page_to_write_away() {
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        assert_eq!(died(&mut home, B), [send(A, ask(1, true))]);
        assert_eq!(from(&mut home, C, write(1, 0)), [], "nobody knows yet");
        assert_eq!(from(&mut home, A, have(1)), [send(A, recall(1, false, C, 1, of_home(1)))]);
        let mut asker = owner();
        assert_eq!(from(&mut asker, HOME, ask(1, true)), [send(HOME, have(1))]);
    }

    #[test]
    fn dsm_i4_a_page_to_read_that_came_from_a_dead_owner_is_brought_home() {
        let mut home = owned_by_b();
        from(&mut home, A, read(1, 0));
        assert_eq!(died(&mut home, B), [send(A, ask(1, true))]);
        let mut asker = node(A);
        fault(&mut asker, Access::Read);
        let owned = version(B, 1);
        from(&mut asker, B, data(Access::Read, 1, owned, 0));
        let brought = back(1, true, owned, 0);
        assert_eq!(from(&mut asker, HOME, ask(1, true)), [send(HOME, brought)]);
        assert_eq!(from(&mut home, A, brought), [Action::Store(PAGE)]);
        assert_eq!(fault(&mut home, Access::Read), [install(Access::Read)]);
    }

    #[test]
    fn dsm_i4_a_page_that_died_with_its_owner_before_it_was_given_away_is_lost() {
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        died(&mut home, B);
        let mut asker = node(A);
        fault(&mut asker, Access::Write);
        assert_eq!(from(&mut asker, HOME, ask(1, true)), [send(HOME, evict(1)), send(HOME, write(2, 0))]);
        let late = data(Access::Write, 1, version(B, 1), 0);
        assert_eq!(from(&mut asker, B, late), refuse(Refusal::Late), "the home has given the page up");
        assert_eq!(from(&mut home, A, evict(1)), [Action::Lost(PAGE)]);
        assert_eq!(from(&mut home, A, write(2, 0)), [send(A, lost(2))]);
        assert_eq!(from(&mut asker, HOME, lost(2)), [Action::Poison(PAGE)]);
    }

    #[test]
    fn dsm_i4_data_that_died_on_its_way_is_sent_again_if_the_home_has_it() {
        let mut home = owned_by_b();
        from(&mut home, A, read(1, 0));
        let owned = version(B, 1);
        from(&mut home, B, back(1, true, owned, 0));
        assert_eq!(died(&mut home, B), [send(A, ask(1, false))]);
        let mut asker = node(A);
        fault(&mut asker, Access::Read);
        assert_eq!(from(&mut asker, HOME, ask(1, false)), [send(HOME, evict(1)), send(HOME, read(2, 0))]);
        assert_eq!(from(&mut home, A, evict(1)), []);
        let again = from(&mut home, A, read(2, 0));
        assert!(again.contains(&send(A, data(Access::Read, 2, of_home(2), 0))), "{again:?}");
        let mut asker = node(A);
        fault(&mut asker, Access::Read);
        from(&mut asker, B, data(Access::Read, 1, owned, 0));
        assert_eq!(from(&mut asker, HOME, ask(1, false)), [], "it has come");
    }

    #[test]
    fn dsm_i4_a_page_to_write_that_died_on_its_way_is_lost() {
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        from(&mut home, B, passed(1));
        from(&mut home, C, write(1, 0));
        assert_eq!(died(&mut home, B), [send(A, ask(1, false))]);
        assert_eq!(from(&mut home, A, evict(1)), [Action::Lost(PAGE), send(C, lost(1))]);
        let mut owned = owned_by_b();
        assert_eq!(
            from(&mut owned, B, evict(1)),
            refuse(Refusal::Late),
            "not from one who has it from the home"
        );
    }

    #[test]
    fn dsm_i4_a_page_given_to_one_who_has_died_is_lost_unless_the_owner_knew() {
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        died(&mut home, A);
        assert_eq!(from(&mut home, C, read(1, 0)), []);
        assert_eq!(from(&mut home, B, passed(1)), [Action::Lost(PAGE), send(C, lost(1))]);
        let mut home = owned_by_b();
        from(&mut home, A, write(1, 0));
        died(&mut home, A);
        assert_eq!(from(&mut home, B, back(1, false, version(B, 1), 0)), [Action::Store(PAGE)]);
        let mut owner = owner();
        died(&mut owner, B);
        assert_eq!(
            from(&mut owner, HOME, recall(1, false, B, 3, 9)),
            [Action::Zap(PAGE), send(HOME, back(1, false, version(A, 1), 9))]
        );
    }
}

#[test]
fn a_fault_that_comes_again_while_its_page_is_asked_for_sends_nothing() {
    let mut node = node(A);
    assert_eq!(fault(&mut node, Access::Read), [send(HOME, read(1, 0))]);
    assert_eq!(fault(&mut node, Access::Read), []);
    assert_eq!(fault(&mut node, Access::Write), [], "the writer is woken by the read copy, and faults again");
    from(&mut node, HOME, data(Access::Read, 1, of_home(3), 0));
    assert_eq!(fault(&mut node, Access::Write), [send(HOME, write(2, of_home(3)))]);
}

#[test]
fn a_fault_reported_before_its_page_was_installed_is_woken_again() {
    assert_eq!(fault(&mut sharer(), Access::Read), [install(Access::Read)]);
    let mut home = node(HOME);
    assert_eq!(fault(&mut home, Access::Read), [install(Access::Write)], "plainly at home: mapped again");
    assert_eq!(home.tracked_pages(), 0);
}

#[test]
fn dsm_1_an_upgrade_moves_no_data() {
    let mut home = shared_by(&[A]);
    assert_eq!(from(&mut home, A, write(2, of_home(1))), [Action::Zap(PAGE), send(A, same(2))]);
    let mut asker = sharer();
    fault(&mut asker, Access::Write);
    assert_eq!(from(&mut asker, HOME, same(2)), [Action::Unprotect(PAGE)]);
}

#[test]
fn dsm_1_bytes_that_are_current_are_not_sent_even_to_one_who_lost_its_copy() {
    // The writer for whom A's copy was taken dies before it got the page.
    let mut home = shared_by(&[A, B, C]);
    from(&mut home, B, write(2, of_home(1)));
    from(&mut home, A, ack(1));
    from(&mut home, A, read(2, of_home(1)));
    died(&mut home, B);
    assert_eq!(
        from(&mut home, C, ack(1)),
        [send(A, Message::Same { page: PAGE, access: Access::Read, ticket: 2 })]
    );
    let mut asker = sharer();
    from(&mut asker, HOME, invalidate(1));
    assert_eq!(fault(&mut asker, Access::Read), [send(HOME, read(2, of_home(1)))]);
    let same = Message::Same { page: PAGE, access: Access::Read, ticket: 2 };
    assert_eq!(from(&mut asker, HOME, same), [install(Access::Read)]);
}

#[test]
fn dsm_1_a_writer_that_lost_its_copy_to_another_writer_gets_the_data() {
    let mut home = shared_by(&[A, B]);
    assert_eq!(from(&mut home, B, write(2, of_home(1))), [send(A, invalidate(1)), Action::Zap(PAGE)]);
    assert_eq!(from(&mut home, A, write(2, of_home(1))), [], "queued: B was first");
    let steal = Message::Recall {
        page: PAGE,
        ticket: 2,
        keep: false,
        to: A,
        to_ticket: 2,
        held: of_home(1),
        home_held: of_home(1),
    };
    assert_eq!(from(&mut home, A, ack(1)), [send(B, same(2)), send(B, steal)]);
}

#[test]
fn dsm_i3_invalidations_go_out_together_and_acknowledgements_are_counted() {
    let mut home = shared_by(&[A, B, C]);
    let out = [send(A, invalidate(1)), send(B, invalidate(1)), send(C, invalidate(1))];
    assert_eq!(fault(&mut home, Access::Write), out);
    assert_eq!(from(&mut home, B, ack(1)), []);
    assert_eq!(from(&mut home, A, ack(1)), []);
    assert_eq!(from(&mut home, C, ack(1)), [install(Access::Write)]);
    assert_eq!(home.tracked_pages(), 0);
}

#[test]
fn dsm_i3_pages_do_not_wait_for_each_other() {
    let mut home = shared_by(&[A]);
    from(&mut home, B, write(1, 0));
    let other = Message::Read { page: PageNo(6), ticket: 2, held: 0 };
    let bytes =
        Message::Data { page: PageNo(6), access: Access::Read, ticket: 2, version: of_home(2), held: 0 };
    assert_eq!(from(&mut home, C, other), [Action::Protect(PageNo(6)), send(C, bytes)]);
}

mod hold {
    use super::*;

    fn with(hold_us: u64, hold_max_us: u64) -> Node {
        Node::new(Config { hold_us, hold_max_us, ..Config::new(A, SLICES) })
    }

    fn input(message: Message) -> Input {
        Input::Message { from: HOME, message }
    }

    /// Gives the page away at `lost_at`, faults for it at `missed_at`, gets it at `got_at`; how long is it held then?
    fn again(node: &mut Node, ticket: &mut u64, lost_at: u64, missed_at: u64, got_at: u64) -> u64 {
        let mut times = vec![];
        let first = node.step(input(recall(*ticket, false, B, 1, 0)), lost_at);
        assert!(first.contains(&Action::Zap(PAGE)), "{first:?} at {lost_at}");
        let held = version(A, *ticket);
        *ticket += 1;
        node.step(Input::Fault { page: PAGE, access: Access::Write }, missed_at);
        node.step(input(data(Access::Write, *ticket, version(B, *ticket), held)), got_at);
        // When would it be given away?
        let mut probe = node.clone();
        assert_eq!(probe.step(input(recall(*ticket, false, B, 1, 0)), got_at), []);
        times.extend(probe.next_deadline());
        times[0] - got_at
    }

    #[test]
    fn dsm_i3_a_page_is_held_for_the_access_that_asked() {
        let mut node = with(100, 0);
        node.step(Input::Fault { page: PAGE, access: Access::Write }, 0);
        node.step(input(data(Access::Write, 1, 9, 0)), 50);
        assert_eq!(node.step(input(recall(1, false, HOME, 0, 0)), 60), []);
        assert_eq!(node.next_deadline(), Some(150));
        assert_eq!(node.step(Input::Tick, 149), []);
        let back = back(1, false, version(A, 1), 0);
        assert_eq!(node.step(Input::Tick, 150), [Action::Zap(PAGE), send(HOME, back)]);
        assert_eq!(node.next_deadline(), None);
    }

    #[test]
    fn dsm_i3_the_homes_own_cell_is_given_its_time_too() {
        let mut home = Node::new(Config { hold_us: 100, ..Config::new(HOME, SLICES) });
        home.step(Input::Message { from: A, message: write(1, 0) }, 0);
        home.step(Input::Fault { page: PAGE, access: Access::Write }, 1);
        let back = back(1, false, version(A, 1), 0);
        let installed = [Action::Store(PAGE), install(Access::Write)];
        assert_eq!(home.step(Input::Message { from: A, message: back }, 10), installed);
        assert_eq!(home.step(Input::Message { from: A, message: read(2, 0) }, 11), []);
        assert_eq!(home.next_deadline(), Some(110));
        let given = [Action::Protect(PAGE), send(A, data(Access::Read, 2, of_home(2), 0))];
        assert_eq!(home.step(Input::Tick, 110), given);
    }

    #[test]
    fn dsm_i3_a_page_that_plays_ping_pong_is_held_longer_up_to_the_bound_and_less_when_it_is_calm() {
        let mut node = with(100, 700);
        let mut ticket = 1;
        node.step(Input::Fault { page: PAGE, access: Access::Write }, 0);
        node.step(input(data(Access::Write, 1, 9, 0)), 10);
        let mut now = 1000;
        let mut holds = vec![];
        for _ in 0..5 {
            holds.push(again(&mut node, &mut ticket, now, now + 50, now + 400));
            now += 10_000;
        }
        assert_eq!(holds, [200, 400, 700, 700, 700], "missed within the hold");
        holds.clear();
        for _ in 0..5 {
            holds.push(again(&mut node, &mut ticket, now, now + 20_000, now + 20_300));
            now += 30_000;
        }
        assert_eq!(holds, [350, 175, 100, 100, 100], "not missed for long");
    }

    #[test]
    fn a_hold_with_no_room_to_grow_stays_as_it_is() {
        let mut node = with(100, 100);
        let mut ticket = 1;
        node.step(Input::Fault { page: PAGE, access: Access::Write }, 0);
        node.step(input(data(Access::Write, 1, 9, 0)), 10);
        for now in [1000, 2000, 3000] {
            assert_eq!(again(&mut node, &mut ticket, now, now + 1, now + 2), 100);
        }
    }

    #[test]
    fn dsm_i3_who_wants_more_than_it_has_gives_it_up_at_once() {
        let mut node = with(100, 0);
        node.step(Input::Fault { page: PAGE, access: Access::Read }, 0);
        node.step(input(data(Access::Read, 1, 9, 0)), 50);
        assert_eq!(node.step(input(invalidate(1)), 60), []);
        assert_eq!(
            node.step(Input::Fault { page: PAGE, access: Access::Write }, 70),
            [send(HOME, write(2, 9)), Action::Zap(PAGE), send(HOME, ack(1))]
        );
    }
}

mod ahead {
    use super::*;

    fn run(ticket: u64, wanted: u64) -> Message {
        Message::ReadRun { page: PAGE, ticket, wanted }
    }

    fn answer(ticket: u64, version: u64, given: u64, skipped: u64) -> Message {
        Message::DataRun { page: PAGE, ticket, version, given, skipped }
    }

    fn reader() -> Node {
        Node::new(Config { prefetch_pages: 64, ..Config::new(A, SLICES) })
    }

    fn read_fault(node: &mut Node, page: u64) -> Vec<Action> {
        node.step(Input::Fault { page: PageNo(page), access: Access::Read }, 0)
    }

    /// The run that is asked for among the actions: first page, ticket, bits.
    fn asked(actions: &[Action]) -> Option<(u64, u64, u64)> {
        actions.iter().find_map(|a| match *a {
            Action::Send { message: Message::ReadRun { page, ticket, wanted }, .. } => {
                Some((page.0, ticket, wanted))
            }
            _ => None,
        })
    }

    fn bring(node: &mut Node, (page, ticket, given): (u64, u64, u64)) -> Vec<Action> {
        let message = Message::DataRun { page: PageNo(page), ticket, version: 9, given, skipped: 0 };
        from(node, HOME, message)
    }

    #[test]
    fn a_run_is_given_in_large_messages_under_one_name() {
        let mut home = node(HOME);
        let actions = from(&mut home, A, run(1, 0x1_ffff));
        let protects = (0..17).map(|n| Action::Protect(PageNo(PAGE.0 + n)));
        let sent: Vec<_> = actions.iter().filter(|a| matches!(a, Action::Send { .. })).copied().collect();
        assert!(protects.into_iter().all(|p| actions.contains(&p)));
        assert_eq!(
            sent,
            [send(A, answer(1, of_home(1), 0xffff, 0)), send(A, answer(1, of_home(1), 0x1_0000, 0))]
        );
        assert_eq!(from(&mut home, A, invalidate(1)), refuse(Refusal::Page));
    }

    #[test]
    fn what_cannot_be_had_at_once_is_skipped_and_nobody_loses_anything() {
        let mut home = node(HOME);
        let at = |n: u64| PageNo(PAGE.0 + n);
        // Page 1 is owned, 2 is shared by B, 3 is busy, 4 has the reader itself.
        from(&mut home, B, Message::Write { page: at(1), ticket: 1, held: 0 });
        from(&mut home, B, Message::Read { page: at(2), ticket: 2, held: 0 });
        from(&mut home, C, Message::Read { page: at(3), ticket: 1, held: 0 });
        from(&mut home, B, Message::Write { page: at(3), ticket: 3, held: 0 });
        from(&mut home, A, Message::Read { page: at(4), ticket: 1, held: 0 });
        assert_eq!(
            from(&mut home, A, run(10, 0x1f)),
            [
                Action::Protect(PAGE),
                send(A, answer(10, of_home(5), 0x1, 0)),
                send(A, answer(10, of_home(2), 0x4, 0x1a)),
            ]
        );
    }

    #[test]
    fn a_page_that_the_homes_cell_has_just_got_is_left_to_it() {
        let mut home = Node::new(Config { hold_us: 100, ..Config::new(HOME, SLICES) });
        home.step(Input::Message { from: B, message: write(1, 0) }, 0);
        home.step(Input::Fault { page: PAGE, access: Access::Write }, 1);
        home.step(Input::Message { from: B, message: back(1, false, version(B, 1), 0) }, 10);
        let asked = Input::Message { from: A, message: run(1, 1) };
        assert_eq!(home.step(asked, 50), [send(A, answer(1, 0, 0, 1))]);
        let given = home.step(asked, 110);
        assert!(given.contains(&send(A, answer(1, of_home(2), 1, 0))), "{given:?}");
    }

    #[test]
    fn an_access_that_waits_for_a_skipped_page_asks_for_it_itself() {
        let mut node = node(A);
        node.step(Input::Prefetch { page: PAGE, count: 2 }, 0);
        assert_eq!(fault(&mut node, Access::Read), [], "it is on its way");
        let got = from(&mut node, HOME, answer(1, 9, 2, 1));
        let next = PageNo(PAGE.0 + 1);
        assert_eq!(got, [send(HOME, read(65, 0)), Action::Place(next),]);
        assert_eq!(from(&mut node, HOME, answer(1, 9, 1, 0)), refuse(Refusal::Late), "not twice");
    }

    #[test]
    fn faults_on_neighbours_have_the_next_pages_fetched_twice_as_many_each_time() {
        let mut node = reader();
        assert_eq!(asked(&read_fault(&mut node, 10)), None);
        from(
            &mut node,
            HOME,
            Message::Data { page: PageNo(10), access: Access::Read, ticket: 1, version: 9, held: 0 },
        );
        let mut run = asked(&read_fault(&mut node, 11)).expect("a second fault makes a stream");
        assert_eq!((run.0, run.2.count_ones()), (12, 4));
        for (first, length) in [(16, 8), (24, 16), (40, 32), (72, 64), (136, 64)] {
            let came = bring(&mut node, run);
            let marker = Action::Install { page: PageNo(run.0), access: Access::Read };
            let marked = PageNo(run.0);
            assert!(came.contains(&Action::Store(marked)), "it is here, {came:?}");
            assert!(
                !came.contains(&marker) && !came.contains(&Action::Place(marked)),
                "its access is waited for"
            );
            let actions = read_fault(&mut node, run.0);
            assert!(actions.contains(&marker), "{actions:?}: it is here, and costs no message");
            run = asked(&actions).expect("the marker asks for more");
            assert_eq!((run.0, run.2.count_ones()), (first, length));
        }
        let all = read_fault(&mut node, 250);
        assert_eq!(asked(&all), None, "a jump is no stream");
    }

    #[test]
    fn a_stream_ends_with_its_slice_and_leaves_out_what_is_here() {
        let mut node = reader();
        let last = SLICES.size / 4096 - 1;
        fault(&mut node, Access::Read);
        read_fault(&mut node, last - 4);
        node.step(Input::Fault { page: PageNo(last - 1), access: Access::Write }, 0);
        let run = asked(&read_fault(&mut node, last - 3)).unwrap();
        assert_eq!((run.0, run.2), (last - 2, 0b101), "three pages are left, and one is asked for already");
        assert_eq!(asked(&read_fault(&mut node, last)), None, "there is no page after the last one");
    }

    #[test]
    fn a_marker_that_goes_unused_halves_the_run() {
        let mut node = reader();
        read_fault(&mut node, 10);
        let mut run = asked(&read_fault(&mut node, 11)).unwrap();
        for _ in 0..2 {
            bring(&mut node, run);
            run = asked(&read_fault(&mut node, run.0)).unwrap();
        }
        assert_eq!((run.0, run.2.count_ones()), (24, 16));
        bring(&mut node, run);
        let taken = from(&mut node, HOME, Message::Invalidate { page: PageNo(24), ticket: run.1 });
        assert_eq!(
            taken,
            [send(HOME, Message::Ack { page: PageNo(24), ticket: run.1 })],
            "it was not mapped"
        );
        let next = asked(&read_fault(&mut node, 24)).unwrap();
        assert_eq!((next.0, next.2.count_ones()), (40, 16), "half of 16, doubled by the access");
    }

    #[test]
    fn scattered_faults_fetch_nothing_ahead() {
        let mut node = reader();
        for page in [3, 90, 17, 50, 91 + 30, 5, 64] {
            assert_eq!(asked(&read_fault(&mut node, page)), None, "page {page}");
        }
        let mut off = super::node(A);
        for page in 10..20 {
            assert_eq!(asked(&read_fault(&mut off, page)), None, "switched off");
        }
    }
}

mod budget {
    use super::*;

    const HOLD: u64 = 100;

    fn window(pages: u64, hold_us: u64) -> Node {
        Node::new(Config { window_pages: pages, hold_us, ..Config::new(A, SLICES) })
    }

    /// Page `n` is faulted for and comes, at time `now`.
    fn get(node: &mut Node, n: u64, access: Access, now: u64) -> Vec<Action> {
        let page = PageNo(n);
        let asked = node.step(Input::Fault { page, access }, now);
        let Some(&Action::Send { message, .. }) = asked.first() else { panic!("{asked:?}") };
        let (ticket, held) = match message {
            Message::Read { ticket, held, .. } | Message::Write { ticket, held, .. } => (ticket, held),
            other => panic!("{other:?}"),
        };
        let message = Message::Data { page, access, ticket, version: 9, held };
        node.step(Input::Message { from: HOME, message }, now)
    }

    fn discarded(actions: &[Action]) -> Vec<u64> {
        let pages = actions.iter().filter_map(|a| match a {
            Action::Discard(page) => Some(page.0),
            _ => None,
        });
        pages.collect()
    }

    #[test]
    fn the_oldest_page_makes_room_and_what_was_written_goes_home_first() {
        let mut node = window(2, 0);
        get(&mut node, 1, Access::Write, 0);
        get(&mut node, 2, Access::Read, 0);
        let third = get(&mut node, 3, Access::Read, 0);
        let page = PageNo(1);
        let message = Message::WriteBack { page, ticket: 1, kept: false, version: version(A, 1), held: 0 };
        assert_eq!(third[2..], [Action::Zap(page), send(HOME, message), Action::Discard(page)]);
        let fourth = get(&mut node, 4, Access::Read, 0);
        let gone = Message::Evict { page: PageNo(2), ticket: 2 };
        assert_eq!(fourth[2..], [Action::Zap(PageNo(2)), send(HOME, gone), Action::Discard(PageNo(2))]);
        assert_eq!(node.resident_pages(), 2);
    }

    #[test]
    fn dsm_i3_what_is_held_stays_however_small_the_budget_and_goes_when_its_time_is_over() {
        let mut node = window(1, HOLD);
        assert_eq!(discarded(&get(&mut node, 1, Access::Write, 0)), []);
        assert_eq!(discarded(&get(&mut node, 2, Access::Write, 10)), []);
        assert_eq!(
            discarded(&get(&mut node, 3, Access::Write, 20)),
            [],
            "one instruction may need all of them"
        );
        assert_eq!(node.next_deadline(), Some(HOLD));
        assert_eq!(discarded(&node.step(Input::Tick, HOLD)), [1]);
        assert_eq!(discarded(&node.step(Input::Tick, HOLD + 10)), [2]);
        assert_eq!(discarded(&node.step(Input::Tick, 5 * HOLD)), [], "one page is in the budget");
    }

    #[test]
    fn a_page_that_was_missed_again_gets_a_second_chance() {
        let mut node = window(2, 0);
        get(&mut node, 1, Access::Read, 0);
        get(&mut node, 2, Access::Read, 0);
        node.step(Input::Fault { page: PageNo(1), access: Access::Read }, 0);
        assert_eq!(discarded(&get(&mut node, 3, Access::Read, 0)), [2]);
        assert_eq!(discarded(&get(&mut node, 4, Access::Read, 0)), [3]);
        assert_eq!(discarded(&get(&mut node, 5, Access::Read, 0)), [1], "but not a third");
    }

    #[test]
    fn bytes_that_are_kept_after_an_invalidation_count_and_go_without_a_word() {
        let mut node = window(2, 0);
        get(&mut node, 1, Access::Read, 0);
        from(&mut node, HOME, Message::Invalidate { page: PageNo(1), ticket: 1 });
        assert_eq!((node.resident_pages(), node.tracked_pages()), (1, 0));
        get(&mut node, 2, Access::Read, 0);
        assert_eq!(get(&mut node, 3, Access::Read, 0)[2..], [Action::Discard(PageNo(1))]);
    }

    #[test]
    fn neighbours_make_room_together() {
        let mut node = window(64, 0);
        (0..64).for_each(|n| drop(get(&mut node, n, Access::Read, 0)));
        let made = get(&mut node, 100, Access::Read, 0);
        assert_eq!(discarded(&made), (0..9).collect::<Vec<_>>());
        node.set_window_pages(10);
        get(&mut node, 101, Access::Read, 0);
        assert!(node.resident_pages() <= 10, "{}", node.resident_pages());
    }
}

#[test]
fn dsm_i4_requests_of_the_dead_are_dropped_and_their_acknowledgements_not_waited_for() {
    let mut home = shared_by(&[A, B]);
    fault(&mut home, Access::Write);
    from(&mut home, A, ack(1));
    from(&mut home, C, read(1, 0));
    assert_eq!(
        died(&mut home, B),
        [install(Access::Write), Action::Protect(PAGE), send(C, data(Access::Read, 1, of_home(2), 0))]
    );
    assert_eq!(from(&mut home, B, read(2, 0)), refuse(Refusal::Dead));
}

#[test]
fn dsm_i4_a_page_whose_only_copy_died_is_lost_for_all() {
    let mut home = owned_by_b();
    fault(&mut home, Access::Read);
    from(&mut home, A, read(1, 0));
    assert_eq!(died(&mut home, B), [Action::Lost(PAGE), Action::Poison(PAGE), send(A, lost(1))]);
    assert_eq!(from(&mut home, C, read(1, 0)), [send(C, lost(1))]);
    let fetched = home.step(Input::Fetch { page: PAGE, token: 8 }, 0);
    assert_eq!(fetched, [Action::Fetched { page: PAGE, token: 8, lost: true }]);
    let mut asker = node(B);
    fault(&mut asker, Access::Read);
    assert_eq!(from(&mut asker, HOME, lost(1)), [Action::Poison(PAGE)]);
    assert_eq!(fault(&mut asker, Access::Read), [Action::Poison(PAGE)]);
}

#[test]
fn dsm_i4_a_lost_page_that_its_cell_has_buried_is_zeros_to_it_and_lost_to_others() {
    let mut home = owned_by_b();
    let bury = Input::Bury { page: PAGE };
    assert_eq!(home.step(bury, 0), refuse(Refusal::Late), "it is not lost");
    assert_eq!(died(&mut home, B), [Action::Lost(PAGE)]);
    assert_eq!(fault(&mut home, Access::Read), [Action::Poison(PAGE)]);
    let buried = [Action::Zap(PAGE), Action::Discard(PAGE), install(Access::Write)];
    assert_eq!(home.step(bury, 0), buried);
    assert_eq!(fault(&mut home, Access::Write), [install(Access::Write)]);
    assert_eq!(from(&mut home, C, read(1, 0)), [send(C, lost(1))]);
    let fetched = home.step(Input::Fetch { page: PAGE, token: 8 }, 0);
    assert_eq!(
        fetched,
        [Action::Fetched { page: PAGE, token: 8, lost: false }],
        "it is its cell's own again"
    );
    assert_eq!(home.step(bury, 0), refuse(Refusal::Late), "once");
    assert_eq!(
        home.step(Input::Bury { page: PageNo(6) }, 0),
        refuse(Refusal::Late),
        "nor one that nobody had"
    );
}

#[test]
fn dsm_i4_who_waits_for_a_dead_home_waits_no_more() {
    let mut node = node(A);
    fault(&mut node, Access::Read);
    assert_eq!(died(&mut node, HOME), [Action::Poison(PAGE)]);
    let other = PageNo(6);
    assert_eq!(node.step(Input::Fault { page: other, access: Access::Read }, 0), [Action::Poison(other)]);
    let late = data(Access::Read, 1, version(B, 1), 0);
    assert_eq!(from(&mut node, B, late), refuse(Refusal::Late), "nor does the owner's data come too late");
    let mut sharer = sharer();
    assert_eq!(died(&mut sharer, HOME), [], "a copy that is here stays readable");
    assert_eq!(fault(&mut sharer, Access::Write), [Action::Poison(PAGE)]);
}

#[test]
fn a_release_that_crosses_the_invalidation_is_acknowledged_once() {
    let mut node = sharer();
    let released = node.step(Input::Release { page: PAGE }, 0);
    assert_eq!(released, [Action::Zap(PAGE), send(HOME, evict(1)), Action::Discard(PAGE)]);
    assert_eq!(from(&mut node, HOME, invalidate(1)), [send(HOME, ack(1))]);
    let mut home = shared_by(&[A]);
    from(&mut home, B, write(1, 0));
    assert_eq!(from(&mut home, A, evict(1)), [], "the acknowledgement is on its way");
    assert_eq!(from(&mut home, A, read(2, 0)), [], "and who gave it up may want it again");
    let given = from(&mut home, A, ack(1));
    assert_eq!(given[0], send(B, data(Access::Write, 1, of_home(1), 0)));
}

mod bad_input {
    use super::*;

    #[test]
    fn a_second_request_of_a_node_that_waits_is_refused() {
        let mut home = shared_by(&[A]);
        from(&mut home, B, write(1, 0));
        assert_eq!(from(&mut home, C, read(1, 0)), []);
        assert_eq!(from(&mut home, C, read(2, 0)), refuse(Refusal::Duplicate));
        assert_eq!(from(&mut home, B, write(2, 0)), refuse(Refusal::Duplicate));
        from(&mut home, A, ack(1));
        assert_eq!(from(&mut home, A, ack(1)), refuse(Refusal::Unexpected));
        assert_eq!(from(&mut shared_by(&[A]), A, read(2, 0)), refuse(Refusal::Duplicate), "it has it");
        assert_eq!(from(&mut owned_by_b(), B, read(2, 0)), refuse(Refusal::Duplicate));
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let mut node = node(A);
        let answers = [data(Access::Write, 1, 1, 0), same(1), lost(1), invalidate(1), ask(1, true)];
        for message in answers.into_iter().chain([recall(1, true, B, 1, 0)]) {
            assert_eq!(from(&mut node, HOME, message), refuse(Refusal::Unexpected), "{message:?}");
        }
        for message in [same(1), lost(1), invalidate(1), ask(1, true), recall(1, true, C, 1, 0)] {
            assert_eq!(from(&mut node, B, message), refuse(Refusal::Page), "{message:?}: B is not the home");
        }
        let mut home = super::node(HOME);
        let gift = back(1, false, version(A, 1), 0);
        for message in [gift, ack(1), have(1)] {
            assert_eq!(from(&mut home, A, message), refuse(Refusal::Unexpected), "{message:?}");
        }
        assert_eq!(home.tracked_pages(), 0, "and leaves no trace");
    }

    #[test]
    fn answers_that_do_not_fit_the_request_are_refused() {
        let mut node = node(A);
        fault(&mut node, Access::Write);
        assert_eq!(from(&mut node, HOME, data(Access::Read, 1, 9, 0)), refuse(Refusal::Unexpected));
        assert_eq!(from(&mut node, HOME, data(Access::Write, 2, 9, 0)), refuse(Refusal::Unexpected));
        assert_eq!(
            from(&mut node, HOME, data(Access::Write, 1, 9, 8)),
            refuse(Refusal::Version),
            "we hold none"
        );
        assert_eq!(from(&mut node, HOME, same(1)), refuse(Refusal::Version), "nothing is here");
        let run = Message::DataRun { page: PAGE, ticket: 1, version: 9, given: 1, skipped: 0 };
        assert_eq!(from(&mut node, HOME, run), refuse(Refusal::Unexpected));
        assert_eq!(from(&mut node, HOME, data(Access::Write, 1, 9, 0)).len(), 2, "nothing has changed");
    }

    #[test]
    fn a_home_that_asks_for_what_cannot_be_is_refused() {
        let mut owner = owner();
        assert_eq!(from(&mut owner, HOME, invalidate(1)), refuse(Refusal::State));
        assert_eq!(from(&mut owner, HOME, recall(1, true, A, 1, 0)), refuse(Refusal::Sender), "to itself");
        assert_eq!(from(&mut owner, HOME, recall(1, true, NodeId(9), 1, 0)), refuse(Refusal::Sender));
        assert_eq!(
            from(&mut owner, HOME, recall(1, true, HOME, 1, 0)),
            refuse(Refusal::Sender),
            "with a ticket"
        );
        assert_eq!(from(&mut owner, HOME, recall(1, true, B, 0, 0)), refuse(Refusal::Sender), "without one");
        assert_eq!(from(&mut owner, HOME, recall(2, true, B, 1, 0)), refuse(Refusal::Unexpected));
        let mut sharer = sharer();
        assert_eq!(from(&mut sharer, HOME, recall(1, true, B, 1, 0)), refuse(Refusal::State));
        let mut held = Node::new(Config { hold_us: 9, ..Config::new(A, SLICES) });
        fault(&mut held, Access::Read);
        from(&mut held, HOME, data(Access::Read, 1, 9, 0));
        assert_eq!(from(&mut held, HOME, invalidate(1)), []);
        assert_eq!(from(&mut held, HOME, invalidate(1)), refuse(Refusal::Duplicate));
    }

    #[test]
    fn an_owners_answer_that_does_not_fit_is_refused() {
        let mut home = owned_by_b();
        let owned = version(B, 1);
        assert_eq!(from(&mut home, A, back(1, false, owned, 0)), refuse(Refusal::State), "A owns nothing");
        assert_eq!(from(&mut home, B, back(2, false, owned, 0)), refuse(Refusal::State), "another copy");
        assert_eq!(
            from(&mut home, B, back(1, true, owned, 0)),
            refuse(Refusal::State),
            "nobody asked it to share"
        );
        assert_eq!(from(&mut home, B, back(1, false, 77, 0)), refuse(Refusal::Version));
        assert_eq!(
            from(&mut home, B, back(1, false, owned, 77)),
            refuse(Refusal::Version),
            "against what we have not"
        );
        fault(&mut home, Access::Write);
        assert_eq!(from(&mut home, B, passed(1)), refuse(Refusal::State), "it was to come here");
        let done = from(&mut home, B, back(1, false, owned, of_home(1)));
        assert_eq!(done, [Action::Store(PAGE), install(Access::Write)]);
    }

    #[test]
    fn pages_and_nodes_that_are_not_are_refused() {
        let mut home = node(HOME);
        let nowhere = Message::Read { page: PageNo(1 << 40), ticket: 1, held: 0 };
        assert_eq!(from(&mut home, A, nowhere), refuse(Refusal::Page));
        let last = PageNo(SLICES.size / 4096 - 1);
        let over = Message::ReadRun { page: last, ticket: 1, wanted: 3 };
        assert_eq!(from(&mut home, A, over), refuse(Refusal::Page), "its end is in another slice");
        assert_eq!(from(&mut home, HOME, read(1, 0)), refuse(Refusal::Sender));
        assert_eq!(from(&mut home, NodeId(4), read(1, 0)), refuse(Refusal::Sender));
        for why in [Refusal::Page, Refusal::Sender, Refusal::Malformed, Refusal::Duplicate, Refusal::State] {
            assert!(why.is_violation(), "{why:?}");
        }
        for why in [Refusal::Late, Refusal::Dead, Refusal::Epoch] {
            assert!(!why.is_violation(), "{why:?}");
        }
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    let page = prop_oneof![4 => Just(PAGE), 1 => any::<u64>().prop_map(|p| PageNo(p >> 12)), 1 => (0..2048_u64).prop_map(PageNo)];
    let small = || prop_oneof![0..6_u64, any::<u64>().prop_map(|n| n >> 21)];
    (0..15_u8, page, 1..6_u64, small(), small(), any::<bool>(), 0..6_u16).prop_map(
        |(kind, page, ticket, one, two, flag, to)| {
            let access = if flag { Access::Write } else { Access::Read };
            let to = NodeId(to);
            match kind {
                0 => Message::Read { page, ticket, held: one },
                1 => Message::Write { page, ticket, held: one },
                2 => Message::ReadRun { page, ticket, wanted: one },
                3 => Message::Data { page, access, ticket, version: one, held: two },
                4 => Message::DataRun { page, ticket, version: 1, given: one, skipped: two },
                5 => Message::Same { page, access, ticket },
                6 => Message::Lost { page, ticket },
                7 => Message::Invalidate { page, ticket },
                8 => Message::Ack { page, ticket },
                9 => {
                    Message::Recall { page, ticket, keep: flag, to, to_ticket: one, held: two, home_held: 0 }
                }
                10 => Message::WriteBack { page, ticket, kept: flag, version: one, held: two },
                11 => Message::Passed { page, ticket },
                12 => Message::Evict { page, ticket },
                13 => Message::Ask { page, ticket, confirm: flag },
                _ => Message::Have { page, ticket },
            }
        },
    )
}

proptest! {
    /// Whatever a peer says: no panic, no message to nobody, no memory beyond one entry a page.
    #[test]
    fn a_peer_that_lies_changes_nothing_that_is_not_its_own(
        me in prop_oneof![Just(HOME), Just(A)],
        lies in prop::collection::vec((0..6_u16, any_message(), any::<bool>()), 1..60),
    ) {
        let mut node = node(me);
        let mut asked = 1;
        for (n, (liar, message, faults)) in lies.into_iter().enumerate() {
            if faults {
                fault(&mut node, Access::Write);
            }
            let actions = from(&mut node, NodeId(liar), message);
            for action in &actions {
                if let Action::Send { to, .. } = action {
                    prop_assert!(*to != me && to.0 < SLICES.nodes, "{:?}", action);
                }
                // Who is neither home nor sends the data that is asked for moves nothing.
                if me != HOME && liar != 0 && message.page() == PAGE && !matches!(message, Message::Data { .. }) {
                    prop_assert!(matches!(action, Action::Refuse(_)), "{:?}", action);
                }
            }
            asked += message.run().count_ones() as usize;
            prop_assert!(node.tracked_pages() <= asked, "after {n} messages");
        }
    }
}
