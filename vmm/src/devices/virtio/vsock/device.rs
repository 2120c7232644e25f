use std::io;
use std::sync::Arc;

use super::state::Shared;
use super::worker::VsockWorker;
use super::{DEVICE_ID, FIRST_GUEST_CID, QUEUE_RX, QUEUE_SIZES, QUEUE_TX, VsockHandle, VsockMetrics};
use crate::devices::event_loop;
use crate::devices::virtio::ring::{F_EVENT_IDX, F_INDIRECT_DESC, config_bytes};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// The device.
#[derive(Debug)]
pub struct Vsock {
    shared: Arc<Shared>,
    exit: Exit,
    worker: Option<Worker>,
}

impl Vsock {
    /// The device of `cell`, whose CID is [`FIRST_GUEST_CID`] + `cell`. A worker that fails trips `exit`.
    ///
    /// # Errors
    /// If no eventfd can be had.
    pub fn new(cell: u32, exit: &Exit) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(FIRST_GUEST_CID + u64::from(cell))?);
        Ok(Self { shared, exit: exit.clone(), worker: None })
    }

    /// The host's side.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle::new(self.shared.clone())
    }

    /// Counters.
    pub fn metrics(&self) -> &VsockMetrics {
        &self.shared.metrics
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_bytes(&self.shared.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index: usize| {
            queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueMissing(index))
        };
        // The event queue only tells of a changed CID, which never happens.
        let (rx, tx) = (take(QUEUE_RX)?, take(QUEUE_TX)?);
        let worker = VsockWorker::new(self.shared.clone(), ram, rx, tx, interrupt);
        self.worker = Some(Worker::spawn("vsock", &self.exit, move |stop| event_loop::run(stop, worker))?);
        self.shared.set_active(true);
        Ok(())
    }

    fn reset(&mut self) {
        // With the worker go its connections, and their other ends see it.
        self.shared.set_active(false);
        self.worker = None;
    }
}
