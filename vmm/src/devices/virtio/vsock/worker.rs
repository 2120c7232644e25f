use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};

use super::packet::{HEADER_BYTES, Header};
use super::state::Shared;
use super::table::{Packet, Table, Watch};
use super::{PACKET_BYTES_MAX, QUEUE_RX, QUEUE_TX};
use crate::devices::event_loop::{Handler, drain, watch};
use crate::devices::virtio::ring::{give_back, look_again, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const COMMANDS: u32 = 2;
/// Packets of the guest that are taken before the streams have their turn.
const TX_TURN: usize = 256;

/// Moves packets between the queues and the connections.
pub(super) struct VsockWorker {
    shared: Arc<Shared>,
    table: Table,
    ram: GuestRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    interrupt: Arc<dyn DeviceInterrupt>,
}

impl Watch for EventOps<'_> {
    fn begin(&mut self, fd: RawFd, token: u32) -> anyhow::Result<()> {
        watch(
            self,
            fd,
            token,
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
        )
    }

    fn end(&mut self, fd: RawFd) {
        if let Err(error) = self.remove(Events::empty_raw(fd)) {
            log::error!("vsock: a stream cannot be unwatched: {error}");
        }
    }
}

impl VsockWorker {
    pub fn new(
        shared: Arc<Shared>,
        ram: GuestRam,
        rx: ActiveQueue,
        tx: ActiveQueue,
        interrupt: Arc<dyn DeviceInterrupt>,
    ) -> Self {
        Self { table: Table::new(shared.clone()), shared, ram, rx, tx, interrupt }
    }

    /// Takes what the guest sent.
    fn process_tx(&mut self, watch: &mut dyn Watch) -> anyhow::Result<()> {
        let mut taken = 0;
        loop {
            if taken >= TX_TURN {
                // More may be there: the kick that was drained is given again, behind everybody else's turn.
                self.tx.kick.write(1)?;
                break;
            }
            let Some(chain) = self.tx.queue.pop_descriptor_chain(self.ram.clone()) else {
                if look_again(&mut self.tx.queue, &self.ram) {
                    continue;
                }
                break;
            };
            let packet = self.read_packet(&chain);
            give_back(&mut self.tx.queue, &self.ram, chain.head_index(), 0);
            taken += 1;
            match packet {
                Some((header, data)) => self.table.packet(&header, &data, watch)?,
                None => {
                    self.shared.metrics.malformed_count.inc();
                    guest_warn!("vsock: chain {} is no packet", chain.head_index());
                }
            }
        }
        if taken > 0 && wants_interrupt(&mut self.tx.queue, &self.ram) {
            self.interrupt.used(QUEUE_TX);
        }
        Ok(())
    }

    fn read_packet(&self, chain: &DescriptorChain<GuestRam>) -> Option<(Header, Vec<u8>)> {
        let mut reader = chain.clone().reader(&self.ram).ok()?;
        let mut header = [0; HEADER_BYTES];
        reader.read_exact(&mut header).ok()?;
        let header = Header::parse(&header);
        let len = usize::try_from(header.len).ok().filter(|&len| len <= PACKET_BYTES_MAX)?;
        if len > reader.available_bytes() {
            return None;
        }
        let mut data = vec![0; len];
        reader.read_exact(&mut data).ok()?;
        Some((header, data))
    }

    /// Gives the guest what there is for it, as far as it has buffers.
    fn process_rx(&mut self, watch: &mut dyn Watch) {
        let mut used = false;
        while self.table.has_packet() {
            let Some(chain) = self.rx.queue.pop_descriptor_chain(self.ram.clone()) else {
                if look_again(&mut self.rx.queue, &self.ram) {
                    continue;
                }
                break;
            };
            let room = chain.clone().writer(&self.ram).map_or(0, |writer| writer.available_bytes());
            // One that takes a header and no data would be in the way for ever.
            let Some(room) = room.checked_sub(HEADER_BYTES).filter(|&room| room > 0) else {
                self.shared.metrics.malformed_count.inc();
                guest_warn!("vsock: receive buffer {} has no room for a header", chain.head_index());
                give_back(&mut self.rx.queue, &self.ram, chain.head_index(), 0);
                used = true;
                continue;
            };
            let Some(Packet { header, data }) = self.table.next_packet(room, watch) else {
                self.rx.queue.go_to_previous_position();
                break;
            };
            let written = chain.clone().writer(&self.ram).is_ok_and(|mut writer| {
                writer.write_all(&header.emit()).and_then(|()| writer.write_all(&data)).is_ok()
            });
            let len = if written { HEADER_BYTES + data.len() } else { 0 };
            give_back(&mut self.rx.queue, &self.ram, chain.head_index(), len as u32);
            used = true;
        }
        if used && wants_interrupt(&mut self.rx.queue, &self.ram) {
            self.interrupt.used(QUEUE_RX);
        }
    }
}

impl Handler for VsockWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![
            (self.rx.kick.as_raw_fd(), RX_KICK),
            (self.tx.kick.as_raw_fd(), TX_KICK),
            (self.shared.event().as_raw_fd(), COMMANDS),
        ]
    }

    fn ready(&mut self, token: u32, events: EventSet, ops: &mut EventOps) -> anyhow::Result<()> {
        match token {
            RX_KICK => drain(&self.rx.kick),
            TX_KICK => {
                drain(&self.tx.kick);
                self.process_tx(ops)?;
            }
            COMMANDS => {
                drain(self.shared.event());
                for command in self.shared.take_commands() {
                    self.table.command(command, ops)?;
                }
            }
            stream => {
                let readable = events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
                let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
                self.table.stream_ready(stream, readable, events.contains(EventSet::OUT), hung_up, ops);
            }
        }
        self.process_rx(ops);
        Ok(())
    }
}
