use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use virtio_queue::DescriptorChain;

use super::CHAIN_BYTES_MAX;
use super::state::Shared;
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{each_chain, give_back, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

pub(super) struct RngWorker {
    pub shared: Arc<Shared>,
    pub ram: GuestRam,
    pub queue: ActiveQueue,
    pub interrupt: Arc<dyn DeviceInterrupt>,
}

impl RngWorker {
    pub fn process_queue(&mut self) {
        let mut used = false;
        each_chain(
            self,
            |rng| (&mut rng.queue, &rng.ram),
            |rng, chain| {
                let len = rng.fill(&chain);
                give_back(&mut rng.queue.queue, &rng.ram, chain.head_index(), len);
                used = true;
                true
            },
        );
        if used && wants_interrupt(&mut self.queue.queue, &self.ram) {
            self.interrupt.used(0);
        }
    }

    /// Fills the writable part of `chain`; returns the bytes written.
    fn fill(&self, chain: &DescriptorChain<GuestRam>) -> u32 {
        let metrics = &self.shared.metrics;
        let Some(mut writer) = chain.clone().writer(&self.ram).ok().filter(|room| room.available_bytes() > 0)
        else {
            metrics.malformed_chains_count.inc();
            guest_warn!("rng: a chain has no writable buffer in guest memory");
            return 0;
        };
        let mut bytes = vec![0; writer.available_bytes().min(CHAIN_BYTES_MAX)];
        if let Err(error) = getrandom::fill(&mut bytes) {
            metrics.host_errors_count.inc();
            guest_warn!("rng: the host gives no random bytes: {error}");
            return 0;
        }
        if writer.write_all(&bytes).is_err() {
            metrics.malformed_chains_count.inc();
            return 0;
        }
        metrics.given_bytes.add(bytes.len() as u64);
        bytes.len() as u32
    }
}

impl Handler for RngWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![(self.queue.kick.as_raw_fd(), 0)]
    }

    fn ready(&mut self, _token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
        drain(&self.queue.kick);
        self.process_queue();
        Ok(())
    }
}
