//! The wire between smoltcp and the switch: IP packets on one side, frames with a vnet header on the other.

use std::collections::VecDeque;

use core::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{Checksum as Phy, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, checksum};

use crate::vnet::{Checksum, Gso, VnetRepr};
use crate::{CLUSTER_MAC, ETH_HDR_BYTES, GATEWAY_MAC, MTU_BYTES, VNET_HDR_BYTES};

/// Bytes in front of the IP packet.
const FRONT: usize = VNET_HDR_BYTES + ETH_HDR_BYTES;

/// smoltcp's device: one packet in at a time, frames out into a bounded queue.
#[derive(Debug)]
pub struct Link {
    /// The frame that smoltcp will be given next.
    pub rx: Option<Vec<u8>>,
    /// Frames for the switch.
    pub out: VecDeque<Vec<u8>>,
    /// Most frames in `out`; smoltcp waits while it is full.
    pub max_out: usize,
}

impl Device for Link {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.take()?;
        Some((Rx(frame), Tx { out: &mut self.out, segment: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        (self.out.len() < self.max_out).then_some(Tx { out: &mut self.out, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = MTU_BYTES;
        // TCP checksums are left partial for the receiver's card, or for the switch where that takes none. Those of
        // cells are not verified: they come out of memory over an authenticated link, most of them still partial.
        caps.checksum.tcp = Phy::None;
        caps.checksum.ipv4 = Phy::Tx;
        caps.segmentation.tcpv4 = NonZeroUsize::new(usize::from(u16::MAX));
        caps
    }
}

/// A packet on its way to smoltcp.
#[derive(Debug)]
pub struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.get(FRONT..).unwrap_or_default())
    }
}

/// A place for a packet from smoltcp.
#[derive(Debug)]
pub struct Tx<'a> {
    out: &'a mut VecDeque<Vec<u8>>,
    segment: Option<NonZeroU16>,
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0u8; FRONT + len];
        let result = f(&mut frame[FRONT..]);
        let mut eth = EthernetFrame::new_unchecked(&mut frame[VNET_HDR_BYTES..]);
        eth.set_src_addr(GATEWAY_MAC);
        eth.set_dst_addr(CLUSTER_MAC);
        eth.set_ethertype(EthernetProtocol::Ipv4);
        let repr = partial_checksum(&mut frame[FRONT..], self.segment);
        repr.emit(&mut frame);
        self.out.push_back(frame);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

/// Puts the sum of the pseudo-header where the TCP checksum goes, and returns the header that says so.
fn partial_checksum(packet: &mut [u8], segment: Option<NonZeroU16>) -> VnetRepr {
    let Ok(ip) = Ipv4Packet::new_checked(&*packet) else { return VnetRepr::PLAIN };
    if ip.next_header() != IpProtocol::Tcp {
        return VnetRepr::PLAIN;
    }
    let ip_len = usize::from(ip.header_len());
    let tcp_bytes = (usize::from(ip.total_len()) - ip_len) as u32;
    let sum = checksum::pseudo_header_v4(&ip.src_addr(), &ip.dst_addr(), IpProtocol::Tcp, tcp_bytes);
    let Ok(mut tcp) = TcpPacket::new_checked(&mut packet[ip_len..]) else { return VnetRepr::PLAIN };
    tcp.set_checksum(sum);
    let headers = ETH_HDR_BYTES + ip_len + usize::from(tcp.header_len());
    VnetRepr {
        checksum: Checksum::Partial { start: (ETH_HDR_BYTES + ip_len) as u16, offset: 16 },
        gso: segment.map(|size| Gso { size, hdr_len: headers as u16, ecn: false }),
    }
}
