//! All connections of one process: who dials whom, who is there, and sending.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::accept::{Acceptor, Identity, Reception};
use super::auth::{HandshakeError, dial};
use super::link::{Handler, Link, RoomWaker, SendError};
use super::membership::Membership;
use super::relay::relay;
use super::stream::{Listener, SharedStream, connect, read_exact, write_all};
use super::wire::{Class, HEADER_BYTES, Header, Hello, Kind, Peer, Refusal};
use crate::launch::Address;
use crate::worker::{Exit, Worker};

/// A dialer that finds nobody tries again after this.
const REDIAL: Duration = Duration::from_millis(20);
/// Streams of one process at once.
const STREAMS_MAX: usize = 512;
/// Link classes, those that [`Class::between`] names.
const LINK_CLASSES: usize = 6;

/// What a fabric needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name, this process, and the secret.
    pub identity: Identity,
    /// How many nodes the cluster has.
    pub nodes: u32,
    /// Where this process listens.
    pub listen: Address,
    /// Where the I/O server listens.
    pub io: Address,
    /// Where each node listens.
    pub node: Vec<Address>,
}

/// Opens the local end of a raw stream that a peer asks for.
pub trait StreamService: Send + Sync {
    /// The local end of `target`: 0 is the cell's console, any other number a vsock port.
    ///
    /// # Errors
    /// Why not, for the person at the other end.
    fn open(&self, from: Peer, target: u64) -> Result<SharedStream, String>;
}

/// Why a fabric does not come up, or a stream is not opened.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The own address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// A peer turned the connection down.
    #[error("{peer} at {address}: {source}")]
    Handshake {
        /// Who.
        peer: Peer,
        /// Where.
        address: Address,
        /// Why.
        source: HandshakeError,
    },
    /// Not everybody was there in time.
    #[error("not connected in time: {0}")]
    Missing(String),
    /// The process was told to end meanwhile.
    #[error("stopped while connecting")]
    Stopped,
    /// The peer is dead or unknown.
    #[error("{0} is not reachable")]
    Dead(Peer),
    /// The peer could not open what was asked for.
    #[error("{0}")]
    Refused(String),
    /// No thread or no event.
    #[error(transparent)]
    Io(#[from] io::Error),
}

enum Event {
    Ended(Peer, String),
    Stop,
}

/// The handlers of the link classes. A class without one accepts nothing.
#[derive(Default, Clone)]
pub struct Handlers {
    by_class: [Option<Arc<dyn Handler>>; LINK_CLASSES],
    streams: Option<Arc<dyn StreamService>>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

impl Handlers {
    /// `handler` gets the messages of `class`.
    #[must_use]
    pub fn with(mut self, class: Class, handler: Arc<dyn Handler>) -> Self {
        if let Some(index) = class_index(class) {
            self.by_class[index] = Some(handler);
        }
        self
    }

    /// `service` opens streams.
    #[must_use]
    pub fn with_streams(mut self, service: Arc<dyn StreamService>) -> Self {
        self.streams = Some(service);
        self
    }
}

fn class_index(class: Class) -> Option<usize> {
    Some(class as usize - 1).filter(|index| *index < LINK_CLASSES)
}

/// A class that this process does not serve.
struct Unserved;

impl Handler for Unserved {
    fn message(&self, _: Peer, class: Class, header: Header, _: &[u8]) -> Result<(), super::link::Violation> {
        Err(super::link::Violation(format!(
            "{:?} message on {class:?}, which is not served here",
            header.kind
        )))
    }
}

/// The connections of one process.
pub struct Fabric {
    config: Config,
    membership: Membership,
    handlers: OnceLock<Handlers>,
    links: Vec<OnceLock<Arc<Link>>>,
    ready: Mutex<()>,
    joined: Condvar,
    room: Arc<OnceLock<RoomWaker>>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    streams: Arc<AtomicUsize>,
    exit: Exit,
    workers: Mutex<Vec<Worker>>,
    acceptor: Mutex<Option<Acceptor>>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("me", &self.config.identity.me).finish_non_exhaustive()
    }
}

/// Position in the order of dialing: the later dials the earlier.
fn rank(peer: Peer) -> u32 {
    match peer {
        Peer::Io => 0,
        Peer::Node(n) => n + 1,
        Peer::Client => u32::MAX,
    }
}

impl Fabric {
    /// A fabric that has not started: it can be given to services, which then become its handlers.
    pub fn new(config: Config, exit: &Exit) -> Arc<Self> {
        let slots = (config.nodes as usize + 1) * LINK_CLASSES;
        let (events, inbox) = unbounded();
        Arc::new(Self {
            membership: Membership::new(config.nodes),
            handlers: OnceLock::new(),
            links: (0..slots).map(|_| OnceLock::new()).collect(),
            ready: Mutex::default(),
            joined: Condvar::new(),
            room: Arc::default(),
            events,
            inbox,
            streams: Arc::default(),
            exit: exit.clone(),
            workers: Mutex::default(),
            acceptor: Mutex::default(),
            config,
        })
    }

    /// This process.
    pub fn me(&self) -> Peer {
        self.config.identity.me
    }

    /// Who is alive.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    fn peers(&self) -> impl Iterator<Item = Peer> + '_ {
        std::iter::once(Peer::Io)
            .chain((0..self.config.nodes).map(Peer::Node))
            .filter(|peer| *peer != self.me())
    }

    fn slot(&self, peer: Peer, class: Class) -> Option<&OnceLock<Arc<Link>>> {
        let row = match peer {
            Peer::Io => 0,
            Peer::Node(n) if n < self.config.nodes => n as usize + 1,
            _ => return None,
        };
        self.links.get(row * LINK_CLASSES + class_index(class)?)
    }

    fn address(&self, peer: Peer) -> Option<&Address> {
        match peer {
            Peer::Io => Some(&self.config.io),
            Peer::Node(n) => self.config.node.get(n as usize),
            Peer::Client => None,
        }
    }

    /// Listens. Peers may connect from here on, and their messages reach `handlers`.
    ///
    /// # Errors
    /// [`FabricError::Listen`], [`FabricError::Io`].
    pub fn listen(self: &Arc<Self>, handlers: Handlers) -> Result<(), FabricError> {
        let _ = self.handlers.set(handlers);
        let address = &self.config.listen;
        let listener = Listener::bind(address)
            .map_err(|source| FabricError::Listen { address: address.clone(), source })?;
        let (weak, inbox) = (Arc::downgrade(self), self.inbox.clone());
        let members = Worker::spawn("members", &self.exit, move |_| {
            while let Ok(Event::Ended(peer, why)) = inbox.recv() {
                let Some(fabric) = weak.upgrade() else { break };
                fabric.bury(peer, &why);
            }
            Ok(())
        })?;
        self.lock_workers().push(members);
        let reception = Arc::new(Door(Arc::downgrade(self)));
        let acceptor = Acceptor::start(listener, self.config.identity.clone(), reception, &self.exit)?;
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = Some(acceptor);
        Ok(())
    }

    /// Where it listens, once it does.
    pub fn listening(&self) -> Option<Address> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|a| a.address().clone())
    }

    /// Connects to every peer that comes before this process, and waits for those that come after.
    ///
    /// # Errors
    /// [`FabricError::Missing`] names who is not there after `within`; [`FabricError::Handshake`] at once if a peer turns
    /// us down; [`FabricError::Stopped`] if the process is told to end.
    pub fn join(self: &Arc<Self>, within: Duration) -> Result<(), FabricError> {
        let deadline = Instant::now() + within;
        for peer in self.peers().filter(|peer| rank(*peer) < rank(self.me())).collect::<Vec<_>>() {
            for class in Class::between(self.me(), peer) {
                let stream = self.dial_until(peer, *class, deadline)?;
                self.adopt(peer, *class, stream)?;
            }
        }
        let mut guard = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if self.exit.is_triggered() {
                return Err(FabricError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let names: BTreeSet<String> = missing.iter().map(ToString::to_string).collect();
                return Err(FabricError::Missing(names.into_iter().collect::<Vec<_>>().join(", ")));
            }
            // The exit event has no condition variable: look at it now and then.
            let slice = left.min(Duration::from_millis(100));
            guard = self.joined.wait_timeout(guard, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The peers with a connection missing.
    fn missing(&self) -> BTreeSet<Peer> {
        let absent = |peer: &Peer| {
            Class::between(self.me(), *peer)
                .iter()
                .any(|class| self.slot(*peer, *class).is_none_or(|slot| slot.get().is_none()))
        };
        self.peers().filter(absent).collect()
    }

    fn dial_until(&self, peer: Peer, class: Class, deadline: Instant) -> Result<SharedStream, FabricError> {
        loop {
            let why = match self.dial_once(peer, class) {
                Err(FabricError::Io(error)) => error,
                other => return other,
            };
            if self.exit.is_triggered() {
                return Err(FabricError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(FabricError::Missing(format!("{peer} ({why})")));
            }
            std::thread::sleep(REDIAL);
        }
    }

    fn dial_once(&self, peer: Peer, class: Class) -> Result<SharedStream, FabricError> {
        let address = self.address(peer).ok_or(FabricError::Dead(peer))?;
        let stream = connect(address)?;
        let identity = &self.config.identity;
        let hello =
            Hello { class, from: identity.me, to: peer, name: identity.cluster.clone(), nonce: [0; 32] };
        match dial(stream.as_ref(), &identity.secret, hello) {
            Ok(()) => Ok(stream),
            // A process that is just ending, or just starting behind an old socket.
            Err(HandshakeError::Io(error)) => Err(error.into()),
            Err(source) => Err(FabricError::Handshake { peer, address: address.clone(), source }),
        }
    }

    fn adopt(self: &Arc<Self>, peer: Peer, class: Class, stream: SharedStream) -> io::Result<()> {
        let Some(slot) = self.slot(peer, class) else { return Ok(()) };
        let handler = self
            .handlers
            .get()
            .and_then(|handlers| handlers.by_class[class_index(class)?].clone())
            .unwrap_or_else(|| Arc::new(Unserved));
        let events = self.events.clone();
        // Whoever waits for room on this connection hears of its end from the link; everybody else from the members' thread.
        let room = self.room.clone();
        let wake: RoomWaker = Arc::new(move || {
            if let Some(wake) = room.get() {
                wake();
            }
        });
        let link = Link::start(peer, class, stream, handler, wake, &self.exit, move |why| {
            let _ = events.send(Event::Ended(peer, format!("{class:?} connection: {why}")));
        })?;
        let guard = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = slot.set(Arc::new(link));
        self.joined.notify_all();
        drop(guard);
        // The peer may have died between its admission and here; `bury` has then not seen this connection.
        if !self.membership.is_alive(peer)
            && let Some(link) = slot.get()
        {
            link.close();
        }
        Ok(())
    }

    /// Declares `peer` dead: its connections end, and everybody who asked hears of it. Idempotent; returns at once.
    pub fn declare_dead(&self, peer: Peer, why: &str) {
        let _ = self.events.send(Event::Ended(peer, why.to_owned()));
    }

    fn bury(&self, peer: Peer, why: &str) {
        let Some(death) = self.membership.remove(peer, why) else { return };
        log::warn!("{peer} is dead: {why}");
        for class in Class::between(self.me(), peer) {
            if let Some(link) = self.slot(peer, *class).and_then(OnceLock::get) {
                link.close();
            }
        }
        self.membership.tell(&death);
    }

    /// Sends one message, of which `parts` are the payload, to `peer`. What happens when the peer does not keep up depends
    /// on the kind (module `fabric`, "Back-pressure").
    ///
    /// # Errors
    /// [`SendError::Dead`] if the peer is dead, unknown, or has no such class; [`SendError::Full`]; [`SendError::Message`].
    pub fn send(
        &self,
        peer: Peer,
        class: Class,
        kind: Kind,
        tag: u64,
        parts: &[&[u8]],
    ) -> Result<(), SendError> {
        self.slot(peer, class).and_then(OnceLock::get).ok_or(SendError::Dead)?.send(kind, tag, parts)
    }

    /// `wake` is called when there is room after a [`SendError::Full`]. Only the first call counts.
    pub fn on_room(&self, wake: RoomWaker) {
        let _ = self.room.set(wake);
    }

    /// The connection of `class` to `peer`, for its counters.
    pub fn link(&self, peer: Peer, class: Class) -> Option<&Arc<Link>> {
        self.slot(peer, class)?.get()
    }

    /// Opens a raw stream to `target` at `peer` ([`StreamService::open`]).
    ///
    /// # Errors
    /// [`FabricError`].
    pub fn open_stream(&self, peer: Peer, target: u64) -> Result<SharedStream, FabricError> {
        if !self.membership.is_alive(peer) {
            return Err(FabricError::Dead(peer));
        }
        let stream = self.dial_once(peer, Class::Stream)?;
        let open = Header { kind: Kind::Open, len: 0, tag: target };
        write_all(stream.as_ref(), &[&open.emit().map_err(io::Error::other)?])?;
        let mut head = [0; HEADER_BYTES];
        read_exact(stream.as_ref(), &mut head)?;
        let header = Header::parse(&head, Class::Stream).map_err(io::Error::other)?;
        let mut why = vec![0; header.len];
        read_exact(stream.as_ref(), &mut why)?;
        if header.kind == Kind::Opened && why.is_empty() {
            stream.allow_slow_reader()?;
            return Ok(stream);
        }
        Err(FabricError::Refused(String::from_utf8_lossy(&why).into_owned()))
    }

    fn serve_stream(&self, from: Peer, stream: &SharedStream) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(super::auth::HANDSHAKE_TIMEOUT))?;
        let mut head = [0; HEADER_BYTES];
        read_exact(stream.as_ref(), &mut head)?;
        stream.set_read_timeout(None)?;
        stream.allow_slow_reader()?;
        let open = Header::parse(&head, Class::Stream)?;
        let service = self.handlers.get().and_then(|handlers| handlers.streams.clone());
        let opened = match service {
            Some(service) if open.kind == Kind::Open => service.open(from, open.tag),
            _ => Err("no streams are served here".to_owned()),
        };
        let why = opened.as_ref().err().map_or("", String::as_str);
        let mut end = why.len().min(Kind::Opened.payload_max());
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let answer = Header { kind: Kind::Opened, len: end, tag: open.tag }.emit()?;
        write_all(stream.as_ref(), &[&answer, &why.as_bytes()[..end]])?;
        if let Ok(local) = opened {
            relay(stream, &local, &self.exit)?;
        }
        Ok(())
    }

    /// Ends every connection and thread. For handlers that hold the fabric itself; dropping it does the same.
    pub fn stop(&self) {
        drop(self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take());
        for link in self.links.iter().filter_map(OnceLock::get) {
            link.close();
        }
        let _ = self.events.send(Event::Stop);
        let workers = std::mem::take(&mut *self.lock_workers());
        drop(workers);
    }

    fn lock_workers(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the acceptor's threads hold: never the last reference, so that dropping the fabric ends them.
struct Door(Weak<Fabric>);

impl Reception for Door {
    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        let fabric = self.0.upgrade().ok_or(Refusal::Unexpected)?;
        let known = hello.from != Peer::Client && fabric.membership.is_alive(hello.from);
        let admitted = match hello.class {
            Class::Stream => known && fabric.streams.load(Ordering::SeqCst) < STREAMS_MAX,
            class => {
                known
                    && rank(hello.from) > rank(fabric.me())
                    && Class::between(hello.from, fabric.me()).contains(&class)
                    && fabric.slot(hello.from, class).is_some_and(|slot| slot.get().is_none())
            }
        };
        if admitted { Ok(()) } else { Err(Refusal::Unexpected) }
    }

    fn serve(&self, hello: Hello, stream: SharedStream) {
        let Some(fabric) = self.0.upgrade() else { return };
        if hello.class == Class::Stream {
            fabric.streams.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = fabric.serve_stream(hello.from, &stream) {
                log::warn!("a stream from {} failed: {error:#}", hello.from);
            }
            stream.shutdown();
            fabric.streams.fetch_sub(1, Ordering::SeqCst);
        } else if let Err(error) = fabric.adopt(hello.from, hello.class, stream) {
            log::error!("cannot serve {}: {error}", hello.from);
        }
    }
}
