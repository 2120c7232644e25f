//! What the network service is told, and what it says when it cannot.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

use ssi_netstack::offload::Offload;

/// A published port: a port of the machine that leads to one of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Address of the machine to listen on.
    pub bind: IpAddr,
    /// Port of the machine; 0 takes any that is free.
    pub host_port: u16,
    /// Port of the cluster.
    pub guest_port: u16,
}

/// Why a `--publish` value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{value}' is no port to publish: {why}; write HOST_PORT:GUEST_PORT or ADDRESS:HOST_PORT:GUEST_PORT, such as 8080:80"
)]
pub struct PublishError {
    value: String,
    why: &'static str,
}

impl FromStr for Publish {
    type Err = PublishError;

    /// `8080:80`, `0.0.0.0:8080:80`, `[::1]:8080:80`; without an address 127.0.0.1.
    fn from_str(value: &str) -> Result<Self, PublishError> {
        let fail = |why| PublishError { value: value.to_owned(), why };
        let (front, guest) = value.rsplit_once(':').ok_or_else(|| fail("it has no ':'"))?;
        let (bind, host) = match front.rsplit_once(':') {
            Some((bind, host)) => (bind.trim_start_matches('[').trim_end_matches(']'), host),
            None => ("127.0.0.1", front),
        };
        let bind = bind.parse().map_err(|_| fail("the address is none"))?;
        let host_port = host.parse().map_err(|_| fail("the host port is no number from 0 to 65535"))?;
        let guest_port = guest.parse().map_err(|_| fail("the guest port is no number from 1 to 65535"))?;
        if guest_port == 0 {
            return Err(fail("the guest port is 0"));
        }
        Ok(Self { bind, host_port, guest_port })
    }
}

/// A TAP uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Name of the device, at most 15 bytes; it is made if it does not exist.
    pub name: String,
    /// Address and prefix length that the machine gets on it; `None` leaves it as it is.
    pub host_addr: Option<(Ipv4Addr, u8)>,
}

/// What the network service is told at its start.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Cells 0 to this are up from the start; others come by [`NetHandle::cell_up`](super::NetHandle::cell_up).
    pub cells: u32,
    /// What their cards take. [`Offload::ALL`] is for a device that offers VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4 and
    /// MRG_RXBUF (or buffers of 64 KiB).
    pub offload: Offload,
    /// The cell that is asked first about a port that no cell is known to listen on.
    pub default_cell: u32,
    /// Published ports.
    pub published: Vec<Publish>,
    /// The uplink.
    pub tap: Option<TapConfig>,
    /// Where name queries to the gateway's port 53 go; `None` asks the machine's resolv.conf.
    pub dns: Option<SocketAddrV4>,
    /// May cells reach services on the machine's loopback, as ports of the gateway's address?
    pub host_loopback: bool,
    /// Most bytes of frames that wait from one cell.
    pub inbox_bytes: usize,
    /// Most connections through the gateway.
    pub max_connections: usize,
    /// Seed of the gateway's sequence and port numbers; `None` draws one.
    pub seed: Option<u64>,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            cells: 1,
            offload: Offload::ALL,
            default_cell: 0,
            published: Vec::new(),
            tap: None,
            dns: None,
            host_loopback: false,
            inbox_bytes: 8 << 20,
            max_connections: 4096,
            seed: None,
        }
    }
}

/// Why the network service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program listens there.
    #[error(
        "port {} is in use on {}: publish another port, or stop what uses it (`ss -ltnp 'sport = :{}'` shows it)",
        .0.port(), .0.ip(), .0.port()
    )]
    PortInUse(SocketAddr),
    /// The port is one of those that not everyone may use.
    #[error("port {} needs a privilege: publish one from 1024 on, or run with CAP_NET_BIND_SERVICE", .0.port())]
    PortPrivileged(SocketAddr),
    /// The address is not the machine's.
    #[error("{} is no address of this machine: publish on one of those that `ip address` shows", .0.ip())]
    NotOurAddress(SocketAddr),
    /// Listening failed for another reason.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The TAP device cannot be had.
    #[error(
        "cannot use TAP device '{name}': {step} failed: {source}; it needs CAP_NET_ADMIN, /dev/net/tun and a name of at most 15 bytes that no other program uses"
    )]
    Tap {
        /// Its name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An event, a thread, randomness or epoll.
    #[error("cannot start the network service: {0}")]
    Io(#[from] io::Error),
}

impl NetError {
    pub(super) fn listen(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse(addr),
            io::ErrorKind::PermissionDenied => Self::PortPrivileged(addr),
            io::ErrorKind::AddrNotAvailable => Self::NotOurAddress(addr),
            _ => Self::Listen { addr, source },
        }
    }
}

/// The first IPv4 name server of a resolv.conf.
pub(super) fn first_nameserver(resolv_conf: &str) -> Option<SocketAddrV4> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .find_map(|rest| rest.trim().parse().ok())
        .map(|ip: Ipv4Addr| SocketAddrV4::new(ip, 53))
}
