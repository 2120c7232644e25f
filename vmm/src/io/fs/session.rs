//! One cell's FUSE session: bytes in, bytes out, on a few threads of its own, so that one cell's slow requests never hold
//! up another's.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader};

use crate::worker::{Exit, Worker};

use super::cell_fs::CellFs;
use super::message::{self, OUT_HEADER};
use super::{FsError, FsMetrics, Options};

/// FUSE_DESTROY: the server's own answer to it does not say how long it is.
const DESTROY: u32 = 38;
/// FUSE_INTERRUPT: there is nothing here that could be interrupted.
const INTERRUPT: u32 = 36;

type Done = Box<dyn FnOnce(Vec<u8>) + Send>;

struct Job {
    request: Vec<u8>,
    done: Done,
}

/// Decodes and answers.
struct Handler {
    server: Server<CellFs>,
    cell: u16,
    /// Where the server "writes" replies: they are already in the buffer that it was given.
    sink: File,
    metrics: Arc<FsMetrics>,
}

/// A cell's session. Dropping it finishes what is queued, ends its threads and closes all that the cell held.
pub struct FsSession {
    handler: Arc<Handler>,
    jobs: Option<Sender<Job>>,
    threads: Vec<Worker>,
}

impl std::fmt::Debug for FsSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsSession").field("cell", &self.handler.cell).finish_non_exhaustive()
    }
}

impl FsSession {
    pub(super) fn new(
        fs: CellFs,
        cell: u16,
        options: &Options,
        metrics: Arc<FsMetrics>,
        exit: &Exit,
    ) -> Result<Self, FsError> {
        let sink = OpenOptions::new().write(true).open("/dev/null").map_err(FsError::Start)?;
        let handler = Arc::new(Handler { server: Server::new(fs), cell, sink, metrics });
        let (jobs, queue) = bounded::<Job>(options.queue);
        let threads = (0..options.threads.max(1))
            .map(|n| {
                let (handler, queue): (Arc<Handler>, Receiver<Job>) = (handler.clone(), queue.clone());
                Worker::spawn(&format!("fs{cell}-{n}"), exit, move |_| {
                    // Ends when the session drops its end of the queue.
                    while let Ok(Job { request, done }) = queue.recv() {
                        done(handler.handle(request));
                    }
                    Ok(())
                })
                .map_err(FsError::Thread)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { handler, jobs: Some(jobs), threads })
    }

    /// Handles one FUSE request and returns the reply; empty for the few requests that have none (FORGET, BATCH_FORGET,
    /// INTERRUPT). Runs on the caller's thread, and may take as long as the file system does. Whatever the bytes are,
    /// it neither fails nor panics: what is no request is answered EINVAL.
    pub fn handle(&self, request: Vec<u8>) -> Vec<u8> {
        self.handler.handle(request)
    }

    /// Handles one FUSE request on the session's threads; `done` gets the reply (empty: none) on one of them, or at once
    /// if the queue is full. Never blocks.
    pub fn submit(&self, request: Vec<u8>, done: impl FnOnce(Vec<u8>) + Send + 'static) {
        let job = Job { request, done: Box::new(done) };
        let refused = match self.jobs.as_ref().map(|jobs| jobs.try_send(job)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(job) | TrySendError::Disconnected(job))) => job,
            None => return,
        };
        self.handler.metrics.refused_count.add(1);
        (refused.done)(message::error_reply(message::unique_of(&refused.request), libc::ENOBUFS));
    }

    /// The cell that this session belongs to.
    pub fn cell(&self) -> u16 {
        self.handler.cell
    }
}

impl Drop for FsSession {
    fn drop(&mut self) {
        self.jobs = None;
        self.threads.clear();
    }
}

impl Handler {
    fn handle(&self, mut request: Vec<u8>) -> Vec<u8> {
        let metrics = &self.metrics;
        metrics.requests_count.add(1);
        metrics.request_bytes.add(request.len() as u64);
        let reply = match message::parse(&request) {
            Err(malformed) => {
                metrics.malformed_count.add(1);
                if malformed.wants_reply {
                    message::error_reply(malformed.unique, libc::EINVAL)
                } else {
                    Vec::new()
                }
            }
            Ok(head) if !message::is_served(head.opcode) => message::error_reply(head.unique, libc::ENOSYS),
            Ok(head) if head.opcode == INTERRUPT => Vec::new(),
            Ok(head) => {
                keep_capabilities();
                match catch_unwind(AssertUnwindSafe(|| self.serve(&mut request, head))) {
                    Ok(reply) => reply,
                    Err(_) => {
                        metrics.panics_count.add(1);
                        log::error!(
                            "cell {}: the handler of FUSE operation {} panicked",
                            self.cell,
                            head.opcode
                        );
                        message::error_reply(head.unique, libc::EIO)
                    }
                }
            }
        };
        metrics.reply_bytes.add(reply.len() as u64);
        reply
    }

    fn serve(&self, request: &mut [u8], head: message::Request) -> Vec<u8> {
        let mut reply = vec![0u8; head.room];
        let served = {
            let Ok(reader) = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)) else { return Vec::new() };
            let Ok(mut writer) = FuseDevWriter::<()>::new(self.sink.as_raw_fd(), &mut reply) else {
                return Vec::new();
            };
            // A writer that was split keeps what it is given in its buffer, one part behind the other; what it then
            // "commits" goes to the sink. So the reply is in `reply`, whole, and no descriptor carries it.
            if writer.split_at(head.room).is_err() {
                return Vec::new();
            }
            self.server.handle_message(reader, writer.into(), None, None)
        };
        if head.opcode == DESTROY {
            return message::ok_reply(head.unique);
        }
        if !message::wants_reply(head.opcode) {
            return Vec::new();
        }
        match message::reply_length(&reply, head.unique) {
            Some(length) => {
                reply.truncate(length);
                reply
            }
            None => {
                self.metrics.malformed_count.add(1);
                log::debug!(
                    "cell {}: FUSE operation {} not decoded: {:?}",
                    self.cell,
                    head.opcode,
                    served.map_err(|error| error.to_string())
                );
                debug_assert!(reply[..OUT_HEADER].iter().all(|&byte| byte == 0));
                message::error_reply(head.unique, libc::EINVAL)
            }
        }
    }
}

thread_local! {
    static KEPT: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread keep its capabilities when it acts as another user to create a file. The guest's kernel has checked
/// its users' rights, supplementary groups and all, so the server must not check them again with less knowledge.
fn keep_capabilities() {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    if KEPT.replace(true) {
        return;
    }
    // SAFETY: both calls take plain numbers and change this thread's securebits only.
    let result = unsafe {
        let bits = libc::prctl(libc::PR_GET_SECUREBITS);
        if bits < 0 {
            bits
        } else {
            libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong | SECBIT_NO_SETUID_FIXUP)
        }
    };
    if result < 0 {
        log::debug!("file service without CAP_SETPCAP: files can be made as this user only");
    }
}
