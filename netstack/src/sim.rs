//! A simulated cell for tests and benchmarks: smoltcp in the place of the guest's TCP, behind a card with the
//! cluster's MAC and address. Like the rest of the crate it has no clock and no randomness of its own.

use core::net::{Ipv4Addr, SocketAddrV4};
use core::num::{NonZeroU16, NonZeroUsize};
use std::collections::{BTreeMap, VecDeque};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum as Phy, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpRepr, EthernetFrame, EthernetProtocol, HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol,
    Ipv4Packet, TcpPacket, checksum,
};

use crate::fin::FinGuard;
use crate::switch::local;
use crate::view::{Content, Head, IpHead, Transport, View};
use crate::vnet::{Checksum, Gso, VnetPacket, VnetRepr};
use crate::{CLUSTER_IP, CLUSTER_MAC, ETH_HDR_BYTES, GATEWAY_IP, MTU_BYTES, PREFIX_BITS, VNET_HDR_BYTES};

/// Bytes of each direction's buffer of a simulated socket.
pub const BUFFER_BYTES: usize = 256 << 10;

/// Names a TCP socket of a simulated cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimSocket(usize);

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimRecv {
    /// So many bytes.
    Data(usize),
    /// None yet.
    Blocked,
    /// The other end has finished.
    End,
    /// The connection is gone.
    Reset,
}

#[derive(Debug)]
struct Card {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    offload: bool,
}

impl Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx { card: &mut self.tx, offload: self.offload, segment: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx { card: &mut self.tx, offload: self.offload, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = MTU_BYTES + ETH_HDR_BYTES;
        if self.offload {
            caps.checksum.tcp = Phy::None;
            caps.segmentation.tcpv4 = NonZeroUsize::new(usize::from(u16::MAX));
        }
        caps
    }
}

#[derive(Debug)]
struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.get(VNET_HDR_BYTES..).unwrap_or_default())
    }
}

#[derive(Debug)]
struct Tx<'a> {
    card: &'a mut VecDeque<Vec<u8>>,
    offload: bool,
    segment: Option<NonZeroU16>,
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; VNET_HDR_BYTES + len];
        let result = f(&mut frame[VNET_HDR_BYTES..]);
        let repr = if self.offload { offload_tcp(&mut frame[VNET_HDR_BYTES..], self.segment) } else { None };
        repr.unwrap_or(VnetRepr::PLAIN).emit(&mut frame);
        self.card.push_back(frame);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

/// What a driver with checksum offload does to a TCP frame.
fn offload_tcp(frame: &mut [u8], segment: Option<NonZeroU16>) -> Option<VnetRepr> {
    let eth = EthernetFrame::new_checked(&*frame).ok()?;
    if eth.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let start = ETH_HDR_BYTES + usize::from(ip.header_len());
    let bytes = ip.payload().len() as u32;
    let sum = checksum::pseudo_header_v4(&ip.src_addr(), &ip.dst_addr(), IpProtocol::Tcp, bytes);
    let mut tcp = TcpPacket::new_checked(&mut frame[start..]).ok()?;
    tcp.set_checksum(sum);
    let hdr_len = start as u16 + u16::from(tcp.header_len());
    Some(VnetRepr {
        checksum: Checksum::Partial { start: start as u16, offset: 16 },
        gso: segment.map(|size| Gso { size, hdr_len, ecn: false }),
    })
}

/// What names the connection of a TCP frame.
fn tcp_key(frame: &[u8]) -> Option<(u16, IpAddress, u16)> {
    match View::parse(&frame[VNET_HDR_BYTES..]).ok()?.content.head() {
        Head::Ipv4(IpHead { dst, transport: Transport::Tcp { src: port, dst: to, .. }, .. }) => {
            Some((port, IpAddress::Ipv4(dst), to))
        }
        _ => None,
    }
}

/// The answer to an ARP request for the cluster's own address.
fn own_arp(frame: &[u8]) -> Option<Vec<u8>> {
    match View::parse(&frame[VNET_HDR_BYTES..]).ok()?.content {
        Content::Arp(arp @ ArpRepr::EthernetIpv4 { target_protocol_addr: CLUSTER_IP, .. }) => {
            local::arp_reply(&arp, CLUSTER_MAC)
        }
        _ => None,
    }
}

/// A cell. Frames go in by [`SimCell::input`] and come out of [`SimCell::pop_frame`]; [`SimCell::poll`] in between.
pub struct SimCell {
    iface: Interface,
    card: Card,
    sockets: SocketSet<'static>,
    names: BTreeMap<SimSocket, SocketHandle>,
    listening: BTreeMap<u16, (usize, Vec<SimSocket>)>,
    udp: BTreeMap<u16, SocketHandle>,
    next_name: usize,
    bad_frames: u64,
    fins: BTreeMap<(u16, IpAddress, u16), FinGuard>,
    now: Instant,
}

impl core::fmt::Debug for SimCell {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SimCell").field("sockets", &self.names.len()).finish_non_exhaustive()
    }
}

impl SimCell {
    /// A cell whose card has checksum and segmentation offload, or not.
    pub fn new(offload: bool, seed: u64, now: Instant) -> Self {
        let mut card = Card { rx: VecDeque::new(), tx: VecDeque::new(), offload };
        let mut config = Config::new(HardwareAddress::Ethernet(CLUSTER_MAC));
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut card, now);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(CLUSTER_IP), PREFIX_BITS));
        });
        let _ = iface.routes_mut().add_default_ipv4_route(GATEWAY_IP);
        Self {
            iface,
            card,
            sockets: SocketSet::new(vec![]),
            names: BTreeMap::new(),
            listening: BTreeMap::new(),
            udp: BTreeMap::new(),
            next_name: 0,
            bad_frames: 0,
            fins: BTreeMap::new(),
            now,
        }
    }

    /// A frame comes from the switch. One that a real card would not take is counted instead.
    pub fn input(&mut self, frame: Vec<u8>) {
        let repr = VnetPacket::new_checked(&frame[..]).and_then(|packet| VnetRepr::parse(&packet));
        let fits = frame.len() <= VNET_HDR_BYTES + ETH_HDR_BYTES + MTU_BYTES;
        match repr {
            Ok(repr) if self.card.offload || (repr == VnetRepr::PLAIN && fits) => {
                self.card.rx.push_back(frame)
            }
            _ => self.bad_frames += 1,
        }
    }

    /// Frames that a real card would not have taken.
    pub fn bad_frames(&self) -> u64 {
        self.bad_frames
    }

    /// Takes the next frame for the switch.
    pub fn pop_frame(&mut self) -> Option<Vec<u8>> {
        let frame = self.card.tx.pop_front()?;
        if let Some(key) = tcp_key(&frame) {
            match self.fins.get_mut(&key) {
                Some(guard) => guard.refresh(&frame),
                None => self.fins.extend(FinGuard::of_frame(&frame, self.now).map(|guard| (key, guard))),
            }
        }
        Some(frame)
    }

    fn guard_fins(&mut self, now: Instant) {
        self.now = now;
        let mut needed = BTreeMap::new();
        for handle in self.names.values() {
            let socket = self.sockets.get::<tcp::Socket>(*handle);
            if let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint())
                && FinGuard::is_needed(socket)
                && let Some(mut guard) = self.fins.remove(&(local.port, remote.addr, remote.port))
            {
                self.card.tx.extend(guard.take_due(socket, now));
                needed.insert((local.port, remote.addr, remote.port), guard);
            }
        }
        self.fins = needed;
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Instant) {
        self.guard_fins(now);
        loop {
            self.iface.poll(now, &mut self.card, &mut self.sockets);
            // A kernel knows the way to its own address without asking.
            let own = self.card.tx.iter().position(|frame| own_arp(frame).is_some());
            let Some(reply) = own.and_then(|at| self.card.tx.remove(at)).and_then(|frame| own_arp(&frame))
            else {
                return;
            };
            self.card.rx.push_back(reply);
        }
    }

    /// When [`SimCell::poll`] will next have something to do.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let fin = self.fins.values().map(|guard| guard.due).min();
        [self.iface.poll_at(now, &self.sockets), fin].into_iter().flatten().min()
    }

    fn add(&mut self) -> (SimSocket, SocketHandle) {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let handle = self.sockets.add(socket);
        let name = SimSocket(self.next_name);
        self.next_name += 1;
        self.names.insert(name, handle);
        (name, handle)
    }

    /// Listens on `port`, with room for `backlog` connections at once.
    pub fn listen(&mut self, port: u16, backlog: usize) {
        self.listening.insert(port, (backlog, Vec::new()));
        self.fill_backlog(port);
    }

    fn fill_backlog(&mut self, port: u16) {
        while let Some((backlog, sockets)) = self.listening.get(&port)
            && sockets.len() < *backlog
        {
            let (name, handle) = self.add();
            let _ = self.sockets.get_mut::<tcp::Socket>(handle).listen(port);
            if let Some((_, sockets)) = self.listening.get_mut(&port) {
                sockets.push(name);
            }
        }
    }

    /// Takes a connection to `port` that is past its handshake.
    pub fn accept(&mut self, port: u16) -> Option<SimSocket> {
        let at = self.listening.get(&port)?.1.iter().position(|name| {
            let socket = self.sockets.get::<tcp::Socket>(self.names[name]);
            socket.may_send() || socket.may_recv()
        })?;
        let name = self.listening.get_mut(&port)?.1.remove(at);
        self.fill_backlog(port);
        Some(name)
    }

    /// Connects from `local_port` to `to`.
    pub fn connect(&mut self, to: SocketAddrV4, local_port: u16) -> SimSocket {
        let (name, handle) = self.add();
        let remote = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
        let _ = self.sockets.get_mut::<tcp::Socket>(handle).connect(self.iface.context(), remote, local_port);
        name
    }

    fn socket(&mut self, name: SimSocket) -> Option<&mut tcp::Socket<'static>> {
        let handle = *self.names.get(&name)?;
        Some(self.sockets.get_mut(handle))
    }

    /// Writes what there is room for; returns how much.
    pub fn send(&mut self, name: SimSocket, bytes: &[u8]) -> usize {
        self.socket(name).and_then(|socket| socket.send_slice(bytes).ok()).unwrap_or(0)
    }

    /// Reads what is there.
    pub fn recv(&mut self, name: SimSocket, bytes: &mut [u8]) -> SimRecv {
        let Some(socket) = self.socket(name) else { return SimRecv::Reset };
        match socket.recv_slice(bytes) {
            Ok(0) if socket.may_recv() => SimRecv::Blocked,
            Ok(len) => SimRecv::Data(len),
            Err(tcp::RecvError::Finished) => SimRecv::End,
            Err(_) if matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived) => {
                SimRecv::Blocked
            }
            Err(_) => SimRecv::Reset,
        }
    }

    /// Nothing more will be written.
    pub fn finish(&mut self, name: SimSocket) {
        if let Some(socket) = self.socket(name) {
            socket.close();
        }
    }

    /// Resets the connection.
    pub fn abort(&mut self, name: SimSocket) {
        if let Some(socket) = self.socket(name) {
            socket.abort();
        }
    }

    /// Is the connection there, not closed from both sides and not reset?
    pub fn is_open(&mut self, name: SimSocket) -> bool {
        self.socket(name).is_some_and(|socket| socket.is_open())
    }

    /// Frees a socket.
    pub fn drop_socket(&mut self, name: SimSocket) {
        if let Some(handle) = self.names.remove(&name) {
            self.sockets.remove(handle);
        }
    }

    /// Opens a UDP socket on `port`.
    pub fn udp_bind(&mut self, port: u16) {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        if socket.bind(port).is_ok() {
            let handle = self.sockets.add(socket);
            self.udp.insert(port, handle);
        }
    }

    /// Sends a datagram from `port`.
    pub fn udp_send(&mut self, port: u16, to: SocketAddrV4, bytes: &[u8]) {
        if let Some(handle) = self.udp.get(&port) {
            let remote = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
            let _ = self.sockets.get_mut::<udp::Socket>(*handle).send_slice(bytes, remote);
        }
    }

    /// Takes a datagram that came to `port`: from whom, and what.
    pub fn udp_recv(&mut self, port: u16) -> Option<(SocketAddrV4, Vec<u8>)> {
        let handle = self.udp.get(&port)?;
        let (bytes, meta) = self.sockets.get_mut::<udp::Socket>(*handle).recv().ok()?;
        let IpAddress::Ipv4(from) = meta.endpoint.addr else { return None };
        Some((SocketAddrV4::new(Ipv4Addr::from(from.octets()), meta.endpoint.port), bytes.to_vec()))
    }
}
