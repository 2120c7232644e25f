use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::lock;

/// Carries FUSE requests to whoever serves them.
pub trait FsLink: Send + Sync + fmt::Debug {
    /// Takes a request (at least a `fuse_in_header` and at most [`super::REQUEST_BYTES_MAX`] bytes, not checked further)
    /// and where its reply goes. Never blocks; at most [`super::QUEUE_SIZES`] requests and
    /// [`super::WAITING_BYTES_MAX`] bytes of them wait at a time, which is the back-pressure. The reply may come at once,
    /// or later, on any thread.
    fn submit(&self, request: Vec<u8>, reply: Reply);
}

/// What came back for one request.
#[derive(Debug)]
pub(super) struct Answer {
    pub tag: u64,
    /// `None`: the link dropped it.
    pub bytes: Option<Vec<u8>>,
}

/// Answers on their way to the device's worker.
#[derive(Debug)]
pub(super) struct Answers {
    queue: Mutex<VecDeque<Answer>>,
    event: EventFd,
}

impl Answers {
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Readable when there are answers.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes all that there are.
    pub fn take(&self) -> VecDeque<Answer> {
        std::mem::take(&mut *lock(&self.queue))
    }

    fn put(&self, answer: Answer) {
        let first = {
            let mut queue = lock(&self.queue);
            queue.push_back(answer);
            queue.len() == 1
        };
        if first && let Err(error) = self.event.write(1) {
            log::error!("file system event could not be written: {error}");
        }
    }
}

/// Where the reply to one request goes. One that is dropped is answered EIO, if the guest waits for an answer; so a
/// link drops the replies of FORGET, which has none, and those of a connection that is gone.
#[derive(Debug)]
pub struct Reply {
    tag: u64,
    // None once it was answered.
    to: Option<Arc<Answers>>,
}

impl Reply {
    pub(super) fn new(tag: u64, to: &Arc<Answers>) -> Self {
        Self { tag, to: Some(to.clone()) }
    }

    /// The reply: a FUSE message, or nothing for a request that has no reply.
    pub fn send(mut self, bytes: Vec<u8>) {
        if let Some(to) = self.to.take() {
            to.put(Answer { tag: self.tag, bytes: Some(bytes) });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.put(Answer { tag: self.tag, bytes: None });
        }
    }
}

/// Served in the same process.
impl FsLink for crate::io::fs::FsSession {
    fn submit(&self, request: Vec<u8>, reply: Reply) {
        self.submit(request, move |bytes| reply.send(bytes));
    }
}
