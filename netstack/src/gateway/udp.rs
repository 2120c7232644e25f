//! Datagrams of cells, and what ICMP says of them. No smoltcp socket: a datagram has no state but where its answers go.

use core::net::{Ipv4Addr, SocketAddrV4};
use std::collections::{BTreeMap, BTreeSet};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};

use super::conn::ConnKey;
use super::{ConnId, Event, Gateway};
use crate::switch::local;
use crate::{CLUSTER_MAC, ETH_HDR_BYTES, GATEWAY_MAC, MTU_BYTES, VNET_HDR_BYTES};

/// Protocol number of UDP.
pub const PROTO: u8 = 17;
/// How long a flow is kept unused (RFC 4787, REQ-5: at least 2 minutes).
pub const TTL: Duration = Duration::from_secs(180);
/// Most datagrams, and their bytes, that wait for the glue.
const MAX_WAITING: usize = 1024;
const MAX_WAITING_BYTES: usize = 4 << 20;

/// ICMP codes of "destination unreachable" (RFC 792, RFC 1812).
pub const NET_UNREACHABLE: u8 = 0;
pub const HOST_UNREACHABLE: u8 = 1;
pub const PORT_UNREACHABLE: u8 = 3;
pub const HOST_PROHIBITED: u8 = 10;

/// Bytes of a packet that an error quotes: its header without options, and 8.
const QUOTE_BYTES: usize = 28;

#[derive(Debug)]
struct Flow {
    key: ConnKey,
    seen: Instant,
    quote: Vec<u8>,
}

/// The datagram flows: bounded, aged.
#[derive(Debug)]
pub struct Datagrams {
    max_flows: usize,
    flows: BTreeMap<ConnId, Flow>,
    keys: BTreeMap<ConnKey, ConnId>,
    ages: BTreeSet<(Instant, ConnId)>,
    waiting: usize,
    waiting_bytes: usize,
    ident: u16,
}

impl Datagrams {
    pub fn new(max_flows: usize) -> Self {
        Self {
            max_flows: max_flows.max(1),
            flows: BTreeMap::new(),
            keys: BTreeMap::new(),
            ages: BTreeSet::new(),
            waiting: 0,
            waiting_bytes: 0,
            ident: 0,
        }
    }

    /// The glue has taken a datagram of `bytes`.
    pub fn taken(&mut self, bytes: usize) {
        self.waiting -= 1;
        self.waiting_bytes -= bytes;
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.ages.first().map(|(seen, _)| *seen + TTL)
    }

    /// Takes out the flows that have aged.
    pub fn expire(&mut self, now: Instant) -> Vec<ConnId> {
        let mut over = Vec::new();
        while let Some(&(seen, id)) = self.ages.first()
            && seen + TTL <= now
        {
            self.remove(id);
            over.push(id);
        }
        over
    }

    fn remove(&mut self, id: ConnId) {
        if let Some(flow) = self.flows.remove(&id) {
            self.keys.remove(&flow.key);
            self.ages.remove(&(flow.seen, id));
        }
    }

    fn touch(&mut self, id: ConnId, now: Instant) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(&id)?;
        self.ages.remove(&(flow.seen, id));
        flow.seen = now;
        self.ages.insert((now, id));
        Some(flow)
    }
}

impl Gateway {
    /// The payload of an IP packet that is a whole UDP datagram; `packet` is (the last part of) what carried it.
    pub(super) fn udp_input(&mut self, now: Instant, dst: Ipv4Addr, payload: &[u8], packet: &[u8]) {
        let Ok(udp) = UdpPacket::new_checked(payload) else {
            self.counters.dropped_count += 1;
            return;
        };
        let remote = SocketAddrV4::new(dst, udp.dst_port());
        let key = ConnKey { cluster_port: udp.src_port(), remote };
        let Some(to) = self.outside(remote).filter(|_| remote.port() != 0) else {
            let refusal = unreachable(self.config.ip, self.config.cluster_ip, PORT_UNREACHABLE, packet);
            return self.push_frame(refusal);
        };
        let bytes = udp.payload().len();
        if self.datagrams.waiting >= MAX_WAITING || self.datagrams.waiting_bytes + bytes > MAX_WAITING_BYTES {
            self.counters.dropped_count += 1;
            return;
        }
        let id = match self.datagrams.keys.get(&key) {
            Some(id) => *id,
            None => self.add_datagram_flow(now, key),
        };
        if let Some(flow) = self.datagrams.touch(id, now) {
            flow.quote = packet[..packet.len().min(QUOTE_BYTES)].to_vec();
        }
        self.counters.datagrams_out_count += 1;
        self.datagrams.waiting += 1;
        self.datagrams.waiting_bytes += bytes;
        self.events.push_back(Event::Datagram { id, to, payload: udp.payload().to_vec() });
    }

    fn add_datagram_flow(&mut self, now: Instant, key: ConnKey) -> ConnId {
        if self.datagrams.flows.len() >= self.datagrams.max_flows
            && let Some(&(_, oldest)) = self.datagrams.ages.first()
        {
            self.datagrams.remove(oldest);
            self.events.push_back(Event::DatagramOver { id: oldest });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.datagrams.keys.insert(key, id);
        self.datagrams.flows.insert(id, Flow { key, seen: now, quote: Vec::new() });
        self.datagrams.ages.insert((now, id));
        id
    }

    /// An answer came for datagram flow `id`. One too large for the link goes in parts.
    pub fn datagram(&mut self, now: Instant, id: ConnId, payload: &[u8]) {
        let Some(key) = self.datagrams.touch(id, now).map(|flow| flow.key) else { return };
        let len = UDP_HEADER_LEN + payload.len();
        if len > usize::from(u16::MAX) - 20 {
            return;
        }
        let (src, dst) = (IpAddress::Ipv4(*key.remote.ip()), IpAddress::Ipv4(self.config.cluster_ip));
        let repr = UdpRepr { src_port: key.remote.port(), dst_port: key.cluster_port };
        let mut bytes = vec![0; len];
        repr.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[..]),
            &src,
            &dst,
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
        self.counters.datagrams_in_count += 1;
        self.datagrams.ident = self.datagrams.ident.wrapping_add(1);
        let (ident, step) = (self.datagrams.ident, (MTU_BYTES - 20) / 8 * 8);
        let parts = bytes.chunks(step).count();
        for (index, part) in bytes.chunks(step).enumerate() {
            let addresses = (*key.remote.ip(), self.config.cluster_ip, IpProtocol::Udp);
            let mut frame = local::ipv4_frame((GATEWAY_MAC, CLUSTER_MAC), addresses, part.len(), |room| {
                room.copy_from_slice(part)
            });
            if parts > 1 {
                let mut ip = Ipv4Packet::new_unchecked(&mut frame[VNET_HDR_BYTES + ETH_HDR_BYTES..]);
                ip.set_ident(ident);
                ip.set_dont_frag(false);
                ip.set_more_frags(index + 1 < parts);
                // Below 65536, as the whole datagram is.
                ip.set_frag_offset((index * step) as u16);
                ip.fill_checksum();
            }
            self.push_frame(frame);
        }
    }

    /// Nobody listens where datagram flow `id` goes: tells the cell.
    pub fn datagram_refused(&mut self, id: ConnId) {
        let Some(flow) = self.datagrams.flows.get(&id) else { return };
        let from = *flow.key.remote.ip();
        let frame = unreachable(from, self.config.cluster_ip, PORT_UNREACHABLE, &flow.quote);
        self.push_frame(frame);
    }
}

/// An ICMP "destination unreachable" about `packet`.
pub fn unreachable(from: Ipv4Addr, to: Ipv4Addr, code: u8, packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(QUOTE_BYTES)];
    let addresses = (from, to, IpProtocol::Icmp);
    local::ipv4_frame((GATEWAY_MAC, CLUSTER_MAC), addresses, 8 + quote.len(), |room| {
        let mut icmp = Icmpv4Packet::new_unchecked(room);
        icmp.set_msg_type(Icmpv4Message::DstUnreachable);
        icmp.set_msg_code(code);
        icmp.data_mut().copy_from_slice(quote);
        icmp.fill_checksum();
    })
}
