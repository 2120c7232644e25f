//! The side of a node that holds, or wants, copies of other nodes' pages.

use super::pace::Pace;
use super::{Action, Message, Node, Refusal, Step, version};
use crate::types::{Access, NodeId, PageNo};

/// What a node knows of a page of another home.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Copy {
    state: State,
    /// Of the copy; 0 without one.
    ticket: u64,
    /// Version of the bytes that the alias has, also of those that are not to be accessed any more; 0 for none. While the
    /// copy is written: of the bytes as they will be at the end of that.
    version: u64,
    /// Readable, with its bytes here, but left unmapped: the access to it says how far a run of accesses has come.
    marker: bool,
    /// The request that is under way.
    wanted: Option<Wanted>,
    /// What the home wants back: not done yet because of the hold, or because the copy has not come yet.
    revoked: Option<Revoke>,
    /// Until when the copy stays, in microseconds.
    held_until: u64,
    pace: Pace,
    /// Its place in the order of eviction, and whether it was missed since it got that.
    pub(super) turn: u64,
    pub(super) missed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Invalid,
    Shared,
    Modified,
    /// The home has said that the page is lost, or has died.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    access: Access,
    /// Does an access wait for it? A prefetched page is not held.
    hold: bool,
    ticket: u64,
    /// What the request says that is here.
    held: u64,
    /// Asked for as part of a run, which may be answered by nothing.
    run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Revoke {
    ticket: u64,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum To {
    /// Invalidate.
    Nobody,
    /// Recall; see [`Message::Recall`] for the fields.
    Node { keep: bool, node: NodeId, ticket: u64, held: u64, home_held: u64 },
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// With the bytes, of this version, for one who said to have the other version.
    Bytes(u64, u64),
    /// With none.
    Same,
}

impl Copy {
    fn new() -> Self {
        Self {
            state: State::Invalid,
            ticket: 0,
            version: 0,
            marker: false,
            wanted: None,
            revoked: None,
            held_until: 0,
            pace: Pace::default(),
            turn: 0,
            missed: false,
        }
    }

    fn allows(&self) -> Option<Access> {
        match self.state {
            State::Shared => Some(Access::Read),
            State::Modified => Some(Access::Write),
            _ => None,
        }
    }

    fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Is there more to it than bytes that are kept in case that they are current again?
    pub(super) fn is_live(&self) -> bool {
        self.state != State::Invalid || self.wanted.is_some()
    }

    /// May it be given up now? Else, when, if time alone decides.
    pub(super) fn evictable(&self, now: u64) -> Result<(), Option<u64>> {
        match self {
            _ if self.wanted.is_some() || self.revoked.is_some() || self.is_lost() => Err(None),
            _ if self.allows().is_some() && now < self.held_until => Err(Some(self.held_until)),
            _ => Ok(()),
        }
    }

    fn wants(&self, ticket: u64) -> bool {
        self.wanted.is_some_and(|w| w.ticket == ticket)
    }

    fn has(&self, ticket: u64) -> bool {
        self.ticket == ticket && self.allows().is_some()
    }
}

impl Node {
    /// An access to another node's page waits.
    pub(super) fn holder_fault(&mut self, page: PageNo, home: NodeId, access: Access, step: &mut Step) {
        let (config, home_is_dead) = (self.config, self.dead.contains(&home));
        let copy = self.copies.get_or_insert_with(page, Copy::new);
        copy.missed = copy.turn != 0;
        match copy.allows() {
            _ if copy.is_lost() => step.actions.push(Action::Poison(page)),
            // The fault was reported before the page was installed, the host dropped the mapping, or it is a marker.
            Some(allowed) if allowed >= access => {
                copy.marker = false;
                step.actions.push(Action::Install { page, access: allowed });
            }
            _ if home_is_dead => {
                copy.state = State::Lost;
                step.actions.push(Action::Poison(page));
            }
            _ => match &mut copy.wanted {
                Some(wanted) => wanted.hold = true,
                None => {
                    let taken = copy.revoked.is_some();
                    copy.pace.missed(&config, step.now);
                    self.ask(page, home, access, true, step);
                    if taken {
                        self.revoke_when_due(page, home, step);
                    }
                }
            },
        }
        if access == Access::Read && !home_is_dead {
            self.run_ahead(page, home, step);
        }
    }

    fn new_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Asks the home for a page, with a new ticket.
    fn ask(&mut self, page: PageNo, home: NodeId, access: Access, hold: bool, step: &mut Step) {
        let ticket = self.new_ticket();
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let held = copy.version;
        copy.wanted = Some(Wanted { access, hold, ticket, held, run: false });
        step.send(
            home,
            match access {
                Access::Read => Message::Read { page, ticket, held },
                Access::Write => Message::Write { page, ticket, held },
            },
        );
    }

    /// Asks for those of `count` pages that are neither here nor asked for; with `mark`, the first of them becomes a marker.
    /// Says how many pages from `first` on it has looked at (up to the end of the slice), and the first that it asked for.
    pub(super) fn ask_run(
        &mut self,
        first: PageNo,
        home: NodeId,
        count: u64,
        mark: bool,
        step: &mut Step,
    ) -> (u64, Option<PageNo>) {
        let (mut bits, mut looked) = (0_u64, 0);
        for n in 0..count.min(super::message::RUN_PAGES as u64) {
            let page = PageNo(first.0.saturating_add(n));
            if self.home(page) != Some(home) {
                break;
            }
            looked = n + 1;
            if !self.copies.get(&page).is_some_and(Copy::is_live) {
                bits |= 1 << n;
            }
        }
        if bits == 0 || self.dead.contains(&home) {
            return (looked, None);
        }
        let marker = PageNo(first.0 + u64::from(bits.trailing_zeros()));
        let ticket = self.last_ticket + 1;
        self.last_ticket += u64::from(u64::BITS);
        for (n, page) in super::message::run_pages(first, bits) {
            let copy = self.copies.get_or_insert_with(page, Copy::new);
            copy.marker = mark && page == marker;
            copy.wanted =
                Some(Wanted { access: Access::Read, hold: false, ticket: ticket + n, held: 0, run: true });
        }
        step.send(home, Message::ReadRun { page: first, ticket, wanted: bits });
        (looked, Some(marker))
    }

    /// Is this the ticket of what `page` wants? If not, why not.
    fn answers(&self, page: PageNo, ticket: u64) -> Result<Wanted, Refusal> {
        let wanted = self.copies.get(&page).and_then(|copy| copy.wanted);
        match wanted.filter(|w| w.ticket == ticket) {
            Some(wanted) => Ok(wanted),
            // The answer to a request that was given up.
            None if (1..=self.last_ticket).contains(&ticket) => Err(Refusal::Late),
            None => Err(Refusal::Unexpected),
        }
    }

    /// An answer to a request has come.
    pub(super) fn granted(
        &mut self,
        page: PageNo,
        home: NodeId,
        access: Access,
        ticket: u64,
        answer: Answer,
        step: &mut Step,
    ) {
        let wanted = match self.answers(page, ticket) {
            Ok(wanted) if wanted.access == access && !wanted.run => wanted,
            Ok(_) => return step.refuse(Refusal::Unexpected),
            Err(why) => return step.refuse(why),
        };
        let fits = match answer {
            Answer::Bytes(_, held) => held == wanted.held,
            Answer::Same => wanted.held != 0,
        };
        if !fits {
            return step.refuse(Refusal::Version);
        }
        let (me, config) = (self.config.me, self.config);
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let mapped = copy.state == State::Shared && !copy.marker;
        let before = match answer {
            Answer::Bytes(of_bytes, _) => {
                if mapped {
                    step.actions.push(Action::Zap(page));
                }
                step.actions.push(Action::Store(page));
                of_bytes
            }
            Answer::Same => wanted.held,
        };
        copy.held_until = if wanted.hold { copy.pace.granted(&config, step.now) } else { 0 };
        copy.version = before;
        if access == Access::Write {
            copy.version = version(me, ticket);
            if copy.pace.is_contended() {
                step.actions.push(Action::Twin { page, version: before });
            }
        }
        if mapped && answer == Answer::Same {
            step.actions.push(Action::Unprotect(page));
        } else {
            step.actions.push(Action::Install { page, access });
        }
        copy.state = if access == Access::Write { State::Modified } else { State::Shared };
        self.settle(page, home, ticket, step);
        self.trim(page, step);
    }

    /// A copy that was wanted under `ticket` is here.
    fn settle(&mut self, page: PageNo, home: NodeId, ticket: u64, step: &mut Step) {
        let Some(copy) = self.copies.get_mut(&page) else { return };
        copy.ticket = ticket;
        copy.wanted = None;
        copy.marker = false;
        copy.missed = false;
        copy.revoked = copy.revoked.filter(|r| r.ticket == ticket);
        if copy.revoked.is_some() {
            self.revoke_when_due(page, home, step);
        }
        self.enlist(page);
    }

    /// A part of a run has come: pages `given`, and pages `skipped` that could not be had at once.
    pub(super) fn run_granted(
        &mut self,
        first: PageNo,
        home: NodeId,
        ticket: u64,
        of_bytes: u64,
        bits: (u64, u64),
        step: &mut Step,
    ) {
        let (given, skipped) = bits;
        let all: Vec<_> = super::message::run_pages(first, given | skipped).collect();
        for &(n, page) in &all {
            match self.answers(page, ticket.saturating_add(n)) {
                Ok(wanted) if wanted.run => {}
                // One page can be late alone: it was invalidated before it had come.
                Err(Refusal::Late) => {}
                Ok(_) => return step.refuse(Refusal::Unexpected),
                Err(why) => return step.refuse(why),
            }
        }
        let (mut came, mut late) = (vec![], false);
        for &(n, page) in &all {
            let Some(copy) = self.copies.get_mut(&page).filter(|c| c.wants(ticket + n)) else {
                late = true;
                continue;
            };
            let waited_for = copy.wanted.is_some_and(|w| w.hold);
            if given >> n & 1 == 1 {
                let mapped = waited_for || !copy.marker;
                step.actions.push(if mapped { Action::Place(page) } else { Action::Store(page) });
                came.push((n, page, mapped));
            } else {
                copy.wanted = None;
                copy.marker = false;
                if waited_for {
                    self.ask(page, home, Access::Read, true, step);
                } else {
                    self.forget(page);
                }
            }
        }
        for &(n, page, mapped) in &came {
            let config = self.config;
            if let Some(copy) = self.copies.get_mut(&page) {
                let waited_for = copy.wanted.is_some_and(|w| w.hold);
                copy.held_until = if waited_for { copy.pace.granted(&config, step.now) } else { 0 };
                copy.state = State::Shared;
                copy.version = of_bytes;
                self.settle(page, home, ticket + n, step);
            }
            if let Some(copy) = self.copies.get_mut(&page).filter(|_| !mapped) {
                copy.marker = true;
            }
        }
        if late {
            step.refuse(Refusal::Late);
        }
        if let Some(&(_, page, _)) = came.last() {
            self.trim(page, step);
        }
    }

    /// The home says that the page is lost.
    pub(super) fn lost(&mut self, page: PageNo, ticket: u64, step: &mut Step) {
        if let Err(why) = self.answers(page, ticket) {
            return step.refuse(why);
        }
        self.delist(page);
        self.copies.insert(page, Copy { state: State::Lost, ..Copy::new() });
        step.actions.push(Action::Poison(page));
    }

    /// The home takes a shared copy away.
    pub(super) fn invalidate(&mut self, page: PageNo, home: NodeId, ticket: u64, step: &mut Step) {
        if !(1..=self.last_ticket).contains(&ticket) {
            return step.refuse(Refusal::Unexpected);
        }
        match self.copies.get_mut(&page) {
            Some(copy) if copy.has(ticket) => {
                if copy.state == State::Modified {
                    return step.refuse(Refusal::State);
                }
                if copy.revoked.is_some() {
                    return step.refuse(Refusal::Duplicate);
                }
                copy.revoked = Some(Revoke { ticket, to: To::Nobody });
                self.revoke_when_due(page, home, step);
            }
            // It has overtaken the data, which comes from the owner, on another link: that is of no use any more.
            Some(copy) if copy.wants(ticket) => {
                let wanted = copy.wanted.take();
                step.send(home, Message::Ack { page, ticket });
                self.ask_again(page, home, wanted, step);
            }
            // It has crossed with our Evict.
            _ => step.send(home, Message::Ack { page, ticket }),
        }
    }

    /// Asks once more for what a given-up request was about; not for what was wanted ahead only.
    fn ask_again(&mut self, page: PageNo, home: NodeId, wanted: Option<Wanted>, step: &mut Step) {
        match wanted {
            Some(wanted) if wanted.hold => self.ask(page, home, wanted.access, true, step),
            _ => {
                if let Some(copy) = self.copies.get_mut(&page) {
                    copy.marker = false;
                }
                self.forget(page);
            }
        }
    }

    /// The home says to whom a copy that may be written has to go.
    pub(super) fn recall(&mut self, home: NodeId, message: Message, step: &mut Step) {
        let Message::Recall { page, ticket, keep, to, to_ticket, held, home_held } = message else { return };
        let to_me = to == self.config.me || to.0 >= self.config.slices.nodes;
        if to_me || (to == home) != (to_ticket == 0) {
            return step.refuse(Refusal::Sender);
        }
        if !(1..=self.last_ticket).contains(&ticket) {
            return step.refuse(Refusal::Unexpected);
        }
        // Without a copy: it has crossed with our WriteBack, which is the answer.
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let revoke = Revoke { ticket, to: To::Node { keep, node: to, ticket: to_ticket, held, home_held } };
        let writes = copy.wanted.is_some_and(|w| w.access == Access::Write);
        if copy.has(ticket) {
            if copy.state != State::Modified {
                step.refuse(Refusal::State);
            } else if copy.revoked.is_some() {
                step.refuse(Refusal::Duplicate);
            } else {
                copy.revoked = Some(revoke);
                self.revoke_when_due(page, home, step);
            }
        } else if copy.wants(ticket) {
            // It has overtaken the data, which comes from the owner before us, on another link.
            match copy.revoked {
                Some(r) if r.ticket == ticket => step.refuse(Refusal::Duplicate),
                _ if !writes => step.refuse(Refusal::State),
                _ => copy.revoked = Some(revoke),
            }
        }
    }

    /// Who was to send us the page has died.
    pub(super) fn asked(&mut self, page: PageNo, home: NodeId, ticket: u64, confirm: bool, step: &mut Step) {
        if !(1..=self.last_ticket).contains(&ticket) {
            return step.refuse(Refusal::Unexpected);
        }
        // With neither copy nor request, what has become of the copy was said before.
        let Some(copy) = self.copies.get_mut(&page) else { return };
        if copy.has(ticket) {
            let version = copy.version;
            match copy.state {
                _ if !confirm => {}
                State::Modified => step.send(home, Message::Have { page, ticket }),
                _ => step.send(home, Message::WriteBack { page, ticket, kept: true, version, held: 0 }),
            }
        } else if copy.wants(ticket) {
            let wanted = copy.wanted.take();
            copy.revoked = copy.revoked.filter(|r| r.ticket != ticket);
            step.send(home, Message::Evict { page, ticket });
            self.ask_again(page, home, wanted, step);
        }
    }

    pub(super) fn holder_tick(&mut self, page: PageNo, step: &mut Step) {
        let Some(home) = self.home(page) else { return };
        match self.copies.get(&page) {
            Some(copy) if copy.revoked.is_some_and(|r| copy.has(r.ticket)) => {
                self.revoke_when_due(page, home, step);
            }
            _ => self.trim_all(step),
        }
    }

    fn revoke_when_due(&mut self, page: PageNo, home: NodeId, step: &mut Step) {
        match self.copies.get(&page) {
            // Who waits for more than it has is not served by keeping what it has.
            Some(copy) if step.now < copy.held_until && copy.wanted.is_none() => {
                self.deadlines.insert((copy.held_until, page));
            }
            _ => self.revoke(page, home, step),
        }
    }

    /// Does what the home wants.
    fn revoke(&mut self, page: PageNo, home: NodeId, step: &mut Step) {
        let config = self.config;
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let Some(Revoke { ticket, to }) = copy.revoked.take() else { return };
        let version = copy.version;
        let mapped = !std::mem::take(&mut copy.marker);
        copy.pace.lost(&config, step.now);
        match to {
            To::Nobody => {
                if mapped {
                    step.actions.push(Action::Zap(page));
                } else {
                    self.streams.wasted(page);
                }
                step.send(home, Message::Ack { page, ticket });
            }
            To::Node { keep, node, ticket: to_ticket, held, home_held } => {
                step.actions.push(if keep { Action::Protect(page) } else { Action::Zap(page) });
                let access = if keep { Access::Read } else { Access::Write };
                let forwarded = node != home && !self.dead.contains(&node);
                if forwarded {
                    step.send(node, Message::Data { page, access, ticket: to_ticket, version, held });
                }
                step.send(
                    home,
                    if keep || !forwarded {
                        Message::WriteBack { page, ticket, kept: keep, version, held: home_held }
                    } else {
                        Message::Passed { page, ticket }
                    },
                );
                if keep {
                    copy.state = State::Shared;
                    return;
                }
            }
        }
        // The bytes stay, in case that they are current again, or nearly so.
        copy.state = State::Invalid;
        copy.ticket = 0;
    }

    /// Gives a copy back to its home, unless it is not here, or a request is under way.
    pub(super) fn release(&mut self, page: PageNo, step: &mut Step) {
        let Some(home) = self.home(page) else { return step.refuse(Refusal::Page) };
        let Some(copy) = self.copies.get_mut(&page).filter(|c| c.wanted.is_none()) else { return };
        if self.dead.contains(&home) || copy.is_lost() {
            return;
        }
        if copy.revoked.is_some() {
            self.revoke(page, home, step);
        }
        self.drop_copy(page, home, step);
        step.actions.push(Action::Discard(page));
    }

    /// Gives up a page of which nothing is under way; its memory is the caller's to discard.
    pub(super) fn drop_copy(&mut self, page: PageNo, home: NodeId, step: &mut Step) {
        let Some(copy) = self.copies.get(&page) else { return };
        let (ticket, version) = (copy.ticket, copy.version);
        let message = match copy.state {
            State::Shared => Some(Message::Evict { page, ticket }),
            State::Modified => Some(Message::WriteBack { page, ticket, kept: false, version, held: 0 }),
            State::Invalid | State::Lost => None,
        };
        if copy.marker {
            self.streams.wasted(page);
        } else if message.is_some() {
            step.actions.push(Action::Zap(page));
        }
        if let Some(message) = message {
            step.send(home, message);
        }
        self.delist(page);
        self.copies.remove(&page);
    }

    /// Forgets a page of which there is nothing to know.
    fn forget(&mut self, page: PageNo) {
        if self.copies.get(&page).is_some_and(|c| !c.is_live() && c.version == 0) {
            self.copies.remove(&page);
        }
    }

    /// What was asked of a dead home is lost; copies that are here stay as they are.
    pub(super) fn holder_node_died(&mut self, dead: NodeId, step: &mut Step) {
        let slices = self.config.slices;
        for (page, copy) in self.copies.iter_mut().filter(|(page, _)| slices.home(*page) == Some(dead)) {
            copy.revoked = None;
            if copy.wanted.take().is_some() {
                copy.state = State::Lost;
                step.actions.push(Action::Poison(page));
            }
        }
    }
}
