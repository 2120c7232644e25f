use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ssi_dsm::NodeId;
use ssi_dsm::memory::PAGE_SIZE;
use ssi_dsm::protocol::{Config, SliceMap};

use super::*;
use crate::worker::{Exit, Worker};

const BASE: u64 = 4 << 30;
const STRIDE: u64 = 1 << 30;

fn config(me: u16, nodes: u16) -> Config {
    let slices = SliceMap { base: BASE, stride: STRIDE, size: 4 << 20, nodes };
    Config { hold_us: 200, ..Config::new(NodeId(me), slices) }
}

/// Nodes of one process.
struct Cluster {
    dsms: Vec<Arc<Dsm>>,
    exit: Exit,
    _links: Vec<Worker>,
    /// Of each node, if they are joined by connections.
    streams: Vec<Arc<StreamLinks>>,
}

impl Cluster {
    fn new(nodes: u16) -> Self {
        let (exit, links) = (Exit::new().unwrap(), LocalLinks::new(nodes));
        let dsms: Vec<_> = (0..nodes).map(|me| Dsm::new(config(me, nodes)).unwrap()).collect();
        let mut workers = vec![];
        for (me, dsm) in (0..).map(NodeId).zip(&dsms) {
            dsm.start(links.of(me), &exit, Tuning::default()).unwrap();
            workers.push(links.deliver(me, dsm, &exit).unwrap());
        }
        Self { dsms, exit, _links: workers, streams: vec![] }
    }

    /// Joined by connections, whose messages the threads of the slices read.
    fn connected(nodes: u16, busy_poll_us: u64) -> Self {
        let exit = Exit::new().unwrap();
        let dsms: Vec<_> = (0..nodes).map(|me| Dsm::new(config(me, nodes)).unwrap()).collect();
        let streams: Vec<_> = (0..nodes).map(|_| Arc::new(StreamLinks::new(nodes))).collect();
        for (dsm, links) in dsms.iter().zip(&streams) {
            dsm.start(links.clone(), &exit, Tuning { busy_poll_us, ..Tuning::default() }).unwrap();
        }
        for (a, b) in (0..nodes).flat_map(|b| (0..b).map(move |a| (a, b))) {
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            for (me, to, stream) in [(a, b, near), (b, a, far)] {
                let me = usize::from(me);
                streams[me].join(NodeId(to), Arc::new(stream), &dsms[me], &exit).unwrap();
            }
        }
        Self { dsms, exit, _links: vec![], streams }
    }

    /// A counter in page `page` of slice `slice`, as node `node` sees it. It lives as long as the cluster.
    fn counter(&self, node: usize, slice: u16, page: usize) -> &AtomicU64 {
        let memory = self.dsms[node].memory(NodeId(slice)).unwrap();
        // SAFETY: the page is in the slice, aligned, and all accesses to it are atomic.
        unsafe { &*memory.guest_addr().add(page * PAGE_SIZE).cast::<AtomicU64>() }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert!(!self.exit.is_triggered(), "a worker has failed");
            for counters in self.dsms.iter().flat_map(|dsm| dsm.counters()) {
                // Messages that are late are part of the protocol.
                assert!(!counters.refused_count.keys().any(|why| why.is_violation()), "{counters:?}");
            }
        }
    }
}

fn increment(cluster: &Cluster, times: u64, slices: u16, pages: usize) {
    thread::scope(|scope| {
        for node in 0..cluster.dsms.len() {
            scope.spawn(move || {
                for _ in 0..times {
                    for slice in 0..slices {
                        for page in 0..pages {
                            cluster.counter(node, slice, page).fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let expected = times * cluster.dsms.len() as u64;
    for node in 0..cluster.dsms.len() {
        for slice in 0..slices {
            for page in 0..pages {
                assert_eq!(cluster.counter(node, slice, page).load(Ordering::Relaxed), expected);
            }
        }
    }
}

#[test]
fn dsm_i2_increments_of_two_nodes_in_each_others_slices_add_up() {
    increment(&Cluster::new(2), 500, 2, 3);
}

#[test]
fn a_fetch_of_a_page_that_another_node_writes_gets_its_current_bytes() {
    let cluster = Cluster::new(2);
    cluster.counter(0, 0, 5).store(1, Ordering::Relaxed);
    let read = || {
        let bytes = cluster.dsms[0].read_page_wait(BASE + 5 * PAGE_SIZE as u64).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    assert_eq!(read(), 1, "a page that is here");
    cluster.counter(1, 0, 5).store(2, Ordering::Relaxed);
    assert_eq!(read(), 2, "a page that node 1 has");
    cluster.counter(1, 0, 5).store(3, Ordering::Relaxed);
    assert_eq!(read(), 3, "a page that node 1 has taken again");
    assert_eq!(cluster.dsms[0].read_page_wait(BASE + STRIDE).unwrap_err(), PageLost, "node 1's slice");
    assert_eq!(cluster.dsms[0].read_page_wait(0).unwrap_err(), PageLost, "no slice at all");
}

#[test]
fn a_prefetched_page_is_read_without_a_fault_and_a_released_one_goes_home() {
    let cluster = Cluster::new(2);
    let page = BASE + 9 * PAGE_SIZE as u64;
    cluster.counter(0, 0, 9).store(7, Ordering::Relaxed);
    let node1 = &cluster.dsms[1];
    node1.prefetch(page);
    while !cluster.dsms[1].memory(NodeId(0)).unwrap().is_resident(9).unwrap() {
        thread::yield_now();
    }
    assert_eq!(cluster.counter(1, 0, 9).load(Ordering::Relaxed), 7);
    assert_eq!(node1.counters()[0].read_faults_count, 0);
    node1.release(page);
    // Its home hears of it before the answer to this fault, which comes over the same link.
    assert_eq!(cluster.counter(1, 0, 10).load(Ordering::Relaxed), 0);
    assert_eq!((cluster.dsms[0].tracked_pages()[0], node1.tracked_pages()[0]), (1, 1), "page 10 alone");
    for gpa in [0, BASE + STRIDE, u64::MAX] {
        node1.prefetch(gpa);
        node1.release(gpa);
    }
}

#[test]
fn dsm_i4_an_access_to_a_dead_nodes_page_is_an_error_and_nothing_waits() {
    let cluster = Cluster::new(2);
    let node1 = cluster.dsms[1].clone();
    // The other node says nothing: the access waits until its death is told.
    let silent = Dsm::new(config(1, 2)).unwrap();
    let links = LocalLinks::new(2);
    silent.start(links.of(NodeId(1)), &cluster.exit, Tuning::default()).unwrap();
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let memory = silent.memory(NodeId(0)).unwrap().clone();
    let reader = thread::spawn(move || {
        let (_near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        sender.send(()).unwrap();
        use std::os::fd::AsRawFd;
        // The kernel reads the page for the call, and says of a poisoned one what a cell would see as SIGBUS.
        // SAFETY: one page of the mapping, which `memory` keeps; the kernel only reads it.
        let written = unsafe { libc::write(far.as_raw_fd(), memory.guest_addr().cast(), 8) };
        (written, std::io::Error::last_os_error().raw_os_error())
    });
    receiver.recv().unwrap();
    while silent.counters()[0].read_faults_count == 0 {
        thread::yield_now();
    }
    silent.node_died(NodeId(0));
    assert_eq!(reader.join().unwrap(), (-1, Some(libc::EFAULT)));
    assert_eq!(silent.counters()[0].lost_pages_count, 1);
    // A page of node 1's own slice that the dead node had for writing is lost too, to a fetch as to an access.
    cluster.counter(0, 1, 3).store(1, Ordering::Relaxed);
    let told = Arc::new(AtomicU64::new(0));
    let hears = told.clone();
    node1.on_lost(move |pages| hears.store(pages, Ordering::Relaxed));
    node1.node_died(NodeId(0));
    let gpa = BASE + STRIDE + 3 * PAGE_SIZE as u64;
    assert_eq!(node1.read_page_wait(gpa).unwrap_err(), PageLost);
    assert!(node1.read_page_wait(gpa + PAGE_SIZE as u64).is_ok(), "what it never had is not");
    // Its cell is told, and may touch it when that has it out of use; to nobody else it is a page again.
    let lost = gpa..gpa + PAGE_SIZE as u64;
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(node1.lost_runs(BASE + STRIDE, 8), std::slice::from_ref(&lost));
    assert_eq!(node1.lost_runs(lost.end, 8), []);
    assert_eq!(node1.lost_runs(0, 0), []);
    node1.bury(gpa);
    node1.bury(lost.end);
    assert_eq!(cluster.counter(1, 1, 3).load(Ordering::Relaxed), 0);
    cluster.counter(1, 1, 3).store(7, Ordering::Relaxed);
    assert_eq!(node1.read_page_wait(gpa).unwrap()[0], 7);
    assert_eq!(node1.lost_runs(0, 8), [lost]);
}

#[test]
fn a_layout_that_cannot_be_is_refused_with_its_reason() {
    let good = config(0, 2).slices;
    let with = |slices, me| Dsm::new(Config::new(NodeId(me), slices)).unwrap_err().to_string();
    assert!(with(good, 2).contains("this node has no slice"));
    assert!(with(SliceMap { size: 4096, ..good }, 0).contains("multiples of 2 MiB"));
    assert!(with(SliceMap { size: 2 << 30, ..good }, 0).contains("at most the stride"));
    assert!(with(SliceMap { base: u64::MAX << 21, ..good }, 0).contains("beyond the last address"));
}

#[test]
fn dsm_i2_increments_of_three_nodes_on_one_page_add_up() {
    increment(&Cluster::new(3), 500, 1, 1);
}

#[test]
fn dsm_i2_increments_over_connections_add_up_with_polling_and_without() {
    for busy_poll_us in [0, BUSY_POLL_US] {
        increment(&Cluster::connected(2, busy_poll_us), 500, 2, 3);
        increment(&Cluster::connected(3, busy_poll_us), 300, 1, 1);
    }
}

#[test]
fn dsm_i4_the_end_of_a_connection_is_a_nodes_death_and_its_window_is_served_on() {
    let cluster = Cluster::connected(2, BUSY_POLL_US);
    cluster.counter(1, 1, 0).store(1, Ordering::Relaxed);
    assert_eq!(cluster.counter(0, 1, 0).load(Ordering::Relaxed), 1);
    cluster.streams[1].part(NodeId(0));
    // Every page of the other's slice becomes an error, one that was never touched too.
    let memory = cluster.dsms[0].memory(NodeId(1)).unwrap();
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: one page of the mapping; the kernel only reads it.
    let page = unsafe { memory.guest_addr().add(7 * PAGE_SIZE) };
    // SAFETY: as above.
    let written = unsafe { libc::write(near.as_raw_fd(), page.cast(), 8) };
    assert_eq!((written, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
}

/// Processors that the thread `name` of this process may use, as the kernel writes them.
fn processors_of(name: &str) -> Option<String> {
    std::fs::read_dir("/proc/self/task").unwrap().flatten().find_map(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        (comm.trim() == name).then(|| line.trim().to_owned())
    })
}

#[test]
fn threads_of_slices_run_on_their_processors_in_turn() {
    // Seven slices, so that no other test's threads have these names.
    const NODES: u16 = 7;
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpus: Vec<u32> = (0..1024).filter(|cpu| allowed.is_set(*cpu as usize) == Ok(true)).take(2).collect();
    let (exit, links) = (Exit::new().unwrap(), LocalLinks::new(NODES));
    let dsm = Dsm::new(config(0, NODES)).unwrap();
    let tuning = Tuning { cpus: cpus.clone(), ..Tuning::default() };
    dsm.start(links.of(NodeId(0)), &exit, tuning).unwrap();
    for slice in [5, 6] {
        let wanted = cpus[slice % cpus.len()].to_string();
        // The thread chooses its processor when it begins.
        while processors_of(&format!("dsm-{slice}")).is_none_or(|list| list != wanted) {
            assert!(!exit.is_triggered());
            thread::yield_now();
        }
    }
}

#[test]
fn a_processor_that_the_node_may_not_use_is_named() {
    let (exit, links) = (Exit::new().unwrap(), LocalLinks::new(1));
    let dsm = Dsm::new(config(0, 1)).unwrap();
    let tuning = Tuning { cpus: vec![1023], ..Tuning::default() };
    let error = dsm.start(links.of(NodeId(0)), &exit, tuning).unwrap_err();
    assert!(error.to_string().contains("processor 1023"), "{error}");
}
