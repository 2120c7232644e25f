//! Byte streams under the fabric: Unix and TCP sockets today. A TLS session is one more implementation of
//! [`ByteStream`], put in between by [`connect`] and [`Listener::accept`]; nothing above sees a socket.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, sendmsg, setsockopt, sockopt};

use crate::launch::Address;
use crate::worker::Stop;

/// A connected, ordered, reliable stream of bytes with two directions, used by several threads at once.
pub trait ByteStream: Send + Sync + fmt::Debug {
    /// Reads some bytes; 0 is the end.
    ///
    /// # Errors
    /// The stream's own; `WouldBlock` or `TimedOut` after [`ByteStream::set_read_timeout`].
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Reads what is there, at once; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; the stream's own.
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Polls readable when [`ByteStream::try_read`] gets something. Owned by the stream.
    fn descriptor(&self) -> RawFd;
    /// Writes some bytes; waits for room.
    ///
    /// # Errors
    /// The stream's own.
    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Writes what there is room for, at once.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; the stream's own.
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ends both directions: every reader and writer returns. Idempotent.
    fn shutdown(&self);
    /// Ends the writing direction: the other side reads an end.
    fn shutdown_write(&self);
    /// Bounds every later read; `None`: no bound.
    ///
    /// # Errors
    /// The stream's own.
    fn set_read_timeout(&self, bound: Option<Duration>) -> io::Result<()>;
    /// The other side may stop reading for as long as it likes: a program does that with what it gets on its standard input. A
    /// machine that goes silent is then noticed by keep-alive only, that is, when nothing is on its way.
    ///
    /// # Errors
    /// The stream's own.
    fn allow_slow_reader(&self) -> io::Result<()>;
}

/// A stream that threads share.
pub type SharedStream = Arc<dyn ByteStream>;

/// `Read` and `Write` over a shared stream, for code that wants those.
#[derive(Debug, Clone)]
pub struct Pipe(pub SharedStream);

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write_vectored(&[IoSlice::new(buf)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ByteStream for UnixStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| (&mut &*self).read(buf))
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| Ok(recv(self.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT)?))
    }

    fn descriptor(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self, bufs, MsgFlags::MSG_NOSIGNAL)
    }

    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self, bufs, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn shutdown(&self) {
        // An error says that it is shut down already.
        let _ = UnixStream::shutdown(self, std::net::Shutdown::Both);
    }

    fn shutdown_write(&self) {
        let _ = UnixStream::shutdown(self, std::net::Shutdown::Write);
    }

    fn set_read_timeout(&self, bound: Option<Duration>) -> io::Result<()> {
        UnixStream::set_read_timeout(self, bound)
    }

    fn allow_slow_reader(&self) -> io::Result<()> {
        Ok(())
    }
}

impl ByteStream for TcpStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| (&mut &*self).read(buf))
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| Ok(recv(self.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT)?))
    }

    fn descriptor(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self, bufs, MsgFlags::MSG_NOSIGNAL)
    }

    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self, bufs, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn shutdown(&self) {
        let _ = TcpStream::shutdown(self, std::net::Shutdown::Both);
    }

    fn shutdown_write(&self) {
        let _ = TcpStream::shutdown(self, std::net::Shutdown::Write);
    }

    fn set_read_timeout(&self, bound: Option<Duration>) -> io::Result<()> {
        TcpStream::set_read_timeout(self, bound)
    }

    fn allow_slow_reader(&self) -> io::Result<()> {
        // Linux counts a closed window as silence, although the other side answers (tcp_probe_timer()).
        set_tcp_option(self, libc::TCP_USER_TIMEOUT, 0)
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn send(socket: &impl AsRawFd, bufs: &[IoSlice<'_>], flags: MsgFlags) -> io::Result<usize> {
    uninterrupted(|| Ok(sendmsg::<()>(socket.as_raw_fd(), bufs, &[], flags, None)?))
}

/// Writes all of `parts`; waits for room.
///
/// # Errors
/// The stream's own.
pub fn write_all(stream: &dyn ByteStream, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let written = stream.write_vectored(left)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

/// Reads exactly `buf`.
///
/// # Errors
/// `UnexpectedEof` if the stream ends before; the stream's own.
pub fn read_exact(stream: &dyn ByteStream, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match stream.read(buf)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => buf = &mut buf[n..],
        }
    }
    Ok(())
}

/// A machine that goes silent is noticed after about 15 s; small messages leave at once.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    for (option, value) in [
        (libc::TCP_KEEPIDLE, 5),
        (libc::TCP_KEEPINTVL, 3),
        (libc::TCP_KEEPCNT, 3),
        (libc::TCP_USER_TIMEOUT, 15_000),
    ] {
        set_tcp_option(socket, option, value)?;
    }
    Ok(())
}

fn set_tcp_option(socket: &TcpStream, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the pointer and the size describe `value`.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects to `address`.
///
/// # Errors
/// The socket's own.
pub fn connect(address: &Address) -> io::Result<SharedStream> {
    match address {
        Address::Unix(path) => Ok(Arc::new(UnixStream::connect(path)?)),
        Address::Tcp(host, port) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            for resolved in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&resolved, Duration::from_secs(5)) {
                    Ok(socket) => {
                        tune(&socket)?;
                        return Ok(Arc::new(socket));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Waits for connections at an [`Address`]. A Unix socket's file has mode 0600 and is removed with the listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

impl Listener {
    /// Listens at `address`. A socket file that nobody listens on any more (its process died) is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there; the socket's own.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Unix(path) => {
                if path.exists() {
                    match UnixStream::connect(path) {
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            std::fs::remove_file(path)?;
                        }
                        _ => return Err(io::ErrorKind::AddrInUse.into()),
                    }
                }
                let socket = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                socket.set_nonblocking(true)?;
                Socket::Unix(socket)
            }
            Address::Tcp(host, port) => {
                let socket = TcpListener::bind((host.as_str(), *port))?;
                socket.set_nonblocking(true)?;
                Socket::Tcp(socket)
            }
        };
        Ok(Self { socket, address: address.clone() })
    }

    /// Where it listens; with port 0 asked for, the port that was found.
    pub fn address(&self) -> Address {
        match (&self.socket, &self.address) {
            (Socket::Tcp(socket), Address::Tcp(host, _)) => socket
                .local_addr()
                .map_or_else(|_| self.address.clone(), |a| Address::Tcp(host.clone(), a.port())),
            _ => self.address.clone(),
        }
    }

    /// The next connection; `None` once `stop` is triggered.
    ///
    /// # Errors
    /// The socket's own, but for those of a connection that died before it was taken.
    pub fn accept(&self, stop: &Stop) -> io::Result<Option<SharedStream>> {
        loop {
            wait_readable(self.as_raw_fd(), stop)?;
            if stop.is_triggered() {
                return Ok(None);
            }
            let accepted: io::Result<SharedStream> = match &self.socket {
                Socket::Unix(socket) => socket.accept().map(|(stream, _)| Arc::new(stream) as SharedStream),
                Socket::Tcp(socket) => {
                    socket.accept().and_then(|(s, _)| tune(&s).map(|()| Arc::new(s) as SharedStream))
                }
            };
            match accepted {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::InvalidInput => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Unix(socket) => socket.as_raw_fd(),
            Socket::Tcp(socket) => socket.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Returns when `fd` is readable or `stop` is triggered.
///
/// # Errors
/// Those of poll(2).
pub fn wait_readable(fd: RawFd, stop: &Stop) -> io::Result<()> {
    use std::os::fd::BorrowedFd;
    // SAFETY: both descriptors are owned by the caller's arguments and stay open during the call.
    let (socket, event) = unsafe { (BorrowedFd::borrow_raw(fd), BorrowedFd::borrow_raw(stop.as_raw_fd())) };
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(event, PollFlags::POLLIN)];
    uninterrupted(|| Ok(poll(&mut fds, PollTimeout::NONE)?))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_timeout(socket: &TcpStream) -> libc::c_int {
        let (mut value, mut size) = (-1, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open; `value` has room for `size` bytes.
        let done = unsafe {
            let at = (&raw mut value).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, at, &raw mut size)
        };
        assert_eq!(done, 0);
        value
    }

    #[test]
    fn a_reader_may_be_slow_only_where_that_is_said() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tune(&socket).unwrap();
        assert_eq!(user_timeout(&socket), 15_000);
        socket.allow_slow_reader().unwrap();
        assert_eq!(user_timeout(&socket), 0);
    }
}
