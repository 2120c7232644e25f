//! Sends a lost FIN again where smoltcp 0.14 does not: when three duplicate acknowledgements arrive while nothing but
//! a FIN is outstanding, its fast retransmit finds no data to send and leaves no timer behind, and the connection
//! waits for ever. Retransmissions after a loss bring such acknowledgements in numbers, so it does happen
//! (`net_1_outgoing_streams_of_cells_survive_loss_and_reordering` fails without this).

use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetFrame, IpAddress, Ipv4Packet, TcpPacket};

use crate::vnet::VnetRepr;
use crate::{ETH_HDR_BYTES, VNET_HDR_BYTES};

/// Longer than smoltcp's shortest retransmission timeout, so that it has had its turn.
const FIRST_DELAY: Duration = Duration::from_millis(1500);
const MAX_DELAY: Duration = Duration::from_secs(60);

/// A FIN that was sent, and when to send it again.
#[derive(Debug)]
pub struct FinGuard {
    frame: Vec<u8>,
    delay: Duration,
    /// When to look again.
    pub due: Instant,
}

impl FinGuard {
    /// Guards the FIN in `frame`; `None` if there is none in it.
    pub fn of_frame(frame: &[u8], now: Instant) -> Option<Self> {
        let frame = bare_fin(frame)?;
        Some(Self { frame, delay: FIRST_DELAY, due: now + FIRST_DELAY })
    }

    /// The connection sent another frame: what that acknowledged, the FIN must too, or it would be taken for old.
    pub fn refresh(&mut self, frame: &[u8]) {
        let front = VNET_HDR_BYTES + ETH_HDR_BYTES;
        let Some((ack, window)) = tcp_of(frame).map(|tcp| (tcp.ack_number(), tcp.window_len())) else {
            return;
        };
        let ip = Ipv4Packet::new_unchecked(&self.frame[front..]);
        let (src, dst) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
        let ip_len = usize::from(ip.header_len());
        let mut tcp = TcpPacket::new_unchecked(&mut self.frame[front + ip_len..]);
        tcp.set_ack_number(ack);
        tcp.set_window_len(window);
        tcp.fill_checksum(&src, &dst);
    }

    /// Does `socket` still wait for the acknowledgement of a FIN, and of nothing else?
    pub fn is_needed(socket: &tcp::Socket<'_>) -> bool {
        matches!(socket.state(), tcp::State::FinWait1 | tcp::State::Closing | tcp::State::LastAck)
    }

    /// The FIN, if it is time and `socket` has no data in front of it.
    pub fn take_due(&mut self, socket: &tcp::Socket<'_>, now: Instant) -> Option<Vec<u8>> {
        if now < self.due {
            return None;
        }
        self.delay = (self.delay * 2).min(MAX_DELAY);
        self.due = now + self.delay;
        (socket.send_queue() == 0).then(|| self.frame.clone())
    }
}

/// The TCP segment of an IPv4 frame.
fn tcp_of(frame: &[u8]) -> Option<TcpPacket<&[u8]>> {
    let eth = EthernetFrame::new_checked(frame.get(VNET_HDR_BYTES..)?).ok()?;
    let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
    TcpPacket::new_checked(ip.payload()).ok()
}

/// The FIN of a TCP frame without the data before it.
fn bare_fin(frame: &[u8]) -> Option<Vec<u8>> {
    let front = VNET_HDR_BYTES + ETH_HDR_BYTES;
    let eth = EthernetFrame::new_checked(frame.get(VNET_HDR_BYTES..)?).ok()?;
    let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    if !tcp.fin() {
        return None;
    }
    let (ip_len, tcp_len, data) =
        (usize::from(ip.header_len()), usize::from(tcp.header_len()), tcp.payload().len());
    let mut bare = frame.get(..front + ip_len + tcp_len)?.to_vec();
    VnetRepr::PLAIN.emit(&mut bare);
    let mut ip = Ipv4Packet::new_unchecked(&mut bare[front..]);
    // Both headers have at most 60 bytes.
    ip.set_total_len((ip_len + tcp_len) as u16);
    ip.fill_checksum();
    let (src, dst) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    let mut tcp = TcpPacket::new_unchecked(&mut bare[front + ip_len..]);
    tcp.set_seq_number(tcp.seq_number() + data);
    tcp.fill_checksum(&src, &dst);
    Some(bare)
}
