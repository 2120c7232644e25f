use std::io;
use std::sync::Arc;

use super::state::Shared;
use super::worker::ConsoleWorker;
use super::{ConsoleMetrics, DEVICE_ID, QUEUE_RX, QUEUE_SIZES, QUEUE_TX};
use crate::devices::event_loop;
use crate::devices::terminal::Terminal;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// The device.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    exit: Exit,
    worker: Option<Worker>,
}

impl Console {
    /// The guest's side of `terminal`. A worker that fails trips `exit`.
    ///
    /// # Errors
    /// If no eventfd can be had.
    pub fn new(terminal: &Terminal, exit: &Exit) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(terminal)?);
        let typed = shared.typed.clone();
        terminal.on_input(Arc::new(move || {
            if let Err(error) = typed.write(1) {
                log::error!("console event could not be written: {error}");
            }
        }));
        Ok(Self { shared, exit: exit.clone(), worker: None })
    }

    /// Counters.
    pub fn metrics(&self) -> &ConsoleMetrics {
        &self.shared.metrics
    }
}

impl VirtioDevice for Console {
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
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index: usize| {
            queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueMissing(index))
        };
        let (rx, tx) = (take(QUEUE_RX)?, take(QUEUE_TX)?);
        let worker = ConsoleWorker { shared: self.shared.clone(), ram, rx, tx, interrupt };
        self.worker = Some(Worker::spawn("console", &self.exit, move |stop| event_loop::run(stop, worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
