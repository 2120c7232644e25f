use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use ssi_proto::device::{
    FLAG_BULK, MESSAGE_HEADER_BYTES, MESSAGE_MAX_BYTES, MessageHeader, PAYLOAD_MAX_BYTES, QUEUE_RX, QUEUE_TX,
    TxStatus,
};
use virtio_queue::{DescriptorChain, QueueT};

use super::state::Shared;
use super::{CellLink, Class, DeliverError, Sent};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{each_chain, give_back, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

const TX_KICK: u32 = 0;
const RX_KICK: u32 = 1;
const ARRIVED: u32 = 2;
const ROOM: u32 = 3;

/// A message that found no room on its way.
struct Held {
    chain: DescriptorChain<GuestRam>,
    message: Vec<u8>,
}

/// Moves messages from the tx queue to the link and from the inbox to the rx queue.
pub(super) struct MessageWorker {
    shared: Arc<Shared>,
    link: Arc<dyn CellLink>,
    ram: GuestRam,
    tx: ActiveQueue,
    rx: ActiveQueue,
    interrupt: Arc<dyn DeviceInterrupt>,
    // By way: a message behind a held one of the same way is held too, others pass.
    held: BTreeMap<(u32, Class), VecDeque<Held>>,
    held_count: usize,
    // A message taken from the inbox that found no buffer.
    next: Option<Vec<u8>>,
}

impl MessageWorker {
    pub fn new(
        shared: Arc<Shared>,
        link: Arc<dyn CellLink>,
        ram: GuestRam,
        tx: ActiveQueue,
        rx: ActiveQueue,
        interrupt: Arc<dyn DeviceInterrupt>,
    ) -> Self {
        Self { shared, link, ram, tx, rx, interrupt, held: BTreeMap::new(), held_count: 0, next: None }
    }

    /// Takes every chain that the driver has made available.
    pub fn process_tx(&mut self) {
        let mut used = false;
        if !self.has_room() {
            return;
        }
        each_chain(
            self,
            |worker| (&mut worker.tx, &worker.ram),
            |worker, chain| {
                used |= worker.transmit(chain);
                worker.has_room()
            },
        );
        self.notify(used, QUEUE_TX);
    }

    /// May one more message be taken? A driver can make a head available again before it was used: the count of held
    /// messages, not the queue, is the bound.
    fn has_room(&self) -> bool {
        self.held_count < usize::from(self.tx.queue.size())
    }

    /// Sends, holds or refuses the message of a chain; true if the chain is answered.
    fn transmit(&mut self, chain: DescriptorChain<GuestRam>) -> bool {
        let (status, len) = match self.read_message(&chain) {
            Err(status) => (status, 0),
            Ok((header, message)) => {
                let way = (header.cell, Class::of(header.flags));
                // Behind one of its way that waits, it waits too.
                let sent = if self.held.contains_key(&way) { Sent::Busy } else { self.send(way, &message) };
                match sent {
                    Sent::Done(status) => (status, message.len()),
                    Sent::Busy => {
                        self.hold(way, Held { chain, message });
                        return false;
                    }
                }
            }
        };
        self.answer(&chain, status, len);
        true
    }

    fn hold(&mut self, way: (u32, Class), held: Held) {
        self.shared.metrics.tx_busy_count.inc();
        self.held_count += 1;
        self.held.entry(way).or_default().push_back(held);
    }

    /// Tries what was held again, way by way, then what waits behind it in the queue.
    pub fn retry_held(&mut self) {
        let mut used = false;
        for (way, mut waiting) in std::mem::take(&mut self.held) {
            while let Some(held) = waiting.pop_front() {
                match self.send(way, &held.message) {
                    Sent::Done(status) => {
                        self.held_count -= 1;
                        self.answer(&held.chain, status, held.message.len());
                        used = true;
                    }
                    Sent::Busy => {
                        waiting.push_front(held);
                        break;
                    }
                }
            }
            if !waiting.is_empty() {
                self.held.insert(way, waiting);
            }
        }
        self.notify(used, QUEUE_TX);
        self.process_tx();
    }

    /// Reads and checks a message; the header field `cell` of the bytes becomes the own cell's number, that of the
    /// header returned is the destination.
    fn read_message(&self, chain: &DescriptorChain<GuestRam>) -> Result<(MessageHeader, Vec<u8>), TxStatus> {
        let mut reader = chain.clone().reader(&self.ram).map_err(|_| TxStatus::Malformed)?;
        let mut bytes = [0; MESSAGE_HEADER_BYTES];
        reader.read_exact(&mut bytes).map_err(|_| TxStatus::Malformed)?;
        let header = MessageHeader::parse(&bytes);
        let len = header.len as usize;
        if len > PAYLOAD_MAX_BYTES {
            return Err(TxStatus::TooLong);
        }
        if reader.available_bytes() != len || header.flags & !FLAG_BULK != 0 {
            return Err(TxStatus::Malformed);
        }
        let mut message = vec![0; MESSAGE_HEADER_BYTES + len];
        let own = MessageHeader { cell: self.shared.config.cell, ..header };
        message[..MESSAGE_HEADER_BYTES].copy_from_slice(&own.emit());
        reader.read_exact(&mut message[MESSAGE_HEADER_BYTES..]).map_err(|_| TxStatus::Malformed)?;
        Ok((header, message))
    }

    fn send(&self, (cell, class): (u32, Class), message: &[u8]) -> Sent {
        let config = &self.shared.config;
        if cell >= config.cells {
            return Sent::Done(TxStatus::NoSuchCell);
        }
        if cell == config.cell {
            return match self.shared.inbox.deliver(cell, message.to_vec()) {
                Ok(()) => Sent::Done(TxStatus::Accepted),
                Err(DeliverError::Full(_)) => Sent::Busy,
                Err(DeliverError::Malformed) => Sent::Done(TxStatus::Malformed),
            };
        }
        if !self.shared.is_alive(cell) {
            return Sent::Done(TxStatus::Dead);
        }
        self.link.send(cell, class, message)
    }

    fn answer(&mut self, chain: &DescriptorChain<GuestRam>, status: TxStatus, len: usize) {
        let metrics = &self.shared.metrics;
        if status == TxStatus::Accepted {
            metrics.tx_messages_count.inc();
            metrics.tx_bytes.add(len as u64);
        } else {
            metrics.tx_refused_count.inc();
        }
        let written = match chain.clone().writer(&self.ram) {
            Ok(mut writer) => writer.write_all(&(status as u32).to_le_bytes()).is_ok(),
            Err(_) => false,
        };
        if !written {
            metrics.malformed_chains_count.inc();
            guest_warn!("ssi: a tx chain has no room for its status");
        }
        give_back(&mut self.tx.queue, &self.ram, chain.head_index(), if written { 4 } else { 0 });
    }

    /// Fills receive buffers while there are both messages and buffers.
    pub fn process_rx(&mut self) {
        self.next = self.next.take().or_else(|| self.shared.inbox.take());
        if self.next.is_none() {
            return;
        }
        let mut used = false;
        each_chain(
            self,
            |worker| (&mut worker.rx, &worker.ram),
            |worker, chain| {
                let len = worker.receive(&chain);
                give_back(&mut worker.rx.queue, &worker.ram, chain.head_index(), len);
                used = true;
                worker.next.is_some()
            },
        );
        self.notify(used, QUEUE_RX);
    }

    /// Writes the next message into the buffer `chain`, if it is one; returns the bytes written.
    fn receive(&mut self, chain: &DescriptorChain<GuestRam>) -> u32 {
        let Some(message) = &self.next else { return 0 };
        let metrics = &self.shared.metrics;
        let room =
            chain.clone().writer(&self.ram).ok().filter(|room| room.available_bytes() >= MESSAGE_MAX_BYTES);
        if room.is_none_or(|mut room| room.write_all(message).is_err()) {
            metrics.rx_bad_buffers_count.inc();
            guest_warn!("ssi: a receive buffer is smaller than {MESSAGE_MAX_BYTES} bytes or not writable");
            return 0;
        }
        // A message is at most 32768 bytes.
        let len = message.len() as u32;
        metrics.rx_messages_count.inc();
        metrics.rx_bytes.add(u64::from(len));
        self.next = self.shared.inbox.take();
        len
    }

    fn notify(&mut self, used: bool, index: usize) {
        let queue = if index == QUEUE_TX { &mut self.tx.queue } else { &mut self.rx.queue };
        if used && wants_interrupt(queue, &self.ram) {
            self.interrupt.used(index);
        }
    }
}

impl Handler for MessageWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![
            (self.tx.kick.as_raw_fd(), TX_KICK),
            (self.rx.kick.as_raw_fd(), RX_KICK),
            (self.shared.inbox.arrived().as_raw_fd(), ARRIVED),
            (self.shared.room.as_raw_fd(), ROOM),
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
            ARRIVED => {
                drain(self.shared.inbox.arrived());
                self.process_rx();
            }
            _ => {
                drain(&self.shared.room);
                self.retry_held();
            }
        }
        Ok(())
    }
}
