//! Addresses by ioctl (netdevice(7)): the emulated host has no program that could set them.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result, ensure};

use super::place;

const LOOPBACK: &str = "lo";
/// QEMU's user network.
const CARD: &str = "eth0";
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Brings up the loopback and the card, with the default route through QEMU.
pub(super) fn set_up() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("no IPv4 in the emulated host's kernel")?;
    let socket = socket.as_raw_fd();
    bring_up(socket, LOOPBACK)?;
    set_address(socket, CARD, libc::SIOCSIFADDR, place::ADDRESS)?;
    set_address(socket, CARD, libc::SIOCSIFNETMASK, MASK)?;
    bring_up(socket, CARD)?;
    default_route(socket, place::GATEWAY).context("cannot set the default route")
}

/// A request that names an interface.
fn request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(name.len() < request.ifr_name.len(), "{name}: too long for an interface");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn address(ip: Ipv4Addr) -> libc::sockaddr {
    let from = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of 16 bytes; sockaddr_in is one of the forms of sockaddr.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(from) }
}

fn call(socket: RawFd, number: libc::c_ulong, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: each caller passes the structure that its request number takes, valid for the call.
    if unsafe { libc::ioctl(socket, number, argument) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set_address(socket: RawFd, name: &str, number: libc::c_ulong, ip: Ipv4Addr) -> Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = address(ip);
    call(socket, number, (&raw mut request).cast())
        .with_context(|| format!("cannot give {name} the address {ip}"))
}

fn bring_up(socket: RawFd, name: &str) -> Result<()> {
    let mut request = request(name)?;
    let failed = || format!("cannot bring up {name}");
    call(socket, libc::SIOCGIFFLAGS, (&raw mut request).cast()).with_context(failed)?;
    // SAFETY: SIOCGIFFLAGS filled in this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(socket, libc::SIOCSIFFLAGS, (&raw mut request).cast()).with_context(failed)
}

fn default_route(socket: RawFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is plain data, for which zeros are valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(socket, libc::SIOCADDRT, (&raw mut route).cast())
}
