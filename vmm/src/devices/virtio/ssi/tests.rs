use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use proptest::prelude::*;
use ssi_proto::device::*;
use vm_memory::{Bytes, GuestAddress};

use super::page_worker::PageWorker;
use super::state::Shared;
use super::worker::MessageWorker;
use super::*;
use crate::devices::lock;
use crate::devices::terminal::Waker;
use crate::devices::virtio::testing::{Buffer, RAM_BYTES, Recorder, Rings, hostile, ram, readable, writable};
use crate::devices::virtio::{Activation, DeviceInterrupt, GuestRam, VirtioDevice};
use crate::worker::Exit;

const STRIDE: u64 = 1 << 30;
const SLICE: u64 = 256 << 20;
const TX_DATA: u64 = 0x10_0000;
const RX_DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x0f_0000;

/// Cell 1 of 4, whose low RAM is all the memory that the test has.
fn config() -> SsiConfig {
    SsiConfig { cell: 1, cells: 4, slice_stride: STRIDE, slice_size: SLICE, low_end: RAM_BYTES, epoch_ns: 77 }
}

/// A link that keeps what it gets, and can be closed for cell 2.
#[derive(Default)]
struct Link {
    sent: Mutex<Vec<(u32, Class, Vec<u8>)>>,
    closed: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl CellLink for Link {
    fn send(&self, cell: u32, class: Class, message: &[u8]) -> Sent {
        if cell == 2 && self.closed.load(Ordering::SeqCst) {
            return Sent::Busy;
        }
        lock(&self.sent).push((cell, class, message.to_vec()));
        Sent::Done(TxStatus::Accepted)
    }

    fn on_room(&self, wake: Waker) {
        lock(&self.wakers).push(wake);
    }
}

/// A service that keeps its tasks until the test answers them.
#[derive(Debug, Default)]
struct Pages {
    tasks: Mutex<Vec<(PageOp, PageTask)>>,
    buried: Mutex<Vec<u64>>,
}

impl PageService for Pages {
    fn submit(&self, op: PageOp, tasks: Vec<PageTask>) {
        lock(&self.tasks).extend(tasks.into_iter().map(|task| (op, task)));
    }

    fn bury(&self, gpa: u64) {
        lock(&self.buried).push(gpa);
    }
}

struct Bench {
    ram: GuestRam,
    shared: Arc<Shared>,
    link: Arc<Link>,
    pages: Arc<Pages>,
    messages: MessageWorker,
    page_worker: PageWorker,
    tx: Rings,
    rx: Rings,
    page: Rings,
    interrupt: Arc<Recorder>,
}

impl Bench {
    fn new() -> Self {
        let ram = ram();
        let shared = Shared::new(config()).unwrap();
        SsiHandle(shared.clone()).set_alive(0b0111);
        let (link, pages) = (Arc::new(Link::default()), Arc::new(Pages::default()));
        let ring = |queue: usize, base| Rings::new(&ram, base, QUEUE_SIZES[queue]);
        let (tx, rx, page) = (ring(QUEUE_TX, 0x1_0000), ring(QUEUE_RX, 0x2_0000), ring(QUEUE_PAGE, 0x3_0000));
        let interrupt = Arc::new(Recorder::default());
        let messages = MessageWorker::new(
            shared.clone(),
            link.clone(),
            ram.clone(),
            tx.active(),
            rx.active(),
            interrupt.clone(),
        );
        let page_worker =
            PageWorker::new(shared.clone(), pages.clone(), ram.clone(), page.active(), interrupt.clone())
                .unwrap();
        Self { ram, shared, link, pages, messages, page_worker, tx, rx, page, interrupt }
    }

    fn handle(&self) -> SsiHandle {
        SsiHandle(self.shared.clone())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Sends header and payload in one buffer, with its status at `status`, and lets the device look.
    fn transmit(&mut self, message: &[u8], status: u64) {
        self.put(TX_DATA, message);
        self.put(status, &[0xff; 4]);
        self.tx.push(&[readable(TX_DATA, message.len() as u32), writable(status, 4)]);
        self.messages.process_tx();
    }

    fn status(&self, at: u64) -> u32 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    /// Sends a page request, and lets the device look; the statuses come to `STATUS`.
    fn request(&mut self, op: u32, entries: &[PageEntry]) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&op.to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.emit()));
        self.put(TX_DATA, &bytes);
        self.put(STATUS, &vec![0xff; 4 * entries.len()]);
        self.page.push(&[readable(TX_DATA, bytes.len() as u32), writable(STATUS, 4 * entries.len() as u32)]);
        self.page_worker.process_queue();
    }

    fn statuses(&self, count: u64) -> Vec<u32> {
        (0..count).map(|index| self.status(STATUS + 4 * index)).collect()
    }
}

fn header(cell: u32, len: u32, flags: u32) -> MessageHeader {
    MessageHeader { cell, kind: 9, len, flags, tag: 0x1122, cookie: 0x3344 }
}

fn message(cell: u32, payload: &[u8], flags: u32) -> Vec<u8> {
    [&header(cell, payload.len() as u32, flags).emit()[..], payload].concat()
}

// --- configuration space ---------------------------------------------------------------------------------------------

#[test]
fn the_configuration_space_is_that_of_the_document() {
    let exit = Exit::new().unwrap();
    let device =
        SsiDevice::new(config(), Arc::new(Link::default()), Arc::new(Pages::default()), &exit).unwrap();
    device.handle().set_alive(0b0101);
    device.handle().set_lost(5);
    let mut space = [0xee; 80];
    device.read_config(0, &mut space);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(space[at..at + 8].try_into().unwrap());
    assert_eq!((word(0), word(4), word(8), word(0xc)), (MAGIC, VERSION, 1, 4));
    assert_eq!((long(0x10), long(0x18), long(0x20)), (SLICE0_BASE, STRIDE, SLICE));
    assert_eq!((long(0x28), long(0x30), long(0x38)), (0b0111, 1, 77), "alive, generation, epoch");
    assert_eq!(long(0x40), 5, "lost");
    assert_eq!(space[72..], [0xee; 8], "what lies beyond is left to the transport");
    let mut far = [0; 4];
    device.read_config(u64::MAX, &mut far);
    assert_eq!(far, [0; 4]);
}

#[test]
fn configurations_outside_the_document_are_refused() {
    let good = config();
    for bad in [
        SsiConfig { cells: 0, ..good },
        SsiConfig { cells: 65, ..good },
        SsiConfig { cell: 4, ..good },
        SsiConfig { slice_size: 0, ..good },
        SsiConfig { slice_size: SLICE + 4096, ..good },
        SsiConfig { slice_size: STRIDE + SLICE_ALIGN, ..good },
        SsiConfig { slice_stride: u64::MAX, ..good },
    ] {
        assert!(Shared::new(bad).is_err(), "{bad:?}");
    }
    assert!(Shared::new(good).is_ok());
}

#[test]
fn each_change_of_alive_grows_the_generation_by_one_and_interrupts() {
    let bench = Bench::new();
    bench.shared.set_interrupt(Some(bench.interrupt.clone()));
    let handle = bench.handle();
    let (_, before) = handle.alive();
    handle.set_alive(0b0111);
    assert_eq!((handle.alive(), bench.interrupt.config_count()), ((0b0111, before), 0), "no change");
    handle.set_alive(0b0001);
    assert_eq!(handle.alive(), (0b0011, before + 1), "the own bit stays");
    handle.set_alive(u64::MAX);
    assert_eq!(handle.alive(), (0b1111, before + 2), "only cells of the cluster");
    assert_eq!(bench.interrupt.config_count(), 2);
}

// --- tx ----------------------------------------------------------------------------------------------------------------

#[test]
fn a_message_reaches_the_link_with_its_source_and_is_accepted() {
    let mut bench = Bench::new();
    bench.transmit(&message(2, b"payload", FLAG_BULK), STATUS);
    assert_eq!(bench.status(STATUS), TxStatus::Accepted as u32);
    assert_eq!(bench.tx.pop_used(), Some((0, 4)));
    assert_eq!(bench.interrupt.used_count(), 1);
    assert_eq!(*lock(&bench.link.sent), [(2, Class::Bulk, message(1, b"payload", FLAG_BULK))]);
}

#[test]
fn a_message_may_be_split_anywhere() {
    let mut bench = Bench::new();
    let bytes = message(0, b"xyz", 0);
    bench.put(TX_DATA, &bytes);
    let mut chain: Vec<Buffer> = (0..bytes.len() as u64).map(|at| readable(TX_DATA + at, 1)).collect();
    chain.extend((0..4).map(|at| writable(STATUS + at, 1)));
    bench.tx.push(&chain);
    bench.messages.process_tx();
    assert_eq!(bench.status(STATUS), TxStatus::Accepted as u32);
    assert_eq!(*lock(&bench.link.sent), [(0, Class::Normal, message(1, b"xyz", 0))]);
}

#[test]
fn the_longest_message_passes_and_a_longer_one_does_not() {
    let mut bench = Bench::new();
    bench.transmit(&message(0, &vec![5; PAYLOAD_MAX_BYTES], 0), STATUS);
    assert_eq!(bench.status(STATUS), TxStatus::Accepted as u32);
    bench.transmit(&message(0, &vec![5; PAYLOAD_MAX_BYTES + 1], 0), STATUS);
    assert_eq!(bench.status(STATUS), TxStatus::TooLong as u32);
    assert_eq!(lock(&bench.link.sent).len(), 1);
}

#[test]
fn what_cannot_be_sent_is_answered_with_the_reason() {
    let mut bench = Bench::new();
    let short = header(0, 0, 0).emit()[..31].to_vec();
    let cases = [
        (message(4, b"", 0), TxStatus::NoSuchCell),
        (message(u32::MAX, b"", 0), TxStatus::NoSuchCell),
        (message(3, b"", 0), TxStatus::Dead),
        (header(0, u32::MAX, 0).emit().to_vec(), TxStatus::TooLong),
        (header(0, 1, 0).emit().to_vec(), TxStatus::Malformed),
        ([message(0, b"a", 0), vec![0]].concat(), TxStatus::Malformed),
        (message(0, b"", 2), TxStatus::Malformed),
        (short, TxStatus::Malformed),
    ];
    for (bytes, status) in cases {
        bench.transmit(&bytes, STATUS);
        assert_eq!(bench.status(STATUS), status as u32, "{bytes:?}");
    }
    assert!(lock(&bench.link.sent).is_empty());
    assert_eq!(bench.shared.metrics.tx_refused_count.get(), 8);
}

#[test]
fn a_chain_without_room_for_its_status_is_counted_and_returned() {
    let mut bench = Bench::new();
    bench.put(TX_DATA, &message(0, b"", 0));
    bench.tx.push(&[readable(TX_DATA, 32), writable(STATUS, 3)]);
    bench.messages.process_tx();
    assert_eq!(bench.tx.pop_used(), Some((0, 0)));
    assert_eq!(bench.shared.metrics.malformed_chains_count.get(), 1);
}

#[test]
fn a_message_to_the_own_cell_comes_to_the_own_rx() {
    let mut bench = Bench::new();
    bench.transmit(&message(1, b"me", 0), STATUS);
    assert_eq!(bench.status(STATUS), TxStatus::Accepted as u32);
    bench.rx.push(&[writable(RX_DATA, 32768)]);
    bench.messages.process_rx();
    assert_eq!(bench.rx.pop_used(), Some((0, 34)));
    assert_eq!(bench.bytes(RX_DATA, 34), message(1, b"me", 0));
}

#[test]
fn a_busy_way_holds_its_messages_in_order_and_others_pass() {
    let mut bench = Bench::new();
    bench.link.closed.store(true, Ordering::SeqCst);
    for (index, cell) in [(0, 2), (1, 0), (2, 2)] {
        bench.transmit(&message(cell, &[index], 0), STATUS + 4 * u64::from(index));
    }
    assert_eq!(bench.statuses(3), [u32::MAX, 0, u32::MAX], "those of cell 2 wait");
    bench.messages.retry_held();
    assert_eq!(bench.statuses(3), [u32::MAX, 0, u32::MAX], "and go on waiting");
    bench.link.closed.store(false, Ordering::SeqCst);
    bench.transmit(&message(2, &[3], 0), STATUS + 12);
    assert_eq!(bench.status(STATUS + 12), u32::MAX, "none overtakes those that wait on its way");
    bench.messages.retry_held();
    assert_eq!(bench.statuses(4), [0; 4]);
    let order: Vec<u8> = lock(&bench.link.sent).iter().map(|(_, _, bytes)| bytes[32]).collect();
    assert_eq!(order, [1, 0, 2, 3]);
}

#[test]
fn messages_held_for_a_cell_that_dies_are_answered() {
    let mut bench = Bench::new();
    bench.link.closed.store(true, Ordering::SeqCst);
    bench.transmit(&message(2, b"", 0), STATUS);
    bench.handle().set_alive(0b0011);
    assert!(bench.shared.room.read().is_ok(), "the worker is woken");
    bench.messages.retry_held();
    assert_eq!(bench.status(STATUS), TxStatus::Dead as u32);
}

#[test]
fn a_driver_that_offers_one_chain_again_and_again_cannot_make_the_device_hold_more_than_a_queue() {
    let mut bench = Bench::new();
    bench.link.closed.store(true, Ordering::SeqCst);
    bench.transmit(&message(2, b"", 0), STATUS);
    for _ in 0..4 {
        (0..200).for_each(|_| bench.tx.offer(0));
        bench.messages.process_tx();
    }
    assert_eq!(bench.shared.metrics.tx_busy_count.get(), u64::from(QUEUE_SIZES[QUEUE_TX]));
}

// --- rx ----------------------------------------------------------------------------------------------------------------

#[test]
fn messages_wait_for_buffers_and_urgent_ones_overtake_bulk() {
    let mut bench = Bench::new();
    let inbox = bench.handle().inbox().clone();
    inbox.deliver(0, message(3, b"bulk", FLAG_BULK)).unwrap();
    inbox.deliver(2, message(3, b"one", 0)).unwrap();
    inbox.deliver(2, message(3, b"two", 0)).unwrap();
    for index in 0..3 {
        bench.rx.push(&[writable(RX_DATA + index * 0x8000, 0x8000)]);
    }
    bench.messages.process_rx();
    let expected = [message(2, b"one", 0), message(2, b"two", 0), message(0, b"bulk", FLAG_BULK)];
    for (index, expected) in (0_u64..).zip(expected) {
        let (_, len) = bench.rx.pop_used().unwrap();
        assert_eq!(bench.bytes(RX_DATA + index * 0x8000, len as usize), expected);
    }
}

#[test]
fn a_receive_buffer_that_is_too_small_costs_no_message() {
    let mut bench = Bench::new();
    bench.handle().inbox().deliver(0, message(1, b"x", 0)).unwrap();
    bench.rx.push(&[writable(RX_DATA, 32767)]);
    bench.rx.push(&[readable(RX_DATA, 32768)]);
    bench.messages.process_rx();
    assert_eq!((bench.rx.pop_used(), bench.rx.pop_used()), (Some((0, 0)), Some((1, 0))));
    bench.rx.push(&[writable(RX_DATA, 32768)]);
    bench.messages.process_rx();
    assert_eq!(bench.rx.pop_used(), Some((2, 33)));
    assert_eq!(bench.shared.metrics.rx_bad_buffers_count.get(), 2);
}

#[test]
fn a_full_inbox_gives_messages_back_by_class_and_wakes_when_there_is_room() {
    let mut bench = Bench::new();
    let inbox = bench.handle().inbox().clone();
    let woken = Arc::new(AtomicBool::new(false));
    let flag = woken.clone();
    inbox.on_room(Arc::new(move || flag.store(true, Ordering::SeqCst)));
    let bulk = message(0, b"b", FLAG_BULK);
    for _ in 0..INBOX_MESSAGES_MAX {
        inbox.deliver(0, bulk.clone()).unwrap();
    }
    assert_eq!(inbox.deliver(0, bulk.clone()), Err(DeliverError::Full(bulk.clone())));
    assert_eq!(inbox.deliver(0, message(0, b"n", 0)), Ok(()), "the other class has room");
    bench.rx.push(&[writable(RX_DATA, 32768)]);
    bench.messages.process_rx();
    assert!(woken.load(Ordering::SeqCst));
}

#[test]
fn a_message_that_contradicts_its_header_is_not_delivered() {
    let bench = Bench::new();
    let long = [header(0, 32737, 0).emit().to_vec(), vec![0; 32737]].concat();
    for bad in [vec![], vec![0; 31], header(0, 1, 0).emit().to_vec(), long] {
        assert_eq!(bench.handle().inbox().deliver(0, bad), Err(DeliverError::Malformed));
    }
}

// --- page --------------------------------------------------------------------------------------------------------------

const FETCH: u32 = PageOp::Fetch as u32;

#[test]
fn a_fetched_page_lies_at_its_local_address_before_the_chain_is_used() {
    let mut bench = Bench::new();
    let remote = SLICE0_BASE + 2 * STRIDE + 0x5000;
    bench.request(FETCH, &[PageEntry { cell: 2, remote, local: RX_DATA }]);
    assert_eq!(bench.page.pop_used(), None);
    let (op, task) = lock(&bench.pages.tasks).pop().unwrap();
    assert_eq!((op, task.cell, task.remote), (PageOp::Fetch, 2, remote));
    task.done.fetched(Box::new([0x5a; 4096]));
    bench.page_worker.process_completions();
    assert_eq!(bench.page.pop_used(), Some((0, 4)));
    assert_eq!(bench.statuses(1), [0]);
    assert_eq!(bench.bytes(RX_DATA, 4096), [0x5a; 4096]);
    assert_eq!(bench.bytes(RX_DATA + 4096, 1), [0]);
    assert_eq!(bench.interrupt.used_count(), 1);
}

#[test]
fn entries_are_judged_one_by_one() {
    let mut bench = Bench::new();
    let slice = |cell: u64| SLICE0_BASE + cell * STRIDE;
    let entry = |cell, remote, local| PageEntry { cell, remote, local };
    let good = RX_DATA;
    let cases = [
        (entry(2, slice(2), good), None),
        (entry(2, slice(2) + SLICE - 4096, good), None),
        (entry(2, 0x1000, good), None),
        (entry(2, slice(2) + SLICE, good), Some(1)),
        (entry(2, slice(1), good), Some(1)),
        (entry(2, slice(2), slice(2)), Some(1)),
        (entry(2, slice(2) + 1, good), Some(1)),
        (entry(2, slice(2), good + 1), Some(1)),
        (entry(2, slice(2), RAM_BYTES), Some(1)),
        (entry(2, !4095, good), Some(1)),
        (entry(3, slice(3), good), Some(2)),
        (entry(4, slice(4), good), Some(2)),
    ];
    let entries: Vec<_> = cases.iter().map(|(entry, _)| *entry).collect();
    bench.request(FETCH, &entries);
    for (_, task) in lock(&bench.pages.tasks).drain(..) {
        task.done.finished(PageStatus::Failed);
    }
    bench.page_worker.process_completions();
    let expected: Vec<u32> = cases.iter().map(|(_, status)| status.unwrap_or(3)).collect();
    assert_eq!(bench.statuses(cases.len() as u64), expected);
}

#[test]
fn prefetch_and_release_take_only_other_cells_slices_and_no_local_address() {
    for op in [PageOp::Prefetch, PageOp::Release] {
        let mut bench = Bench::new();
        let remote = SLICE0_BASE + 2 * STRIDE;
        let own = SLICE0_BASE + STRIDE;
        bench.request(
            op as u32,
            &[
                PageEntry { cell: 2, remote, local: 0 },
                PageEntry { cell: 2, remote, local: RX_DATA },
                PageEntry { cell: 2, remote: 0x1000, local: 0 },
                PageEntry { cell: 1, remote: own, local: 0 },
            ],
        );
        let (seen, task) = lock(&bench.pages.tasks).pop().unwrap();
        assert_eq!(seen, op);
        task.done.finished(PageStatus::Done);
        bench.page_worker.process_completions();
        assert_eq!(bench.statuses(4), [0, 1, 1, 1]);
    }
}

#[test]
fn dsm_i4_lost_pages_of_the_own_slice_are_listed_in_a_page_of_the_cell() {
    let mut bench = Bench::new();
    let (own, other, to) = (SLICE0_BASE + STRIDE, SLICE0_BASE + 2 * STRIDE, 0x30_0000);
    bench.request(
        PageOp::Lost as u32,
        &[
            PageEntry { cell: 1, remote: own + 0x5000, local: to },
            PageEntry { cell: 2, remote: other, local: to },
            PageEntry { cell: 1, remote: other, local: to },
            PageEntry { cell: 1, remote: own, local: RAM_BYTES },
        ],
    );
    let (seen, task) = lock(&bench.pages.tasks).pop().unwrap();
    assert_eq!((seen, task.remote), (PageOp::Lost, own + 0x5000));
    assert!(
        lock(&bench.pages.tasks).is_empty(),
        "of others' slices, or to where no memory is, nothing is asked"
    );
    task.done.fetched(emit_lost(&[own + 0x5000..own + 0x7000, own + 0x9000..own + 0xa000]));
    bench.page_worker.process_completions();
    assert_eq!(bench.statuses(4), [0, 1, 1, 1]);
    let long = |at: u64| bench.ram.read_obj::<u64>(GuestAddress(to + at)).unwrap();
    assert_eq!((long(0), long(8)), (2, 0), "two runs");
    assert_eq!([long(16), long(24), long(32), long(40)], [0x5000, 0x7000, 0x9000, 0xa000].map(|at| own + at));
    assert_eq!(long(48), 0);
}

#[test]
fn a_list_of_lost_pages_ends_where_its_page_does() {
    let runs: Vec<_> = (0..300).map(|n| n * 8192..n * 8192 + 4096).collect();
    let page = emit_lost(&runs);
    assert_eq!(page[..4], (LOST_RUNS_MAX as u32).to_le_bytes());
    assert_eq!(page[4088..], (254 * 8192 + 4096_u64).to_le_bytes(), "the end of the last that fits");
}

#[test]
fn dsm_i4_only_pages_of_the_own_slice_are_buried() {
    let (exit, pages) = (Exit::new().unwrap(), Arc::new(Pages::default()));
    let mut device = SsiDevice::new(config(), Arc::new(Link::default()), pages.clone(), &exit).unwrap();
    let last = (SLICE / 4096 - 1) as u32;
    for index in [0, last, last + 1, u32::MAX] {
        device.write_config(CONFIG_BURY, &index.to_le_bytes());
    }
    device.write_config(CONFIG_BURY + 4, &[0; 4]);
    device.write_config(CONFIG_BURY, &[0; 8]);
    device.write_config(0, &[0; 4]);
    let own = SLICE0_BASE + STRIDE;
    assert_eq!(*lock(&pages.buried), [own, own + SLICE - 4096]);
}

#[test]
fn page_faults_for_lost_memory_are_for_drivers_that_know_of_them() {
    let exit = Exit::new().unwrap();
    let mut device =
        SsiDevice::new(config(), Arc::new(Link::default()), Arc::new(Pages::default()), &exit).unwrap();
    assert_eq!(device.features(), F_LOST);
    let known = device.lost_faults();
    for features in [0, F_LOST] {
        let ram = ram();
        let queues = (0_u64..)
            .zip(QUEUE_SIZES)
            .map(|(n, size)| Some(Rings::new(&ram, 0x1_0000 * (n + 1), size).active()));
        let interrupt = Arc::new(Recorder::default());
        let activation = Activation { ram: ram.clone(), queues: queues.collect(), interrupt, features };
        device.activate(activation).unwrap();
        assert_eq!(known.load(Ordering::Relaxed), features == F_LOST);
        device.reset();
        assert!(!known.load(Ordering::Relaxed));
    }
}

#[test]
fn a_page_of_the_own_cell_is_copied_at_once() {
    let mut bench = Bench::new();
    bench.put(0x30_0000, &[7; 4096]);
    bench.request(FETCH, &[PageEntry { cell: 1, remote: 0x30_0000, local: RX_DATA }]);
    assert_eq!(bench.statuses(1), [0]);
    assert_eq!(bench.bytes(RX_DATA, 4096), [7; 4096]);
}

#[test]
fn a_task_that_is_dropped_has_failed() {
    let mut bench = Bench::new();
    bench.request(FETCH, &[PageEntry { cell: 2, remote: 0, local: RX_DATA }]);
    lock(&bench.pages.tasks).clear();
    bench.page_worker.process_completions();
    assert_eq!(bench.statuses(1), [PageStatus::Failed as u32]);
}

#[test]
fn malformed_requests_are_answered_where_they_can_be() {
    // op, count, reserved, entries present, statuses' room in bytes, statuses written
    let cases = [
        (0, 1, 0, 1, 4, 1),
        (4, 1, 0, 1, 4, 1),
        (FETCH, 0, 0, 0, 4, 1),
        (FETCH, 257, 0, 257, 4 * 257, 256),
        (FETCH, u32::MAX, 0, 1, 8, 2),
        (FETCH, 1, 1, 1, 4, 1),
        (FETCH, 2, 0, 1, 8, 2),
        (FETCH, 1, 0, 2, 4, 1),
        (FETCH, 2, 0, 2, 4, 1),
        (FETCH, 1, 0, 1, 3, 0),
    ];
    for case @ (op, count, reserved, present, room, answered) in cases {
        let mut bench = Bench::new();
        let entry = PageEntry { cell: 2, remote: 0, local: RX_DATA }.emit();
        let mut bytes = [op.to_le_bytes(), count.to_le_bytes()].concat();
        bytes.extend_from_slice(&u64::to_le_bytes(reserved));
        (0..present).for_each(|_| bytes.extend_from_slice(&entry));
        bench.put(TX_DATA, &bytes);
        bench.page.push(&[readable(TX_DATA, bytes.len() as u32), writable(STATUS, room)]);
        bench.page_worker.process_queue();
        assert_eq!(bench.page.pop_used(), Some((0, 4 * answered)), "{case:?}");
        assert_eq!(bench.statuses(answered.into()), vec![1; answered as usize], "{case:?}");
        assert!(lock(&bench.pages.tasks).is_empty());
    }
}

#[test]
fn pages_in_flight_are_bounded_and_the_rest_waits_in_the_queue() {
    let mut bench = Bench::new();
    let entries = [PageEntry { cell: 2, remote: 0, local: RX_DATA }; PAGE_REQUEST_MAX];
    let requests = PAGES_IN_FLIGHT_MAX / PAGE_REQUEST_MAX;
    for _ in 0..requests + 2 {
        bench.request(FETCH, &entries);
    }
    assert_eq!(lock(&bench.pages.tasks).len(), PAGES_IN_FLIGHT_MAX);
    let first: Vec<_> = lock(&bench.pages.tasks).drain(..PAGE_REQUEST_MAX).collect();
    drop(first);
    bench.page_worker.process_completions();
    assert_eq!(lock(&bench.pages.tasks).len(), PAGES_IN_FLIGHT_MAX, "the next request has begun");
    assert_eq!(bench.page.pop_used(), Some((0, 1024)));
}

// --- the whole device --------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct Bell(Mutex<mpsc::Sender<usize>>);

impl DeviceInterrupt for Bell {
    fn used(&self, index: usize) {
        let _ = lock(&self.0).send(index);
    }
    fn config_changed(&self) {
        let _ = lock(&self.0).send(usize::MAX);
    }
}

#[test]
fn the_workers_serve_all_queues_and_end_with_a_reset() {
    let exit = Exit::new().unwrap();
    let (link, pages) = (Arc::new(Link::default()), Arc::new(Pages::default()));
    let mut device = SsiDevice::new(config(), link.clone(), pages.clone(), &exit).unwrap();
    device.handle().set_alive(0b1111);
    for _ in 0..2 {
        let ram = ram();
        let mut rings: Vec<_> =
            (0_u64..).zip(QUEUE_SIZES).map(|(n, size)| Rings::new(&ram, 0x1_0000 * (n + 1), size)).collect();
        let (ring, rung) = mpsc::channel();
        let queues: Vec<_> = rings.iter().map(|rings| Some(rings.active())).collect();
        let kicks: Vec<_> = queues.iter().flatten().map(|active| active.kick.try_clone().unwrap()).collect();
        let interrupt = Arc::new(Bell(Mutex::new(ring)));
        device.activate(Activation { ram: ram.clone(), queues, interrupt, features: 0 }).unwrap();

        ram.write_slice(&message(2, b"hi", 0), GuestAddress(TX_DATA)).unwrap();
        rings[QUEUE_TX].push(&[readable(TX_DATA, 34), writable(STATUS, 4)]);
        kicks[QUEUE_TX].write(1).unwrap();
        assert_eq!(rung.recv().unwrap(), QUEUE_TX);

        rings[QUEUE_RX].push(&[writable(RX_DATA, 32768)]);
        kicks[QUEUE_RX].write(1).unwrap();
        device.handle().inbox().deliver(2, message(0, b"ho", 0)).unwrap();
        assert_eq!(rung.recv().unwrap(), QUEUE_RX);
        assert_eq!(rings[QUEUE_RX].pop_used(), Some((0, 34)));

        let mut request = [FETCH.to_le_bytes(), 1_u32.to_le_bytes(), [0; 4], [0; 4]].concat();
        request.extend_from_slice(&PageEntry { cell: 2, remote: 0, local: 0x30_0000 }.emit());
        ram.write_slice(&request, GuestAddress(TX_DATA)).unwrap();
        rings[QUEUE_PAGE].push(&[readable(TX_DATA, 40), writable(STATUS, 4)]);
        kicks[QUEUE_PAGE].write(1).unwrap();
        while lock(&pages.tasks).is_empty() {
            std::thread::yield_now();
        }
        lock(&pages.tasks).pop().unwrap().1.done.fetched(Box::new([1; 4096]));
        assert_eq!(rung.recv().unwrap(), QUEUE_PAGE);
        assert_eq!(rings[QUEUE_PAGE].pop_used(), Some((0, 4)));

        device.reset();
        assert_eq!(
            Arc::strong_count(&ram),
            1 + QUEUE_SIZES.len(),
            "no worker holds guest memory after a reset"
        );
        assert!(rung.recv().is_err(), "nor the interrupt");
    }
    assert!(!exit.is_triggered());
    assert_eq!(lock(&link.sent).len(), 2);
}

#[test]
fn a_device_without_one_of_its_queues_does_not_start() {
    let exit = Exit::new().unwrap();
    let mut device =
        SsiDevice::new(config(), Arc::new(Link::default()), Arc::new(Pages::default()), &exit).unwrap();
    let ram = ram();
    let active = || Some(Rings::new(&ram, 0x1_0000, 64).active());
    let queues = vec![active(), active(), None];
    let interrupt = Arc::new(Recorder::default());
    assert!(device.activate(Activation { ram: ram.clone(), queues, interrupt, features: 0 }).is_err());
}

proptest! {
    // A case is a whole ring of hostile chains.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_chain_breaks_the_message_queues(tx in hostile(256), rx in hostile(64), payload in 0_usize..100) {
        let mut bench = Bench::new();
        bench.handle().inbox().deliver(0, message(0, &vec![0; payload], 0)).unwrap();
        tx.fill(&mut bench.tx);
        rx.fill(&mut bench.rx);
        bench.messages.process_tx();
        bench.messages.process_rx();
        bench.messages.retry_held();
    }

    #[test]
    fn no_chain_breaks_the_page_queue(page in hostile(256), op in 0_u32..6, count in 0_u32..300) {
        let mut bench = Bench::new();
        // Many descriptors point here: make a request of it that comes close to a real one.
        bench.put(0, &[op.to_le_bytes(), count.to_le_bytes()].concat());
        page.fill(&mut bench.page);
        bench.page_worker.process_queue();
        let tasks = std::mem::take(&mut *lock(&bench.pages.tasks));
        prop_assert!(tasks.len() <= PAGES_IN_FLIGHT_MAX);
        for (_, task) in tasks {
            task.done.fetched(Box::new([0; 4096]));
        }
        bench.page_worker.process_completions();
    }

    /// What is sent comes out at the other end: same header but for the cell, same payload, any split.
    #[test]
    fn messages_keep_their_bytes(
        kind: u32, tag: u64, cookie: u64, bulk: bool,
        payload in proptest::collection::vec(any::<u8>(), 0..3000),
        cut in 1_usize..3000,
    ) {
        let mut bench = Bench::new();
        let flags = u32::from(bulk);
        let header = MessageHeader { cell: 2, kind, len: payload.len() as u32, flags, tag, cookie };
        let bytes = [&header.emit()[..], &payload].concat();
        bench.put(TX_DATA, &bytes);
        let mut chain: Vec<Buffer> = (0..bytes.len())
            .step_by(cut)
            .take(200)
            .map(|at| readable(TX_DATA + at as u64, cut.min(bytes.len() - at) as u32))
            .collect();
        prop_assume!(bytes.len().div_ceil(cut) <= 200);
        chain.push(writable(STATUS, 4));
        bench.tx.push(&chain);
        bench.messages.process_tx();
        prop_assert_eq!(bench.status(STATUS), 0);
        let sent = MessageHeader { cell: 1, ..header };
        let expected = [&sent.emit()[..], &payload].concat();
        prop_assert_eq!(&lock(&bench.link.sent)[..], &[(2, Class::of(flags), expected)]);
    }
}
