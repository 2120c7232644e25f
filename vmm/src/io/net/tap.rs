//! A TAP device with the vnet header, so that large segments and partial checksums pass as they are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use ssi_netstack::{FRAME_MAX_BYTES, VNET_HDR_BYTES};

use super::config::{NetError, TapConfig};

/// The uplink.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    buffer: Vec<u8>,
}

/// What may be asked of an interface, with its name.
#[repr(C)]
struct Request<T> {
    name: [u8; libc::IFNAMSIZ],
    value: T,
    // `struct ifreq` is 40 bytes; the kernel copies that much whatever the request.
    pad: [u8; 24],
}

impl Tap {
    /// Opens the device, making it if need be.
    ///
    /// # Errors
    /// [`NetError::Tap`] with the step that failed.
    pub(super) fn open(config: &TapConfig) -> Result<Self, NetError> {
        let fail = |step| {
            let name = config.name.clone();
            move |source| NetError::Tap { name, step, source }
        };
        let name = if_name(&config.name).map_err(fail("its name"))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(fail("opening /dev/net/tun"))?;
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let mut request = Request { name, value: flags, pad: [0; 24] };
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is as large as.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
            .map_err(fail("TUNSETIFF"))?;
        let size = VNET_HDR_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) })
            .map_err(fail("TUNSETVNETHDRSZ"))?;
        let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, offload) })
            .map_err(fail("TUNSETOFFLOAD"))?;
        if let Some((addr, prefix)) = config.host_addr {
            configure(name, addr, prefix).map_err(fail("setting its address"))?;
        }
        Ok(Self { file, buffer: vec![0; FRAME_MAX_BYTES] })
    }

    /// Another descriptor of it.
    #[cfg(test)]
    pub(super) fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The next frame, with its header; `None` if there is none now.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.file.read(&mut self.buffer) {
            Ok(len) => Ok(Some(self.buffer[..len].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame, with its header; `false` if the device did not take it.
    pub(super) fn write(&mut self, frame: &[u8]) -> bool {
        self.file.write(frame).is_ok()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn if_name(name: &str) -> io::Result<[u8; libc::IFNAMSIZ]> {
    let mut bytes = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0', '%']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// Gives an interface an address and brings it up.
fn configure(name: [u8; libc::IFNAMSIZ], addr: Ipv4Addr, prefix: u8) -> io::Result<()> {
    // SAFETY: socket has no memory arguments.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: `fd` was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    for (step, addr) in [(libc::SIOCSIFADDR, addr), (libc::SIOCSIFNETMASK, Ipv4Addr::from_bits(mask))] {
        let value = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.octets()) },
            sin_zero: [0; 8],
        };
        let request = Request { name, value, pad: [0; 24] };
        // SAFETY: the request reads one ifreq, which `request` is as large as.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), step as _, &raw const request) })?;
    }
    let request = Request { name, value: (libc::IFF_UP | libc::IFF_RUNNING) as i16, pad: [0; 24] };
    // SAFETY: as above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}
