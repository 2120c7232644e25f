//! Brings up the loopback and the cluster's network card (netdevice(7), rtnetlink-free: three ioctls and a route).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of 16 bytes; the kernel reads the one as the other.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

fn ioctl<T>(socket: &OwnedFd, code: libc::c_ulong, argument: &T) -> io::Result<()> {
    // SAFETY: each caller pairs a request code with the structure that netdevice(7) names for it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, std::ptr::from_ref(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

fn inet_socket() -> Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("opening a socket")
}

/// Sets the interface `name` up, with an address if one is given.
///
/// # Errors
/// If the interface does not exist or refuses.
pub fn up(name: &str, address: Option<(Ipv4Addr, u8)>) -> Result<()> {
    let socket = inet_socket()?;
    let mut request = request(name);
    if let Some((address, prefix)) = address {
        request.ifr_ifru.ifru_addr = socket_address(address);
        ioctl(&socket, libc::SIOCSIFADDR, &request).with_context(|| format!("{name}: setting {address}"))?;
        request.ifr_ifru.ifru_netmask = socket_address(netmask(prefix));
        ioctl(&socket, libc::SIOCSIFNETMASK, &request)
            .with_context(|| format!("{name}: setting the netmask"))?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &request).with_context(|| format!("{name}: setting it up"))
}

/// Routes everything else through `gateway`.
///
/// # Errors
/// If the gateway cannot be reached from a configured interface.
pub fn default_route(gateway: Ipv4Addr) -> Result<()> {
    let socket = inet_socket()?;
    // SAFETY: rtentry is plain data; all zeroes is a valid value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(&socket, libc::SIOCADDRT, &route).with_context(|| format!("default route through {gateway}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks_at_the_edges() {
        assert_eq!(netmask(0), Ipv4Addr::new(0, 0, 0, 0));
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::new(255, 255, 255, 255));
    }
}
