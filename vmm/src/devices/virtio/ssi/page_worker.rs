use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use event_manager::{EventOps, EventSet};
use ssi_proto::device::{
    PAGE_ENTRY_BYTES, PAGE_HEADER_BYTES, PAGE_REQUEST_MAX, PAGE_SIZE, PageEntry, PageOp, PageStatus,
    QUEUE_PAGE,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::link::Completion;
use super::state::Shared;
use super::{PAGES_IN_FLIGHT_MAX, PageDone, PageService, PageTask};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{each_chain, give_back, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

const KICK: u32 = 0;
const COMPLETED: u32 = 1;

/// A request under way.
struct Job {
    chain: DescriptorChain<GuestRam>,
    op: PageOp,
    // Of each entry: its local address, and its status once it has one.
    entries: Vec<(u64, Option<PageStatus>)>,
    left: usize,
}

/// A request that was read.
struct Request {
    op: PageOp,
    entries: Vec<Option<PageEntry>>,
}

/// Takes page requests, hands them to the service, writes what was fetched into guest memory, and answers.
pub(super) struct PageWorker {
    shared: Arc<Shared>,
    service: Arc<dyn PageService>,
    ram: GuestRam,
    page: ActiveQueue,
    interrupt: Arc<dyn DeviceInterrupt>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    in_flight: usize,
    sender: Sender<Completion>,
    completions: Receiver<Completion>,
    completed: Arc<EventFd>,
}

impl PageWorker {
    pub fn new(
        shared: Arc<Shared>,
        service: Arc<dyn PageService>,
        ram: GuestRam,
        page: ActiveQueue,
        interrupt: Arc<dyn DeviceInterrupt>,
    ) -> io::Result<Self> {
        let (sender, completions) = unbounded();
        Ok(Self {
            shared,
            service,
            ram,
            page,
            interrupt,
            jobs: BTreeMap::new(),
            next_job: 0,
            in_flight: 0,
            sender,
            completions,
            completed: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// Takes requests while the bound on pages in flight allows.
    pub fn process_queue(&mut self) {
        let mut used = false;
        if !self.has_room() {
            return;
        }
        each_chain(
            self,
            |worker| (&mut worker.page, &worker.ram),
            |worker, chain| {
                match worker.read_request(&chain) {
                    Ok(request) => used |= worker.begin(chain, request),
                    Err(count) => {
                        worker.answer(&chain, &vec![PageStatus::Bad; count]);
                        used = true;
                    }
                }
                worker.has_room()
            },
        );
        self.notify(used);
    }

    /// May one more request begin?
    fn has_room(&self) -> bool {
        self.in_flight + PAGE_REQUEST_MAX <= PAGES_IN_FLIGHT_MAX
    }

    /// Reads a request. A malformed one is an error: the number of entries that can be answered, as far as it can be told.
    fn read_request(&self, chain: &DescriptorChain<GuestRam>) -> Result<Request, usize> {
        let room = chain
            .clone()
            .writer(&self.ram)
            .map_or(0, |room| room.available_bytes() / 4)
            .min(PAGE_REQUEST_MAX);
        let mut reader = chain.clone().reader(&self.ram).map_err(|_| room)?;
        let mut header = [0; PAGE_HEADER_BYTES];
        reader.read_exact(&mut header).map_err(|_| room)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let count = word(4) as usize;
        if count == 0 || count > PAGE_REQUEST_MAX {
            return Err(room);
        }
        let answerable = room.min(count);
        let op = PageOp::from_code(word(0)).ok_or(answerable)?;
        let reserved_is_zero = word(8) == 0 && word(12) == 0;
        if !reserved_is_zero || room < count || reader.available_bytes() != count * PAGE_ENTRY_BYTES {
            return Err(answerable);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let mut bytes = [0; PAGE_ENTRY_BYTES];
            reader.read_exact(&mut bytes).map_err(|_| answerable)?;
            entries.push(PageEntry::parse(&bytes));
        }
        Ok(Request { op, entries })
    }

    /// What an entry comes to before the service sees it: a task, or its status at once.
    fn judge(&self, op: PageOp, entry: Option<PageEntry>) -> Result<PageEntry, PageStatus> {
        let config = &self.shared.config;
        let entry = entry.ok_or(PageStatus::Bad)?;
        if entry.cell >= config.cells {
            return Err(PageStatus::Dead);
        }
        let sound = match op {
            PageOp::Fetch => {
                config.in_own_ram(entry.cell, entry.remote) && config.in_own_ram(config.cell, entry.local)
            }
            PageOp::Lost => {
                entry.cell == config.cell
                    && config.in_slice(entry.cell, entry.remote)
                    && config.in_own_ram(config.cell, entry.local)
            }
            PageOp::Prefetch | PageOp::Release => {
                entry.local == 0 && entry.cell != config.cell && config.in_slice(entry.cell, entry.remote)
            }
        };
        if !sound {
            return Err(PageStatus::Bad);
        }
        if op == PageOp::Lost {
            return Ok(entry);
        }
        if entry.cell == config.cell {
            return Err(self.copy_own(entry));
        }
        if !self.shared.is_alive(entry.cell) {
            return Err(PageStatus::Dead);
        }
        Ok(entry)
    }

    /// FETCH from the own cell: a copy, done here.
    fn copy_own(&self, entry: PageEntry) -> PageStatus {
        let mut page = [0; PAGE_SIZE as usize];
        let copied = self
            .ram
            .read_slice(&mut page, GuestAddress(entry.remote))
            .and_then(|()| self.ram.write_slice(&page, GuestAddress(entry.local)));
        if copied.is_ok() { PageStatus::Done } else { PageStatus::Bad }
    }

    /// Begins a request; true if it is answered already.
    fn begin(&mut self, chain: DescriptorChain<GuestRam>, request: Request) -> bool {
        let id = self.next_job;
        self.next_job += 1;
        let mut entries = Vec::with_capacity(request.entries.len());
        let mut tasks = Vec::new();
        for (index, entry) in request.entries.into_iter().enumerate() {
            match self.judge(request.op, entry) {
                Ok(PageEntry { cell, remote, local }) => {
                    let done = PageDone::new(id, index, &self.sender, &self.completed);
                    tasks.push(PageTask { cell, remote, done });
                    entries.push((local, None));
                }
                Err(status) => {
                    self.count(request.op, status);
                    entries.push((0, Some(status)));
                }
            }
        }
        let job = Job { chain, op: request.op, left: tasks.len(), entries };
        if tasks.is_empty() {
            self.finish(&job);
            return true;
        }
        self.in_flight += tasks.len();
        self.jobs.insert(id, job);
        self.service.submit(request.op, tasks);
        false
    }

    fn count(&self, op: PageOp, status: PageStatus) {
        let metrics = &self.shared.metrics;
        match (status, op) {
            (PageStatus::Done, PageOp::Lost) => metrics.lost_answers_count.inc(),
            (PageStatus::Done, PageOp::Fetch) => metrics.fetched_pages.inc(),
            (PageStatus::Done, PageOp::Prefetch | PageOp::Release) => metrics.hinted_pages.inc(),
            _ => metrics.failed_pages.inc(),
        }
    }

    /// Takes results, and goes on with the queue where there is room again.
    pub fn process_completions(&mut self) {
        let mut used = false;
        while let Ok(completion) = self.completions.try_recv() {
            used |= self.complete(completion);
        }
        self.notify(used);
        self.process_queue();
    }

    fn complete(&mut self, completion: Completion) -> bool {
        let Some(job) = self.jobs.get_mut(&completion.job) else { return false };
        let op = job.op;
        let Some((local, slot @ None)) = job.entries.get_mut(completion.index) else { return false };
        let status = match (op, completion.result) {
            (PageOp::Fetch | PageOp::Lost, Ok(Some(bytes))) => {
                match self.ram.write_slice(&bytes[..], GuestAddress(*local)) {
                    Ok(()) => PageStatus::Done,
                    Err(_) => PageStatus::Bad,
                }
            }
            (PageOp::Fetch | PageOp::Lost, Ok(None)) => PageStatus::Failed,
            (_, Ok(_)) => PageStatus::Done,
            (_, Err(status)) => status,
        };
        *slot = Some(status);
        job.left -= 1;
        let left = job.left;
        self.in_flight -= 1;
        self.count(op, status);
        if left > 0 {
            return false;
        }
        if let Some(job) = self.jobs.remove(&completion.job) {
            self.finish(&job);
        }
        true
    }

    fn finish(&mut self, job: &Job) {
        let statuses: Vec<_> =
            job.entries.iter().map(|(_, status)| status.unwrap_or(PageStatus::Failed)).collect();
        self.answer(&job.chain, &statuses);
    }

    fn answer(&mut self, chain: &DescriptorChain<GuestRam>, statuses: &[PageStatus]) {
        let bytes: Vec<u8> = statuses.iter().flat_map(|&status| (status as u32).to_le_bytes()).collect();
        let written = !bytes.is_empty()
            && match chain.clone().writer(&self.ram) {
                Ok(mut writer) => writer.write_all(&bytes).is_ok(),
                Err(_) => false,
            };
        if !written {
            self.shared.metrics.malformed_chains_count.inc();
            guest_warn!("ssi: a page request has no room for its status");
        }
        // At most 256 entries were answered.
        let len = if written { bytes.len() as u32 } else { 0 };
        give_back(&mut self.page.queue, &self.ram, chain.head_index(), len);
    }

    fn notify(&mut self, used: bool) {
        if used && wants_interrupt(&mut self.page.queue, &self.ram) {
            self.interrupt.used(QUEUE_PAGE);
        }
    }
}

impl Handler for PageWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![(self.page.kick.as_raw_fd(), KICK), (self.completed.as_raw_fd(), COMPLETED)]
    }

    fn ready(&mut self, token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
        if token == KICK {
            drain(&self.page.kick);
            self.process_queue();
        } else {
            drain(&self.completed);
            self.process_completions();
        }
        Ok(())
    }
}
