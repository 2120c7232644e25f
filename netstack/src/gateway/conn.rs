//! One TCP connection of the gateway: a smoltcp socket on the side of the cells, and what its two ends know of each
//! other. Each has a socket set of its own, so that a packet costs the same however many connections there are.

use core::net::SocketAddrV4;
use std::collections::VecDeque;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::fin::FinGuard;

/// How long the cells may take to answer a SYN.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(75);
/// How long they may be silent with data or a keep-alive outstanding.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often an idle connection is probed.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// What names a connection among the frames of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey {
    /// Port of the cluster's end.
    pub cluster_port: u16,
    /// The other end, as cells see it.
    pub remote: SocketAddrV4,
}

/// What became of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes were moved; 0 if the caller moved none though it could have.
    Moved(usize),
    /// There is nothing to read, or no room to write; an [`Event::Ready`](super::Event::Ready) follows when there is.
    Blocked,
    /// The cell has sent all it will ever send.
    End,
    /// The connection is gone: reset by the cell, refused, or timed out.
    Reset,
}

/// How far a connection is.
#[derive(Debug)]
pub enum Phase {
    /// A cell's SYN is here (the frame); the glue is asked to open the other side.
    Opening(Vec<u8>),
    /// There is a socket.
    Live(SocketSet<'static>, SocketHandle),
    /// The socket is gone; the glue has not taken note of all yet.
    Over,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    pub key: ConnKey,
    pub phase: Phase,
    /// What the socket had received and the glue had not taken when the socket went; and how much of it was taken.
    pub residue: Vec<u8>,
    pub residue_at: usize,
    /// The cell's FIN has come, and all before it.
    pub fin_in: bool,
    /// The glue has finished its direction.
    pub finished: bool,
    /// The connection did not end well.
    pub reset: bool,
    /// The glue has no interest any more.
    pub released: bool,
    /// The glue found nothing to read / no room to write, and waits for an event.
    pub rx_armed: bool,
    pub tx_armed: bool,
    /// A Ready event is queued.
    pub queued: bool,
    pub connected: bool,
    pub in_time_wait: bool,
    pub timer: Option<Instant>,
    /// The FIN that was sent, until it is acknowledged.
    pub fin: Option<FinGuard>,
}

impl Conn {
    pub fn new(key: ConnKey, phase: Phase) -> Self {
        Self {
            key,
            phase,
            residue: Vec::new(),
            residue_at: 0,
            fin_in: false,
            finished: false,
            reset: false,
            released: false,
            rx_armed: true,
            tx_armed: true,
            queued: false,
            connected: false,
            in_time_wait: false,
            timer: None,
            fin: None,
        }
    }

    pub fn socket(&mut self) -> Option<&mut tcp::Socket<'static>> {
        match &mut self.phase {
            Phase::Live(set, handle) => Some(set.get_mut(*handle)),
            _ => None,
        }
    }

    /// Takes note of the socket's state, which the next packet may change again.
    pub fn note(&mut self) {
        let (finished, connected) = (self.finished, self.connected);
        let Some(socket) = self.socket() else { return };
        let (state, unsent) = (socket.state(), socket.send_queue());
        match state {
            tcp::State::Established if !connected => {
                socket.set_timeout(Some(SILENCE_TIMEOUT));
                self.connected = true;
            }
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing => self.fin_in = true,
            tcp::State::TimeWait => {
                self.fin_in = true;
                self.in_time_wait = true;
                self.keep_residue();
            }
            // Listen: a cell took its SYN back before the handshake was over.
            tcp::State::Closed | tcp::State::Listen => {
                let well = self.in_time_wait || (self.fin_in && finished && unsent == 0);
                self.reset |= !well;
                self.keep_residue();
            }
            _ => {}
        }
    }

    /// Sends the FIN again if it is time; returns when to look next.
    pub fn guard_fin(&mut self, now: Instant, out: &mut VecDeque<Vec<u8>>) -> Option<Instant> {
        let mut guard = self.fin.take()?;
        let socket = self.socket().filter(|socket| FinGuard::is_needed(socket))?;
        out.extend(guard.take_due(socket, now));
        let due = guard.due;
        self.fin = Some(guard);
        Some(due)
    }

    /// Takes what the socket has received out of it, so that it can go.
    fn keep_residue(&mut self) {
        let Some(socket) = self.socket() else { return };
        let mut rest = vec![0; socket.recv_queue()];
        let len = if rest.is_empty() { 0 } else { socket.recv_slice(&mut rest).unwrap_or(0) };
        self.residue.extend_from_slice(&rest[..len]);
    }

    /// Is there news for a glue that waits?
    pub fn take_readiness(&mut self) -> bool {
        let residue = self.residue_at < self.residue.len();
        let (fin_in, reset) = (self.fin_in, self.reset);
        let (readable, writable) = match self.socket() {
            Some(socket) => {
                let room = socket.send_capacity() - socket.send_queue();
                (socket.can_recv(), socket.may_send() && room >= socket.send_capacity() / 4)
            }
            None => (false, false),
        };
        let rx = self.rx_armed && (readable || residue || fin_in || reset);
        let tx = self.tx_armed && (writable || reset);
        if rx {
            self.rx_armed = false;
        }
        if tx {
            self.tx_armed = false;
        }
        rx || tx
    }

    /// The glue reads: `take` is shown bytes and says how many it took.
    pub fn recv(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Progress {
        if self.residue_at < self.residue.len() {
            let rest = &self.residue[self.residue_at..];
            let taken = take(rest).min(rest.len());
            self.residue_at += taken;
            return Progress::Moved(taken);
        }
        let (fin_in, reset) = (self.fin_in, self.reset);
        match self.socket() {
            Some(socket) if socket.can_recv() => {
                let taken = socket.recv(|bytes| {
                    let taken = take(bytes).min(bytes.len());
                    (taken, taken)
                });
                Progress::Moved(taken.unwrap_or(0))
            }
            _ if reset => Progress::Reset,
            _ if fin_in => Progress::End,
            _ => {
                self.rx_armed = true;
                Progress::Blocked
            }
        }
    }

    /// The glue writes: `fill` is shown room and says how much of it it filled.
    pub fn send(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> Progress {
        let reset = self.reset;
        match self.socket() {
            Some(socket) if socket.can_send() && !reset => {
                let filled = socket.send(|room| {
                    let len = room.len();
                    let filled = fill(room).min(len);
                    (filled, filled)
                });
                Progress::Moved(filled.unwrap_or(0))
            }
            _ if reset => Progress::Reset,
            _ => {
                self.tx_armed = true;
                Progress::Blocked
            }
        }
    }
}
