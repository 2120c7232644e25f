use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ssi_proto::device::{
    CONFIG_BURY, DEVICE_ID, F_LOST, PAGE_SIZE, QUEUE_PAGE, QUEUE_RX, QUEUE_SIZES, QUEUE_TX,
};

use super::page_worker::PageWorker;
use super::state::Shared;
use super::worker::MessageWorker;
use super::{CellLink, PageService, SsiConfig, SsiError, SsiHandle};
use crate::devices::event_loop;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::guest_warn;
use crate::worker::{Exit, Worker};

/// The device. Its workers run from DRIVER_OK to reset.
#[derive(Debug)]
pub struct SsiDevice {
    shared: Arc<Shared>,
    link: Arc<dyn CellLink>,
    pages: Arc<dyn PageService>,
    exit: Exit,
    lost_faults: Arc<AtomicBool>,
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
        Ok(Self { shared, link, pages, exit: exit.clone(), lost_faults: Arc::default(), workers: Vec::new() })
    }

    /// Does the driver know page faults for lost memory ([`F_LOST`])? Whoever raises them looks here.
    pub fn lost_faults(&self) -> Arc<AtomicBool> {
        self.lost_faults.clone()
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
        F_LOST
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

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let (Ok(index), CONFIG_BURY) = (<[u8; 4]>::try_from(data), offset) else {
            guest_warn!("ssi: a write of {} bytes at {offset:#x} of the configuration", data.len());
            return;
        };
        let config = &self.shared.config;
        let address = config.slice_base(config.cell) + u64::from(u32::from_le_bytes(index)) * PAGE_SIZE;
        if config.in_slice(config.cell, address) {
            self.pages.bury(address);
        } else {
            guest_warn!("ssi: {address:#x} is no page of the own slice");
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, features } = activation;
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
        self.lost_faults.store(features & F_LOST != 0, Ordering::Release);
        self.shared.set_interrupt(Some(interrupt));
        Ok(())
    }

    fn reset(&mut self) {
        self.lost_faults.store(false, Ordering::Release);
        self.shared.set_interrupt(None);
        self.workers.clear();
        self.shared.inbox.clear();
    }
}
