use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Sender;
use ssi_proto::device::{PAGE_SIZE, PageOp, PageStatus, TxStatus};
use vmm_sys_util::eventfd::EventFd;

use super::Class;
use crate::devices::terminal::Waker;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was handed over, or never can be.
    Done(TxStatus),
    /// There is no room on the way to this cell, in this class, now. Nothing was taken. The waker given to
    /// [`CellLink::on_room`] is called when trying again makes sense.
    Busy,
}

/// Carries messages to other cells.
pub trait CellLink: Send + Sync + fmt::Debug {
    /// Hands `message` (header and payload, checked; header field `cell` is the source) over to the way to `cell`,
    /// which is a cell of the cluster, alive, and not the own one. Never blocks. Messages of one cell and class that
    /// were `Done(Accepted)` arrive in that order, each at most once.
    fn send(&self, cell: u32, class: Class, message: &[u8]) -> Sent;

    /// `wake` is called, from any thread, after a `Busy` when there may be room again. Called once, before any `send`.
    fn on_room(&self, wake: Waker);
}

/// The bytes of one page.
pub type PageBytes = Box<[u8; PAGE_SIZE as usize]>;

/// One page of a request.
#[derive(Debug)]
pub struct PageTask {
    /// The cell whose address `remote` is. The own one for LOST, never else, and always alive when the task was made.
    pub cell: u32,
    /// FETCH: an address in the slice or the low RAM of `cell`; PREFETCH, RELEASE, LOST: in its slice. Page-aligned.
    pub remote: u64,
    /// Where the result goes.
    pub done: PageDone,
}

/// Does page operations.
pub trait PageService: Send + Sync + fmt::Debug {
    /// Begins `tasks` (at most 256, all of one `op`). Never blocks; results come from any thread, in any order. The
    /// service never touches this cell's guest memory: the device's own worker writes what was fetched.
    fn submit(&self, op: PageOp, tasks: Vec<PageTask>);

    /// The cell uses what was in the page at `gpa`, of its own slice, for nothing any more: should it be lost, the cell may touch
    /// it from now on. Done on return; never waits for another node.
    fn bury(&self, gpa: u64);
}

/// Result of one page, on its way to the page worker.
#[derive(Debug)]
pub(super) struct Completion {
    pub job: u64,
    pub index: usize,
    pub result: Result<Option<PageBytes>, PageStatus>,
}

/// Where the result of one [`PageTask`] goes. One that is dropped counts as [`PageStatus::Failed`].
#[derive(Debug)]
pub struct PageDone {
    job: u64,
    index: usize,
    // None once the result was given.
    sink: Option<(Sender<Completion>, Arc<EventFd>)>,
}

impl PageDone {
    pub(super) fn new(job: u64, index: usize, sender: &Sender<Completion>, event: &Arc<EventFd>) -> Self {
        Self { job, index, sink: Some((sender.clone(), event.clone())) }
    }

    /// FETCH: the page is `bytes`. LOST: the answer ([`ssi_proto::device::emit_lost`]).
    pub fn fetched(mut self, bytes: PageBytes) {
        self.send(Ok(Some(bytes)));
    }

    /// PREFETCH, RELEASE: done, or any operation: not possible. A FETCH that is `Done` without bytes has failed.
    pub fn finished(mut self, status: PageStatus) {
        self.send(if status == PageStatus::Done { Ok(None) } else { Err(status) });
    }

    fn send(&mut self, result: Result<Option<PageBytes>, PageStatus>) {
        let Some((sender, event)) = self.sink.take() else { return };
        // No receiver: the device was reset meanwhile, and nobody waits for this page.
        if sender.send(Completion { job: self.job, index: self.index, result }).is_ok()
            && let Err(error) = event.write(1)
        {
            log::error!("page event could not be written: {error}");
        }
    }
}

impl Drop for PageDone {
    fn drop(&mut self) {
        self.send(Err(PageStatus::Failed));
    }
}
