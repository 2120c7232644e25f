//! The side of a node that holds, or wants, copies of other nodes' pages.

use super::{Action, Message, Node, Refusal, Step};
use crate::types::{Access, NodeId, PageNo};

/// What a node knows of a page of another home.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Copy {
    state: State,
    /// Of the copy; 0 without one.
    version: u64,
    /// The request that is under way.
    wanted: Option<Wanted>,
    /// The greatest version that the home has invalidated while a request was under way and no copy was here.
    doomed: u64,
    /// What the home wants back: not done yet because of the hold, or because the copy has not come yet.
    revoked: Option<Revoke>,
    /// Until when the copy stays, in microseconds.
    held_until: u64,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Revoke {
    version: u64,
    to: Rights,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rights {
    /// Invalidate.
    Nothing,
    /// Downgrade.
    BytesKept,
    /// Recall.
    Bytes,
}

impl Copy {
    fn new() -> Self {
        Self { state: State::Invalid, version: 0, wanted: None, doomed: 0, revoked: None, held_until: 0 }
    }

    fn allows(&self) -> Option<Access> {
        match self.state {
            State::Shared => Some(Access::Read),
            State::Modified => Some(Access::Write),
            _ => None,
        }
    }
}

impl Node {
    pub(super) fn has_copy(&self, page: PageNo) -> bool {
        self.copies.contains_key(&page)
    }

    /// An access to another node's page waits (`hold`), or a page is wanted ahead of one.
    pub(super) fn holder_fault(
        &mut self,
        page: PageNo,
        home: NodeId,
        access: Access,
        hold: bool,
        step: &mut Step,
    ) {
        let home_is_dead = self.dead.contains(&home);
        let copy = self.copies.entry(page).or_insert_with(Copy::new);
        match copy.allows() {
            _ if copy.state == State::Lost => step.actions.push(Action::Poison(page)),
            // The fault was reported before the page was installed, or the host dropped the mapping.
            Some(allowed) if allowed >= access => {
                step.actions.push(Action::Install { page, access: allowed })
            }
            _ if home_is_dead => {
                copy.state = State::Lost;
                step.actions.push(Action::Poison(page));
            }
            _ => match &mut copy.wanted {
                Some(wanted) => wanted.hold |= hold,
                None => {
                    copy.wanted = Some(Wanted { access, hold });
                    step.send(home, Self::ask(page, access, copy.version));
                }
            },
        }
    }

    fn ask(page: PageNo, access: Access, held: u64) -> Message {
        match access {
            Access::Read => Message::Read { page },
            Access::Write => Message::Write { page, held },
        }
    }

    /// `Data` or `Same` has come.
    pub(super) fn granted(
        &mut self,
        page: PageNo,
        access: Access,
        version: u64,
        same: bool,
        step: &mut Step,
    ) {
        let hold = self.config.hold_us;
        let Some(home) = self.home(page) else { return step.refuse(Refusal::Page) };
        let Some(copy) = self.copies.get_mut(&page) else { return step.refuse(Refusal::Unexpected) };
        let Some(wanted) = copy.wanted.filter(|w| w.access == access) else {
            return step.refuse(Refusal::Unexpected);
        };
        if version <= copy.version || (same && copy.state != State::Shared) {
            return step.refuse(Refusal::Version);
        }
        if version <= copy.doomed {
            return step.send(home, Self::ask(page, access, 0));
        }
        if same {
            step.actions.push(Action::Unprotect(page));
        } else {
            if copy.state == State::Shared {
                step.actions.push(Action::Zap(page));
            }
            step.actions.push(Action::Store(page));
            step.actions.push(Action::Install { page, access });
        }
        copy.state = if access == Access::Write { State::Modified } else { State::Shared };
        copy.version = version;
        copy.wanted = None;
        copy.doomed = 0;
        copy.held_until = if wanted.hold { step.now + hold } else { 0 };
        copy.revoked = copy.revoked.filter(|r| r.version == version);
        if copy.revoked.is_some() {
            self.revoke_when_due(page, home, step);
        }
    }

    /// The home says that the page is lost.
    pub(super) fn lost(&mut self, page: PageNo, step: &mut Step) {
        match self.copies.get_mut(&page) {
            Some(copy) if copy.wanted.is_some() => {
                *copy = Copy { state: State::Lost, ..Copy::new() };
                step.actions.push(Action::Poison(page));
            }
            _ => step.refuse(Refusal::Unexpected),
        }
    }

    /// The home takes a shared copy away.
    pub(super) fn invalidate(&mut self, page: PageNo, home: NodeId, version: u64, step: &mut Step) {
        let Some(copy) = self.copies.get_mut(&page) else {
            // It has crossed with our Evict.
            return step.send(home, Message::Ack { page, version });
        };
        match copy.state {
            State::Shared if copy.version == version && copy.revoked.is_none() => {
                copy.revoked = Some(Revoke { version, to: Rights::Nothing });
                self.revoke_when_due(page, home, step);
            }
            State::Invalid => {
                copy.doomed = copy.doomed.max(version);
                step.send(home, Message::Ack { page, version });
            }
            _ => step.refuse(Refusal::Version),
        }
    }

    /// The home wants the bytes of a copy that may be written.
    pub(super) fn recall(&mut self, page: PageNo, home: NodeId, version: u64, keep: bool, step: &mut Step) {
        // Without a copy: it has crossed with our WriteBack, which is the answer.
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let to = if keep { Rights::BytesKept } else { Rights::Bytes };
        let writes = matches!(copy.wanted, Some(Wanted { access: Access::Write, .. }));
        match copy.state {
            _ if copy.revoked.is_some() => step.refuse(Refusal::Duplicate),
            State::Modified if copy.version == version => {
                copy.revoked = Some(Revoke { version, to });
                self.revoke_when_due(page, home, step);
            }
            // The data that it is about has not come yet, or it has crossed with our WriteBack: the version will tell.
            State::Invalid | State::Shared if writes && version > copy.version => {
                copy.revoked = Some(Revoke { version, to });
            }
            State::Invalid => {}
            _ => step.refuse(Refusal::Version),
        }
    }

    pub(super) fn holder_tick(&mut self, page: PageNo, step: &mut Step) {
        if let Some(home) = self.home(page)
            && self.copies.get(&page).is_some_and(|c| c.revoked.is_some_and(|r| r.version == c.version))
        {
            self.revoke_when_due(page, home, step);
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
        let Some(copy) = self.copies.get_mut(&page) else { return };
        let Some(Revoke { version, to }) = copy.revoked.take() else { return };
        match to {
            Rights::Nothing => {
                step.actions.push(Action::Zap(page));
                step.send(home, Message::Ack { page, version });
            }
            Rights::BytesKept => {
                step.actions.push(Action::Protect(page));
                step.send(home, Message::WriteBack { page, version, kept: true });
                copy.state = State::Shared;
                return;
            }
            Rights::Bytes => {
                step.actions.push(Action::Zap(page));
                step.send(home, Message::WriteBack { page, version, kept: false });
            }
        }
        copy.state = State::Invalid;
        copy.version = 0;
        if copy.wanted.is_none() {
            self.copies.remove(&page);
        }
    }

    /// Gives a copy back to its home, unless it is not here, or a request is under way.
    pub(super) fn release(&mut self, page: PageNo, step: &mut Step) {
        let Some(home) = self.home(page) else { return step.refuse(Refusal::Page) };
        let Some(copy) = self.copies.get_mut(&page).filter(|c| c.wanted.is_none()) else { return };
        if self.dead.contains(&home) {
            return;
        }
        if copy.revoked.is_some() {
            return self.revoke(page, home, step);
        }
        let version = copy.version;
        let message = match copy.state {
            State::Shared => Message::Evict { page, version },
            State::Modified => Message::WriteBack { page, version, kept: false },
            State::Invalid | State::Lost => return,
        };
        step.actions.push(Action::Zap(page));
        step.send(home, message);
        step.actions.push(Action::Discard(page));
        self.copies.remove(&page);
    }

    /// What was asked of a dead home is lost; copies that are here stay as they are.
    pub(super) fn holder_node_died(&mut self, dead: NodeId, step: &mut Step) {
        let slices = self.config.slices;
        for (&page, copy) in self.copies.iter_mut().filter(|(page, _)| slices.home(**page) == Some(dead)) {
            copy.revoked = None;
            if copy.wanted.take().is_some() {
                copy.state = State::Lost;
                step.actions.push(Action::Poison(page));
            }
        }
    }
}
