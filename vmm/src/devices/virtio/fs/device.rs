use std::sync::Arc;

use super::link::{Answers, FsLink};
use super::state::Shared;
use super::worker::FsWorker;
use super::{DEVICE_ID, FsDeviceMetrics, QUEUE_HIPRIO, QUEUE_REQUEST, QUEUE_SIZES, TAG};
use crate::devices::event_loop;
use crate::devices::virtio::ring::{F_EVENT_IDX, F_INDIRECT_DESC, config_bytes};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// Bytes of the tag in the configuration space.
const TAG_BYTES: usize = 36;

/// The device.
#[derive(Debug)]
pub struct Fs {
    shared: Arc<Shared>,
    config: Vec<u8>,
    exit: Exit,
    worker: Option<Worker>,
}

impl Fs {
    /// A device named [`TAG`] whose requests go to `link`. A worker that fails trips `exit`.
    pub fn new(link: Arc<dyn FsLink>, exit: &Exit) -> Self {
        let mut config = TAG.as_bytes().to_vec();
        config.resize(TAG_BYTES, 0);
        // num_request_queues.
        config.extend_from_slice(&1u32.to_le_bytes());
        let shared = Shared { link, metrics: FsDeviceMetrics::default() };
        Self { shared: Arc::new(shared), config, exit: exit.clone(), worker: None }
    }

    /// Counters.
    pub fn metrics(&self) -> &FsDeviceMetrics {
        &self.shared.metrics
    }
}

impl VirtioDevice for Fs {
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
        config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index: usize| {
            queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueMissing(index))
        };
        let queues = [take(QUEUE_HIPRIO)?, take(QUEUE_REQUEST)?];
        let answers = Arc::new(Answers::new()?);
        let worker = FsWorker::new(self.shared.clone(), ram, queues, interrupt, answers);
        self.worker = Some(Worker::spawn("fs", &self.exit, move |stop| event_loop::run(stop, worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        // Replies that still come go to the old worker's answers, which nobody reads any more.
        self.worker = None;
    }
}
