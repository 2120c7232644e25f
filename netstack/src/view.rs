//! Views of Ethernet frames, on smoltcp's wire module: every length is checked before a field is read, so that no
//! frame, whatever is in it, makes any of this panic.

use core::net::Ipv4Addr;

use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet,
    IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
};

/// What keeps frames apart that belong to different flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// TCP: ports.
    Tcp,
    /// UDP: ports.
    Udp,
    /// ICMP echo: the identifier stands for the port of the side that asks.
    Icmp,
}

/// A frame, as far as the switch looks.
#[derive(Debug)]
pub struct View<'a> {
    /// Destination MAC.
    pub dst: EthernetAddress,
    /// Source MAC.
    pub src: EthernetAddress,
    /// What it carries.
    pub content: Content<'a>,
}

/// What a frame carries.
#[derive(Debug)]
pub enum Content<'a> {
    /// ARP for IPv4 over Ethernet.
    Arp(ArpRepr),
    /// IPv4 with a good header checksum.
    Ipv4(IpView<'a>),
    /// Something that the cluster has no use for.
    Other,
}

/// An IPv4 packet.
#[derive(Debug)]
pub struct IpView<'a> {
    /// What its headers say.
    pub head: IpHead,
    /// The whole packet, header included, without Ethernet padding.
    pub packet: &'a [u8],
    /// Behind the IP header.
    pub payload: &'a [u8],
}

/// What the headers of an IPv4 packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHead {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Set if it is a part of a datagram.
    pub fragment: Option<Fragment>,
    /// What the payload is.
    pub transport: Transport,
}

/// Which part of a datagram this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, the same in all parts.
    pub ident: u16,
    /// Protocol number, the same in all parts.
    pub proto: u8,
    /// Bytes of payload before this part.
    pub offset: u16,
    /// More parts follow.
    pub more: bool,
}

/// The transport header of a packet that has it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// Flags.
        flags: TcpFlags,
    },
    /// UDP.
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP echo.
    Echo {
        /// Identifier.
        ident: u16,
        /// Request, else reply.
        request: bool,
    },
    /// An ICMP error about a packet of someone's.
    Error(Quoted),
    /// None of these, or a later fragment.
    Opaque,
}

/// The flags that matter to who owns a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags {
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

/// The flow of the packet that an ICMP error quotes, as that packet had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Protocol.
    pub proto: Proto,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Source port, or identifier.
    pub src_port: u16,
    /// Destination port, or 0.
    pub dst_port: u16,
    /// The error says that nobody has the destination port (type 3, code 3).
    pub port_unreachable: bool,
}

/// What a frame carries, without its bytes.
#[derive(Debug, Clone, Copy)]
pub enum Head {
    /// ARP for IPv4 over Ethernet.
    Arp(ArpRepr),
    /// IPv4 with a good header checksum.
    Ipv4(IpHead),
    /// Something that the cluster has no use for.
    Other,
}

impl Content<'_> {
    /// What it is, without its bytes.
    pub fn head(&self) -> Head {
        match self {
            Content::Arp(arp) => Head::Arp(*arp),
            Content::Ipv4(ip) => Head::Ipv4(ip.head),
            Content::Other => Head::Other,
        }
    }
}

/// Why a frame is not looked at any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A header is cut short, or its lengths contradict each other.
    #[error("a header is cut short or contradicts itself")]
    Malformed,
    /// The checksum of the IP header does not hold.
    #[error("bad IP header checksum")]
    Checksum,
}

impl<'a> View<'a> {
    /// Looks at an Ethernet frame (without vnet header).
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn parse(frame: &'a [u8]) -> Result<Self, ViewError> {
        let eth = EthernetFrame::new_checked(frame).map_err(|_| ViewError::Malformed)?;
        let content = match eth.ethertype() {
            EthernetProtocol::Arp => {
                match ArpPacket::new_checked(eth.payload()).and_then(|p| ArpRepr::parse(&p)) {
                    Ok(arp) => Content::Arp(arp),
                    Err(_) => return Err(ViewError::Malformed),
                }
            }
            EthernetProtocol::Ipv4 => Content::Ipv4(IpView::parse(eth.payload())?),
            _ => Content::Other,
        };
        Ok(Self { dst: eth.dst_addr(), src: eth.src_addr(), content })
    }
}

impl<'a> IpView<'a> {
    /// Looks at an IPv4 packet.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ViewError> {
        let ip = Ipv4Packet::new_checked(bytes).map_err(|_| ViewError::Malformed)?;
        if ip.version() != 4 || ip.header_len() < 20 {
            return Err(ViewError::Malformed);
        }
        if !ip.verify_checksum() {
            return Err(ViewError::Checksum);
        }
        let (offset, more) = (ip.frag_offset(), ip.more_frags());
        let fragment = (offset != 0 || more).then(|| Fragment {
            ident: ip.ident(),
            proto: ip.next_header().into(),
            offset,
            more,
        });
        let payload = ip.payload();
        let transport =
            if offset == 0 { Transport::parse(ip.next_header(), payload)? } else { Transport::Opaque };
        let packet = &bytes[..usize::from(ip.total_len())];
        let head = IpHead { src: ip.src_addr(), dst: ip.dst_addr(), fragment, transport };
        Ok(Self { head, packet, payload })
    }
}

impl Transport {
    fn parse(proto: IpProtocol, payload: &[u8]) -> Result<Self, ViewError> {
        match proto {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).map_err(|_| ViewError::Malformed)?;
                let flags = TcpFlags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() };
                Ok(Self::Tcp { src: tcp.src_port(), dst: tcp.dst_port(), flags })
            }
            // The length field is not held against the payload: a first fragment is shorter than its datagram.
            IpProtocol::Udp => {
                let (src, dst) = ports(payload).ok_or(ViewError::Malformed)?;
                Ok(Self::Udp { src, dst })
            }
            IpProtocol::Icmp => {
                let icmp = Icmpv4Packet::new_checked(payload).map_err(|_| ViewError::Malformed)?;
                Ok(match icmp.msg_type() {
                    Icmpv4Message::EchoRequest => Self::Echo { ident: icmp.echo_ident(), request: true },
                    Icmpv4Message::EchoReply => Self::Echo { ident: icmp.echo_ident(), request: false },
                    kind @ (Icmpv4Message::DstUnreachable
                    | Icmpv4Message::TimeExceeded
                    | Icmpv4Message::ParamProblem) => {
                        let port = kind == Icmpv4Message::DstUnreachable && icmp.msg_code() == 3;
                        Quoted::parse(icmp.data(), port).map_or(Self::Opaque, Self::Error)
                    }
                    _ => Self::Opaque,
                })
            }
            _ => Ok(Self::Opaque),
        }
    }
}

impl Quoted {
    /// Reads the start of a packet: its header and at least 8 bytes (RFC 792); its lengths say more than is there.
    fn parse(bytes: &[u8], port_unreachable: bool) -> Option<Self> {
        if bytes.len() < 20 {
            return None;
        }
        let ip = Ipv4Packet::new_unchecked(bytes);
        let header = usize::from(ip.header_len());
        let rest = bytes.get(header..).filter(|rest| header >= 20 && rest.len() >= 8)?;
        if ip.version() != 4 || ip.frag_offset() != 0 {
            return None;
        }
        let (proto, src_port, dst_port) = match ip.next_header() {
            IpProtocol::Tcp => (Proto::Tcp, ports(rest)?.0, ports(rest)?.1),
            IpProtocol::Udp => (Proto::Udp, ports(rest)?.0, ports(rest)?.1),
            IpProtocol::Icmp => (Proto::Icmp, Icmpv4Packet::new_checked(rest).ok()?.echo_ident(), 0),
            _ => return None,
        };
        Some(Self { proto, src: ip.src_addr(), dst: ip.dst_addr(), src_port, dst_port, port_unreachable })
    }
}

/// Source and destination port: the first four bytes, in UDP as in TCP.
fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    if payload.len() < 8 {
        return None;
    }
    let udp = UdpPacket::new_unchecked(payload);
    Some((udp.src_port(), udp.dst_port()))
}
