use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use ssi_proto::device::{FLAG_BULK, MESSAGE_HEADER_BYTES, MESSAGE_MAX_BYTES, MessageHeader};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::INBOX_MESSAGES_MAX;
use crate::devices::lock;
use crate::devices::terminal::Waker;

/// Traffic class of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Small and urgent: never waits behind bulk.
    Normal = 0,
    /// Flag `BULK`.
    Bulk = 1,
}

impl Class {
    /// The class that the flags of a header name.
    pub fn of(flags: u32) -> Self {
        if flags & FLAG_BULK == 0 { Self::Normal } else { Self::Bulk }
    }
}

/// A message could not be delivered.
#[derive(Debug, PartialEq, Eq)]
pub enum DeliverError {
    /// No room now; here is the message back. A waker given to [`Inbox::on_room`] is called when there is.
    Full(Vec<u8>),
    /// Shorter than a header, longer than a message may be, or its header says another length.
    Malformed,
}

impl fmt::Display for DeliverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the cell's inbox is full",
            Self::Malformed => "the message and its header disagree",
        })
    }
}

impl std::error::Error for DeliverError {}

#[derive(Debug, Default)]
struct Waiting {
    queues: [VecDeque<Vec<u8>>; 2],
    refused: bool,
}

struct Inner {
    waiting: Mutex<Waiting>,
    arrived: EventFd,
    wakers: Mutex<Vec<Waker>>,
}

/// Messages from other cells that wait for this cell's rx buffers; bounded, class by class.
#[derive(Clone)]
pub struct Inbox(Arc<Inner>);

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inbox").field(&*lock(&self.0.waiting)).finish()
    }
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            waiting: Mutex::default(),
            arrived: EventFd::new(EFD_NONBLOCK)?,
            wakers: Mutex::default(),
        })))
    }

    /// A message (header and payload) of cell `from` has come. Its header field `cell` becomes `from`, whatever
    /// the sender wrote. Never blocks.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub fn deliver(&self, from: u32, mut message: Vec<u8>) -> Result<(), DeliverError> {
        let header = message.first_chunk::<MESSAGE_HEADER_BYTES>().map(MessageHeader::parse);
        let Some(mut header) = header.filter(|header| {
            message.len() <= MESSAGE_MAX_BYTES && message.len() - MESSAGE_HEADER_BYTES == header.len as usize
        }) else {
            return Err(DeliverError::Malformed);
        };
        let class = Class::of(header.flags) as usize;
        {
            let mut waiting = lock(&self.0.waiting);
            if waiting.queues[class].len() >= INBOX_MESSAGES_MAX {
                waiting.refused = true;
                return Err(DeliverError::Full(message));
            }
            header.cell = from;
            message[..MESSAGE_HEADER_BYTES].copy_from_slice(&header.emit());
            waiting.queues[class].push_back(message);
        }
        if let Err(error) = self.0.arrived.write(1) {
            log::error!("inbox event could not be written: {error}");
        }
        Ok(())
    }

    /// `wake` is called, from the device's worker, when there is room after a `Full`. It must not block.
    pub fn on_room(&self, wake: Waker) {
        lock(&self.0.wakers).push(wake);
    }

    /// Readable when messages have come.
    pub(super) fn arrived(&self) -> &EventFd {
        &self.0.arrived
    }

    /// Takes the next message, urgent ones first.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        let (message, wake) = {
            let mut waiting = lock(&self.0.waiting);
            let [normal, bulk] = &mut waiting.queues;
            let message = normal.pop_front().or_else(|| bulk.pop_front());
            let wake = message.is_some() && std::mem::take(&mut waiting.refused);
            (message, wake)
        };
        if wake {
            self.wake();
        }
        message
    }

    /// Forgets all that waits: the driver has reset the device.
    pub(super) fn clear(&self) {
        let refused = {
            let mut waiting = lock(&self.0.waiting);
            waiting.queues.iter_mut().for_each(VecDeque::clear);
            std::mem::take(&mut waiting.refused)
        };
        if refused {
            self.wake();
        }
    }

    fn wake(&self) {
        let wakers = lock(&self.0.wakers).clone();
        wakers.iter().for_each(|wake| wake());
    }
}
