//! All slices of one node, and the threads that serve them.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet};
use ssi_dsm::driver::{Counters, Driver, Outbox};
use ssi_dsm::memory::{self, PAGE_SIZE, RUN_SIZE, SliceKind, SliceMemory};
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_dsm::{NodeId, PageNo, wire};
use vmm_sys_util::timerfd::TimerFd;

use super::Link;
use crate::devices::event_loop::{self, Handler};
use crate::machine::{RamKind, RamRegion};
use crate::worker::{Exit, Worker};

/// Faults that a slice's thread takes from the kernel at once. More waiting ones are found by the next read.
const FAULT_BATCH: usize = 16;
const FAULTS: u32 = 0;
const TIMER: u32 = 1;

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
}

/// The page's only copy died with a node, or it is no page of this node's slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page is lost: the only copy died with its node, or it is no page of this slice")]
pub struct PageLost;

type Bytes = Box<[u8; PAGE_SIZE]>;
type FetchDone = Box<dyn FnOnce(Result<Bytes, PageLost>) + Send>;

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
    start: Instant,
    running: OnceLock<Running>,
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
        let (mut memories, mut slices) = (vec![], vec![]);
        for slice in 0..nodes {
            let kind = if config.me.0 == slice { SliceKind::Own } else { SliceKind::Window };
            let memory = SliceMemory::new(bytes, kind)
                .map(Arc::new)
                .map_err(|source| DsmError::Memory { slice, source })?;
            let timer = TimerFd::new()
                .map_err(|e| DsmError::Os { what: "making a timer for the DSM", source: e.into() })?;
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
        Ok(Arc::new(Self { config, memories, slices, start: Instant::now(), running: OnceLock::new() }))
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
    /// [`DsmError::Os`] if no thread can be had, or it is running already.
    pub fn start(self: &Arc<Self>, link: Arc<dyn Link>, exit: &Exit) -> Result<(), DsmError> {
        let os = |source| DsmError::Os { what: "starting the DSM", source };
        let running = Running { link, exit: exit.clone(), _workers: Mutex::default() };
        self.running.set(running).map_err(|_| os(std::io::ErrorKind::AlreadyExists.into()))?;
        let mut workers = vec![];
        for slice in 0..self.slices.len() {
            let timer_fd = self.lock(slice).timer.as_raw_fd();
            let memory = self.memories[slice].clone();
            let thread = SliceThread { dsm: Arc::downgrade(self), slice, memory, timer_fd };
            let worker =
                Worker::spawn(&format!("dsm-{slice}"), exit, move |stop| event_loop::run(stop, thread));
            workers.push(worker.map_err(os)?);
        }
        if let Some(running) = self.running.get() {
            *running._workers.lock().unwrap_or_else(PoisonError::into_inner) = workers;
        }
        Ok(())
    }

    /// A frame came from `from`. Never blocks. Frames that make no sense are counted.
    pub fn message(&self, from: NodeId, frame: &[u8]) {
        // Which slice; the driver checks everything again.
        let page = wire::Packet::new_checked(frame).map(|packet| PageNo(packet.page_number()));
        let slice = page.ok().and_then(|page| self.config.slices.home(page)).unwrap_or(self.config.me);
        self.with(usize::from(slice.0), |driver, now, out| driver.message(from, frame, now, out));
    }

    /// A node will say nothing more. Idempotent; never blocks.
    pub fn node_died(&self, node: NodeId) {
        for slice in 0..self.slices.len() {
            self.with(slice, |driver, now, out| driver.node_died(node, now, out));
        }
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

    /// Pages of each slice that are not plainly at their home, as this node sees it.
    pub fn tracked_pages(&self) -> Vec<usize> {
        (0..self.slices.len()).map(|slice| self.lock(slice).driver.tracked_pages()).collect()
    }

    fn lock(&self, slice: usize) -> MutexGuard<'_, Slice> {
        self.slices[slice].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One event of one slice, then the timer, then, without the lock, the answers to fetches.
    fn with(
        &self,
        slice: usize,
        event: impl FnOnce(&mut Driver<Arc<SliceMemory>>, u64, &mut Out<'_>) -> Result<(), memory::Error>,
    ) {
        let running = self.running.get();
        let mut guard = self.lock(slice);
        let state = &mut *guard;
        if state.broken {
            state.fetches.clear();
            return;
        }
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let link = running.map(|running| running.link.as_ref());
        let mut out = Out { link, fetches: &mut state.fetches, done: vec![] };
        let result = event(&mut state.driver, now, &mut out);
        let done = out.done;
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

/// Body of a slice's thread.
struct SliceThread {
    dsm: std::sync::Weak<Dsm>,
    slice: usize,
    memory: Arc<SliceMemory>,
    timer_fd: i32,
}

impl Handler for SliceThread {
    fn sources(&self) -> Vec<(i32, u32)> {
        vec![(self.memory.as_raw_fd(), FAULTS), (self.timer_fd, TIMER)]
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut EventOps) -> anyhow::Result<()> {
        let Some(dsm) = self.dsm.upgrade() else { return Ok(()) };
        if token == TIMER {
            // Setting the timer again takes its expiration away; so does clearing it.
            dsm.lock(self.slice).armed_us = Some(u64::MAX);
            dsm.with(self.slice, |driver, now, out| driver.tick(now, out));
            return Ok(());
        }
        for fault in self.memory.faults(FAULT_BATCH)? {
            dsm.with(self.slice, |driver, now, out| driver.fault(fault.index, fault.access, now, out));
        }
        Ok(())
    }
}
