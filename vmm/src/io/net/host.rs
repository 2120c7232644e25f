//! The machine's side of the gateway: its sockets. Registered edge-triggered once and for all; what is readable and
//! writable is kept as flags, so that a transfer makes no system call but its reads and writes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use ssi_netstack::gateway::{ConnId, Gateway, Progress, Refusal};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::config::{NetError, Publish};

/// What an epoll event is about: the kind in the high byte, a number below.
pub(super) const KIND_SHIFT: u32 = 56;
pub(super) const KIND_LISTENER: u64 = 4;
pub(super) const KIND_TCP: u64 = 5;
pub(super) const KIND_UDP: u64 = 6;

/// Most bytes that one connection moves before the others get their turn.
const TURN_BYTES: usize = 1 << 20;
/// Most connections that one listener takes before the others get their turn.
const TURN_ACCEPTS: usize = 64;

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    guest_port: u16,
    /// Out of the epoll set, for want of room or descriptors.
    paused: bool,
    /// That was logged, and no client has come since.
    logged: bool,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    connecting: bool,
    readable: bool,
    writable: bool,
    /// The machine's side has finished; told to the gateway.
    finished: bool,
    /// The cell's side has finished; told to the machine's.
    shut: bool,
}

/// All sockets of the machine.
#[derive(Debug, Default)]
pub(super) struct Host {
    listeners: Vec<Listener>,
    tcp: BTreeMap<ConnId, Conn>,
    udp: BTreeMap<ConnId, UdpSocket>,
    /// Connections that had more to move than their turn allowed.
    pub(super) again: Vec<ConnId>,
}

fn watch(epoll: &Epoll, fd: &impl AsRawFd, kind: u64, number: u64, events: EventSet) -> io::Result<()> {
    let event = EpollEvent::new(events, kind << KIND_SHIFT | number);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
}

impl Host {
    /// Listens on every published port.
    ///
    /// # Errors
    /// [`NetError`] about the first that cannot be listened on.
    pub(super) fn publish(&mut self, epoll: &Epoll, published: &[Publish]) -> Result<(), NetError> {
        for publish in published {
            let addr = SocketAddr::new(publish.bind, publish.host_port);
            let socket = TcpListener::bind(addr).map_err(|source| NetError::listen(addr, source))?;
            socket.set_nonblocking(true)?;
            watch(epoll, &socket, KIND_LISTENER, self.listeners.len() as u64, EventSet::IN)?;
            self.listeners.push(Listener {
                socket,
                guest_port: publish.guest_port,
                paused: false,
                logged: false,
            });
        }
        Ok(())
    }

    /// Where is listened, and which port of the cluster that leads to.
    pub(super) fn published(&self) -> io::Result<Vec<(SocketAddr, u16)>> {
        self.listeners
            .iter()
            .map(|listener| Ok((listener.socket.local_addr()?, listener.guest_port)))
            .collect()
    }

    /// Listener `index` is readable.
    pub(super) fn accept(&mut self, epoll: &Epoll, gateway: &mut Gateway, index: usize) {
        for _ in 0..TURN_ACCEPTS {
            let Some(listener) = self.listeners.get_mut(index) else { return };
            if !gateway.has_room() {
                return self.pause(epoll, index, "the gateway has no room for another connection");
            }
            match listener.socket.accept() {
                Ok((stream, _)) => {
                    listener.logged = false;
                    let Ok(id) = gateway.connect(listener.guest_port) else { return };
                    if let Err(error) = self.add(epoll, id, stream, false) {
                        log::warn!("a connection to a published port was given up: {error}");
                        gateway.abort(id);
                    }
                }
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
                {
                    return self.pause(epoll, index, &error.to_string());
                }
                // A client that went away while it waited is no reason to stop; level-triggered epoll calls again.
                Err(_) => return,
            }
        }
    }

    fn pause(&mut self, epoll: &Epoll, index: usize, why: &str) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if !std::mem::replace(&mut listener.logged, true) {
            log::warn!("published port {} takes no more clients for now: {why}", listener.guest_port);
        }
        if !std::mem::replace(&mut listener.paused, true) {
            let fd = listener.socket.as_raw_fd();
            let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }

    /// Does a listener wait for room or descriptors?
    pub(super) fn is_paused(&self) -> bool {
        self.listeners.iter().any(|listener| listener.paused)
    }

    /// There may be room again: those that wait for it may come.
    pub(super) fn resume_listeners(&mut self, epoll: &Epoll) {
        for (index, listener) in self.listeners.iter_mut().enumerate().filter(|(_, listener)| listener.paused)
        {
            listener.paused =
                watch(epoll, &listener.socket, KIND_LISTENER, index as u64, EventSet::IN).is_err();
        }
    }

    fn add(&mut self, epoll: &Epoll, id: ConnId, stream: TcpStream, connecting: bool) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        watch(epoll, &stream, KIND_TCP, id, events)?;
        let conn = Conn {
            stream,
            connecting,
            readable: !connecting,
            writable: !connecting,
            finished: false,
            shut: false,
        };
        self.tcp.insert(id, conn);
        Ok(())
    }

    /// A cell connects to `to`.
    pub(super) fn open(
        &mut self,
        epoll: &Epoll,
        gateway: &mut Gateway,
        now: ssi_netstack::Instant,
        id: ConnId,
        to: SocketAddrV4,
    ) {
        match start_connect(to).and_then(|stream| self.add(epoll, id, stream, true)) {
            Ok(()) => {}
            Err(error) => gateway.refused(now, id, refusal(&error)),
        }
    }

    /// Something happened to the socket of `id`.
    pub(super) fn event(
        &mut self,
        epoll: &Epoll,
        gateway: &mut Gateway,
        now: ssi_netstack::Instant,
        id: ConnId,
        events: EventSet,
    ) {
        let Some(conn) = self.tcp.get_mut(&id) else { return };
        if conn.connecting {
            if !events.intersects(EventSet::OUT | EventSet::ERROR | EventSet::HANG_UP) {
                return;
            }
            conn.connecting = false;
            match conn.stream.take_error() {
                Ok(None) => gateway.opened(now, id),
                Ok(Some(error)) | Err(error) => {
                    gateway.refused(now, id, refusal(&error));
                    return self.drop_conn(epoll, id);
                }
            }
        } else if events.contains(EventSet::ERROR) {
            gateway.abort(id);
            return self.drop_conn(epoll, id);
        }
        conn.readable |= events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP);
        conn.writable |= events.intersects(EventSet::OUT | EventSet::HANG_UP);
        self.pump(epoll, gateway, id);
    }

    fn drop_conn(&mut self, epoll: &Epoll, id: ConnId) {
        // Closing the descriptor takes it out of the epoll set.
        self.tcp.remove(&id);
        self.resume_listeners(epoll);
    }

    /// Moves bytes between the socket of `id` and its connection until neither side can, or its turn is over.
    pub(super) fn pump(&mut self, epoll: &Epoll, gateway: &mut Gateway, id: ConnId) {
        let Some(conn) = self.tcp.get_mut(&id) else { return };
        let mut budget = TURN_BYTES;
        let outcome = loop {
            let mut failed = false;
            let inward = if conn.readable && !conn.finished {
                conn.pull(gateway, id, &mut failed)
            } else {
                Progress::Moved(0)
            };
            let outward = if (conn.writable || conn.shut) && !failed {
                conn.push(gateway, id, &mut failed)
            } else {
                Progress::Moved(0)
            };
            if failed {
                break Outcome::HostReset;
            }
            if inward == Progress::Reset || outward == Progress::Reset {
                break Outcome::CellReset;
            }
            if conn.finished && conn.shut {
                break Outcome::Over;
            }
            let moved = |progress| if let Progress::Moved(bytes) = progress { bytes } else { 0 };
            match moved(inward) + moved(outward) {
                0 => break Outcome::Waits,
                bytes if bytes >= budget => break Outcome::TurnOver,
                bytes => budget -= bytes,
            }
        };
        match outcome {
            Outcome::Waits => {}
            Outcome::TurnOver => self.again.push(id),
            Outcome::Over => {
                gateway.release(id);
                self.drop_conn(epoll, id);
            }
            Outcome::HostReset => {
                gateway.abort(id);
                self.drop_conn(epoll, id);
            }
            Outcome::CellReset => {
                gateway.release(id);
                // With no time to linger, close sends a reset.
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                if let Err(error) = setsockopt(&conn.stream, sockopt::Linger, &linger) {
                    log::debug!("a reset went out as an end: {error}");
                }
                self.drop_conn(epoll, id);
            }
        }
    }

    /// A cell sends a datagram.
    pub(super) fn send_datagram(
        &mut self,
        epoll: &Epoll,
        gateway: &mut Gateway,
        id: ConnId,
        to: SocketAddrV4,
        payload: &[u8],
    ) {
        let socket = match self.udp.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match open_datagram(epoll, id, to) {
                Ok(socket) => entry.insert(socket),
                Err(error) => {
                    log::debug!("a datagram to {to} was dropped: {error}");
                    return gateway.datagram_refused(id);
                }
            },
        };
        if let Err(error) = socket.send(payload)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            gateway.datagram_refused(id);
        }
    }

    /// The datagram socket of `id` has something.
    pub(super) fn recv_datagrams(
        &mut self,
        gateway: &mut Gateway,
        now: ssi_netstack::Instant,
        id: ConnId,
        buffer: &mut [u8],
    ) {
        let Some(socket) = self.udp.get(&id) else { return };
        for _ in 0..TURN_ACCEPTS {
            match socket.recv(buffer) {
                Ok(len) => gateway.datagram(now, id, &buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    gateway.datagram_refused(id)
                }
                Err(_) => return,
            }
        }
    }

    /// Datagram flow `id` is over.
    pub(super) fn close_datagram(&mut self, id: ConnId) {
        self.udp.remove(&id);
    }
}

/// Why a pump stopped.
enum Outcome {
    /// Neither side can go on now.
    Waits,
    /// It could go on.
    TurnOver,
    /// Both directions have ended well.
    Over,
    /// The machine's side is gone.
    HostReset,
    /// The cell's side is gone.
    CellReset,
}

impl Conn {
    /// From the machine to the cell.
    fn pull(&mut self, gateway: &mut Gateway, id: ConnId, failed: &mut bool) -> Progress {
        let (mut stream, readable) = (&self.stream, &mut self.readable);
        let mut end = false;
        let progress = gateway.send(id, |room| match stream.read(room) {
            Ok(0) => {
                end = true;
                0
            }
            Ok(len) => len,
            Err(error) if waits(&error) => {
                *readable = false;
                0
            }
            Err(_) => {
                *failed = true;
                0
            }
        });
        if end {
            self.finished = true;
            gateway.finish(id);
        }
        progress
    }

    /// From the cell to the machine.
    fn push(&mut self, gateway: &mut Gateway, id: ConnId, failed: &mut bool) -> Progress {
        let (mut stream, writable) = (&self.stream, &mut self.writable);
        let progress = gateway.recv(id, |bytes| match stream.write(bytes) {
            Ok(len) => len,
            Err(error) if waits(&error) => {
                *writable = false;
                0
            }
            Err(_) => {
                *failed = true;
                0
            }
        });
        if progress == Progress::End && !self.shut {
            self.shut = true;
            // It fails if the other side has gone, and then there is nobody to tell.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        progress
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A socket on its way to `to`.
fn start_connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let addr = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let len = size_of_val(&addr) as libc::socklen_t;
    // SAFETY: `addr` is a whole sockaddr_in, `len` its size, and connect only reads it.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const addr).cast(), len) } < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    Ok(TcpStream::from(fd))
}

fn open_datagram(epoll: &Epoll, id: ConnId, to: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    watch(epoll, &socket, KIND_UDP, id, EventSet::IN)?;
    Ok(socket)
}

/// What a cell is told.
fn refusal(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Refusal::Refused,
        Some(libc::ENETUNREACH | libc::EACCES | libc::EPERM) => Refusal::NetUnreachable,
        _ => Refusal::HostUnreachable,
    }
}
