//! The reading half of a connection: whole messages out of a stream of bytes, on whichever thread drives it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::link::{Handler, Outbound};
use super::wire::{Class, HEADER_BYTES, Header, Peer};

/// Bytes that one read asks for, at least.
const READ_BYTES: usize = 256 << 10;

/// Called once when a connection is over, with the reason.
pub type Ended = Box<dyn FnOnce(String) + Send>;

/// How to read when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Wait for something.
    Yes,
    /// Come back at once.
    No,
}

/// Reads the messages of one connection. Dropping it, too, ends the connection.
pub struct Reader {
    out: Arc<Outbound>,
    peer: Peer,
    class: Class,
    buffer: Vec<u8>,
    /// Where the bytes lie that are not handed on yet.
    begin: usize,
    end: usize,
    /// Least bytes that the next message has, as far as is known.
    want: usize,
    ended: Option<Ended>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("peer", &self.peer).field("class", &self.class).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(out: Arc<Outbound>, peer: Peer, class: Class, ended: Ended) -> Self {
        let buffer = vec![0; READ_BYTES];
        Self { out, peer, class, buffer, begin: 0, end: 0, want: HEADER_BYTES, ended: Some(ended) }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Messages that were sent on this connection so far.
    pub fn sent_count(&self) -> u64 {
        self.out.metrics.sent_count.load(Ordering::Relaxed)
    }

    /// Reads once, and hands every whole message to `handler`. How many these were; `None` when the connection is over (its
    /// members have then been told, and this object is of no more use).
    pub fn pump(&mut self, handler: &dyn Handler, wait: Wait) -> Option<usize> {
        let why = match self.fill(wait) {
            Ok(true) => match self.deliver(handler) {
                Ok(count) => return Some(count),
                Err(error) => format!("{error:#}"),
            },
            Ok(false) => "it closed the connection".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && wait == Wait::No => return Some(0),
            Err(error) => error.to_string(),
        };
        self.finish(why);
        None
    }

    /// `Ok(false)`: the end.
    fn fill(&mut self, wait: Wait) -> io::Result<bool> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.begin + self.want > self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        // `want` is bounded by the kind's payload_max.
        if self.want > self.buffer.len() {
            self.buffer.resize(self.want, 0);
        }
        let room = &mut self.buffer[self.end..];
        let got = match wait {
            Wait::Yes => self.out.stream.read(room)?,
            Wait::No => self.out.stream.try_read(room)?,
        };
        self.end += got;
        if got == 0 && self.begin < self.end {
            return Err(io::Error::other("it closed the connection inside a message"));
        }
        Ok(got > 0)
    }

    /// Every whole message in the buffer.
    fn deliver(&mut self, handler: &dyn Handler) -> anyhow::Result<usize> {
        let mut count = 0;
        self.want = HEADER_BYTES;
        while let Some(raw) = self.buffer[self.begin..self.end].first_chunk::<HEADER_BYTES>() {
            let header = Header::parse(raw, self.class)?;
            let total = HEADER_BYTES + header.len;
            if self.end - self.begin < total {
                self.want = total;
                break;
            }
            self.out.metrics.received_count.fetch_add(1, Ordering::Relaxed);
            self.out.metrics.received_bytes.fetch_add(total as u64, Ordering::Relaxed);
            let payload = self.begin + HEADER_BYTES..self.begin + total;
            handler.message(self.peer, self.class, header, &self.buffer[payload])?;
            self.begin += total;
            count += 1;
        }
        Ok(count)
    }

    fn finish(&mut self, why: String) {
        self.out.close();
        if let Some(ended) = self.ended.take() {
            ended(why);
        }
    }
}

impl AsRawFd for Reader {
    /// Readable when [`Reader::pump`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.out.stream.descriptor()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.finish("nobody reads the connection any more".to_owned());
    }
}
