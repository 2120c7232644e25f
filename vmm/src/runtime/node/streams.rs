//! Streams into a cell: its vsock ports, and its serial console.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::terminal::Terminal;
use crate::fabric::stream::SharedStream;
use crate::fabric::{Peer, StreamService};
use crate::worker::{Exit, Worker};

/// Connects to a vsock port of the guest.
pub type Connect = Box<dyn Fn(u32) -> std::io::Result<UnixStream> + Send + Sync>;

/// Consoles that are attached at once.
const CONSOLES_MAX: usize = 16;

/// The streams of one cell.
pub struct Streams {
    connect: Connect,
    serial: Terminal,
    exit: Exit,
    consoles: Mutex<Vec<[Worker; 2]>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Of the guest that `connect` reaches, with console `serial`.
    pub fn new(connect: Connect, serial: Terminal, exit: &Exit) -> Self {
        Self { connect, serial, exit: exit.clone(), consoles: Mutex::default() }
    }

    /// One more place where the console is: the last 64 KiB of it first.
    fn console(&self) -> Result<SharedStream, String> {
        let mut consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        consoles.retain(|workers| workers.iter().any(|worker| !worker.is_finished()));
        if consoles.len() >= CONSOLES_MAX {
            return Err(format!("{CONSOLES_MAX} consoles are attached already"));
        }
        let attach = || -> std::io::Result<(UnixStream, [Worker; 2])> {
            let (near, far) = UnixStream::pair()?;
            let (mut out, mut typed) = (far.try_clone()?, far);
            let (history, live) = self.serial.subscribe();
            let writer = Worker::spawn("console-out", &self.exit, move |stop| {
                let mut sent = out.write_all(&history);
                while sent.is_ok() && !stop.is_triggered() {
                    match live.recv_timeout(std::time::Duration::from_millis(200)) {
                        Ok(piece) => sent = out.write_all(&piece),
                        // The other end may have gone meanwhile: an empty write does not say, the reader does.
                        Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                        Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break,
                    }
                }
                Ok(())
            })?;
            let (serial, stop_writer) = (self.serial.clone(), writer.stop().clone());
            let reader = Worker::spawn("console-in", &self.exit, move |_| {
                let mut buffer = [0; 4096];
                while let Ok(n) = typed.read(&mut buffer) {
                    if n == 0 {
                        break;
                    }
                    if serial.push_input(&buffer[..n]) < n {
                        log::warn!("a console's input does not fit and is lost");
                    }
                }
                stop_writer.trigger();
                let _ = typed.shutdown(std::net::Shutdown::Both);
                Ok(())
            })?;
            Ok((near, [writer, reader]))
        };
        let (near, workers) = attach().map_err(|error| format!("no console: {error}"))?;
        consoles.push(workers);
        Ok(Arc::new(near))
    }
}

impl StreamService for Streams {
    fn open(&self, from: Peer, target: u64) -> Result<SharedStream, String> {
        if from != Peer::Io {
            return Err("only the controller opens streams into a cell".to_owned());
        }
        if target == 0 {
            return self.console();
        }
        let port = u32::try_from(target).map_err(|_| format!("there is no vsock port {target}"))?;
        match (self.connect)(port) {
            Ok(stream) => Ok(Arc::new(stream)),
            Err(error) => Err(format!("vsock port {port}: {error}")),
        }
    }
}
