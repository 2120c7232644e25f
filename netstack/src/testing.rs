//! Frames for unit tests.

use core::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress,
    IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::switch::local::{frame, ipv4_frame};
use crate::view::{Content, Transport, View};
use crate::{CLUSTER_IP, CLUSTER_MAC, GATEWAY_IP, GATEWAY_MAC, VNET_HDR_BYTES};

pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const SYN: (TcpControl, bool) = (TcpControl::Syn, false);
pub const SYN_ACK: (TcpControl, bool) = (TcpControl::Syn, true);
pub const ACK: (TcpControl, bool) = (TcpControl::None, true);
pub const FIN: (TcpControl, bool) = (TcpControl::Fin, true);
pub const RST: (TcpControl, bool) = (TcpControl::Rst, true);

fn macs(src: Ipv4Addr) -> (EthernetAddress, EthernetAddress) {
    if src == CLUSTER_IP { (CLUSTER_MAC, GATEWAY_MAC) } else { (GATEWAY_MAC, CLUSTER_MAC) }
}

/// A TCP segment between two ends.
pub fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), kind: (TcpControl, bool), payload: &[u8]) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.1,
        dst_port: to.1,
        control: kind.0,
        seq_number: TcpSeqNumber(1000),
        ack_number: kind.1.then_some(TcpSeqNumber(2000)),
        window_len: 4096,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let (src, dst) = (IpAddress::Ipv4(from.0), IpAddress::Ipv4(to.0));
    ipv4_frame(macs(from.0), (from.0, to.0, IpProtocol::Tcp), repr.buffer_len(), |bytes| {
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &src, &dst, &ChecksumCapabilities::default());
    })
}

/// From a client outside to `port` of the cluster.
pub fn inbound(client: u16, port: u16, kind: (TcpControl, bool)) -> Vec<u8> {
    tcp((OUTSIDE, client), (CLUSTER_IP, port), kind, b"")
}

/// From `port` of the cluster to a client outside.
pub fn outbound(client: u16, port: u16, kind: (TcpControl, bool)) -> Vec<u8> {
    tcp((CLUSTER_IP, port), (OUTSIDE, client), kind, b"")
}

pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (IpAddress::Ipv4(from.0), IpAddress::Ipv4(to.0));
    let repr = UdpRepr { src_port: from.1, dst_port: to.1 };
    ipv4_frame(macs(from.0), (from.0, to.0, IpProtocol::Udp), 8 + payload.len(), |bytes| {
        repr.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &src,
            &dst,
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

/// Cuts the IP packet of a frame into parts of `step` payload bytes (a multiple of 8).
pub fn fragments(whole: &[u8], step: usize, ident: u16) -> Vec<Vec<u8>> {
    let front = VNET_HDR_BYTES + 14;
    let payload = &whole[front + 20..];
    let count = payload.chunks(step).count();
    let cut = |(index, part): (usize, &[u8])| {
        let mut frame = whole[..front + 20].to_vec();
        frame.extend_from_slice(part);
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[front..]);
        ip.set_total_len(20 + part.len() as u16);
        ip.set_ident(ident);
        ip.set_dont_frag(false);
        ip.set_more_frags(index + 1 < count);
        ip.set_frag_offset((index * step) as u16);
        ip.fill_checksum();
        frame
    };
    payload.chunks(step).enumerate().map(cut).collect()
}

pub fn ping(from: Ipv4Addr, to: Ipv4Addr, ident: u16, request: bool) -> Vec<u8> {
    let data = b"are you there?";
    let repr = if request {
        Icmpv4Repr::EchoRequest { ident, seq_no: 3, data }
    } else {
        Icmpv4Repr::EchoReply { ident, seq_no: 3, data }
    };
    ipv4_frame(macs(from), (from, to, IpProtocol::Icmp), repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

pub fn arp_request(from: (EthernetAddress, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: from.0,
        source_protocol_addr: from.1,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    frame(from.0, EthernetAddress::BROADCAST, EthernetProtocol::Arp, repr.buffer_len(), |bytes| {
        repr.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

/// An ICMP error from `from` about `about`, a frame that went there.
pub fn icmp_error(from: Ipv4Addr, to: Ipv4Addr, code: u8, about: &[u8]) -> Vec<u8> {
    let quote = &about[VNET_HDR_BYTES + 14..VNET_HDR_BYTES + 14 + 28];
    ipv4_frame(macs(from), (from, to, IpProtocol::Icmp), 8 + quote.len(), |bytes| {
        bytes[0] = 3;
        bytes[1] = code;
        bytes[8..].copy_from_slice(quote);
        Icmpv4Packet::new_unchecked(bytes).fill_checksum();
    })
}

pub fn transport(frame: &[u8]) -> Transport {
    match View::parse(&frame[VNET_HDR_BYTES..]).expect("a frame").content {
        Content::Ipv4(ip) => ip.head.transport,
        other => panic!("not IPv4: {other:?}"),
    }
}

pub const GATEWAY_SIDE: (EthernetAddress, Ipv4Addr) = (GATEWAY_MAC, GATEWAY_IP);
pub const CELL_SIDE: (EthernetAddress, Ipv4Addr) = (CLUSTER_MAC, CLUSTER_IP);
