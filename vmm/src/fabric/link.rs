//! One connection of one class: a bounded queue out, a thread that writes it, a thread that reads.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::reader::{Reader, Wait};
use super::stream::SharedStream;
use super::wire::{Class, HEADER_BYTES, Header, Kind, MessageError, Peer};
use crate::worker::{Exit, Worker};

/// Most buffers of one `sendmsg`.
const BATCH: usize = 64;

/// What a full queue means to a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// The sender waits.
    Wait,
    /// The sender is told, and woken later.
    Refuse,
    /// The message is dropped, as a network would, and counted.
    Drop,
    /// The peer does not drain what its protocol bounds: the connection is broken.
    Break,
}

/// Bytes that may wait, and what happens beyond, for each kind. The argument is in the module `fabric`.
fn bound(kind: Kind) -> (usize, WhenFull) {
    match kind {
        Kind::Dsm => (64 << 20, WhenFull::Break),
        Kind::Control | Kind::FetchRequest => (16 << 20, WhenFull::Break),
        Kind::FsRequest => (64 << 20, WhenFull::Break),
        Kind::Net => (4 << 20, WhenFull::Drop),
        Kind::Ssi => (1 << 20, WhenFull::Refuse),
        Kind::Open | Kind::Opened => (1 << 20, WhenFull::Wait),
        Kind::FetchReply | Kind::FsReply => (4 << 20, WhenFull::Wait),
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer is dead, or was never there.
    #[error("the peer is not reachable")]
    Dead,
    /// Too much waits already ([`Kind::Ssi`] only); nothing was taken. The waker of `Fabric::on_room` is called when there is
    /// room again.
    #[error("too much waits on the way to the peer")]
    Full,
    /// The message breaks a rule of the wire format; nothing was sent.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A message that a handler does not accept: the connection is closed, and its peer with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Receives the messages of one class.
pub trait Handler: Send + Sync {
    /// One message of `from`, on the thread that reads its connection: the next message of that peer and class waits for the
    /// return. Never blocks on a send of its own class (`fabric`, "No deadlock").
    ///
    /// # Errors
    /// [`Violation`] if the peer broke the service's protocol.
    fn message(&self, from: Peer, class: Class, header: Header, payload: &[u8]) -> Result<(), Violation>;

    /// Offers the reading half of a new connection, for a handler that reads on a thread of its own. One that does not take
    /// it gives it back, and gets a thread for it.
    fn adopt(&self, reader: Reader) -> Option<Reader> {
        Some(reader)
    }
}

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// Messages accepted for sending.
    pub sent_count: AtomicU64,
    /// Their bytes, headers included.
    pub sent_bytes: AtomicU64,
    /// Messages dropped because the queue was full.
    pub dropped_count: AtomicU64,
    /// Messages received.
    pub received_count: AtomicU64,
    /// Their bytes, headers included.
    pub received_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The writer has taken messages out and is writing them.
    writing: bool,
    /// A sender was refused and waits to be woken.
    refused: bool,
    closed: bool,
}

/// Called when there is room after a [`SendError::Full`], or the connection has ended; from any thread. Does not block.
pub type RoomWaker = Arc<dyn Fn() + Send + Sync>;

/// The sending half.
pub(super) struct Outbound {
    pub(super) stream: SharedStream,
    queue: Mutex<Queue>,
    work: Condvar,
    space: Condvar,
    room: RoomWaker,
    pub(super) metrics: LinkMetrics,
}

impl Outbound {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.waiting.clear();
        queue.bytes = 0;
        let refused = std::mem::take(&mut queue.refused);
        drop(queue);
        self.stream.shutdown();
        self.work.notify_all();
        self.space.notify_all();
        if refused {
            (self.room)();
        }
    }

    fn send(&self, kind: Kind, tag: u64, parts: &[&[u8]]) -> Result<(), SendError> {
        let len = parts.iter().map(|part| part.len()).sum();
        let header = Header { kind, len, tag }.emit()?;
        let total = HEADER_BYTES + len;
        let (limit, when_full) = bound(kind);
        let mut queue = self.lock();
        while !queue.closed && queue.bytes > 0 && queue.bytes + total > limit {
            match when_full {
                WhenFull::Wait => queue = self.space.wait(queue).unwrap_or_else(PoisonError::into_inner),
                WhenFull::Refuse => {
                    queue.refused = true;
                    return Err(SendError::Full);
                }
                WhenFull::Drop => {
                    self.metrics.dropped_count.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                WhenFull::Break => {
                    drop(queue);
                    log::error!(
                        "a peer left {limit} bytes of {kind:?} messages unread; its connection is closed"
                    );
                    self.close();
                    return Err(SendError::Dead);
                }
            }
        }
        if queue.closed {
            return Err(SendError::Dead);
        }
        self.metrics.sent_count.fetch_add(1, Ordering::Relaxed);
        self.metrics.sent_bytes.fetch_add(total as u64, Ordering::Relaxed);
        // With nothing before it, the message leaves from this thread: no hand-over, which is half of a page's latency.
        let mut done = 0;
        if queue.bytes == 0 && !queue.writing {
            let mut slices = Vec::with_capacity(1 + parts.len());
            slices.push(IoSlice::new(&header));
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            match self.stream.try_write_vectored(&slices) {
                Ok(written) => done = written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(queue);
                    self.close();
                    return Err(SendError::Dead);
                }
            }
        }
        if done < total {
            let mut rest = Vec::with_capacity(total - done);
            let mut skip = done;
            for part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
                let cut = skip.min(part.len());
                rest.extend_from_slice(&part[cut..]);
                skip -= cut;
            }
            queue.bytes += rest.len();
            queue.waiting.push_back(rest);
            self.work.notify_one();
        }
        Ok(())
    }

    /// Writes what waits until the connection is closed.
    fn write_loop(&self) {
        let mut batch: Vec<Vec<u8>> = Vec::with_capacity(BATCH);
        loop {
            let mut queue = self.lock();
            while queue.waiting.is_empty() && !queue.closed {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closed {
                return;
            }
            let take = queue.waiting.len().min(BATCH);
            batch.extend(queue.waiting.drain(..take));
            queue.writing = true;
            drop(queue);
            let parts: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
            let written = super::stream::write_all(self.stream.as_ref(), &parts);
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            batch.clear();
            let mut queue = self.lock();
            queue.writing = false;
            queue.bytes = queue.bytes.saturating_sub(bytes);
            let refused = std::mem::take(&mut queue.refused);
            drop(queue);
            if let Err(error) = written {
                log::debug!("a fabric connection cannot be written: {error}");
                self.close();
                return;
            }
            self.space.notify_all();
            if refused {
                (self.room)();
            }
        }
    }
}

/// A connection of one class to one peer. Dropping it ends it.
pub struct Link {
    peer: Peer,
    class: Class,
    out: Arc<Outbound>,
    workers: Vec<Worker>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).field("class", &self.class).finish_non_exhaustive()
    }
}

impl Link {
    /// Takes over an authenticated stream. `ended` is called once, from the reading thread, when the connection is over.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        peer: Peer,
        class: Class,
        stream: SharedStream,
        handler: Arc<dyn Handler>,
        room: RoomWaker,
        exit: &Exit,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let out = Arc::new(Outbound {
            stream,
            queue: Mutex::default(),
            work: Condvar::new(),
            space: Condvar::new(),
            room,
            metrics: LinkMetrics::default(),
        });
        let short = match peer {
            Peer::Io => "io".to_owned(),
            Peer::Node(n) => n.to_string(),
            Peer::Client => "client".to_owned(),
        };
        let class_name = format!("{class:?}").to_lowercase();
        let (writer, mut workers) = (out.clone(), vec![]);
        if let Some(mut reader) = handler.adopt(Reader::new(out.clone(), peer, class, Box::new(ended))) {
            workers.push(Worker::spawn(&format!("rx-{short}-{class_name}"), exit, move |_| {
                while reader.pump(handler.as_ref(), Wait::Yes).is_some() {}
                Ok(())
            })?);
        }
        let write = match Worker::spawn(&format!("tx-{short}-{class_name}"), exit, move |_| {
            writer.write_loop();
            Ok(())
        }) {
            Ok(worker) => worker,
            Err(error) => {
                out.close();
                return Err(error);
            }
        };
        workers.push(write);
        Ok(Self { peer, class, out, workers })
    }

    /// Sends one message, of which `parts` are the payload.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, kind: Kind, tag: u64, parts: &[&[u8]]) -> Result<(), SendError> {
        debug_assert!(kind.travels_on(self.class));
        self.out.send(kind, tag, parts)
    }

    /// Ends the connection; the threads end soon after.
    pub fn close(&self) {
        self.out.close();
    }

    /// Its counters.
    pub fn metrics(&self) -> &LinkMetrics {
        &self.out.metrics
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.out.close();
        self.workers.clear();
    }
}
