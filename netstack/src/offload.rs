//! What a card with no offload would have had to do: complete checksums, cut large TCP segments.

use core::num::NonZeroU16;

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, checksum,
};

use crate::ETH_HDR_BYTES;
use crate::vnet::{Checksum, HDR_BYTES, VnetRepr};

/// Most segments of one frame: the largest at the smallest segment size that Linux uses (48 bytes).
pub const MAX_SEGMENTS: usize = 1366;

/// What the receiver of a frame takes, as its driver negotiated it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Frames with a partial checksum, or one marked valid (VIRTIO_NET_F_GUEST_CSUM).
    pub csum: bool,
    /// TCP segments over IPv4 of up to 64 KiB (VIRTIO_NET_F_GUEST_TSO4); needs `csum`.
    pub tso4: bool,
}

impl Offload {
    /// Complete checksums and frames of at most the MTU.
    pub const NONE: Self = Self { csum: false, tso4: false };
    /// Everything.
    pub const ALL: Self = Self { csum: true, tso4: true };
}

/// Completes the partial checksum of an Ethernet frame. `start` and `offset` were checked against it (see
/// [`VnetRepr::parse`]); else nothing is done.
pub fn complete_checksum(frame: &mut [u8], start: u16, offset: u16) {
    let start = usize::from(start);
    let at = start + usize::from(offset);
    if at + 2 > frame.len() {
        return;
    }
    let sum = !checksum::data(&frame[start..]);
    // A UDP checksum that comes out as 0 is sent as its other zero (RFC 768); for TCP both mean the same.
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Makes `frame` (with its vnet header, which says `repr`) one that `to` takes: calls `out` with it, or with its
/// segments. Returns how many frames that were; 0 if a frame to be cut is not the TCP segment its header claims.
pub fn adapt(mut frame: Vec<u8>, repr: VnetRepr, to: Offload, mut out: impl FnMut(Vec<u8>)) -> usize {
    if let Some(gso) = repr.gso {
        if to.tso4 && to.csum {
            out(frame);
            return 1;
        }
        return segment_tcpv4(&frame[HDR_BYTES..], gso.size, out);
    }
    match repr.checksum {
        Checksum::Partial { start, offset } if !to.csum => {
            complete_checksum(&mut frame[HDR_BYTES..], start, offset);
            VnetRepr::PLAIN.emit(&mut frame);
        }
        Checksum::Valid if !to.csum => VnetRepr::PLAIN.emit(&mut frame),
        _ => {}
    }
    out(frame);
    1
}

/// Cuts an Ethernet frame with one large TCP segment over IPv4 into segments of `size` payload bytes, each with its
/// vnet header and full checksums. Calls `out` for each, in order; returns how many; 0 if it is no such frame, or would
/// make more than [`MAX_SEGMENTS`].
pub fn segment_tcpv4(frame: &[u8], size: NonZeroU16, mut out: impl FnMut(Vec<u8>)) -> usize {
    let Some((ip_len, tcp_len, total)) = tcpv4_lengths(frame) else { return 0 };
    let headers = ETH_HDR_BYTES + ip_len + tcp_len;
    let payload = &frame[headers..ETH_HDR_BYTES + total];
    let last = payload.len().saturating_sub(1) / usize::from(size.get());
    if last >= MAX_SEGMENTS {
        return 0;
    }
    let mut count = 0;
    for index in 0..=last {
        let at = index * usize::from(size.get());
        let part = &payload[at..payload.len().min(at + usize::from(size.get()))];
        let mut segment = vec![0u8; HDR_BYTES + headers + part.len()];
        VnetRepr::PLAIN.emit(&mut segment);
        let bytes = &mut segment[HDR_BYTES..];
        bytes[..headers].copy_from_slice(&frame[..headers]);
        bytes[headers..].copy_from_slice(part);
        fix_segment(&mut bytes[ETH_HDR_BYTES..], ip_len, index, at, index == last);
        out(segment);
        count += 1;
    }
    count
}

/// Bytes of the IP header, of the TCP header and of the whole IP packet.
fn tcpv4_lengths(frame: &[u8]) -> Option<(usize, usize, usize)> {
    let eth = EthernetFrame::new_checked(frame).ok()?;
    if eth.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp || ip.more_frags() || ip.frag_offset() != 0 {
        return None;
    }
    let ip_len = usize::from(ip.header_len());
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    Some((ip_len, usize::from(tcp.header_len()), usize::from(ip.total_len())))
}

/// Writes what differs from segment to segment: lengths, IP identification, sequence number, flags, checksums.
fn fix_segment(packet: &mut [u8], ip_len: usize, index: usize, at: usize, last: bool) {
    let total = packet.len();
    let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
    // Both fit: a segment is no longer than the packet it was cut from, whose length was a u16.
    ip.set_total_len(total as u16);
    ip.set_ident(ip.ident().wrapping_add(index as u16));
    ip.fill_checksum();
    let (src, dst) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    let mut tcp = TcpPacket::new_unchecked(&mut packet[ip_len..]);
    tcp.set_seq_number(tcp.seq_number() + at);
    if !last {
        tcp.set_fin(false);
        tcp.set_psh(false);
    }
    if index != 0 {
        tcp.set_cwr(false);
    }
    tcp.fill_checksum(&src, &dst);
}
