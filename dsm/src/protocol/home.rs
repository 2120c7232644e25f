//! The home's side: the directory of the own slice.

use std::collections::VecDeque;

use super::message::{RUN_DATA_PAGES, run_pages};
use super::pace::Pace;
use super::sharers::Sharers;
use super::{Action, Message, Node, Refusal, Step, version};
use crate::types::{Access, NodeId, PageNo};

/// What the home knows of a page that is not plainly `Home`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    state: State,
    /// Version of the bytes that the home has; 0 if its cell may be writing them.
    version: u64,
    /// May the home's cell have the page mapped? While it may not, there is nothing to protect or to zap.
    mapped: bool,
    busy: Option<Busy>,
    /// Requests that wait, first come first. At most one of each node, and one per fetch.
    queue: VecDeque<Request>,
    /// Until when the home's cell keeps what it was granted, in microseconds.
    held_until: u64,
    pace: Pace,
    /// Is it in the list of those that are worth remembering?
    remembered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Only the home has it.
    Home,
    /// The home and these may read. Never empty while the page is not busy.
    Shared(Sharers<Given>),
    /// Only this node has it, and may write.
    Remote(NodeId, Given),
    /// The only copy died.
    Lost,
    /// The same, and the home's cell uses the page for nothing any more ([`super::Input::Bury`]).
    Buried,
}

/// A copy that another node was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Given {
    ticket: u64,
    /// Who was to send it the bytes, if not the home: should that node die, they may not have come.
    by: Option<NodeId>,
}

/// The transaction under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Busy {
    /// For whom; nobody any more if the asker died or does not want it any more.
    request: Option<Request>,
    waits: Waits,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Waits {
    /// Acknowledgements from these.
    Acks(Sharers<Given>),
    /// The owner, which was told to give the page to the asker.
    Owner { node: NodeId, ticket: u64, keep: bool },
    /// The asker: the owner died, and may or may not have given it the page, which has this version if it is one to read.
    Asker { node: NodeId, ticket: u64, version: u64 },
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
    /// Another node, with the version of the bytes that it says it has.
    Node { node: NodeId, ticket: u64, held: u64 },
}

impl Request {
    fn is_by(&self, other: NodeId) -> bool {
        matches!(self.by, By::Node { node, .. } if node == other)
    }

    fn is(&self, other: NodeId, number: u64) -> bool {
        matches!(self.by, By::Node { node, ticket, .. } if node == other && ticket == number)
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            state: State::Home,
            version: 0,
            mapped: true,
            busy: None,
            queue: VecDeque::new(),
            held_until: 0,
            pace: Pace::default(),
            remembered: false,
        }
    }

    fn asker(&self) -> Option<&Request> {
        self.busy.as_ref().and_then(|busy| busy.request.as_ref())
    }

    /// Has this node no business asking? It has a copy, or asks already. While an owner gives it the page, it may have that
    /// before the owner's word is here, and ask for more.
    fn has_or_asks(&self, from: NodeId, access: Access) -> bool {
        let asks = self.queue.iter().any(|r| r.is_by(from));
        let served = match self.busy.as_ref().map(|busy| &busy.waits) {
            Some(Waits::Owner { node, .. }) => *node == from,
            Some(Waits::Asker { .. }) => false,
            Some(Waits::Acks(_)) => self.asker().is_some_and(|r| r.is_by(from)),
            None => match &self.state {
                State::Remote(node, _) => *node == from,
                State::Shared(sharers) => access == Access::Read && sharers.has(from),
                State::Home | State::Lost | State::Buried => false,
            },
        };
        asks || served
    }

    /// Would serving this request take something from the home's cell?
    fn takes_from_home(&self, request: &Request) -> bool {
        match (&self.state, request.by) {
            (State::Home, By::Node { .. }) => true,
            (State::Shared(_), By::Node { .. }) => request.access == Access::Write,
            _ => false,
        }
    }

    /// Is there more to it than what is worth remembering of a page that is at home?
    pub(super) fn is_live(&self) -> bool {
        self.state != State::Home || self.busy.is_some() || !self.queue.is_empty()
    }

    /// The home's cell is about to be able to write the page.
    fn is_written(&mut self, page: PageNo, step: &mut Step) {
        let version = std::mem::take(&mut self.version);
        if self.pace.is_contended() && version != 0 {
            step.actions.push(Action::Twin { page, version });
        }
    }

    /// The only copy died.
    fn is_lost(&mut self, page: PageNo, step: &mut Step) {
        self.state = State::Lost;
        step.actions.push(Action::Lost(page));
    }

    /// The home's cell loses the page, if it has it.
    fn zap(&mut self, page: PageNo, config: &super::Config, step: &mut Step) {
        if std::mem::take(&mut self.mapped) {
            self.pace.lost(config, step.now);
            step.actions.push(Action::Zap(page));
        }
    }
}

impl Node {
    /// An access of the home's own cell waits.
    pub(super) fn home_fault(&mut self, page: PageNo, access: Access, step: &mut Step) {
        let config = self.config;
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
            if allowed == Access::Write {
                entry.is_written(page, step);
            }
            step.actions.push(Action::Install { page, access: allowed });
            if !entry.mapped {
                entry.mapped = true;
                entry.pace.missed(&config, step.now);
                entry.held_until = entry.pace.granted(&config, step.now);
            }
        } else if !entry.queue.iter().chain(entry.asker()).any(|r| r.by == By::Cell) {
            entry.pace.missed(&config, step.now);
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

    /// The home's cell has no use for what was in a lost page. Its access that waits, if one does, waits no more.
    pub(super) fn bury(&mut self, page: PageNo, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page).filter(|entry| entry.state == State::Lost) else {
            return step.refuse(Refusal::Late);
        };
        entry.state = State::Buried;
        entry.mapped = true;
        step.actions.extend([Action::Zap(page), Action::Discard(page)]);
        step.actions.push(Action::Install { page, access: Access::Write });
    }

    /// Another node asks for a copy.
    pub(super) fn request(
        &mut self,
        page: PageNo,
        from: NodeId,
        access: Access,
        ticket: u64,
        held: u64,
        step: &mut Step,
    ) {
        if self.directory.get(&page).is_some_and(|entry| entry.has_or_asks(from, access)) {
            return step.refuse(Refusal::Duplicate);
        }
        let entry = self.directory.get_or_insert_with(page, Entry::new);
        entry.queue.push_back(Request { by: By::Node { node: from, ticket, held }, access });
        self.pump(page, step);
    }

    /// Another node asks for what can be had of a run: nothing waits for it, and nothing is taken for it from anybody.
    pub(super) fn run_request(
        &mut self,
        first: PageNo,
        from: NodeId,
        ticket: u64,
        bits: u64,
        step: &mut Step,
    ) {
        let (mut given, mut skipped, mut of_bytes) = (0_u64, 0_u64, 0);
        let answer =
            |given, skipped, version| Message::DataRun { page: first, ticket, version, given, skipped };
        // Pages that only the home has all get one name for their bytes.
        let mut fresh = 0;
        for (n, page) in run_pages(first, bits) {
            if !self.can_share(page, from, step.now) {
                skipped |= 1 << n;
                continue;
            }
            let config = self.config;
            let entry = self.directory.get_or_insert_with(page, Entry::new);
            if entry.version == 0 {
                if fresh == 0 {
                    self.last_version += 1;
                    fresh = version(config.me, self.last_version);
                }
                entry.version = fresh;
            }
            if given != 0 && (entry.version != of_bytes || given.count_ones() as usize == RUN_DATA_PAGES) {
                step.send(from, answer(given, 0, of_bytes));
                given = 0;
            }
            of_bytes = entry.version;
            given |= 1 << n;
            Self::share(entry, page, (from, Given { ticket: ticket + n, by: None }), &config, step);
        }
        step.send(from, answer(given, skipped, if given == 0 { 0 } else { of_bytes }));
    }

    /// Can this node have the page to read at once, at nobody's cost?
    fn can_share(&self, page: PageNo, from: NodeId, now: u64) -> bool {
        self.directory.get(&page).is_none_or(|entry| {
            let free = entry.busy.is_none() && entry.queue.is_empty();
            free && match &entry.state {
                State::Home => now >= entry.held_until,
                State::Shared(sharers) => !sharers.has(from),
                State::Remote(..) | State::Lost | State::Buried => false,
            }
        })
    }

    /// One more sharer of a page that the home has.
    fn share(
        entry: &mut Entry,
        page: PageNo,
        (to, given): (NodeId, Given),
        config: &super::Config,
        step: &mut Step,
    ) {
        match &mut entry.state {
            State::Shared(sharers) => sharers.insert(to, given),
            state => {
                if entry.mapped {
                    entry.pace.lost(config, step.now);
                    step.actions.push(Action::Protect(page));
                }
                *state = State::Shared(Sharers::one(to, given));
            }
        }
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
                None => return self.put_away(page, step.now),
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

    /// A page has come home. One that is likely to be taken again is worth remembering, up to a number; others are forgotten.
    fn put_away(&mut self, page: PageNo, now: u64) {
        let most = self.config.twin_pages;
        let Some(entry) = self.directory.get_mut(&page).filter(|e| most > 0 && e.pace.was_lost()) else {
            self.directory.remove(&page);
            return;
        };
        if std::mem::replace(&mut entry.remembered, true) {
            return;
        }
        self.remembered.push_back(page);
        if self.remembered.len() as u64 > most
            && let Some(oldest) = self.remembered.pop_front()
            && let Some(entry) = self.directory.get_mut(&oldest)
        {
            entry.remembered = false;
            // One that is in use, or held, is looked at again when that is over.
            if !entry.is_live() && now >= entry.held_until {
                self.directory.remove(&oldest);
            }
        }
    }

    /// Serves a request to an idle page: answers it, or makes the page busy with it.
    fn serve(&mut self, page: PageNo, request: Request, step: &mut Step) {
        let config = self.config;
        let Some(entry) = self.directory.get_mut(&page) else { return };
        match entry.state.clone() {
            State::Lost | State::Buried => match request.by {
                By::Cell if entry.state == State::Buried => {
                    step.actions.push(Action::Install { page, access: Access::Write });
                }
                By::Cell => step.actions.push(Action::Poison(page)),
                By::Fetch(token) => {
                    let lost = entry.state == State::Lost;
                    step.actions.push(Action::Fetched { page, token, lost });
                }
                By::Node { node, ticket, .. } => step.send(node, Message::Lost { page, ticket }),
            },
            State::Remote(node, Given { ticket, .. }) => {
                if request.is_by(node) {
                    return step.refuse(Refusal::Duplicate);
                }
                let keep = request.access == Access::Read;
                let (to, to_ticket, held) = match request.by {
                    By::Node { node, ticket, held } => (node, ticket, held),
                    By::Cell | By::Fetch(_) => (config.me, 0, 0),
                };
                let home_held = entry.version;
                entry.busy =
                    Some(Busy { request: Some(request), waits: Waits::Owner { node, ticket, keep } });
                step.send(node, Message::Recall { page, ticket, keep, to, to_ticket, held, home_held });
            }
            State::Shared(sharers) if request.access == Access::Write => {
                let mut others = sharers;
                if let By::Node { node, .. } = request.by {
                    others.remove(node);
                }
                for (to, &Given { ticket, .. }) in others.iter() {
                    step.send(to, Message::Invalidate { page, ticket });
                }
                if request.by != By::Cell {
                    entry.zap(page, &config, step);
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
        let config = self.config;
        let Some(entry) = self.directory.get_mut(&page) else { return };
        match request.by {
            By::Fetch(token) => step.actions.push(Action::Fetched { page, token, lost: false }),
            By::Cell => {
                let access = if entry.state == State::Home { Access::Write } else { Access::Read };
                entry.mapped = true;
                entry.held_until = entry.pace.granted(&config, step.now);
                if access == Access::Write {
                    entry.is_written(page, step);
                }
                step.actions.push(Action::Install { page, access });
            }
            By::Node { node: to, ticket, held } => {
                if entry.version == 0 {
                    self.last_version += 1;
                    entry.version = version(config.me, self.last_version);
                }
                let (access, given) = (request.access, Given { ticket, by: None });
                if access == Access::Write {
                    entry.zap(page, &config, step);
                    entry.state = State::Remote(to, given);
                } else {
                    Self::share(entry, page, (to, given), &config, step);
                }
                let version = entry.version;
                step.send(
                    to,
                    if held == version {
                        Message::Same { page, access, ticket }
                    } else {
                        Message::Data { page, access, ticket, version, held }
                    },
                );
            }
        }
    }

    /// A sharer has dropped its copy.
    pub(super) fn acked(&mut self, page: PageNo, from: NodeId, ticket: u64, step: &mut Step) {
        let Some(Busy { waits: Waits::Acks(acks), .. }) =
            self.directory.get_mut(&page).and_then(|e| e.busy.as_mut())
        else {
            return step.refuse(Refusal::Unexpected);
        };
        if acks.get(from).is_none_or(|given| given.ticket != ticket) {
            return step.refuse(Refusal::Unexpected);
        }
        acks.remove(from);
        if acks.is_empty() {
            self.all_acked(page, step);
        }
    }

    /// Nobody but the asker (and, for the home's own write, the home) has a copy any more.
    fn all_acked(&mut self, page: PageNo, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        let request = entry.busy.take().and_then(|busy| busy.request);
        entry.state = State::Home;
        match request {
            Some(request) => self.grant(page, request, step),
            None => self.share_alone(page, step),
        }
        self.pump(page, step);
    }

    /// The page is `Home` with nobody waiting for that: a mapping that was write-protected is so no more.
    fn share_alone(&mut self, page: PageNo, step: &mut Step) {
        if let Some(entry) = self.directory.get_mut(&page).filter(|e| e.mapped) {
            entry.version = 0;
            step.actions.push(Action::Unprotect(page));
        }
    }

    /// The owner's bytes have come, asked for or given back.
    pub(super) fn written_back(
        &mut self,
        page: PageNo,
        from: NodeId,
        (ticket, kept): (u64, bool),
        of_bytes: u64,
        held: u64,
        step: &mut Step,
    ) {
        let Some(entry) = self.directory.get_mut(&page) else { return step.refuse(Refusal::Unexpected) };
        let asker = entry.asker().copied();
        let from_asker = asker.is_some_and(|r| r.is(from, ticket));
        let owned = version(from, ticket);
        let (expected, sharers, done) = match entry.busy.as_ref().map(|busy| &busy.waits) {
            Some(&Waits::Owner { node, ticket: of_owner, keep }) if node == from && of_owner == ticket => {
                if kept && !keep {
                    return step.refuse(Refusal::State);
                }
                let by = Some(from);
                let mut sharers = Sharers::one(from, Given { ticket, by: None });
                let mut done = false;
                if let (true, Some(Request { by: By::Node { node, ticket, .. }, .. })) = (kept, asker) {
                    sharers.insert(node, Given { ticket, by });
                    done = true;
                }
                (owned, sharers, done)
            }
            // The asker had it, and has given it back already; the owner's word is still on its way.
            Some(Waits::Owner { keep: false, .. }) if from_asker && !kept => (owned, Sharers::none(), true),
            Some(&Waits::Asker { version, .. }) if from_asker && kept && version != 0 => {
                (version, Sharers::one(from, Given { ticket, by: None }), true)
            }
            Some(&Waits::Asker { version: 0, .. }) if from_asker && !kept => (owned, Sharers::none(), true),
            None if !kept
                && matches!(entry.state, State::Remote(n, g) if n == from && g.ticket == ticket) =>
            {
                (owned, Sharers::none(), true)
            }
            _ => return step.refuse(Refusal::State),
        };
        if of_bytes != expected || (held != 0 && held != entry.version) {
            return step.refuse(Refusal::Version);
        }
        step.actions.push(Action::Store(page));
        entry.version = of_bytes;
        entry.state = if kept { State::Shared(sharers) } else { State::Home };
        entry.busy = None;
        if let (false, Some(request)) = (done, asker) {
            entry.queue.push_front(request);
        }
        self.pump(page, step);
    }

    /// The owner has given the page to who had asked for it.
    pub(super) fn passed(&mut self, page: PageNo, from: NodeId, ticket: u64, step: &mut Step) {
        let entry = self.directory.get_mut(&page);
        let Some((entry, request)) = entry.and_then(|entry| match entry.busy {
            Some(Busy { request, waits: Waits::Owner { node, ticket: t, keep: false } })
                if node == from && t == ticket =>
            {
                Some((entry, request))
            }
            _ => None,
        }) else {
            // The asker has given the page back since, and that was here first.
            return step.refuse(Refusal::Late);
        };
        match request {
            Some(Request { by: By::Node { node, ticket, .. }, .. }) => {
                entry.state = State::Remote(node, Given { ticket, by: Some(from) });
            }
            // It went to one that has died since.
            None => entry.is_lost(page, step),
            // It was to come here.
            Some(_) => return step.refuse(Refusal::State),
        }
        entry.busy = None;
        self.pump(page, step);
    }

    /// A sharer has dropped its copy unasked, or will not get it.
    pub(super) fn evicted(&mut self, page: PageNo, from: NodeId, ticket: u64, step: &mut Step) {
        let dead = &self.dead;
        let Some(entry) = self.directory.get_mut(&page) else { return step.refuse(Refusal::Late) };
        match (&mut entry.busy, &mut entry.state) {
            // The invalidation that is under way to it will be acknowledged.
            (Some(Busy { waits: Waits::Acks(acks), .. }), _)
                if acks.get(from).is_some_and(|given| given.ticket == ticket) => {}
            // The asker had its copy to read from the owner, whose word is still on its way.
            (Some(Busy { request, waits: Waits::Owner { keep: true, .. } }), _)
                if request.is_some_and(|r| r.is(from, ticket)) =>
            {
                *request = None;
            }
            // Nobody has the page.
            (Some(Busy { waits: Waits::Asker { node, ticket: t, .. }, .. }), _)
                if *node == from && *t == ticket =>
            {
                self.has_died(page, step);
            }
            (_, State::Remote(node, given))
                if *node == from
                    && given.ticket == ticket
                    && given.by.is_some_and(|by| dead.contains(&by)) =>
            {
                self.has_died(page, step);
            }
            (_, State::Shared(sharers)) if sharers.get(from).is_some_and(|g| g.ticket == ticket) => {
                sharers.remove(from);
                self.unless_shared(page, step);
            }
            (_, State::Lost | State::Buried) => {}
            _ => step.refuse(Refusal::Late),
        }
    }

    /// The only copy is no more. Who waits is told; what the page was busy with is for nobody.
    fn has_died(&mut self, page: PageNo, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        entry.is_lost(page, step);
        if let Some(Busy { request: Some(request), waits }) = entry.busy.take()
            && !matches!(waits, Waits::Asker { .. })
        {
            entry.queue.push_front(request);
        }
        self.pump(page, step);
    }

    /// The asker has the page, for writing, from an owner that has died.
    pub(super) fn confirmed(&mut self, page: PageNo, from: NodeId, ticket: u64, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return step.refuse(Refusal::Unexpected) };
        let asked = Waits::Asker { node: from, ticket, version: 0 };
        if entry.busy.as_ref().is_none_or(|busy| busy.waits != asked) {
            return step.refuse(Refusal::Unexpected);
        }
        entry.busy = None;
        entry.state = State::Remote(from, Given { ticket, by: None });
        self.pump(page, step);
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
        let pages: Vec<PageNo> = self.directory.keys().collect();
        for page in pages {
            self.forget_dead(page, dead, step);
            self.unless_shared(page, step);
            self.pump(page, step);
        }
    }

    fn forget_dead(&mut self, page: PageNo, dead: NodeId, step: &mut Step) {
        let Some(entry) = self.directory.get_mut(&page) else { return };
        entry.queue.retain(|r| !r.is_by(dead));
        if let Some(busy) = &mut entry.busy
            && busy.request.is_some_and(|r| r.is_by(dead))
        {
            busy.request = None;
        }
        // What the dead were to send may not have come; who has it says nothing.
        if let State::Shared(sharers) = &mut entry.state {
            sharers.remove(dead);
            for (to, given) in sharers.iter_mut().filter(|(_, given)| given.by == Some(dead)) {
                given.by = None;
                step.send(to, Message::Ask { page, ticket: given.ticket, confirm: false });
            }
        }
        let owner = match entry.state {
            State::Remote(node, given) if given.by == Some(dead) && node != dead => {
                let ticket = given.ticket;
                step.send(node, Message::Ask { page, ticket, confirm: false });
                node
            }
            State::Remote(node, _) => node,
            _ => self.config.me,
        };
        let Some(Busy { request, waits }) = &mut entry.busy else {
            if owner == dead {
                self.has_died(page, step);
            }
            return;
        };
        match waits {
            Waits::Acks(acks) => {
                let was_waited_for = acks.remove(dead);
                if was_waited_for && acks.is_empty() {
                    self.all_acked(page, step);
                }
            }
            Waits::Asker { node, .. } if *node == dead => self.has_died(page, step),
            Waits::Owner { ticket: of_owner, keep, .. } if owner == dead => match *request {
                // It may have given the page to the asker before it died. The asker knows.
                Some(Request { by: By::Node { node, ticket, .. }, .. }) => {
                    let version = if *keep { version(dead, *of_owner) } else { 0 };
                    *waits = Waits::Asker { node, ticket, version };
                    step.send(node, Message::Ask { page, ticket, confirm: true });
                }
                _ => self.has_died(page, step),
            },
            Waits::Asker { .. } | Waits::Owner { .. } => {}
        }
    }
}
