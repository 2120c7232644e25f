//! The home's side: the directory of the own slice.

use std::collections::{BTreeMap, VecDeque};

use super::{Action, Message, Node, Refusal, Step};
use crate::types::{Access, NodeId, PageNo};

/// What the home knows of a page that is not plainly `Home`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    state: State,
    /// May the home's cell have the page mapped? While it may not, there is nothing to protect or to zap.
    mapped: bool,
    busy: Option<Busy>,
    /// Requests that wait, first come first. At most one of each node, and one per fetch.
    queue: VecDeque<Request>,
    /// Until when the home's cell keeps what it was granted, in microseconds.
    held_until: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Only the home has it.
    Home,
    /// The home and these may read; each has the version that it was given. Never empty while the page is not busy.
    Shared(BTreeMap<NodeId, u64>),
    /// Only this node has it, and may write.
    Remote { node: NodeId, version: u64 },
    /// The only copy died.
    Lost,
}

/// The transaction under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Busy {
    /// For whom; nobody any more if the asker died.
    request: Option<Request>,
    waits: Waits,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Waits {
    /// Acknowledgements from these, for these versions.
    Acks(BTreeMap<NodeId, u64>),
    /// The bytes from the owner.
    WriteBack { node: NodeId, version: u64, keep: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Request {
    by: By,
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum By {
    /// An access of the home's cell.
    Cell,
    /// [`super::Input::Fetch`], with its token.
    Fetch(u64),
    /// Another node, with the version of the copy that it says it holds.
    Node(NodeId, u64),
}

impl Request {
    fn is_by(&self, node: NodeId) -> bool {
        matches!(self.by, By::Node(n, _) if n == node)
    }
}

impl Entry {
    fn new() -> Self {
        Self { state: State::Home, mapped: true, busy: None, queue: VecDeque::new(), held_until: 0 }
    }

    fn waits(&self, like: impl Fn(&Request) -> bool) -> bool {
        self.queue.iter().any(&like) || self.busy.as_ref().and_then(|b| b.request.as_ref()).is_some_and(like)
    }

    /// Would serving this request take something from the home's cell?
    fn takes_from_home(&self, request: &Request) -> bool {
        match (&self.state, request.by) {
            (State::Home, By::Node(..)) => true,
            (State::Shared(_), By::Node(..)) => request.access == Access::Write,
            _ => false,
        }
    }
}

impl Node {
    /// An access of the home's own cell waits.
    pub(super) fn home_fault(&mut self, page: PageNo, access: Access, step: &mut Step) {
        let hold = self.config.hold_us;
        let Some(entry) = self.directory.get_mut(&page) else {
            // Plainly Home: a page that came back, or a neighbour in a run that has come under watch.
            return step.actions.push(Action::Install { page, access: Access::Write });
        };
        let allowed = match entry.state {
            State::Home => Some(Access::Write),
            State::Shared(_) => Some(Access::Read),
            _ => None,
        };
        if entry.busy.is_none()
            && let Some(allowed) = allowed
            && allowed >= access
        {
            step.actions.push(Action::Install { page, access: allowed });
            if !entry.mapped {
                entry.mapped = true;
                entry.held_until = step.now + hold;
            }
        } else if !entry.waits(|r| r.by == By::Cell) {
            entry.queue.push_back(Request { by: By::Cell, access });
        }
        self.pump(page, step);
    }

    /// The current bytes are wanted at home.
    pub(super) fn fetch(&mut self, page: PageNo, token: u64, step: &mut Step) {
        if self.home(page) != Some(self.config.me) {
            return step.refuse(Refusal::Page);
        }
        let Some(entry) = self.directory.get_mut(&page) else {
            return step.actions.push(Action::Fetched { page, token, lost: false });
        };
        entry.queue.push_back(Request { by: By::Fetch(token), access: Access::Read });
        self.pump(page, step);
    }

    /// Another node asks for a copy.
    pub(super) fn request(&mut self, page: PageNo, from: NodeId, access: Access, held: u64, step: &mut Step) {
        let entry = self.directory.entry(page).or_insert_with(Entry::new);
        let owns = entry.busy.is_none() && matches!(entry.state, State::Remote { node, .. } if node == from);
        if owns || entry.waits(|r| r.is_by(from)) {
            return step.refuse(Refusal::Duplicate);
        }
        entry.queue.push_back(Request { by: By::Node(from, held), access });
        self.pump(page, step);
    }

    /// Serves what can be served now, and forgets the page when it is plainly `Home` again.
    pub(super) fn pump(&mut self, page: PageNo, step: &mut Step) {
        while let Some(entry) = self.directory.get_mut(&page) {
            if entry.busy.is_some() {
                return;
            }
            let held = step.now < entry.held_until;
            match entry.queue.front().copied() {
                None if entry.state != State::Home => return,
                None if held => break,
                None => drop(self.directory.remove(&page)),
                Some(request) if held && entry.takes_from_home(&request) => break,
                Some(request) => {
                    entry.queue.pop_front();
                    self.serve(page, request, step);
                }
            }
        }
        if let Some(entry) = self.directory.get(&page) {
            self.deadlines.insert((entry.held_until, page));
        }
    }

    /// Serves a request to an idle page: answers it, or makes the page busy with it.
    fn serve(&mut self, page: PageNo, request: Request, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        match entry.state.clone() {
            State::Lost => match request.by {
                By::Cell => step.actions.push(Action::Poison(page)),
                By::Fetch(token) => step.actions.push(Action::Fetched { page, token, lost: true }),
                By::Node(to, _) => step.send(to, Message::Lost { page }),
            },
            State::Remote { node, version } => {
                if request.is_by(node) {
                    return step.refuse(Refusal::Duplicate);
                }
                let keep = request.access == Access::Read;
                entry.busy =
                    Some(Busy { request: Some(request), waits: Waits::WriteBack { node, version, keep } });
                let message = if keep {
                    Message::Downgrade { page, version }
                } else {
                    Message::Recall { page, version }
                };
                step.send(node, message);
            }
            State::Shared(sharers) if request.access == Access::Write => {
                let mut others = sharers;
                others.retain(|&node, _| !request.is_by(node));
                for (&to, &version) in &others {
                    step.send(to, Message::Invalidate { page, version });
                }
                if request.by != By::Cell && std::mem::take(&mut entry.mapped) {
                    step.actions.push(Action::Zap(page));
                }
                let done = others.is_empty();
                entry.busy = Some(Busy { request: Some(request), waits: Waits::Acks(others) });
                if done {
                    self.all_acked(page, step);
                }
            }
            State::Home | State::Shared(_) => self.grant(page, request, step),
        }
    }

    /// Answers a request that nothing stands against any more: the page is `Home`, or `Shared` and it is to be read.
    fn grant(&mut self, page: PageNo, request: Request, step: &mut Step) {
        let hold = self.config.hold_us;
        let version = match request.by {
            By::Node(..) => self.new_version(),
            _ => 0,
        };
        let Some(entry) = self.directory.get_mut(&page) else { return };
        match request.by {
            By::Fetch(token) => step.actions.push(Action::Fetched { page, token, lost: false }),
            By::Cell => {
                let access = if entry.state == State::Home { Access::Write } else { Access::Read };
                step.actions.push(Action::Install { page, access });
                entry.mapped = true;
                entry.held_until = step.now + hold;
            }
            By::Node(to, _) if request.access == Access::Write => {
                if std::mem::take(&mut entry.mapped) {
                    step.actions.push(Action::Zap(page));
                }
                entry.state = State::Remote { node: to, version };
                step.send(to, Message::Data { page, access: Access::Write, version });
            }
            By::Node(to, _) => {
                match &mut entry.state {
                    State::Shared(sharers) => drop(sharers.insert(to, version)),
                    state => {
                        if entry.mapped {
                            step.actions.push(Action::Protect(page));
                        }
                        *state = State::Shared(BTreeMap::from([(to, version)]));
                    }
                }
                step.send(to, Message::Data { page, access: Access::Read, version });
            }
        }
    }

    /// A sharer has dropped its copy.
    pub(super) fn acked(&mut self, page: PageNo, from: NodeId, version: u64, step: &mut Step) {
        let Some(Busy { waits: Waits::Acks(acks), .. }) =
            self.directory.get_mut(&page).and_then(|e| e.busy.as_mut())
        else {
            return step.refuse(Refusal::Unexpected);
        };
        if acks.get(&from) != Some(&version) {
            return step.refuse(Refusal::Version);
        }
        acks.remove(&from);
        if acks.is_empty() {
            self.all_acked(page, step);
        }
    }

    /// Nobody but the asker (and, for the home's own write, the home) has a copy any more.
    fn all_acked(&mut self, page: PageNo, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        let request = entry.busy.take().and_then(|busy| busy.request);
        let sharers = match std::mem::replace(&mut entry.state, State::Home) {
            State::Shared(sharers) => sharers,
            _ => BTreeMap::new(),
        };
        match request {
            Some(Request { by: By::Node(to, held), .. }) if held != 0 && sharers.get(&to) == Some(&held) => {
                let version = self.new_version();
                if let Some(entry) = self.directory.get_mut(&page) {
                    entry.state = State::Remote { node: to, version };
                }
                step.send(to, Message::Same { page, version });
            }
            Some(request) => self.grant(page, request, step),
            None => self.share_alone(page, step),
        }
        self.pump(page, step);
    }

    /// The page is `Home` with nobody waiting for that: a mapping that was write-protected is so no more.
    fn share_alone(&mut self, page: PageNo, step: &mut Step) {
        if self.directory.get(&page).is_some_and(|e| e.mapped) {
            step.actions.push(Action::Unprotect(page));
        }
    }

    /// The owner's bytes have come, asked for or given back.
    pub(super) fn written_back(
        &mut self,
        page: PageNo,
        from: NodeId,
        version: u64,
        kept: bool,
        step: &mut Step,
    ) {
        let Some(entry) = self.directory.get_mut(&page) else { return step.refuse(Refusal::Unexpected) };
        if entry.state != (State::Remote { node: from, version }) {
            return step.refuse(Refusal::Version);
        }
        // An owner that gives the page back while it is being asked for has answered.
        let may_keep = matches!(entry.busy, Some(Busy { waits: Waits::WriteBack { keep: true, .. }, .. }));
        if kept && !may_keep {
            return step.refuse(Refusal::Unexpected);
        }
        step.actions.push(Action::Store(page));
        entry.state = if kept { State::Shared(BTreeMap::from([(from, version)])) } else { State::Home };
        if let Some(request) = entry.busy.take().and_then(|busy| busy.request) {
            entry.queue.push_front(request);
        }
        self.pump(page, step);
    }

    /// A sharer has dropped its copy unasked.
    pub(super) fn evicted(&mut self, page: PageNo, from: NodeId, version: u64, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return step.refuse(Refusal::Unexpected) };
        if let Some(Busy { waits: Waits::Acks(acks), .. }) = &entry.busy
            && acks.get(&from) == Some(&version)
        {
            return; // The invalidation that is under way to it will be acknowledged.
        }
        let State::Shared(sharers) = &mut entry.state else { return step.refuse(Refusal::Unexpected) };
        if sharers.get(&from) != Some(&version) {
            return step.refuse(Refusal::Version);
        }
        sharers.remove(&from);
        self.unless_shared(page, step);
    }

    /// A page that lost its last sharer is `Home` again.
    fn unless_shared(&mut self, page: PageNo, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        if entry.busy.is_none() && matches!(&entry.state, State::Shared(sharers) if sharers.is_empty()) {
            entry.state = State::Home;
            self.share_alone(page, step);
            self.pump(page, step);
        }
    }

    /// Another node died: see the rules of the [module](super).
    pub(super) fn home_node_died(&mut self, dead: NodeId, step: &mut Step) {
        let pages: Vec<PageNo> = self.directory.keys().copied().collect();
        for page in pages {
            let Some(entry) = self.directory.get_mut(&page) else { continue };
            entry.queue.retain(|r| !r.is_by(dead));
            if let State::Shared(sharers) = &mut entry.state {
                sharers.remove(&dead);
            }
            let owned = matches!(entry.state, State::Remote { node, .. } if node == dead);
            if owned {
                entry.state = State::Lost;
            }
            let mut acked = false;
            if let Some(busy) = &mut entry.busy {
                if busy.request.is_some_and(|r| r.is_by(dead)) {
                    busy.request = None;
                }
                if let Waits::Acks(acks) = &mut busy.waits {
                    acked = acks.remove(&dead).is_some() && acks.is_empty();
                }
            }
            if owned && let Some(request) = entry.busy.take().and_then(|busy| busy.request) {
                entry.queue.push_front(request);
            }
            if acked {
                self.all_acked(page, step);
            } else {
                self.unless_shared(page, step);
                self.pump(page, step);
            }
        }
    }
}
