use std::sync::Arc;

use ssi_proto::device::{DEVICE_ID, QUEUE_PAGE, QUEUE_RX, QUEUE_SIZES, QUEUE_TX};

use super::page_worker::PageWorker;
use super::state::Shared;
use super::worker::MessageWorker;
use super::{CellLink, PageService, SsiConfig, SsiError, SsiHandle};
use crate::devices::event_loop;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// The device. Its workers run from DRIVER_OK to reset.
#[derive(Debug)]
pub struct SsiDevice {
    shared: Arc<Shared>,
    link: Arc<dyn CellLink>,
    pages: Arc<dyn PageService>,
    exit: Exit,
    workers: Vec<Worker>,
}

impl SsiDevice {
    /// A device of the cell that `config` names, on `link` and `pages`. A worker that fails trips `exit`.
    ///
    /// # Errors
    /// [`SsiError`].
    pub fn new(
        config: SsiConfig,
        link: Arc<dyn CellLink>,
        pages: Arc<dyn PageService>,
        exit: &Exit,
    ) -> Result<Self, SsiError> {
        let shared = Shared::new(config)?;
        let room = shared.room.clone();
        let wake: crate::devices::terminal::Waker = Arc::new(move || {
            if let Err(error) = room.write(1) {
                log::error!("event of the ssi device could not be written: {error}");
            }
        });
        shared.inbox.on_room(wake.clone());
        link.on_room(wake);
        Ok(Self { shared, link, pages, exit: exit.clone(), workers: Vec::new() })
    }

    /// The way into the device.
    pub fn handle(&self) -> SsiHandle {
        SsiHandle(self.shared.clone())
    }
}

impl VirtioDevice for SsiDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.shared.config_space();
        let rest = usize::try_from(offset).ok().and_then(|at| space.get(at..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index: usize| {
            queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueMissing(index))
        };
        let (tx, rx, page) = (take(QUEUE_TX)?, take(QUEUE_RX)?, take(QUEUE_PAGE)?);
        let messages = MessageWorker::new(
            self.shared.clone(),
            self.link.clone(),
            ram.clone(),
            tx,
            rx,
            interrupt.clone(),
        );
        let pages = PageWorker::new(self.shared.clone(), self.pages.clone(), ram, page, interrupt.clone())?;
        let cell = self.shared.config.cell;
        let workers = vec![
            Worker::spawn(&format!("ssi-msg-{cell}"), &self.exit, move |stop| {
                event_loop::run(stop, messages)
            })?,
            Worker::spawn(&format!("ssi-page-{cell}"), &self.exit, move |stop| event_loop::run(stop, pages))?,
        ];
        self.workers = workers;
        self.shared.set_interrupt(Some(interrupt));
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.set_interrupt(None);
        self.workers.clear();
        self.shared.inbox.clear();
    }
}
