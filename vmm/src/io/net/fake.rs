//! A cell without a machine: smoltcp behind the service's own interface, on a thread. For tests and the benchmark.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ssi_netstack::Instant;
use ssi_netstack::sim::SimCell;

use super::handle::{FramePort, NetHandle};
use crate::worker::{Exit, Worker};

/// Where the service leaves frames for fake cells.
#[derive(Debug)]
pub(super) struct FakePort {
    queues: Vec<(Mutex<VecDeque<Vec<u8>>>, Condvar)>,
}

impl FakePort {
    pub(super) fn new(cells: u32) -> Arc<Self> {
        Arc::new(Self { queues: (0..cells).map(|_| Default::default()).collect() })
    }

    fn take(&self, cell: u32, wait: Duration) -> VecDeque<Vec<u8>> {
        let (queue, arrived) = &self.queues[cell as usize];
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut queue, _) = arrived
            .wait_timeout_while(queue, wait, |queue| queue.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut queue)
    }
}

impl FramePort for FakePort {
    fn deliver(&self, cell: u32, frame: Vec<u8>) {
        if let Some((queue, arrived)) = self.queues.get(cell as usize) {
            queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(frame);
            arrived.notify_one();
        }
    }
}

/// Starts the thread of fake cell `cell`; `app` is called after each poll, and drives its sockets.
///
/// # Errors
/// If no thread can be had.
pub(super) fn spawn(
    cell: u32,
    offload: bool,
    port: Arc<FakePort>,
    handle: NetHandle,
    exit: &Exit,
    mut app: impl FnMut(&mut SimCell) + Send + 'static,
) -> io::Result<Worker> {
    Worker::spawn("fake-cell", exit, move |stop| {
        let began = std::time::Instant::now();
        let now = || Instant::from_micros(began.elapsed().as_micros() as i64);
        let mut sim = SimCell::new(offload, u64::from(cell) + 1, now());
        app(&mut sim);
        while !stop.is_triggered() {
            // Short, so that the stop event is seen soon.
            let left =
                sim.deadline(now()).map_or(20_000, |at| (at.max(now()) - now()).total_micros().min(20_000));
            for frame in port.take(cell, Duration::from_micros(left)) {
                sim.input(frame);
            }
            sim.poll(now());
            app(&mut sim);
            sim.poll(now());
            while let Some(frame) = sim.pop_frame() {
                handle.input(cell, frame);
            }
        }
        Ok(())
    })
}
