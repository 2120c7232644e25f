//! A simulated world: cells, switch, gateway and host ends, joined by wires that lose, delay and reorder, under a
//! clock that jumps from event to event. Everything follows from the seed.

#![allow(dead_code)] // each test uses a part

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ssi_netstack::gateway::{ConnId, Event, GatewayConfig, Progress, Refusal};
use ssi_netstack::offload::Offload;
use ssi_netstack::sim::{SimCell, SimRecv, SimSocket};
use ssi_netstack::switch::SwitchConfig;
use ssi_netstack::{Cell, Duration, Instant, Port, Stack};

/// An outside host that answers; every port of it echoes, but for [`CLOSED_PORT`].
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const CLOSED_PORT: u16 = 9;

/// Byte `at` of the stream `name`.
pub fn byte(name: u64, at: usize) -> u8 {
    (name as usize).wrapping_mul(31).wrapping_add(at).wrapping_mul(0x9e37_79b9).to_be_bytes()[4]
}

#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub max_delay_us: u64,
}

pub const PERFECT: Faults = Faults { loss: 0.0, duplicate: 0.0, max_delay_us: 0 };

/// One end of a stream that sends `total` bytes and wants them back.
#[derive(Debug)]
pub struct Client {
    pub name: u64,
    pub total: usize,
    pub sent: usize,
    pub got: usize,
    pub finished: bool,
    pub ended: bool,
    pub reset: bool,
    pub over: Option<Instant>,
}

impl Client {
    fn new(name: u64, total: usize) -> Self {
        Self { name, total, sent: 0, got: 0, finished: false, ended: false, reset: false, over: None }
    }

    fn fill(&mut self, room: &mut [u8]) -> usize {
        let len = room.len().min(self.total - self.sent);
        room[..len].iter_mut().enumerate().for_each(|(at, b)| *b = byte(self.name, self.sent + at));
        self.sent += len;
        len
    }

    fn check(&mut self, bytes: &[u8]) {
        for b in bytes {
            assert!(self.got < self.total, "stream {}: more than was sent", self.name);
            assert_eq!(*b, byte(self.name, self.got), "stream {}: byte {} differs", self.name, self.got);
            self.got += 1;
        }
    }

    /// Every byte went and came back, and both directions ended well.
    pub fn is_done(&self) -> bool {
        self.ended && self.got == self.total && !self.reset
    }
}

#[derive(Debug, Default)]
struct Echo {
    queue: VecDeque<u8>,
    ended: bool,
    finished: bool,
}

enum HostEnd {
    Client(Client),
    Echo(Echo),
}

pub struct World {
    pub now: Instant,
    pub stack: Stack,
    pub cells: Vec<SimCell>,
    pub host: BTreeMap<ConnId, Client>,
    pub faults: Faults,
    pub datagrams: Vec<(ConnId, SocketAddrV4, Vec<u8>)>,
    /// Connections that cells opened, and the streams on them.
    pub outgoing: Vec<(Cell, SimSocket, Client)>,
    /// How many connections each cell has served.
    pub served: Vec<u32>,
    pub frames_to_cells: u64,
    pub frames_from_cells: u64,
    ends: BTreeMap<ConnId, Echo>,
    servers: Vec<(Cell, SimSocket, Echo)>,
    ports: Vec<(Cell, u16)>,
    wires: BTreeMap<(Instant, u64), (Port, bool, Vec<u8>)>,
    serial: u64,
    rng: StdRng,
    next_port: u16,
}

impl World {
    pub fn new(cells: u32, offload: bool, seed: u64, faults: Faults) -> Self {
        let now = Instant::ZERO;
        let gateway = GatewayConfig { seed, ..GatewayConfig::default() };
        let mut stack = Stack::new(SwitchConfig::default(), gateway, now);
        for cell in 0..cells {
            stack.switch.cell_up(cell, if offload { Offload::ALL } else { Offload::NONE });
        }
        Self {
            now,
            stack,
            cells: (0..cells).map(|cell| SimCell::new(offload, seed + u64::from(cell) + 1, now)).collect(),
            host: BTreeMap::new(),
            faults,
            datagrams: Vec::new(),
            outgoing: Vec::new(),
            served: vec![0; cells as usize],
            frames_to_cells: 0,
            frames_from_cells: 0,
            ends: BTreeMap::new(),
            servers: Vec::new(),
            ports: Vec::new(),
            wires: BTreeMap::new(),
            serial: 0,
            rng: StdRng::seed_from_u64(seed),
            next_port: 2000,
        }
    }

    /// An echo server on `port` of `cell`.
    pub fn serve(&mut self, cell: Cell, port: u16) {
        self.cells[cell as usize].listen(port, 16);
        self.ports.push((cell, port));
    }

    /// A client of published port `port`.
    pub fn client(&mut self, port: u16, total: usize) -> ConnId {
        let id = self.stack.gateway.connect(port).expect("room");
        self.host.insert(id, Client::new(id, total));
        id
    }

    /// A connection from `cell` to `to`.
    pub fn connect(&mut self, cell: Cell, to: SocketAddrV4, total: usize) -> usize {
        self.next_port += 1;
        let socket = self.cells[cell as usize].connect(to, self.next_port);
        let name = 1_000_000 + self.outgoing.len() as u64;
        self.outgoing.push((cell, socket, Client::new(name, total)));
        self.outgoing.len() - 1
    }

    /// Runs until nothing is left to do, or `limit` of simulated time has passed, or `done`.
    pub fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.step();
            if done(self) || self.now >= end {
                return;
            }
            let cells: Vec<Option<Instant>> =
                self.cells.iter_mut().map(|cell| cell.deadline(self.now)).collect();
            let wire = self.wires.first_key_value().map(|((at, _), _)| *at);
            let next = cells.into_iter().chain([wire, self.stack.deadline()]).flatten().min();
            let Some(next) = next else { return };
            self.now = next.max(self.now + Duration::from_micros(1)).min(end);
        }
    }

    fn step(&mut self) {
        while let Some(entry) = self.wires.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                (Port::Cell(cell), true, frame) => self.cells[cell as usize].input(frame),
                (from, _, frame) => self.stack.input(self.now, from, frame),
            }
        }
        for at in 0..self.cells.len() {
            self.cells[at].poll(self.now);
        }
        self.serve_cells();
        self.stack.poll(self.now);
        self.serve_host();
        self.stack.poll(self.now);
        for at in 0..self.cells.len() {
            self.cells[at].poll(self.now);
            while let Some(frame) = self.cells[at].pop_frame() {
                self.frames_from_cells += 1;
                self.send(Port::Cell(at as Cell), false, frame);
            }
        }
        while let Some((port, frame)) = self.stack.pop_frame() {
            self.frames_to_cells += 1;
            self.send(port, true, frame);
        }
    }

    fn send(&mut self, port: Port, to_cell: bool, frame: Vec<u8>) {
        let copies =
            1 + u32::from(self.faults.duplicate > 0.0 && self.rng.random_bool(self.faults.duplicate));
        for _ in 0..copies {
            if self.faults.loss > 0.0 && self.rng.random_bool(self.faults.loss) {
                continue;
            }
            let delay = 20
                + if self.faults.max_delay_us > 0 {
                    self.rng.random_range(0..self.faults.max_delay_us)
                } else {
                    0
                };
            self.serial += 1;
            self.wires.insert(
                (self.now + Duration::from_micros(delay), self.serial),
                (port, to_cell, frame.clone()),
            );
        }
    }

    fn serve_cells(&mut self) {
        for (cell, port) in self.ports.clone() {
            while let Some(socket) = self.cells[cell as usize].accept(port) {
                self.served[cell as usize] += 1;
                self.servers.push((cell, socket, Echo::default()));
            }
        }
        let mut buffer = vec![0; 65536];
        for (cell, socket, echo) in &mut self.servers {
            let cell = &mut self.cells[*cell as usize];
            while echo.queue.len() < 65536 {
                match cell.recv(*socket, &mut buffer) {
                    SimRecv::Data(len) => echo.queue.extend(&buffer[..len]),
                    SimRecv::End => {
                        echo.ended = true;
                        break;
                    }
                    _ => break,
                }
            }
            let len = cell.send(*socket, echo.queue.make_contiguous());
            echo.queue.drain(..len);
            if echo.ended && echo.queue.is_empty() && !echo.finished {
                echo.finished = true;
                cell.finish(*socket);
            }
        }
        for (cell, socket, client) in &mut self.outgoing {
            let cell = &mut self.cells[*cell as usize];
            loop {
                let len = client.fill(&mut buffer);
                let taken = cell.send(*socket, &buffer[..len]);
                client.sent -= len - taken;
                if taken == 0 {
                    break;
                }
            }
            if client.sent == client.total && !client.finished && cell.is_open(*socket) && client.total > 0 {
                client.finished = true;
                cell.finish(*socket);
            }
            while !client.ended && !client.reset {
                match cell.recv(*socket, &mut buffer) {
                    SimRecv::Data(len) => client.check(&buffer[..len]),
                    SimRecv::End => client.ended = true,
                    SimRecv::Reset => client.reset = true,
                    SimRecv::Blocked => break,
                }
            }
            if (client.ended || client.reset) && client.over.is_none() {
                client.over = Some(self.now);
            }
        }
    }

    fn serve_host(&mut self) {
        while let Some(event) = self.stack.pop_event() {
            match event {
                Event::Open { id, to } if to.port() == CLOSED_PORT => {
                    self.stack.gateway.refused(self.now, id, Refusal::Refused);
                }
                Event::Open { id, to } if *to.ip() != HOST => {
                    self.stack.gateway.refused(self.now, id, Refusal::HostUnreachable);
                }
                Event::Open { id, .. } => {
                    self.ends.insert(id, Echo::default());
                    self.stack.gateway.opened(self.now, id);
                }
                Event::Ready { id } => self.pump(id),
                Event::Datagram { id, to, payload } => self.datagrams.push((id, to, payload)),
                Event::DatagramOver { .. } => {}
            }
        }
    }

    /// What the glue does with a socket, with memory in its place.
    fn pump(&mut self, id: ConnId) {
        let mut end = match (self.host.remove(&id), self.ends.remove(&id)) {
            (Some(client), _) => HostEnd::Client(client),
            (_, Some(echo)) => HostEnd::Echo(echo),
            _ => return,
        };
        let gateway = &mut self.stack.gateway;
        let (mut ended, mut reset) = (false, false);
        loop {
            let received = gateway.recv(id, |bytes| match &mut end {
                HostEnd::Client(client) => {
                    client.check(bytes);
                    bytes.len()
                }
                HostEnd::Echo(echo) => {
                    let len = bytes.len().min(65536_usize.saturating_sub(echo.queue.len()));
                    echo.queue.extend(&bytes[..len]);
                    len
                }
            });
            let sent = gateway.send(id, |room| match &mut end {
                HostEnd::Client(client) => client.fill(room),
                HostEnd::Echo(echo) => {
                    let len = room.len().min(echo.queue.len());
                    echo.queue.drain(..len).zip(room).for_each(|(b, room)| *room = b);
                    len
                }
            });
            ended |= received == Progress::End;
            reset |= received == Progress::Reset || sent == Progress::Reset;
            let moved = |p: Progress| matches!(p, Progress::Moved(len) if len > 0);
            if reset || (!moved(received) && !moved(sent)) {
                break;
            }
        }
        match &mut end {
            HostEnd::Client(client) => {
                if client.sent == client.total && !client.finished && !reset {
                    // End of file is read once what was before it is written: never before the handshake.
                    client.finished = true;
                    gateway.finish(id);
                }
                client.ended |= ended;
                client.reset |= reset;
                if client.over.is_none() && (client.reset || client.ended) {
                    client.over = Some(self.now);
                }
                if client.reset || (client.ended && client.finished) {
                    gateway.release(id);
                }
            }
            HostEnd::Echo(echo) => {
                echo.ended |= ended;
                if echo.ended && echo.queue.is_empty() && !echo.finished && !reset {
                    echo.finished = true;
                    gateway.finish(id);
                }
                if reset || (echo.ended && echo.finished) {
                    gateway.release(id);
                }
            }
        }
        match end {
            HostEnd::Client(client) => drop(self.host.insert(id, client)),
            HostEnd::Echo(echo) => drop(self.ends.insert(id, echo)),
        }
    }
}
