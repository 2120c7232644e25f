use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::BACKLOG;
use super::state::{Command, Shared};
use crate::devices::lock;

/// Opens connections to the guest of one device, and listens for the guest's. Cheap to clone; any thread may use it.
#[derive(Debug, Clone)]
pub struct VsockHandle(Arc<Shared>);

impl VsockHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Connects to `port` of the guest and waits for its answer, `timeout` at most. The stream is an ordinary blocking
    /// socket: `shutdown` of either direction reaches the guest, the guest's arrives here, and dropping it closes both.
    /// A reset by the guest shows as end of file and EPIPE.
    ///
    /// # Errors
    /// `ConnectionRefused` if nobody listens there, `NotConnected` if the guest has no driver (yet), `TimedOut`, or that
    /// there are too many connections or no descriptors.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<UnixStream> {
        let no_driver =
            || io::Error::new(io::ErrorKind::NotConnected, "the guest has no vsock driver running");
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (answer, answered) = bounded(1);
        let id =
            self.0.command(|id| Command::Connect { id, port, stream: ours, answer }).ok_or_else(no_driver)?;
        match answered.recv_timeout(timeout) {
            Ok(result) => result.map(|()| theirs),
            Err(RecvTimeoutError::Timeout) => {
                self.0.command(|_| Command::Cancel(id));
                let message = format!("the guest did not answer on vsock port {port} within {timeout:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
            Err(RecvTimeoutError::Disconnected) => Err(no_driver()),
        }
    }

    /// Takes the guest's connections to `port` of the host from now on, until the listener is dropped.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        let (sender, streams) = bounded(BACKLOG);
        let mut listeners = lock(&self.0.listeners);
        if listeners.contains_key(&port) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("vsock port {port} of the host is taken"),
            ));
        }
        listeners.insert(port, sender);
        Ok(VsockListener { shared: self.0.clone(), port, streams })
    }
}

/// Connections of the guest to one port of the host. Dropping it refuses further ones.
#[derive(Debug)]
pub struct VsockListener {
    shared: Arc<Shared>,
    port: u32,
    streams: Receiver<UnixStream>,
}

impl VsockListener {
    /// Waits for the next connection, `timeout` at most.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn accept(&self, timeout: Duration) -> io::Result<UnixStream> {
        self.streams.recv_timeout(timeout).map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        lock(&self.shared.listeners).remove(&self.port);
    }
}
