use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use virtio_queue::QueueT;

use super::state::Shared;
use super::{PIECE_BYTES, QUEUE_RX, QUEUE_TX};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{give_back, wants_interrupt};
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
        while let Some(chain) = self.tx.queue.pop_descriptor_chain(self.ram.clone()) {
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
            give_back(&mut self.tx.queue, &self.ram, chain.head_index(), 0);
            used = true;
        }
        if used && wants_interrupt(&mut self.tx.queue, &self.ram) {
            self.interrupt.used(QUEUE_TX);
        }
    }

    /// Gives the guest what was typed, as far as it has buffers.
    pub fn process_rx(&mut self) {
        let mut used = false;
        while self.shared.terminal.waiting_input() > 0 {
            let Some(chain) = self.rx.queue.pop_descriptor_chain(self.ram.clone()) else { break };
            let mut len = 0;
            match chain.clone().writer(&self.ram) {
                Ok(mut writer) if writer.available_bytes() > 0 => {
                    let bytes = self.shared.terminal.take_input(writer.available_bytes().min(PIECE_BYTES));
                    if writer.write_all(&bytes).is_ok() {
                        len = bytes.len() as u32;
                        self.shared.metrics.input_bytes.add(u64::from(len));
                    }
                }
                _ => self.shared.metrics.malformed_chains_count.inc(),
            }
            give_back(&mut self.rx.queue, &self.ram, chain.head_index(), len);
            used = true;
        }
        if used && wants_interrupt(&mut self.rx.queue, &self.ram) {
            self.interrupt.used(QUEUE_RX);
        }
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
