//! The user-mode gateway (design: "published ports and outgoing connections through a user-mode gateway on smoltcp").
//!
//! ```text
//!   a client of a published port                      a process in a cell connects out
//!   glue accepts; connect(port) ----- SYN ----> cell  cell --- SYN ---> Event::Open{id, to}; glue connects
//!   Event::Ready <---------------- SYN-ACK ---- cell  cell <- SYN-ACK - opened(id)       or RST/ICMP: refused(id)
//!   send(id, ..), recv(id, ..) <---- data ----> cell  then the same
//! ```
//! Bytes are not copied into events: the glue reads and writes the socket buffers in place ([`Gateway::recv`],
//! [`Gateway::send`]) until they are [`Progress::Blocked`], and gets one [`Event::Ready`] when they no longer are. So a
//! slow reader on either side closes the window of the other, and nothing in between grows.
//!
//! What ends a direction: FIN from a cell is [`Progress::End`] after the last byte; the glue's end of file is
//! [`Gateway::finish`]. A reset travels as a reset: [`Progress::Reset`], [`Gateway::abort`].

mod conn;
mod link;
mod reassembly;
mod udp;

use core::net::{Ipv4Addr, SocketAddrV4};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::{Socket, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

pub use conn::Progress;

use crate::fin::FinGuard;
use crate::frags::DatagramKey;
use crate::switch::local;
use crate::view::{Content, IpView, TcpFlags, Transport, View};
use crate::{CLUSTER_IP, CLUSTER_MAC, GATEWAY_IP, GATEWAY_MAC, PREFIX_BITS, VNET_HDR_BYTES};
use conn::{CONNECT_TIMEOUT, Conn, ConnKey, KEEP_ALIVE, Phase};
use link::Link;
use reassembly::Reassembly;
use udp::Datagrams;

/// Lowest local port of a connection to a cell.
const FIRST_PORT: u16 = 1024;

/// Most sockets that are kept for reuse.
const MAX_SPARE_SOCKETS: usize = 32;

/// Names a connection or datagram flow of the gateway; never used again.
pub type ConnId = u64;

/// What the gateway is told at its start.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Its address.
    pub ip: Ipv4Addr,
    /// The cluster's address.
    pub cluster_ip: Ipv4Addr,
    /// Who is meant by port 53 of the gateway's address; `None` refuses it.
    pub dns: Option<SocketAddrV4>,
    /// Do the other ports of the gateway's address mean those of the machine's loopback? Else they are refused.
    pub host_loopback: bool,
    /// Bytes of each connection's receive buffer (what cells may have sent and the other side not taken).
    pub rx_buffer_bytes: usize,
    /// Bytes of each connection's send buffer.
    pub tx_buffer_bytes: usize,
    /// Most TCP connections.
    pub max_connections: usize,
    /// Most connections in TIME-WAIT; beyond, the oldest ends early.
    pub max_time_wait: usize,
    /// Most datagram flows; beyond, the oldest ends.
    pub max_datagram_flows: usize,
    /// Most frames that wait for the switch.
    pub max_output: usize,
    /// Seed of sequence and port numbers; to be unpredictable in service, fixed in a simulation.
    pub seed: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            ip: GATEWAY_IP,
            cluster_ip: CLUSTER_IP,
            dns: None,
            host_loopback: false,
            rx_buffer_bytes: 256 << 10,
            tx_buffer_bytes: 256 << 10,
            max_connections: 4096,
            max_time_wait: 256,
            max_datagram_flows: 1024,
            max_output: 4096,
            seed: 0,
        }
    }
}

/// What the glue is asked to do, or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A cell connects to `to`: open that, then call [`Gateway::opened`] or [`Gateway::refused`].
    Open {
        /// The connection.
        id: ConnId,
        /// Where to.
        to: SocketAddrV4,
    },
    /// There may be bytes to read, room to write, or an end to see.
    Ready {
        /// The connection.
        id: ConnId,
    },
    /// A cell sends a datagram. All of one `id` come from one socket, so that answers find back.
    Datagram {
        /// The flow.
        id: ConnId,
        /// Where to.
        to: SocketAddrV4,
        /// What.
        payload: Vec<u8>,
    },
    /// A datagram flow has aged, or gave way to another: its socket can go.
    DatagramOver {
        /// The flow.
        id: ConnId,
    },
}

/// Why a connection could not be opened; decides what the cell is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody answered no: a reset (ECONNREFUSED in the cell).
    Refused,
    /// The network is not reachable: ICMP (ENETUNREACH).
    NetUnreachable,
    /// The host is not reachable or did not answer: ICMP (EHOSTUNREACH).
    HostUnreachable,
}

/// The gateway has as many connections as it is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway has no room for another connection")]
pub struct Full;

/// What the gateway counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GatewayCounters {
    /// Connections to cells that were begun.
    pub inbound_count: u64,
    /// Connections of cells that were begun.
    pub outbound_count: u64,
    /// Connections that were reset, from either side, or refused.
    pub reset_count: u64,
    /// SYNs dropped because of [`GatewayConfig::max_connections`].
    pub full_count: u64,
    /// Datagrams from cells.
    pub datagrams_out_count: u64,
    /// Datagrams to cells.
    pub datagrams_in_count: u64,
    /// Packets dropped: of a kind the gateway has no use for, or beyond a bound.
    pub dropped_count: u64,
}

/// The gateway. Frames go in by [`Gateway::input`] and come out of [`Gateway::pop_frame`]; after any call that takes
/// `&mut self`, [`Gateway::poll`] is due.
pub struct Gateway {
    config: GatewayConfig,
    iface: Interface,
    link: Link,
    conns: BTreeMap<ConnId, Conn>,
    /// Looked up, never iterated.
    keys: HashMap<ConnKey, ConnId>,
    dirty: BTreeSet<ConnId>,
    timers: BTreeSet<(Instant, ConnId)>,
    time_wait: VecDeque<ConnId>,
    datagrams: Datagrams,
    reassembly: Reassembly,
    events: VecDeque<Event>,
    counters: GatewayCounters,
    /// Sockets of connections that are over.
    spare: Vec<tcp::Socket<'static>>,
    next_id: ConnId,
    next_port: u16,
}

impl core::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Gateway")
            .field("config", &self.config)
            .field("connections", &self.conns.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway with no connection.
    pub fn new(config: GatewayConfig, now: Instant) -> Self {
        let mut link = Link { rx: None, out: VecDeque::new(), max_out: config.max_output };
        let mut setup = Config::new(HardwareAddress::Ip);
        setup.random_seed = config.seed;
        let mut iface = Interface::new(setup, &mut link, now);
        iface.update_ip_addrs(|addresses| {
            // There is room: smoltcp's default is two addresses.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(config.ip), PREFIX_BITS));
        });
        iface.set_any_ip(true);
        // The seed's low bits, so that a restarted gateway does not begin where its predecessor did.
        let next_port = FIRST_PORT + (config.seed % u64::from(u16::MAX - FIRST_PORT)) as u16;
        Self {
            datagrams: Datagrams::new(config.max_datagram_flows),
            config,
            iface,
            link,
            conns: BTreeMap::new(),
            keys: HashMap::new(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            time_wait: VecDeque::new(),
            reassembly: Reassembly::default(),
            events: VecDeque::new(),
            counters: GatewayCounters::default(),
            spare: Vec::new(),
            next_id: 1,
            next_port,
        }
    }

    /// The counters.
    pub fn counters(&self) -> &GatewayCounters {
        &self.counters
    }

    /// TCP connections, those in TIME-WAIT included.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Is there room for another connection?
    pub fn has_room(&self) -> bool {
        self.conns.len() < self.config.max_connections
    }

    /// Takes the next frame for the switch.
    pub fn pop_frame(&mut self) -> Option<Vec<u8>> {
        self.link.out.pop_front()
    }

    /// Takes the next event.
    pub fn pop_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match &event {
            Event::Ready { id } => {
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.queued = false;
                }
            }
            Event::Datagram { payload, .. } => self.datagrams.taken(payload.len()),
            _ => {}
        }
        Some(event)
    }

    /// When [`Gateway::poll`] will next have something to do, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.datagrams.deadline()].into_iter().flatten().min()
    }

    /// A frame came from a cell, with its vnet header, which was found valid.
    pub fn input(&mut self, now: Instant, frame: Vec<u8>) {
        let bytes = frame.get(VNET_HDR_BYTES..).unwrap_or_default();
        let Ok(View { content: Content::Ipv4(ip), .. }) = View::parse(bytes) else {
            self.counters.dropped_count += 1;
            return;
        };
        let dst = ip.head.dst;
        if ip.head.src != self.config.cluster_ip
            || dst.is_multicast()
            || dst.is_broadcast()
            || dst.is_unspecified()
        {
            self.counters.dropped_count += 1;
            return;
        }
        if let Some(part) = ip.head.fragment {
            let key = DatagramKey { src: ip.head.src, dst, proto: part.proto, ident: part.ident };
            if part.proto == udp::PROTO
                && let Some(whole) = self.reassembly.add(key, part, ip.payload, now)
            {
                self.udp_input(now, dst, &whole, ip.packet);
            }
            return;
        }
        match ip.head.transport {
            Transport::Tcp { src, dst: port, flags } => {
                let key = ConnKey { cluster_port: src, remote: SocketAddrV4::new(dst, port) };
                self.tcp_input(now, key, flags, frame);
            }
            Transport::Udp { .. } => self.udp_input(now, dst, ip.payload, ip.packet),
            Transport::Echo { request: true, .. } => self.echo(&ip),
            _ => self.counters.dropped_count += 1,
        }
    }

    fn echo(&mut self, ip: &IpView<'_>) {
        let reply = if ip.head.dst == self.config.ip {
            local::echo_reply(ip, GATEWAY_MAC, CLUSTER_MAC)
        } else {
            // The machine's own ping would need a privilege.
            Some(udp::unreachable(self.config.ip, self.config.cluster_ip, udp::HOST_PROHIBITED, ip.packet))
        };
        reply.into_iter().for_each(|frame| self.push_frame(frame));
    }

    fn push_frame(&mut self, frame: Vec<u8>) {
        if self.link.out.len() < self.link.max_out {
            self.link.out.push_back(frame);
        } else {
            self.counters.dropped_count += 1;
        }
    }

    /// Where a cell means by `to`; `None` if that is refused.
    fn outside(&self, to: SocketAddrV4) -> Option<SocketAddrV4> {
        if *to.ip() != self.config.ip {
            return (*to.ip() != self.config.cluster_ip).then_some(to);
        }
        match self.config.dns {
            Some(dns) if to.port() == 53 => Some(dns),
            _ => self.config.host_loopback.then(|| SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port())),
        }
    }

    // ---- TCP ----

    fn tcp_input(&mut self, now: Instant, key: ConnKey, flags: TcpFlags, frame: Vec<u8>) {
        let connects = flags.syn && !flags.ack;
        let known = self.keys.get(&key).copied();
        if let Some(id) = known
            && let Some(conn) = self.conns.get_mut(&id)
        {
            // The four numbers are used anew (RFC 9293, 3.6.1: a SYN ends TIME-WAIT).
            let over = conn.released && (conn.in_time_wait || matches!(conn.phase, Phase::Over));
            match &mut conn.phase {
                _ if connects && over => self.forget(id),
                Phase::Opening(_) if flags.rst => {
                    conn.phase = Phase::Over;
                    conn.reset = true;
                    self.dirty.insert(id);
                    return;
                }
                Phase::Opening(syn) => {
                    if connects {
                        *syn = frame;
                    }
                    return;
                }
                Phase::Live(set, _) => {
                    self.link.rx = Some(frame);
                    let before = self.link.out.len();
                    self.iface.poll_ingress_single(now, &mut self.link, set);
                    if let (Some(guard), Some(reply)) = (&mut conn.fin, self.link.out.get(before)) {
                        guard.refresh(reply);
                    }
                    conn.note();
                    self.dirty.insert(id);
                    return;
                }
                Phase::Over => return self.reset_unknown(now, frame),
            }
        }
        let remote = key.remote;
        let to = self.outside(remote);
        match to {
            Some(to) if connects && remote.port() != 0 && key.cluster_port != 0 => {
                if self.conns.len() >= self.config.max_connections {
                    self.counters.full_count += 1;
                    return;
                }
                let id = self.add(Conn::new(key, Phase::Opening(frame)));
                self.counters.outbound_count += 1;
                self.events.push_back(Event::Open { id, to });
            }
            _ => self.reset_unknown(now, frame),
        }
    }

    /// smoltcp answers a segment that no socket wants with a reset.
    fn reset_unknown(&mut self, now: Instant, frame: Vec<u8>) {
        if self.link.out.len() < self.link.max_out {
            self.link.rx = Some(frame);
            self.iface.poll_ingress_single(now, &mut self.link, &mut SocketSet::new(vec![]));
        }
    }

    fn add(&mut self, conn: Conn) -> ConnId {
        let id = self.next_id;
        self.next_id += 1;
        self.keys.insert(conn.key, id);
        self.conns.insert(id, conn);
        id
    }

    fn forget(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.remove(&id) {
            Self::retire(&mut self.spare, conn.phase);
            self.keys.remove(&conn.key);
            if let Some(at) = conn.timer {
                self.timers.remove(&(at, id));
            }
            self.counters.reset_count += u64::from(conn.reset);
        }
        self.dirty.remove(&id);
    }

    /// Keeps the socket of a connection that is over for one that comes: its buffers are large, and zeroing new ones
    /// would cost more than a short connection does. smoltcp resets all state that a new connection reads.
    fn retire(spare: &mut Vec<tcp::Socket<'static>>, phase: Phase) {
        if let Phase::Live(mut set, handle) = phase
            && spare.len() < MAX_SPARE_SOCKETS
            && let Socket::Tcp(mut socket) = set.remove(handle)
        {
            socket.abort();
            spare.push(socket);
        }
    }

    fn new_socket(&mut self) -> tcp::Socket<'static> {
        let buffer = |bytes: usize| tcp::SocketBuffer::new(vec![0; bytes.max(2048)]);
        let mut socket = self.spare.pop().unwrap_or_else(|| {
            tcp::Socket::new(buffer(self.config.rx_buffer_bytes), buffer(self.config.tx_buffer_bytes))
        });
        // The peers outside decide what goes together; a proxy that waits adds only delay.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(CONNECT_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket
    }

    /// A client of a published port is there: connects to `port` of the cluster.
    ///
    /// # Errors
    /// [`Full`], or `port` is 0.
    pub fn connect(&mut self, port: u16) -> Result<ConnId, Full> {
        if self.conns.len() >= self.config.max_connections || port == 0 {
            return Err(Full);
        }
        let key = self.free_key(port).ok_or(Full)?;
        let mut socket = self.new_socket();
        let remote = (IpAddress::Ipv4(self.config.cluster_ip), port);
        let local = (IpAddress::Ipv4(self.config.ip), key.remote.port());
        socket.connect(self.iface.context(), remote, local).map_err(|_| Full)?;
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        let id = self.add(Conn::new(key, Phase::Live(set, handle)));
        self.counters.inbound_count += 1;
        self.dirty.insert(id);
        Ok(id)
    }

    /// The next local port, in turn, so that one in a cell's TIME-WAIT comes up again as late as can be.
    fn free_key(&mut self, port: u16) -> Option<ConnKey> {
        for _ in FIRST_PORT..=u16::MAX {
            let local = self.next_port;
            self.next_port = if local == u16::MAX { FIRST_PORT } else { local + 1 };
            let key = ConnKey { cluster_port: port, remote: SocketAddrV4::new(self.config.ip, local) };
            if !self.keys.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    /// The other side of `id` is open.
    pub fn opened(&mut self, now: Instant, id: ConnId) {
        let mut socket = self.new_socket();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Phase::Opening(syn) = &mut conn.phase else { return };
        let syn = core::mem::take(syn);
        let remote = conn.key.remote;
        let local = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*remote.ip())), port: remote.port() };
        // It cannot fail: the port is not 0 (`tcp_input`) and the socket is new.
        let listens = socket.listen(local).is_ok();
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        self.link.rx = Some(syn);
        self.iface.poll_ingress_single(now, &mut self.link, &mut set);
        conn.phase = Phase::Live(set, handle);
        conn.reset = !listens;
        conn.note();
        self.dirty.insert(id);
    }

    /// The other side of `id` cannot be opened.
    pub fn refused(&mut self, now: Instant, id: ConnId, why: Refusal) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Phase::Opening(syn) = &mut conn.phase else { return self.release(id) };
        let syn = core::mem::take(syn);
        conn.reset = true;
        self.forget(id);
        let code = match why {
            Refusal::Refused => return self.reset_unknown(now, syn),
            Refusal::NetUnreachable => udp::NET_UNREACHABLE,
            Refusal::HostUnreachable => udp::HOST_UNREACHABLE,
        };
        if let Ok(View { content: Content::Ipv4(ip), .. }) = View::parse(&syn[VNET_HDR_BYTES..]) {
            let frame = udp::unreachable(self.config.ip, self.config.cluster_ip, code, ip.packet);
            self.push_frame(frame);
        }
    }

    /// Reads from `id`: `take` is shown received bytes and returns how many it took.
    pub fn recv(&mut self, id: ConnId, take: impl FnOnce(&[u8]) -> usize) -> Progress {
        let Some(conn) = self.conns.get_mut(&id) else { return Progress::Reset };
        let progress = conn.recv(take);
        self.dirty.insert(id);
        progress
    }

    /// Writes to `id`: `fill` is shown free buffer and returns how much of it it filled.
    pub fn send(&mut self, id: ConnId, fill: impl FnOnce(&mut [u8]) -> usize) -> Progress {
        let Some(conn) = self.conns.get_mut(&id) else { return Progress::Reset };
        let progress = conn.send(fill);
        self.dirty.insert(id);
        progress
    }

    /// Nothing more will be written to `id`: a FIN follows the last byte.
    pub fn finish(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.finished = true;
        if let Some(socket) = conn.socket() {
            socket.close();
        }
        conn.note();
        self.dirty.insert(id);
    }

    /// The other side of `id` is gone: the cell gets a reset, and `id` is no more.
    pub fn abort(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.socket() {
            Some(socket) => {
                socket.abort();
                conn.reset = true;
                conn.released = true;
                self.dirty.insert(id);
            }
            None => self.forget(id),
        }
    }

    /// The glue has seen both ends of `id` and closed its side: what is left (the last acknowledgements) needs it no
    /// more, and there will be no event.
    pub fn release(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.released = true;
            self.dirty.insert(id);
        }
    }

    /// Does all that is due at `now`: timers, and what the calls before it have made possible.
    pub fn poll(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.remove(&(at, id));
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.timer = None;
                self.dirty.insert(id);
            }
        }
        // What finds no room in the output stays dirty for the next call.
        let mut blocked = BTreeSet::new();
        while let Some(id) = self.dirty.pop_first() {
            if !self.serve(now, id) {
                blocked.insert(id);
            }
        }
        self.dirty = blocked;
        while self.time_wait.len() > self.config.max_time_wait
            && let Some(id) = self.time_wait.pop_front()
        {
            self.end_time_wait(id);
        }
        for id in self.datagrams.expire(now) {
            self.events.push_back(Event::DatagramOver { id });
        }
        self.reassembly.expire(now);
    }

    /// Is there work that waits for room in the output only?
    pub fn is_blocked(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Sends what a connection has to send and takes note of what became of it. `false`: the output is full.
    fn serve(&mut self, now: Instant, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else { return true };
        let mut next = None;
        if let Phase::Live(set, _) = &mut conn.phase {
            loop {
                if self.link.out.len() >= self.link.max_out {
                    return false;
                }
                let before = self.link.out.len();
                self.iface.poll_egress(now, &mut self.link, set);
                match self.link.out.back() {
                    Some(frame) if self.link.out.len() > before => match &mut conn.fin {
                        Some(guard) => guard.refresh(frame),
                        None => conn.fin = FinGuard::of_frame(frame, now),
                    },
                    _ => break,
                }
            }
            next = self.iface.poll_at(now, set);
        }
        next = [next, conn.guard_fin(now, &mut self.link.out)].into_iter().flatten().min();
        conn.note();
        if conn.in_time_wait && !self.time_wait.contains(&id) {
            self.time_wait.push_back(id);
        }
        if let Some(socket) = conn.socket()
            && (matches!(socket.state(), tcp::State::Closed | tcp::State::Listen))
        {
            Self::retire(&mut self.spare, std::mem::replace(&mut conn.phase, Phase::Over));
            next = None;
        }
        if matches!(conn.phase, Phase::Over) && conn.released {
            self.forget(id);
            return true;
        }
        // A socket that is due and had nothing to send is asked again after the shortest time it counts in.
        let next = next.map(|at| at.max(now + Duration::from_millis(1)));
        if next != conn.timer {
            if let Some(at) = conn.timer {
                self.timers.remove(&(at, id));
            }
            if let Some(at) = next {
                self.timers.insert((at, id));
            }
            conn.timer = next;
        }
        if !conn.released && conn.take_readiness() && !conn.queued {
            conn.queued = true;
            self.events.push_back(Event::Ready { id });
        }
        true
    }

    fn end_time_wait(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            Self::retire(&mut self.spare, std::mem::replace(&mut conn.phase, Phase::Over));
            if let Some(at) = conn.timer.take() {
                self.timers.remove(&(at, id));
            }
            if conn.released {
                self.forget(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
