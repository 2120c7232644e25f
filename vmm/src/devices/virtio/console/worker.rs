use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use virtio_queue::DescriptorChain;

use super::state::Shared;
use super::{PIECE_BYTES, QUEUE_RX, QUEUE_TX};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{each_chain, give_back, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const TYPED: u32 = 2;

pub(super) struct ConsoleWorker {
    pub shared: Arc<Shared>,
    pub ram: GuestRam,
    pub rx: ActiveQueue,
    pub tx: ActiveQueue,
    pub interrupt: Arc<dyn DeviceInterrupt>,
}

impl ConsoleWorker {
    /// Hands on what the guest wrote.
    pub fn process_tx(&mut self) {
        let mut used = false;
        each_chain(
            self,
            |console| (&mut console.tx, &console.ram),
            |console, chain| {
                console.write_output(&chain);
                give_back(&mut console.tx.queue, &console.ram, chain.head_index(), 0);
                used = true;
                true
            },
        );
        if used && wants_interrupt(&mut self.tx.queue, &self.ram) {
            self.interrupt.used(QUEUE_TX);
        }
    }

    fn write_output(&self, chain: &DescriptorChain<GuestRam>) {
        match chain.clone().reader(&self.ram) {
            Ok(mut reader) => {
                // A chain can name the same memory many times over: it goes on in pieces, never as a whole.
                let mut piece = [0; PIECE_BYTES];
                while let Ok(len @ 1..) = reader.read(&mut piece) {
                    self.shared.terminal.write_output(&piece[..len]);
                    self.shared.metrics.output_bytes.add(len as u64);
                }
            }
            Err(_) => self.shared.metrics.malformed_chains_count.inc(),
        }
    }

    /// Gives the guest what was typed, as far as it has buffers.
    pub fn process_rx(&mut self) {
        if self.shared.terminal.waiting_input() == 0 {
            return;
        }
        let mut used = false;
        each_chain(
            self,
            |console| (&mut console.rx, &console.ram),
            |console, chain| {
                let len = console.fill(&chain);
                give_back(&mut console.rx.queue, &console.ram, chain.head_index(), len);
                used = true;
                console.shared.terminal.waiting_input() > 0
            },
        );
        if used && wants_interrupt(&mut self.rx.queue, &self.ram) {
            self.interrupt.used(QUEUE_RX);
        }
    }

    /// Puts input into the writable part of `chain`; returns the bytes written.
    fn fill(&self, chain: &DescriptorChain<GuestRam>) -> u32 {
        let metrics = &self.shared.metrics;
        let Some(mut writer) = chain.clone().writer(&self.ram).ok().filter(|room| room.available_bytes() > 0)
        else {
            metrics.malformed_chains_count.inc();
            return 0;
        };
        let bytes = self.shared.terminal.take_input(writer.available_bytes().min(PIECE_BYTES));
        if writer.write_all(&bytes).is_err() {
            metrics.malformed_chains_count.inc();
            return 0;
        }
        metrics.input_bytes.add(bytes.len() as u64);
        bytes.len() as u32
    }
}

impl Handler for ConsoleWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![
            (self.rx.kick.as_raw_fd(), RX_KICK),
            (self.tx.kick.as_raw_fd(), TX_KICK),
            (self.shared.typed.as_raw_fd(), TYPED),
        ]
    }

    fn ready(&mut self, token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
        match token {
            TX_KICK => {
                drain(&self.tx.kick);
                self.process_tx();
            }
            RX_KICK => {
                drain(&self.rx.kick);
                self.process_rx();
            }
            _ => {
                drain(&self.shared.typed);
                self.process_rx();
            }
        }
        Ok(())
    }
}
