//! Receiving connections: handshakes run beside one another, a few at a time; strangers are refused and logged.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::auth::{HandshakeError, Secret, receive};
use super::limit::RateLimit;
use super::stream::{Listener, SharedStream};
use super::wire::{Hello, Peer, Refusal};
use crate::launch::Address;
use crate::worker::{Exit, Stop, Worker};

/// Most handshakes under way.
const HANDSHAKES_MAX: usize = 64;
/// Most connections served at once, handshakes included.
const CONNECTIONS_MAX: usize = 1024;

/// What a listener does with dialers.
pub trait Reception: Send + Sync {
    /// The last word about a dialer that proved itself.
    ///
    /// # Errors
    /// What it is told.
    fn admit(&self, hello: &Hello) -> Result<(), Refusal>;
    /// Serves an admitted connection, on a thread of its own; when the process ends, `stream` is shut down under it.
    fn serve(&self, hello: Hello, stream: SharedStream);
}

/// Who listens: what a handshake needs to know.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// This process.
    pub me: Peer,
    /// The cluster's secret.
    pub secret: Secret,
}

/// A listener and its threads. Dropping it ends them, and every connection that [`Reception::serve`] still serves.
#[derive(Debug)]
pub struct Acceptor {
    address: Address,
    _worker: Worker,
}

impl Acceptor {
    /// Takes connections from `listener`.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        listener: Listener,
        identity: Identity,
        reception: Arc<dyn Reception>,
        exit: &Exit,
    ) -> io::Result<Self> {
        let address = listener.address();
        let exits = exit.clone();
        let worker = Worker::spawn("accept", exit, move |stop| {
            accept_loop(&listener, &Arc::new(identity), &reception, &exits, stop)
        })?;
        Ok(Self { address, _worker: worker })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

struct Connection {
    worker: Worker,
    stream: SharedStream,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A finished worker may have handed its stream on (to a link): that one lives.
        if !self.worker.is_finished() {
            self.stream.shutdown();
        }
    }
}

fn accept_loop(
    listener: &Listener,
    identity: &Arc<Identity>,
    reception: &Arc<dyn Reception>,
    exit: &Exit,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut connections: Vec<Connection> = Vec::new();
    let shaking = Arc::new(AtomicUsize::new(0));
    let limit = Arc::new(RateLimit::new(5, Duration::from_secs(10)));
    loop {
        let stream = match listener.accept(stop) {
            Ok(Some(stream)) => stream,
            Ok(None) => break,
            // Out of descriptors or memory: what is served may go on, and later connections may succeed.
            Err(error) => {
                if limit.pass(Instant::now()).is_some() {
                    log::error!("cannot take a connection: {error}");
                }
                connections.retain(|connection| !connection.worker.is_finished());
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        connections.retain(|connection| !connection.worker.is_finished());
        if shaking.load(Ordering::SeqCst) >= HANDSHAKES_MAX || connections.len() >= CONNECTIONS_MAX {
            if limit.pass(Instant::now()).is_some() {
                log::warn!("too many connections at once; one was closed");
            }
            stream.shutdown();
            continue;
        }
        shaking.fetch_add(1, Ordering::SeqCst);
        let (identity, reception, theirs) = (identity.clone(), reception.clone(), stream.clone());
        let (shaking, limit) = (shaking.clone(), limit.clone());
        let worker = Worker::spawn("session", exit, move |_| {
            let admit = |hello: &Hello| reception.admit(hello);
            let received = receive(theirs.as_ref(), &identity.secret, &identity.cluster, identity.me, admit);
            shaking.fetch_sub(1, Ordering::SeqCst);
            match received {
                Ok(hello) => reception.serve(hello, theirs),
                Err(error) => {
                    theirs.shutdown();
                    if let Some(held) = limit.pass(Instant::now()) {
                        log_refusal(&error, held);
                    }
                }
            }
            Ok(())
        })?;
        connections.push(Connection { worker, stream });
    }
    Ok(())
}

fn log_refusal(error: &HandshakeError, held: u64) {
    let more = if held > 0 { format!(" ({held} more since the last such line)") } else { String::new() };
    log::warn!("a connection was refused: {error}{more}");
}
