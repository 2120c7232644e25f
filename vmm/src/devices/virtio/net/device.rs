use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::Shared;
use super::worker::NetWorker;
use super::{
    DEVICE_ID, F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MAC, F_MRG_RXBUF, F_MTU, F_STATUS,
    FrameInput, FrameLink, NetMetrics, QUEUE_RX, QUEUE_SIZES, QUEUE_TX, STATUS_LINK_UP,
};
use crate::devices::event_loop;
use crate::devices::virtio::ring::{F_EVENT_IDX, F_INDIRECT_DESC, config_bytes};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{Exit, Worker};

/// How a card looks to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Bytes of an IP packet on its link, 68 at least; `None` leaves it to the guest (1500).
    pub mtu: Option<u16>,
}

/// The device.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    config: Vec<u8>,
    features: u64,
    exit: Exit,
    worker: Option<Worker>,
}

impl Net {
    /// A card whose frames go to `link`. A worker that fails trips `exit`.
    ///
    /// # Errors
    /// If no eventfd can be had.
    pub fn new(config: NetConfig, link: Arc<dyn FrameLink>, exit: &Exit) -> io::Result<Self> {
        let metrics = Arc::<NetMetrics>::default();
        let room = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let wake = room.clone();
        link.on_room(Arc::new(move || {
            if let Err(error) = wake.write(1) {
                log::error!("network event could not be written: {error}");
            }
        }));
        // mac, status, max_virtqueue_pairs (unused without its feature), mtu.
        let mut space = config.mac.to_vec();
        space.extend_from_slice(&STATUS_LINK_UP.to_le_bytes());
        space.extend_from_slice(&1u16.to_le_bytes());
        space.extend_from_slice(&config.mtu.unwrap_or(0).to_le_bytes());
        let mut features = F_INDIRECT_DESC | F_EVENT_IDX | F_MAC | F_STATUS | F_MRG_RXBUF;
        features |= F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_GUEST_TSO4;
        if config.mtu.is_some() {
            features |= F_MTU;
        }
        let input = FrameInput::new(metrics.clone())?;
        let shared = Arc::new(Shared { link, input, room, metrics });
        Ok(Self { shared, config: space, features, exit: exit.clone(), worker: None })
    }

    /// Where frames for the guest go.
    pub fn input(&self) -> FrameInput {
        self.shared.input.clone()
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.shared.metrics.clone()
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, features } = activation;
        let mut take = |index: usize| {
            queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueMissing(index))
        };
        let (rx, tx) = (take(QUEUE_RX)?, take(QUEUE_TX)?);
        let worker = NetWorker::new(self.shared.clone(), ram, rx, tx, interrupt, features);
        self.worker = Some(Worker::spawn("net", &self.exit, move |stop| event_loop::run(stop, worker))?);
        self.shared.input.set_up(true);
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.input.set_up(false);
        self.worker = None;
    }
}
