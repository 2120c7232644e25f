use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    ETHERNET_BYTES, FRAME_BYTES_MAX, HEADER_BYTES, NetMetrics, WAITING_BYTES_MAX, WAITING_FRAMES_MAX,
};
use crate::devices::lock;
use crate::devices::terminal::Waker;

/// Carries frames out of the card.
pub trait FrameLink: Send + Sync + fmt::Debug {
    /// Takes a frame, `virtio_net_hdr_v1` (not checked) in front, between [`HEADER_BYTES`] + [`ETHERNET_BYTES`] and
    /// [`FRAME_BYTES_MAX`] bytes. Never blocks.
    ///
    /// # Errors
    /// The frame back, if there is no room for it now: the card keeps it, and stops the guest's transmit queue, until the
    /// waker given to [`FrameLink::on_room`] is called. A link that would rather drop returns `Ok` and counts.
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>>;

    /// `wake` is to be called, from any thread, when there may be room after a frame was refused. Called once, before
    /// any `send`.
    fn on_room(&self, wake: Waker);
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    up: bool,
}

struct Inner {
    waiting: Mutex<Waiting>,
    arrived: EventFd,
    metrics: Arc<NetMetrics>,
}

/// Frames on their way into the card; bounded, and what finds no room is dropped and counted, as a card does.
#[derive(Clone)]
pub struct FrameInput(Arc<Inner>);

impl fmt::Debug for FrameInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameInput").field("waiting", &lock(&self.0.waiting).frames.len()).finish()
    }
}

impl FrameInput {
    pub(super) fn new(metrics: Arc<NetMetrics>) -> io::Result<Self> {
        let arrived = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Inner { waiting: Mutex::default(), arrived, metrics })))
    }

    /// A frame has come, `virtio_net_hdr_v1` in front (`num_buffers` is the card's business). Never blocks. False if it was
    /// dropped: the card is down, the queue is full, or it is no frame.
    pub fn deliver(&self, frame: Vec<u8>) -> bool {
        let metrics = &self.0.metrics;
        if !(HEADER_BYTES + ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&frame.len()) {
            metrics.rx_malformed_count.inc();
            return false;
        }
        let first = {
            let mut waiting = lock(&self.0.waiting);
            if !waiting.up
                || waiting.frames.len() >= WAITING_FRAMES_MAX
                || waiting.bytes + frame.len() > WAITING_BYTES_MAX
            {
                metrics.rx_dropped_count.inc();
                return false;
            }
            waiting.bytes += frame.len();
            waiting.frames.push_back(frame);
            waiting.frames.len() == 1
        };
        if first && let Err(error) = self.0.arrived.write(1) {
            log::error!("frame event could not be written: {error}");
        }
        true
    }

    /// Readable when frames have come.
    pub(super) fn arrived(&self) -> &EventFd {
        &self.0.arrived
    }

    /// Takes the next frame.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        let mut waiting = lock(&self.0.waiting);
        let frame = waiting.frames.pop_front()?;
        waiting.bytes -= frame.len();
        Some(frame)
    }

    /// The driver is there, or has gone: then nothing waits.
    pub(super) fn set_up(&self, up: bool) {
        *lock(&self.0.waiting) = Waiting { up, ..Waiting::default() };
    }
}
