use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::state::Shared;
use super::{ETHERNET_BYTES, F_MRG_RXBUF, FRAME_BYTES_MAX, HEADER_BYTES, QUEUE_RX, QUEUE_TX, header};
use crate::devices::event_loop::{Handler, drain};
use crate::devices::virtio::ring::{give_back, look_again, wants_interrupt};
use crate::devices::virtio::{ActiveQueue, DeviceInterrupt, GuestRam};
use crate::guest_warn;

const RX_KICK: u32 = QUEUE_RX as u32;
const TX_KICK: u32 = QUEUE_TX as u32;
const ARRIVED: u32 = 2;
const ROOM: u32 = 3;

/// A chain of receive buffers and the bytes that it takes.
struct Buffer {
    chain: DescriptorChain<GuestRam>,
    len: usize,
}

/// Moves frames from the transmit queue to the link, and from the input to the receive queue.
pub(super) struct NetWorker {
    shared: Arc<Shared>,
    ram: GuestRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    interrupt: Arc<dyn DeviceInterrupt>,
    features: u64,
    // A frame that waits for receive buffers.
    next: Option<Vec<u8>>,
    // A frame that the link had no room for; its chain is returned already.
    held: Option<Vec<u8>>,
}

impl NetWorker {
    pub fn new(
        shared: Arc<Shared>,
        ram: GuestRam,
        rx: ActiveQueue,
        tx: ActiveQueue,
        interrupt: Arc<dyn DeviceInterrupt>,
        features: u64,
    ) -> Self {
        Self { shared, ram, rx, tx, interrupt, features, next: None, held: None }
    }

    /// Sends what the guest has made available, until the link is full.
    fn process_tx(&mut self) {
        let mut used = false;
        loop {
            if let Some(frame) = self.held.take()
                && let Err(frame) = self.shared.link.send(frame)
            {
                self.held = Some(frame);
                break;
            }
            let Some(chain) = self.tx.queue.pop_descriptor_chain(self.ram.clone()) else {
                if look_again(&mut self.tx.queue, &self.ram) {
                    continue;
                }
                break;
            };
            let frame = self.read_frame(&chain);
            give_back(&mut self.tx.queue, &self.ram, chain.head_index(), 0);
            used = true;
            let Some(frame) = frame else { continue };
            self.shared.metrics.tx_frames_count.inc();
            self.shared.metrics.tx_bytes.add(frame.len() as u64);
            if let Err(frame) = self.shared.link.send(frame) {
                self.shared.metrics.tx_throttled_count.inc();
                self.held = Some(frame);
                break;
            }
        }
        if used && wants_interrupt(&mut self.tx.queue, &self.ram) {
            self.interrupt.used(QUEUE_TX);
        }
    }

    fn read_frame(&self, chain: &DescriptorChain<GuestRam>) -> Option<Vec<u8>> {
        let sound = |len: usize| (HEADER_BYTES + ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&len);
        let reader = chain.clone().reader(&self.ram).ok().filter(|reader| sound(reader.available_bytes()));
        let frame = reader.and_then(|mut reader| {
            let mut frame = vec![0; reader.available_bytes()];
            reader.read_exact(&mut frame).ok().map(|()| frame)
        });
        if frame.is_none() {
            self.shared.metrics.tx_malformed_count.inc();
            guest_warn!("net: chain {} is no frame", chain.head_index());
        }
        frame
    }

    /// Gives the guest the frames that wait, as far as it has buffers.
    fn process_rx(&mut self) {
        let before = self.rx.queue.next_used();
        while let Some(mut frame) = self.next.take().or_else(|| self.shared.input.take()) {
            if !header::adapt(&mut frame, self.features) {
                self.shared.metrics.rx_unsupported_count.inc();
                continue;
            }
            match self.collect(frame.len()) {
                Some(buffers) => self.write_frame(&mut frame, &buffers),
                None => {
                    self.next = Some(frame);
                    break;
                }
            }
        }
        if self.rx.queue.next_used() != before && self.wants_rx_interrupt(before) {
            self.interrupt.used(QUEUE_RX);
        }
    }

    /// Takes receive buffers for `len` bytes: one chain, or as many as it needs if the driver agreed to that. `None`, and
    /// nothing taken, if there are too few now.
    fn collect(&mut self, len: usize) -> Option<Vec<Buffer>> {
        let most = if self.features & F_MRG_RXBUF != 0 { usize::from(self.rx.queue.size()) } else { 1 };
        let (mut buffers, mut room) = (Vec::new(), 0);
        while room < len && buffers.len() < most {
            let Some(chain) = self.rx.queue.pop_descriptor_chain(self.ram.clone()) else {
                // Asked here, behind what was taken, and not after it was put back: then there would always be more.
                if look_again(&mut self.rx.queue, &self.ram) {
                    continue;
                }
                for _ in &buffers {
                    self.rx.queue.go_to_previous_position();
                }
                return None;
            };
            let len = chain.clone().writer(&self.ram).map_or(0, |writer| writer.available_bytes());
            room = room.saturating_add(len);
            buffers.push(Buffer { chain, len });
        }
        Some(buffers)
    }

    /// Writes the frame and returns its buffers, all at once: the driver must not find the first without the others.
    fn write_frame(&mut self, frame: &mut [u8], buffers: &[Buffer]) {
        let metrics = &self.shared.metrics;
        header::set_buffers(frame, buffers.len() as u16);
        let mut used = Vec::with_capacity(buffers.len());
        let mut rest: &[u8] = frame;
        // "5.1.6.4.1: the device MUST use ... the header in the first buffer": whole, or the driver reads rubbish.
        let sound = buffers[0].len >= HEADER_BYTES;
        for Buffer { chain, len } in buffers {
            let part = rest.len().min(*len);
            let writer = chain.clone().writer(&self.ram);
            let written = sound && writer.is_ok_and(|mut writer| writer.write_all(&rest[..part]).is_ok());
            rest = &rest[if written { part } else { 0 }..];
            used.push((chain.head_index(), if written { part as u32 } else { 0 }));
        }
        if rest.is_empty() {
            metrics.rx_frames_count.inc();
            metrics.rx_bytes.add(frame.len() as u64);
        } else {
            // A first buffer of length zero is one that the driver drops.
            metrics.rx_bad_buffers_count.inc();
            used.iter_mut().for_each(|(_, len)| *len = 0);
            guest_warn!(
                "net: receive buffers are no guest memory, or too small for a frame of {} bytes",
                frame.len()
            );
        }
        if let Err(error) = publish(&mut self.rx.queue, &self.ram, &used) {
            guest_warn!("net: receive buffers cannot be returned: {error}");
        }
    }

    /// Section 2.7.7.2, from the used index before; [`QueueT::needs_notification`] does not know of more than one entry
    /// published at a time.
    fn wants_rx_interrupt(&mut self, before: u16) -> bool {
        let queue = &mut self.rx.queue;
        // Takes its own count back to zero.
        let _ = queue.needs_notification(&*self.ram);
        if !queue.event_idx_enabled() {
            return true;
        }
        let at = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
        let Ok(event) = self.ram.load::<u16>(GuestAddress(at), Ordering::Relaxed) else { return true };
        let after = queue.next_used();
        after.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < after.wrapping_sub(before)
    }
}

/// Adds `chains` (head, bytes written) to the used ring (section 2.7.8) and then moves its index over all of them at once.
fn publish(queue: &mut Queue, ram: &GuestRam, chains: &[(u16, u32)]) -> Result<(), virtio_queue::Error> {
    let Some((&(last, last_len), others)) = chains.split_last() else { return Ok(()) };
    let start = queue.next_used();
    for (n, &(head, len)) in (0u16..).zip(others) {
        let slot = u64::from(start.wrapping_add(n) % queue.size());
        let at = GuestAddress(queue.used_ring() + 4 + 8 * slot);
        let element = [u32::from(head).to_le(), len.to_le()];
        ram.write_obj(element, at).map_err(virtio_queue::Error::GuestMemory)?;
    }
    queue.set_next_used(start.wrapping_add(others.len() as u16));
    queue.add_used(&**ram, last, last_len)
}

impl Handler for NetWorker {
    fn sources(&self) -> Vec<(RawFd, u32)> {
        vec![
            (self.rx.kick.as_raw_fd(), RX_KICK),
            (self.tx.kick.as_raw_fd(), TX_KICK),
            (self.shared.input.arrived().as_raw_fd(), ARRIVED),
            (self.shared.room.as_raw_fd(), ROOM),
        ]
    }

    fn ready(&mut self, token: u32, _events: EventSet, _ops: &mut EventOps) -> anyhow::Result<()> {
        match token {
            TX_KICK => {
                drain(&self.tx.kick);
                self.process_tx();
            }
            ROOM => {
                drain(&self.shared.room);
                self.process_tx();
            }
            RX_KICK => {
                drain(&self.rx.kick);
                self.process_rx();
            }
            _ => {
                drain(self.shared.input.arrived());
                self.process_rx();
            }
        }
        Ok(())
    }
}
