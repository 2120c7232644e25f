//! Frames that the switch makes itself: answers to ARP and ping, refusals.

use core::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet,
    Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::view::IpView;
use crate::vnet::VnetRepr;
use crate::{ETH_HDR_BYTES, VNET_HDR_BYTES};

/// Time to live of packets made here.
pub const HOP_LIMIT: u8 = 64;

/// A frame with its vnet header, Ethernet header written, and `len` bytes behind it for `fill`.
pub fn frame(
    src: EthernetAddress,
    dst: EthernetAddress,
    kind: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0u8; VNET_HDR_BYTES + ETH_HDR_BYTES + len];
    VnetRepr::PLAIN.emit(&mut bytes);
    let mut eth = EthernetFrame::new_unchecked(&mut bytes[VNET_HDR_BYTES..]);
    eth.set_src_addr(src);
    eth.set_dst_addr(dst);
    eth.set_ethertype(kind);
    fill(eth.payload_mut());
    bytes
}

/// An IPv4 frame from `src` to `dst`, whose `len` bytes of payload `fill` writes.
pub fn ipv4_frame(
    macs: (EthernetAddress, EthernetAddress),
    ip: (Ipv4Addr, Ipv4Addr, IpProtocol),
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: ip.0,
        dst_addr: ip.1,
        next_header: ip.2,
        payload_len: len,
        hop_limit: HOP_LIMIT,
    };
    frame(macs.0, macs.1, EthernetProtocol::Ipv4, repr.buffer_len() + len, |bytes| {
        repr.emit(&mut Ipv4Packet::new_unchecked(&mut *bytes), &ChecksumCapabilities::default());
        fill(&mut bytes[repr.buffer_len()..]);
    })
}

/// The answer to an ARP request: `mac` is who has the address asked for.
pub fn arp_reply(request: &ArpRepr, mac: EthernetAddress) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = *request
    else {
        return None;
    };
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: mac,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    Some(frame(mac, source_hardware_addr, EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
        reply.emit(&mut ArpPacket::new_unchecked(bytes));
    }))
}

/// The answer to a ping, from the address it was sent to; `None` if it is no whole echo request.
pub fn echo_reply(ip: &IpView<'_>, from: EthernetAddress, to: EthernetAddress) -> Option<Vec<u8>> {
    let caps = ChecksumCapabilities::default();
    let packet = Icmpv4Packet::new_checked(ip.payload).ok()?;
    let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&packet, &caps) else {
        return None;
    };
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    Some(ipv4_frame((from, to), (ip.head.dst, ip.head.src, IpProtocol::Icmp), reply.buffer_len(), |bytes| {
        reply.emit(&mut Icmpv4Packet::new_unchecked(bytes), &caps);
    }))
}

/// The refusal of a TCP segment (RFC 9293, 3.10.7.1), back to its sender; `None` if it is no segment, or itself a
/// reset.
pub fn reset(ip: &IpView<'_>, from: EthernetAddress, to: EthernetAddress) -> Option<Vec<u8>> {
    let segment = TcpPacket::new_checked(ip.payload).ok()?;
    if segment.rst() || segment.src_port() == 0 || segment.dst_port() == 0 {
        return None;
    }
    let repr = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number: if segment.ack() { segment.ack_number() } else { TcpSeqNumber(0) },
        ack_number: (!segment.ack()).then(|| segment.seq_number() + segment.segment_len()),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (src, dst) = (IpAddress::Ipv4(ip.head.dst), IpAddress::Ipv4(ip.head.src));
    Some(ipv4_frame((from, to), (ip.head.dst, ip.head.src, IpProtocol::Tcp), repr.buffer_len(), |bytes| {
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &src, &dst, &ChecksumCapabilities::default());
    }))
}
