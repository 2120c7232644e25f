//! A node of a test: drivers on real memory, threads, and a socket to the one other node, in another process.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use ssi_dsm::driver::{Counters, Driver, Outbox};
use ssi_dsm::memory::{Error, PAGE_SIZE, SliceKind, SliceMemory};
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_dsm::{NodeId, PageNo};

pub const SLICES: SliceMap = SliceMap { base: 4 << 30, stride: 1 << 30, size: 64 << 20, nodes: 2 };
const CHILD: &str = "SSI_DSM_TEST_CHILD";

pub struct TestNode {
    pub me: NodeId,
    pub memories: Vec<Arc<SliceMemory>>,
    drivers: Vec<Mutex<Driver<Arc<SliceMemory>>>>,
    socket: Mutex<UnixStream>,
    marks: Mutex<Receiver<()>>,
    start: Instant,
}

/// Frames on the socket: a little-endian u32 of length, then that many bytes. Length 0 is a mark.
struct Out<'a>(&'a TestNode);

impl Outbox for Out<'_> {
    fn send(&mut self, _: NodeId, frame: &[u8]) {
        self.0.write(frame);
    }

    fn fetched(&mut self, _: u64, _: PageNo, _: Option<&[u8; PAGE_SIZE]>) {
        unreachable!("no test here fetches")
    }
}

type Step<'a> = &'a dyn Fn(&mut Driver<Arc<SliceMemory>>, u64, &mut Out<'_>) -> Result<(), Error>;

impl TestNode {
    /// Starts node `me` with a socket to the other one. Its threads end with the process.
    fn start(me: u16, socket: UnixStream) -> Arc<Self> {
        let config = Config {
            hold_us: 200,
            hold_max_us: 1600,
            prefetch_pages: 64,
            twin_pages: 64,
            ..Config::new(NodeId(me), SLICES)
        };
        let kind = |slice| if slice == me { SliceKind::Own } else { SliceKind::Window };
        let memory = |slice| Arc::new(SliceMemory::new(SLICES.size as usize, kind(slice)).unwrap());
        let memories: Vec<_> = (0..SLICES.nodes).map(memory).collect();
        let driver = |(slice, memory): (u16, &Arc<SliceMemory>)| {
            Mutex::new(Driver::new(config, NodeId(slice), memory.clone()))
        };
        let drivers = (0..).zip(&memories).map(driver).collect();
        let (sender, marks) = channel();
        let reader = socket.try_clone().unwrap();
        let node = Arc::new(Self {
            me: NodeId(me),
            memories,
            drivers,
            socket: Mutex::new(socket),
            marks: Mutex::new(marks),
            start: Instant::now(),
        });
        for slice in 0..node.memories.len() {
            let node = node.clone();
            thread::spawn(move || node.serve_faults(slice));
        }
        let other = node.clone();
        thread::spawn(move || other.serve_frames(reader, &sender));
        node
    }

    fn write(&self, frame: &[u8]) {
        let mut bytes = (frame.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.socket.lock().unwrap().write_all(&bytes).unwrap();
    }

    fn with(&self, slice: usize, step: Step<'_>) {
        let mut driver = self.drivers[slice].lock().unwrap();
        let now = self.start.elapsed().as_micros() as u64;
        step(&mut driver, now, &mut Out(self)).unwrap();
        if driver.next_deadline().is_some_and(|at| at <= now) {
            driver.tick(now, &mut Out(self)).unwrap();
        }
    }

    fn serve_faults(&self, slice: usize) {
        loop {
            let mut poll =
                libc::pollfd { fd: self.memories[slice].as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // The bound is the tick of the hold, coarsely.
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&mut poll, 1, 1) };
            for fault in self.memories[slice].faults(16).unwrap() {
                self.with(slice, &|driver, now, out| driver.fault(fault.index, fault.access, now, out));
            }
            self.with(slice, &|driver, now, out| driver.tick(now, out));
        }
    }

    fn serve_frames(&self, mut socket: UnixStream, marks: &Sender<()>) {
        let from = NodeId(1 - self.me.0);
        let mut length = [0; 4];
        while socket.read_exact(&mut length).is_ok() {
            let mut frame = vec![0; u32::from_le_bytes(length) as usize];
            socket.read_exact(&mut frame).unwrap();
            if frame.is_empty() {
                // Nobody waits any more when the process ends.
                let _ = marks.send(());
                continue;
            }
            let page = u64::from_le_bytes(frame[8..16].try_into().unwrap());
            let slice = SLICES.home(PageNo(page)).unwrap();
            self.with(usize::from(slice.0), &|driver, now, out| driver.message(from, &frame, now, out));
        }
    }

    /// Waits until the other node is here too.
    pub fn meet(&self) {
        self.write(&[]);
        self.marks.lock().unwrap().recv().expect("the other node is gone");
    }

    /// A counter at the start of page `page` of slice `slice`, as this node sees it. Valid while the node lives.
    pub fn counter(&self, slice: usize, page: usize) -> &AtomicU64 {
        assert!(page < self.memories[slice].pages());
        // SAFETY: the page is in the slice, aligned, and all accesses to it are atomic.
        unsafe { &*self.memories[slice].guest_addr().add(page * PAGE_SIZE).cast::<AtomicU64>() }
    }

    /// What the driver of a slice has counted.
    pub fn counters(&self, slice: usize) -> Counters {
        self.drivers[slice].lock().unwrap().counters().clone()
    }

    /// Lets the window onto a slice have so many pages.
    pub fn set_window_pages(&self, slice: usize, pages: u64) {
        self.drivers[slice].lock().unwrap().set_window_pages(pages);
    }

    /// Nothing that an honest node says is malformed or refused.
    pub fn check(&self) {
        for driver in &self.drivers {
            let driver = driver.lock().unwrap();
            let counters = driver.counters();
            assert_eq!((counters.malformed_count, counters.refused_count.len()), (0, 0), "{counters:?}");
        }
    }
}

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        if thread::panicking() {
            // It may have ended by itself.
            let _ = self.0.kill();
        }
        let status = self.0.wait().unwrap();
        assert!(thread::panicking() || status.success(), "the other node failed: {status}");
    }
}

/// Runs `work` in two processes, as node 0 in this one and as node 1 in another one made by running the test `name` again.
pub fn in_two_processes(name: &str, work: impl Fn(&TestNode)) {
    if std::env::var(CHILD).is_ok_and(|child| child == name) {
        // SAFETY: descriptor 0 is the socket that the other process passed, and nobody else here uses it.
        let socket = unsafe { <UnixStream as std::os::fd::FromRawFd>::from_raw_fd(libc::dup(0)) };
        work(&TestNode::start(1, socket));
        return;
    }
    let (near, far) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(CHILD, name)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(far)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let other = Other(child);
    work(&TestNode::start(0, near));
    drop(other);
}
