//! All connections of a device, and the streams behind them. What is to be watched or no longer watched goes through a
//! [`Watch`], so that this needs no event loop.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::connection::{Connection, Stage, Step};
use super::packet::{Header, TYPE_STREAM, op};
use super::state::{Command, Shared};
use super::{CONNECTIONS_MAX, HOST_CID};
use crate::devices::lock;
use crate::guest_warn;

/// First token of a connection; those below are the worker's own.
pub(super) const FIRST_TOKEN: u32 = 16;
/// First port of the host's own connections; ports below are for listeners.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Most refusals that wait to be sent; a guest that is refused more often at once has to wait for its timeout.
const REFUSALS_MAX: usize = 256;

/// Begins and ends the watching of streams.
pub(super) trait Watch {
    /// Watches the stream, edge-triggered, for reading, writing and hang-up.
    fn begin(&mut self, fd: RawFd, token: u32) -> anyhow::Result<()>;
    /// Ends it, before the stream is closed.
    fn end(&mut self, fd: RawFd);
}

/// Port of the host, port of the guest.
type Ports = (u32, u32);

#[derive(Debug)]
struct Entry {
    connection: Connection,
    stream: UnixStream,
    ports: Ports,
    /// Data of the guest that the stream did not take yet; at most the credit.
    kept: VecDeque<u8>,
    // Edge-triggered: true until the stream says "would block".
    readable: bool,
    writable: bool,
    /// The host's end is closed in both directions; what it wrote before is still to be read.
    hung_up: bool,
    /// All that it wrote was read.
    drained: bool,
    /// Nothing more can be written to the stream.
    deaf: bool,
    /// The stream was told that the guest sends, receives no more.
    ended: (bool, bool),
    /// Who waits for the guest's answer.
    answer: Option<(u64, Sender<io::Result<()>>)>,
    /// Is it in `ready`?
    queued: bool,
}

impl Entry {
    fn answer(&mut self, result: io::Result<()>) -> bool {
        self.answer.take().is_none_or(|(_, answer)| answer.send(result).is_ok())
    }

    fn finished(&self) -> bool {
        self.connection.stage() == Stage::Closed && self.kept.is_empty() && !self.connection.has_pending()
    }
}

/// A packet for the guest: a header, and data behind it.
pub(super) struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    shared: Arc<Shared>,
    entries: BTreeMap<u32, Entry>,
    by_ports: BTreeMap<Ports, u32>,
    /// Those that have something for the guest, in turn.
    ready: VecDeque<u32>,
    /// Refusals of what is no connection.
    refusals: VecDeque<Ports>,
    next_token: u32,
    next_port: u32,
}

impl Table {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            entries: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
        }
    }

    /// Does what a handle asks.
    pub fn command(&mut self, command: Command, watch: &mut dyn Watch) -> anyhow::Result<()> {
        match command {
            Command::Connect { id, port, stream, answer } => {
                if self.entries.len() >= CONNECTIONS_MAX {
                    let message = format!("there are {CONNECTIONS_MAX} vsock connections already");
                    let _ = answer.send(Err(io::Error::other(message)));
                    return Ok(());
                }
                self.shared.metrics.host_connects_count.inc();
                while self.by_ports.contains_key(&(self.next_port, port)) {
                    self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
                }
                let ports = (self.next_port, port);
                self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
                self.insert(ports, Connection::from_host(), stream, Some((id, answer)), watch)
            }
            Command::Cancel(id) => {
                let waits = |entry: &Entry| entry.answer.as_ref().is_some_and(|&(waiting, _)| waiting == id);
                let found = self.entries.iter().find(|(_, entry)| waits(entry)).map(|(&token, _)| token);
                if let Some(token) = found {
                    if let Some(entry) = self.entries.get_mut(&token) {
                        entry.answer = None;
                        entry.connection.reset();
                    }
                    self.service(token, watch);
                }
                Ok(())
            }
        }
    }

    fn insert(
        &mut self,
        ports: Ports,
        connection: Connection,
        stream: UnixStream,
        answer: Option<(u64, Sender<io::Result<()>>)>,
        watch: &mut dyn Watch,
    ) -> anyhow::Result<()> {
        while self.entries.contains_key(&self.next_token) || self.next_token == u32::MAX {
            self.next_token = self.next_token.checked_add(1).unwrap_or(FIRST_TOKEN);
        }
        let token = self.next_token;
        self.next_token = token.checked_add(1).unwrap_or(FIRST_TOKEN);
        watch.begin(stream.as_raw_fd(), token)?;
        let entry = Entry {
            connection,
            stream,
            ports,
            kept: VecDeque::new(),
            readable: true,
            writable: true,
            hung_up: false,
            drained: false,
            deaf: false,
            ended: (false, false),
            answer,
            queued: false,
        };
        self.entries.insert(token, entry);
        self.by_ports.insert(ports, token);
        self.service(token, watch);
        Ok(())
    }

    /// The stream of `token` became readable, writable, or both ends of it are closed.
    pub fn stream_ready(
        &mut self,
        token: u32,
        readable: bool,
        writable: bool,
        hung_up: bool,
        watch: &mut dyn Watch,
    ) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.readable |= readable || hung_up;
            entry.writable |= writable || hung_up;
            entry.hung_up |= hung_up;
            if entry.hung_up && entry.drained {
                entry.connection.host_gone();
            }
            self.service(token, watch);
        }
    }

    /// A packet came from the guest: `header` and the `header.len` bytes behind it.
    pub fn packet(&mut self, header: &Header, data: &[u8], watch: &mut dyn Watch) -> anyhow::Result<()> {
        let metrics = &self.shared.metrics;
        if header.src_cid != self.shared.guest_cid {
            metrics.malformed_count.inc();
            guest_warn!("vsock: a packet of CID {} from CID {}", header.src_cid, self.shared.guest_cid);
            return Ok(());
        }
        let ports = (header.dst_port, header.src_port);
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(ports, header.op);
            return Ok(());
        }
        let Some(&token) = self.by_ports.get(&ports) else {
            if header.op == op::REQUEST {
                return self.guest_connects(ports, header, watch);
            }
            self.refuse(ports, header.op);
            return Ok(());
        };
        let Some(entry) = self.entries.get_mut(&token) else { return Ok(()) };
        match entry.connection.receive(header) {
            Step::Go => {}
            Step::Connected => {
                if !entry.answer(Ok(())) {
                    entry.connection.reset();
                }
            }
            Step::Data => entry.kept.extend(data),
            Step::Reset => {
                if entry.answer.is_some() {
                    metrics.refused_count.inc();
                    entry.answer(Err(ErrorKind::ConnectionRefused.into()));
                }
            }
            Step::Violation => {
                metrics.violations_count.inc();
                guest_warn!("vsock: the guest broke the rules of a connection of its port {}", ports.1);
                entry.answer(Err(ErrorKind::ConnectionReset.into()));
            }
        }
        self.service(token, watch);
        Ok(())
    }

    fn guest_connects(&mut self, ports: Ports, header: &Header, watch: &mut dyn Watch) -> anyhow::Result<()> {
        let listener = lock(&self.shared.listeners).get(&ports.0).cloned();
        let (Some(listener), true) = (listener, self.entries.len() < CONNECTIONS_MAX) else {
            self.refuse(ports, op::REQUEST);
            return Ok(());
        };
        let (ours, theirs) =
            match UnixStream::pair().and_then(|pair| pair.0.set_nonblocking(true).map(|()| pair)) {
                Ok(pair) => pair,
                Err(error) => {
                    guest_warn!("vsock: no sockets for a connection of the guest: {error}");
                    self.refuse(ports, op::REQUEST);
                    return Ok(());
                }
            };
        if listener.try_send(theirs).is_err() {
            self.refuse(ports, op::REQUEST);
            return Ok(());
        }
        self.shared.metrics.guest_connects_count.inc();
        self.insert(ports, Connection::from_guest(header), ours, None, watch)
    }

    /// Answers what belongs to no connection with RST, except a RST.
    fn refuse(&mut self, ports: Ports, operation: u16) {
        if operation == op::REQUEST {
            self.shared.metrics.refused_count.inc();
        }
        if operation != op::RST && self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(ports);
        }
    }

    /// Moves what can be moved between a connection and its stream, queues it if it has something for the guest, and
    /// ends it if it is over.
    fn service(&mut self, token: u32, watch: &mut dyn Watch) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        flush(entry, &self.shared);
        if entry.connection.stage() == Stage::Closed && self.by_ports.get(&entry.ports) == Some(&token) {
            self.by_ports.remove(&entry.ports);
        }
        if entry.finished() {
            watch.end(entry.stream.as_raw_fd());
            self.entries.remove(&token);
            return;
        }
        let connection = &mut entry.connection;
        if entry.readable && connection.may_send() && connection.credit() == 0 {
            connection.want_credit();
        }
        let ready = connection.has_pending() || entry.readable && connection.data_room() > 0;
        if ready && !entry.queued {
            entry.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Is there something for the guest?
    pub fn has_packet(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of data; connections have their turns. `None` if there is
    /// nothing after all.
    pub fn next_packet(&mut self, room: usize, watch: &mut dyn Watch) -> Option<Packet> {
        if let Some(ports) = self.refusals.pop_front() {
            let header = self.header(ports, op::RST);
            return Some(Packet { header, data: Vec::new() });
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.queued = false;
            let data = if entry.connection.has_pending() { Vec::new() } else { read(entry, room) };
            let ports = entry.ports;
            let (operation, flags) = if data.is_empty() {
                entry.connection.take_pending().unzip()
            } else {
                entry.connection.sent(data.len());
                (Some(op::RW), None)
            };
            let packet = operation.map(|operation| {
                let mut header = self.header(ports, operation);
                header.len = data.len() as u32;
                header.flags = flags.unwrap_or(0);
                if let Some(entry) = self.entries.get_mut(&token)
                    && operation != op::RST
                {
                    entry.connection.stamp(&mut header);
                }
                Packet { header, data }
            });
            self.service(token, watch);
            if let Some(packet) = packet {
                self.shared.metrics.to_guest_bytes.add(packet.data.len() as u64);
                return Some(packet);
            }
        }
        None
    }

    fn header(&self, ports: Ports, operation: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.shared.guest_cid,
            src_port: ports.0,
            dst_port: ports.1,
            kind: TYPE_STREAM,
            op: operation,
            ..Header::default()
        }
    }
}

/// Hands kept data to the stream, and then what the guest has closed.
fn flush(entry: &mut Entry, shared: &Shared) {
    while entry.writable && !entry.deaf && !entry.kept.is_empty() {
        match entry.stream.write(entry.kept.as_slices().0) {
            Ok(count) => {
                entry.kept.drain(..count);
                entry.connection.forwarded(count);
                shared.metrics.to_host_bytes.add(count as u64);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => entry.writable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                entry.deaf = true;
                entry.connection.host_gone();
            }
        }
    }
    if entry.deaf {
        // Nobody will read it; the guest gets its credit back and learns of the end.
        entry.connection.forwarded(entry.kept.len());
        entry.kept.clear();
    }
    let closed = entry.connection.stage() == Stage::Closed;
    if !entry.ended.0 && entry.kept.is_empty() && (closed || entry.connection.guest_sends_no_more()) {
        entry.ended.0 = true;
        let _ = entry.stream.shutdown(Shutdown::Write);
    }
    if !entry.ended.1 && (closed || entry.connection.guest_receives_no_more()) {
        entry.ended.1 = true;
        let _ = entry.stream.shutdown(Shutdown::Read);
    }
}

/// Reads what may be sent to the guest now; what the stream's end means is noted in the connection.
fn read(entry: &mut Entry, room: usize) -> Vec<u8> {
    let most = entry.connection.data_room().min(room);
    if most == 0 || !entry.readable {
        return Vec::new();
    }
    let mut data = vec![0; most];
    loop {
        match entry.stream.read(&mut data) {
            Ok(0) => {
                entry.readable = false;
                entry.drained = true;
                if entry.hung_up {
                    entry.connection.host_gone();
                } else {
                    entry.connection.host_sends_no_more();
                }
                return Vec::new();
            }
            Ok(count) => {
                data.truncate(count);
                return data;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                entry.readable = false;
                if error.kind() != ErrorKind::WouldBlock {
                    entry.connection.host_gone();
                }
                return Vec::new();
            }
        }
    }
}
