use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use virtio_queue::{DescriptorChain, QueueT};

use super::link::{Answer, Answers, Reply};
use super::state::Shared;
use super::{IN_HEADER_BYTES, OUT_HEADER_BYTES, REQUEST_BYTES_MAX, WAITING_BYTES_MAX};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{give_back, look_again, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

/// Tokens below are queue indices.
const ANSWERS: u32 = 16;

/// A request that waits for its reply.
struct Waiting {
    queue: usize,
    chain: DescriptorChain<GuestRam>,
    unique: u64,
    bytes: usize,
}

/// Moves requests from the queues to the link, and answers back.
pub(super) struct FsWorker {
    shared: Arc<Shared>,
    ram: GuestRam,
    queues: [ActiveQueue; 2],
    interrupt: Arc<dyn DeviceInterrupt>,
    answers: Arc<Answers>,
    waiting: BTreeMap<u64, Waiting>,
    waiting_bytes: usize,
    next_tag: u64,
    // By queue: more may be available, but there was no room for it.
    throttled: [bool; 2],
}

impl FsWorker {
    pub fn new(
        shared: Arc<Shared>,
        ram: GuestRam,
        queues: [ActiveQueue; 2],
        interrupt: Arc<dyn DeviceInterrupt>,
        answers: Arc<Answers>,
    ) -> Self {
        Self {
            shared,
            ram,
            queues,
            interrupt,
            answers,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            next_tag: 0,
            throttled: [false; 2],
        }
    }

    /// Takes what the driver has made available in queue `index`, as far as there is room on the way.
    fn process_queue(&mut self, index: usize) {
        let mut used = false;
        loop {
            // A driver can make a head available again before it was used, so the queue's size alone is no bound.
            let most = usize::from(self.queues[0].queue.size()) + usize::from(self.queues[1].queue.size());
            let room = WAITING_BYTES_MAX - REQUEST_BYTES_MAX;
            if self.waiting.len() >= most || self.waiting_bytes > room {
                if !self.throttled[index] {
                    self.shared.metrics.throttled_count.inc();
                }
                self.throttled[index] = true;
                break;
            }
            match self.queues[index].queue.pop_descriptor_chain(self.ram.clone()) {
                Some(chain) => used |= self.begin(index, chain),
                None if look_again(&mut self.queues[index].queue, &self.ram) => {}
                None => break,
            }
        }
        if used {
            self.notify(index);
        }
    }

    /// Hands the request in `chain` to the link; a chain that is none is returned at once (true).
    fn begin(&mut self, queue: usize, chain: DescriptorChain<GuestRam>) -> bool {
        let metrics = &self.shared.metrics;
        let reader = chain.clone().reader(&self.ram).ok();
        let sound = |len: usize| (IN_HEADER_BYTES..=REQUEST_BYTES_MAX).contains(&len);
        let request = reader.filter(|reader| sound(reader.available_bytes())).and_then(|mut reader| {
            let mut bytes = vec![0; reader.available_bytes()];
            reader.read_exact(&mut bytes).ok().map(|()| bytes)
        });
        let Some(request) = request else {
            metrics.malformed_chains_count.inc();
            guest_warn!(
                "fs: chain {} is no FUSE request of at most {REQUEST_BYTES_MAX} bytes",
                chain.head_index()
            );
            let len = self.write_error(&chain, 0);
            give_back(&mut self.queues[queue].queue, &self.ram, chain.head_index(), len);
            return true;
        };
        metrics.requests_count.inc();
        metrics.request_bytes.add(request.len() as u64);
        let tag = self.next_tag;
        self.next_tag += 1;
        let unique = request[8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.waiting_bytes += request.len();
        self.waiting.insert(tag, Waiting { queue, chain, unique, bytes: request.len() });
        self.shared.link.submit(request, Reply::new(tag, &self.answers));
        false
    }

    /// Returns the chains of all requests that were answered.
    fn process_answers(&mut self) {
        let mut used = [false; 2];
        for Answer { tag, bytes } in self.answers.take() {
            let Some(waiting) = self.waiting.remove(&tag) else { continue };
            self.waiting_bytes -= waiting.bytes;
            let len = self.write_answer(&waiting, bytes);
            give_back(&mut self.queues[waiting.queue].queue, &self.ram, waiting.chain.head_index(), len);
            used[waiting.queue] = true;
        }
        for (index, used) in used.into_iter().enumerate() {
            if used {
                self.notify(index);
            }
            if std::mem::take(&mut self.throttled[index]) {
                self.process_queue(index);
            }
        }
    }

    /// Writes the answer into the chain's writable part; returns the bytes written.
    fn write_answer(&self, waiting: &Waiting, bytes: Option<Vec<u8>>) -> u32 {
        let metrics = &self.shared.metrics;
        let Ok(mut writer) = waiting.chain.clone().writer(&self.ram) else {
            metrics.malformed_chains_count.inc();
            return 0;
        };
        let room = writer.available_bytes();
        match bytes {
            // FORGET: nobody wants an answer.
            _ if room == 0 => 0,
            Some(bytes) if bytes.len() <= room && writer.write_all(&bytes).is_ok() => {
                metrics.reply_bytes.add(bytes.len() as u64);
                bytes.len() as u32
            }
            Some(bytes) => {
                metrics.oversized_replies_count.inc();
                guest_warn!("fs: a reply of {} bytes for {room} bytes of buffers", bytes.len());
                self.write_error(&waiting.chain, waiting.unique)
            }
            None => {
                metrics.dropped_count.inc();
                self.write_error(&waiting.chain, waiting.unique)
            }
        }
    }

    /// Writes a `fuse_out_header` that says EIO, if there is room for one.
    fn write_error(&self, chain: &DescriptorChain<GuestRam>, unique: u64) -> u32 {
        let Ok(mut writer) = chain.clone().writer(&self.ram) else { return 0 };
        if writer.available_bytes() < OUT_HEADER_BYTES {
            return 0;
        }
        match writer.write_all(&crate::io::fs::error_reply(unique, libc::EIO)) {
            Ok(()) => OUT_HEADER_BYTES as u32,
            Err(_) => 0,
        }
    }

    fn notify(&mut self, index: usize) {
        if wants_interrupt(&mut self.queues[index].queue, &self.ram) {
            self.interrupt.used(index);
        }
    }
}

impl Handler for FsWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        let queues = self.queues.iter().zip(0..);
        let mut sources: Vec<_> = queues.map(|(queue, token)| (queue.kick.as_raw_fd(), token)).collect();
        sources.push((self.answers.event().as_raw_fd(), ANSWERS));
        sources
    }

    fn ready(&mut self, token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
        if token == ANSWERS {
            drain(self.answers.event());
            self.process_answers();
        } else {
            drain(&self.queues[token as usize].kick);
            self.process_queue(token as usize);
        }
        Ok(())
    }
}
