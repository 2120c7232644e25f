use std::sync::Arc;

use super::state::Shared;
use super::worker::RngWorker;
use super::{DEVICE_ID, QUEUE_SIZES, RngMetrics};
use crate::devices::event_loop;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// The device.
#[derive(Debug)]
pub struct Rng {
    shared: Arc<Shared>,
    exit: Exit,
    worker: Option<Worker>,
}

impl Rng {
    /// A device whose worker trips `exit` if it fails.
    pub fn new(exit: &Exit) -> Self {
        Self { shared: Arc::default(), exit: exit.clone(), worker: None }
    }

    /// Counters.
    pub fn metrics(&self) -> &RngMetrics {
        &self.shared.metrics
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, .. } = activation;
        let queue = queues.into_iter().next().flatten().ok_or(ActivateError::QueueMissing(0))?;
        let worker = RngWorker { shared: self.shared.clone(), ram, queue, interrupt };
        self.worker = Some(Worker::spawn("rng", &self.exit, move |stop| event_loop::run(stop, worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
