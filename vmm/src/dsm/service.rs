//! All slices of one node, and the threads that serve them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_manager::{EventOps, EventSet, Events};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ssi_dsm::driver::{Counters, Driver, FaultTimes, Outbox};
use ssi_dsm::memory::{self, PAGE_SIZE, RUN_SIZE, SliceKind, SliceMemory};
use ssi_dsm::protocol::{Config, Refusal, SliceMap};
use ssi_dsm::{NodeId, PageNo, wire};
use ssi_proto::request::{DsmStatus, WaitStatus};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::Link;
use super::polling::{BUSY_POLL_US, BusyPoll, Next};
use crate::devices::event_loop::{self, Handler, drain, watch};
use crate::fabric::{Peer, Reader, Wait};
use crate::machine::{RamKind, RamRegion};
use crate::worker::{Exit, Worker};

/// Faults that a slice's thread takes from the kernel at once. More waiting ones are found by the next read.
const FAULT_BATCH: usize = 16;
const FAULTS: u32 = 0;
const TIMER: u32 = 1;
const READER: u32 = 2;
const MESSAGES: u32 = 3;
/// A thread that polls looks for faults every so many times that it looks for messages.
const FAULT_TURNS: u32 = 4;
/// A thread that polls looks at its other sources at least so often, in microseconds.
const POLL_STRETCH_US: u64 = 5000;

/// Why the DSM of a node could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DsmError {
    /// A layout that cannot be.
    #[error("the slices cannot be laid out so: {0}")]
    Layout(String),
    /// Memory or userfaultfd.
    #[error("the memory of slice {slice}: {source}")]
    Memory {
        /// Which slice.
        slice: u16,
        /// Why.
        source: memory::Error,
    },
    /// A descriptor or a thread.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A processor that the node may not use, or that there is not.
    #[error("processor {0} for the threads of the DSM: this node may not run there")]
    Processor(u32),
}

/// A set of one processor.
fn processor(cpu: u32) -> Result<CpuSet, DsmError> {
    let set = || {
        let index = usize::try_from(cpu).ok()?;
        let mut set = CpuSet::new();
        set.set(index).ok()?;
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        allowed.is_set(index).ok()?.then_some(set)
    };
    set().ok_or(DsmError::Processor(cpu))
}

/// The page's only copy died with a node, or it is no page of this node's slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page is lost: the only copy died with its node, or it is no page of this slice")]
pub struct PageLost;

type Bytes = Box<[u8; PAGE_SIZE]>;
/// Told how many pages of the own slice are lost, when there are more of them.
type OnLost = Box<dyn Fn(u64) + Send + Sync>;
type FetchDone = Box<dyn FnOnce(Result<Bytes, PageLost>) + Send>;

/// Pages that a node fetches ahead of a run of reads, at most.
pub const PREFETCH_PAGES: u64 = ssi_dsm::protocol::RUN_PAGES as u64;

/// Pages of each slice whose changes a node follows, at most: they go as differences (docs/decisions/0002).
pub const TWIN_PAGES: u64 = 1024;

/// How a node's threads serve its slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// The longest time that a thread polls for a message before it sleeps, in microseconds; 0: it sleeps at once.
    pub busy_poll_us: u64,
    /// Processors for them: the thread of slice n runs on the n-th, counted round. Empty: on any.
    pub cpus: Vec<u32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { busy_poll_us: BUSY_POLL_US, cpus: Vec::new() }
    }
}

/// Where a connection waits for the thread that will read it.
struct Adoption {
    reader: Mutex<Option<Reader>>,
    event: EventFd,
}

/// What one lock guards.
struct Slice {
    driver: Driver<Arc<SliceMemory>>,
    timer: TimerFd,
    /// The deadline that the timer is set to.
    armed_us: Option<u64>,
    fetches: BTreeMap<u64, FetchDone>,
    last_fetch: u64,
    /// The memory has failed: the node is going down.
    broken: bool,
}

/// The DSM of one node: see the [module](super).
pub struct Dsm {
    config: Config,
    memories: Vec<Arc<SliceMemory>>,
    slices: Vec<Mutex<Slice>>,
    /// By peer.
    adoptions: Vec<Adoption>,
    start: Instant,
    running: OnceLock<Running>,
    on_lost: OnceLock<OnLost>,
}

struct Running {
    link: Arc<dyn Link>,
    exit: Exit,
    // Joined by their drop.
    _workers: Mutex<Vec<Worker>>,
}

impl fmt::Debug for Dsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsm").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Collects what a driver says.
struct Out<'a> {
    link: Option<&'a dyn Link>,
    fetches: &'a mut BTreeMap<u64, FetchDone>,
    done: Vec<(FetchDone, Result<Bytes, PageLost>)>,
    violation: Option<Refusal>,
    lost: bool,
}

impl Outbox for Out<'_> {
    fn send(&mut self, to: NodeId, frame: &[u8]) {
        match self.link {
            Some(link) => link.send(to, frame),
            None => log::error!("a DSM message to {to} before the DSM was started"),
        }
    }

    fn fetched(&mut self, token: u64, _: PageNo, bytes: Option<&[u8; PAGE_SIZE]>) {
        if let Some(done) = self.fetches.remove(&token) {
            self.done.push((done, bytes.map(|bytes| Box::new(*bytes)).ok_or(PageLost)));
        }
    }

    fn lost(&mut self, _: PageNo) {
        self.lost = true;
    }

    fn violation(&mut self, _: NodeId, why: Refusal) {
        self.violation = Some(why);
    }
}

impl Dsm {
    /// Makes the memory of every slice: this node's own, and windows onto the others'. No thread runs yet.
    ///
    /// # Errors
    /// [`DsmError`].
    pub fn new(config: Config) -> Result<Arc<Self>, DsmError> {
        let SliceMap { base, stride, size, nodes } = config.slices;
        let bad = |why: &str| Err(DsmError::Layout(format!("{why} ({:?})", config.slices)));
        let run = RUN_SIZE as u64;
        if nodes == 0 || config.me.0 >= nodes {
            return bad("this node has no slice");
        }
        if size == 0 || size > stride || [base, stride, size].iter().any(|n| !n.is_multiple_of(run)) {
            return bad("base, stride and size must be multiples of 2 MiB, and a size at most the stride");
        }
        if u64::from(nodes).checked_mul(stride).and_then(|all| all.checked_add(base)).is_none() {
            return bad("the last slice ends beyond the last address");
        }
        let Ok(bytes) = usize::try_from(size) else { return bad("a slice is larger than an address space") };
        let (mut memories, mut slices, mut adoptions) = (vec![], vec![], vec![]);
        for slice in 0..nodes {
            let kind = if config.me.0 == slice { SliceKind::Own } else { SliceKind::Window };
            let memory = SliceMemory::new(bytes, kind)
                .map(Arc::new)
                .map_err(|source| DsmError::Memory { slice, source })?;
            let timer = TimerFd::new()
                .map_err(|e| DsmError::Os { what: "making a timer for the DSM", source: e.into() })?;
            let event = EventFd::new(EFD_NONBLOCK)
                .map_err(|source| DsmError::Os { what: "making an event for the DSM", source })?;
            adoptions.push(Adoption { reader: Mutex::default(), event });
            memories.push(memory.clone());
            slices.push(Mutex::new(Slice {
                driver: Driver::new(config, NodeId(slice), memory),
                timer,
                armed_us: None,
                fetches: BTreeMap::new(),
                last_fetch: 0,
                broken: false,
            }));
        }
        Ok(Arc::new(Self {
            config,
            memories,
            slices,
            adoptions,
            start: Instant::now(),
            running: OnceLock::new(),
            on_lost: OnceLock::new(),
        }))
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The memory of slice `n`.
    pub fn memory(&self, n: NodeId) -> Option<&Arc<SliceMemory>> {
        self.memories.get(usize::from(n.0))
    }

    /// The memory of all slices, for the machine: this node's own as [`RamKind::Own`], the others as [`RamKind::Window`].
    pub fn ram_regions(&self) -> Vec<RamRegion> {
        let region = |(n, memory): (u16, &Arc<SliceMemory>)| {
            let kind = match memory.kind() {
                SliceKind::Own => RamKind::Own,
                SliceKind::Window => RamKind::Window,
            };
            let gpa = self.config.slices.first_page(NodeId(n)).gpa();
            let host = NonNull::new(memory.guest_addr())?;
            // SAFETY: the mapping stays as long as the memory, which the region keeps.
            Some(unsafe { RamRegion::from_raw(gpa, kind, host, memory.size() as u64, memory.clone()) })
        };
        (0..).zip(&self.memories).filter_map(region).collect()
    }

    /// Starts one thread for each slice. Dropping the last reference ends them. Called once.
    ///
    /// # Errors
    /// [`DsmError::Os`] if no thread can be had, or it is running already; [`DsmError::Processor`].
    pub fn start(self: &Arc<Self>, link: Arc<dyn Link>, exit: &Exit, tuning: Tuning) -> Result<(), DsmError> {
        let os = |source| DsmError::Os { what: "starting the DSM", source };
        let sets = tuning.cpus.iter().map(|cpu| processor(*cpu)).collect::<Result<Vec<_>, _>>()?;
        let running = Running { link, exit: exit.clone(), _workers: Mutex::default() };
        self.running.set(running).map_err(|_| os(std::io::ErrorKind::AlreadyExists.into()))?;
        let mut workers = vec![];
        for slice in 0..self.slices.len() {
            let timer_fd = self.lock(slice).timer.as_raw_fd();
            let memory = self.memories[slice].clone();
            let thread = SliceThread {
                dsm: Arc::downgrade(self),
                slice,
                memory,
                timer_fd,
                adoption_fd: self.adoptions[slice].event.as_raw_fd(),
                reader: None,
                poll: BusyPoll::new(tuning.busy_poll_us),
            };
            let set = sets.iter().cycle().nth(slice).copied();
            let worker = Worker::spawn(&format!("dsm-{slice}"), exit, move |stop| {
                if let Some(set) = set {
                    sched_setaffinity(Pid::from_raw(0), &set).context("choosing a processor")?;
                }
                event_loop::run(stop, thread)
            });
            workers.push(worker.map_err(os)?);
        }
        if let Some(running) = self.running.get() {
            *running._workers.lock().unwrap_or_else(PoisonError::into_inner) = workers;
        }
        Ok(())
    }

    /// A frame came from `from`. Never blocks. Frames that do not fit are counted, and change nothing.
    ///
    /// # Errors
    /// No honest node sends this frame: the connection has to be closed.
    pub fn message(&self, from: NodeId, frame: &[u8]) -> Result<(), Refusal> {
        // Which slice; the driver checks everything again.
        let page = wire::Packet::new_checked(frame).map(|packet| PageNo(packet.page_number()));
        let slice = page.ok().and_then(|page| self.config.slices.home(page)).unwrap_or(self.config.me);
        self.with(usize::from(slice.0), |driver, now, out| driver.message(from, frame, now, out))
            .map_or(Ok(()), Err)
    }

    /// Takes the reading half of the connection to another node for the thread of that node's slice: a fault and its answer
    /// then need one thread, not two.
    pub(super) fn adopt_reader(&self, reader: Reader) -> Option<Reader> {
        let Peer::Node(node) = reader.peer() else { return Some(reader) };
        let Some(adoption) = self.adoptions.get(node as usize) else { return Some(reader) };
        if self.running.get().is_none() {
            return Some(reader);
        }
        *adoption.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
        if let Err(error) = adoption.event.write(1) {
            log::error!("the DSM's thread cannot be told of a connection: {error}");
            return adoption.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        None
    }

    /// A node will say nothing more. Idempotent; never blocks.
    pub fn node_died(&self, node: NodeId) {
        for slice in 0..self.slices.len() {
            self.with(slice, |driver, now, out| driver.node_died(node, now, out));
        }
    }

    /// `told` is called, on any thread, with the number of lost pages of this node's own slice when it has grown. It must not
    /// wait. Called once.
    pub fn on_lost(&self, told: impl Fn(u64) + Send + Sync + 'static) {
        if self.on_lost.set(Box::new(told)).is_err() {
            log::error!("lost pages are told to one only");
        }
    }

    /// The lost pages of this node's own slice from `gpa` on, as runs of addresses: the first `most` runs.
    pub fn lost_runs(&self, gpa: u64, most: usize) -> Vec<Range<u64>> {
        let first = PageNo(gpa.div_ceil(PAGE_SIZE as u64));
        let slice = self.lock(usize::from(self.config.me.0));
        let mut runs: Vec<Range<u64>> = Vec::new();
        for at in slice.driver.lost_pages(first).map(PageNo::gpa) {
            let count = runs.len();
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += PAGE_SIZE as u64,
                _ if count == most => break,
                _ => runs.push(at..at + PAGE_SIZE as u64),
            }
        }
        runs
    }

    /// The cell uses what was in the page at `gpa`, of its own slice, for nothing any more: if it is lost, the cell finds zeros
    /// there from now on, instead of an error. Never blocks.
    pub fn bury(&self, gpa: u64) {
        let page = PageNo::of_gpa(gpa);
        self.with(usize::from(self.config.me.0), |driver, now, out| driver.bury(page, now, out));
    }

    /// Brings the page at `gpa`, in another node's slice, into its window, readable. A hint; never blocks.
    pub fn prefetch(&self, gpa: u64) {
        let page = PageNo::of_gpa(gpa);
        if let Some(slice) = self.config.slices.home(page) {
            self.with(usize::from(slice.0), |driver, now, out| driver.prefetch(page, now, out));
        }
    }

    /// Gives this node's copy of the page at `gpa`, in another node's slice, back to its home. Never blocks.
    pub fn release(&self, gpa: u64) {
        let page = PageNo::of_gpa(gpa);
        if let Some(slice) = self.config.slices.home(page) {
            self.with(usize::from(slice.0), |driver, now, out| driver.release(page, now, out));
        }
    }

    /// Gives `done` the current bytes of the page at `gpa`, of this node's own slice, wherever its current copy is: at once,
    /// on this thread, if it is here; else later, on a thread of the fabric, where `done` must not wait.
    pub fn read_page(&self, gpa: u64, done: impl FnOnce(Result<Bytes, PageLost>) + Send + 'static) {
        let page = PageNo::of_gpa(gpa);
        let me = usize::from(self.config.me.0);
        let token = {
            let mut slice = self.lock(me);
            slice.last_fetch += 1;
            let token = slice.last_fetch;
            slice.fetches.insert(token, Box::new(done));
            token
        };
        self.with(me, |driver, now, out| driver.fetch(page, token, now, out));
    }

    /// [`Dsm::read_page`] for threads that may wait: those that serve FETCH. A page that is here, as nearly all are, costs a
    /// lock and a copy.
    ///
    /// # Errors
    /// [`PageLost`].
    pub fn read_page_wait(&self, gpa: u64) -> Result<Bytes, PageLost> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.read_page(gpa, move |bytes| drop(sender.send(bytes)));
        // A sender that is dropped unused: the node is going down.
        receiver.recv().unwrap_or(Err(PageLost))
    }

    /// Counters of each slice, in order.
    pub fn counters(&self) -> Vec<Counters> {
        (0..self.slices.len()).map(|slice| self.lock(slice).driver.counters().clone()).collect()
    }

    /// What all slices together have cost so far.
    pub fn status(&self) -> DsmStatus {
        let (mut status, mut times) = (DsmStatus::default(), [FaultTimes::default(); 3]);
        for slice in 0..self.slices.len() {
            let slice = self.lock(slice);
            let c = slice.driver.counters();
            for (all, these) in times.iter_mut().zip(&c.fault_times) {
                all.merge(these);
            }
            status.sent_count += c.sent_short_count + c.sent_page_count;
            status.sent_bytes += c.sent_bytes;
            status.received_count += c.received_count;
            status.refused_count += c.refused_count.values().sum::<u64>();
            status.window_pages += slice.driver.resident_pages() as u64;
            status.discarded_pages += c.discarded_pages_count;
            status.run_pages += c.run_pages_count;
            status.lost_pages += c.lost_pages_count;
        }
        [status.read, status.write, status.upgrade] = times.map(|times| WaitStatus {
            count: times.count,
            min_us: times.min_us,
            mean_us: times.total_us.checked_div(times.count).unwrap_or(0),
            max_us: times.max_us,
            below_us: times.below_us.to_vec(),
        });
        status
    }

    /// Pages of each slice that are not plainly at their home, as this node sees it.
    pub fn tracked_pages(&self) -> Vec<usize> {
        (0..self.slices.len()).map(|slice| self.lock(slice).driver.tracked_pages()).collect()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self, slice: usize) -> MutexGuard<'_, Slice> {
        self.slices[slice].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One event of one slice, then the timer, then, without the lock, the answers to fetches.
    fn with(
        &self,
        slice: usize,
        event: impl FnOnce(&mut Driver<Arc<SliceMemory>>, u64, &mut Out<'_>) -> Result<(), memory::Error>,
    ) -> Option<Refusal> {
        let running = self.running.get();
        let mut guard = self.lock(slice);
        let state = &mut *guard;
        if state.broken {
            state.fetches.clear();
            return None;
        }
        let now = self.now_us();
        let link = running.map(|running| running.link.as_ref());
        let mut out = Out { link, fetches: &mut state.fetches, done: vec![], violation: None, lost: false };
        let result = event(&mut state.driver, now, &mut out);
        let (done, violation) = (out.done, out.violation);
        let lost = out.lost.then(|| state.driver.counters().lost_pages_count);
        let result = result.map_err(anyhow::Error::from).and_then(|()| state.set_timer(now));
        if let Err(error) = result {
            // The page's state is unknown now: going on could show stale memory.
            log::error!("the DSM of slice {slice} has failed: {error:#}");
            state.broken = true;
            state.fetches.clear();
            if let Some(running) = running {
                running.exit.trigger();
            }
        }
        drop(guard);
        for (done, bytes) in done {
            done(bytes);
        }
        if let (Some(count), Some(on_lost)) = (lost, self.on_lost.get()) {
            log::error!("{count} pages of this cell's memory are lost: their only copies died with a node");
            on_lost(count);
        }
        violation
    }
}

impl Slice {
    fn set_timer(&mut self, now_us: u64) -> anyhow::Result<()> {
        let deadline = self.driver.next_deadline();
        if deadline == self.armed_us {
            return Ok(());
        }
        match deadline {
            Some(at) => self.timer.reset(Duration::from_micros(at.saturating_sub(now_us).max(1)), None)?,
            None => self.timer.clear()?,
        }
        self.armed_us = deadline;
        Ok(())
    }
}

/// Body of a slice's thread. For another node's slice it reads the connection to that node as well: the answer to a fault comes to
/// the thread that asked.
struct SliceThread {
    dsm: std::sync::Weak<Dsm>,
    slice: usize,
    memory: Arc<SliceMemory>,
    timer_fd: i32,
    adoption_fd: i32,
    reader: Option<Reader>,
    poll: BusyPoll,
}

impl SliceThread {
    fn faults(&self, dsm: &Dsm) -> anyhow::Result<()> {
        for fault in self.memory.faults(FAULT_BATCH)? {
            dsm.with(self.slice, |driver, now, out| driver.fault(fault.index, fault.access, now, out));
            // The answer's bytes will need memory: had while they are on their way.
            self.memory.populate(fault.index)?;
        }
        Ok(())
    }

    /// Reads what is there. Was the peer served? `None` when the connection is over.
    fn messages(&mut self, dsm: &Dsm) -> Option<Heard> {
        let reader = self.reader.as_mut()?;
        let before = reader.sent_count();
        match reader.pump(dsm, Wait::No)? {
            0 => Some(Heard::Nothing),
            _ if reader.sent_count() > before => Some(Heard::Request),
            _ => Some(Heard::Answer),
        }
    }

    /// Polls the connection as long as something is likely to come.
    fn poll(&mut self, dsm: &Dsm, mut served: bool, ops: &mut EventOps) -> anyhow::Result<()> {
        let stretch = dsm.now_us() + POLL_STRETCH_US;
        while self.reader.is_some() {
            let (awaited, deadline) = {
                let slice = dsm.lock(self.slice);
                (slice.driver.awaited_pages(), slice.armed_us.unwrap_or(u64::MAX))
            };
            let next = if awaited > 0 { Some(Next::Answer) } else { served.then_some(Next::Request) };
            let now = dsm.now_us();
            let Some(until) = self.poll.wait(next, now) else { return Ok(()) };
            let until = until.min(stretch).min(deadline);
            for turn in 1_u32.. {
                // Whoever has something to do on this processor does it first: the peer, perhaps.
                std::thread::yield_now();
                match self.messages(dsm) {
                    None => {
                        self.close(ops);
                        return Ok(());
                    }
                    Some(Heard::Nothing) => {}
                    Some(heard) => {
                        served |= heard == Heard::Request;
                        break;
                    }
                }
                if turn.is_multiple_of(FAULT_TURNS) {
                    self.faults(dsm)?;
                }
                if dsm.now_us() >= until {
                    return Ok(());
                }
            }
            self.poll.came(dsm.now_us());
        }
        Ok(())
    }

    fn close(&mut self, ops: &mut EventOps) {
        if let Some(reader) = self.reader.take()
            && let Err(error) = ops.remove(Events::empty_raw(reader.as_raw_fd()))
        {
            log::debug!("a connection was not watched: {error}");
        }
    }
}

/// What a look at the connection has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// Messages after which something was sent to the peer.
    Request,
    /// Other messages.
    Answer,
}

impl Handler for SliceThread {
    fn sources(&self) -> Vec<(i32, u32)> {
        vec![(self.memory.as_raw_fd(), FAULTS), (self.timer_fd, TIMER), (self.adoption_fd, READER)]
    }

    fn ready(&mut self, token: u32, _: EventSet, ops: &mut EventOps) -> anyhow::Result<()> {
        let Some(dsm) = self.dsm.upgrade() else { return Ok(()) };
        let mut served = false;
        match token {
            TIMER => {
                // Setting the timer again takes its expiration away; so does clearing it.
                dsm.lock(self.slice).armed_us = Some(u64::MAX);
                dsm.with(self.slice, |driver, now, out| driver.tick(now, out));
            }
            READER => {
                let adoption = &dsm.adoptions[self.slice];
                drain(&adoption.event);
                self.close(ops);
                self.reader = adoption.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(reader) = &self.reader {
                    watch(ops, reader.as_raw_fd(), MESSAGES, EventSet::IN)?;
                }
            }
            MESSAGES => {
                self.poll.came(dsm.now_us());
                match self.messages(&dsm) {
                    Some(heard) => served = heard == Heard::Request,
                    None => self.close(ops),
                }
            }
            _ => self.faults(&dsm)?,
        }
        self.poll(&dsm, served, ops)
    }
}
