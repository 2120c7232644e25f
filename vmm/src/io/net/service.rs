//! The worker: one thread that drives the stack, the sockets and the uplink.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ssi_netstack::gateway::{Event, GatewayConfig};
use ssi_netstack::switch::SwitchConfig;
use ssi_netstack::{FRAME_MAX_BYTES, GATEWAY_IP, Instant, Port, Stack};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::config::{NetConfig, NetError, first_nameserver};
use super::handle::{FramePort, Message, NetCounters, NetHandle, Shared};
use super::host::{Host, KIND_LISTENER, KIND_SHIFT, KIND_TCP, KIND_UDP};
use super::tap::Tap;
use crate::worker::{Exit, Stop, Worker};

const KIND_WAKE: u64 = 1;
const KIND_STOP: u64 = 2;
const KIND_TAP: u64 = 3;

/// Most messages and uplink frames between two looks at the sockets.
const TURN_FRAMES: usize = 256;
/// Most events of one look.
const TURN_EVENTS: usize = 256;

/// How often a listener that waits for room looks for it.
const RESUME: std::time::Duration = std::time::Duration::from_millis(200);

/// With an uplink, the machine has the gateway's address there, and the user-mode gateway takes this one.
const SECOND_GATEWAY_IP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 64, 0, 254);

/// The cluster's way to the outside. Dropping it ends its thread and closes its sockets.
#[derive(Debug)]
pub struct NetService {
    handle: NetHandle,
    published: Vec<(SocketAddr, u16)>,
    _worker: Worker,
}

impl NetService {
    /// Starts the service: listens on the published ports, opens the uplink, and gives frames for cells to `port`.
    /// Raises the process's limit of open files to what it may have: every connection takes one.
    ///
    /// # Errors
    /// [`NetError`]: a port is in use, needs a privilege, ...
    pub fn start(config: &NetConfig, port: Arc<dyn FramePort>, exit: &Exit) -> Result<Self, NetError> {
        raise_file_limit();
        let shared = Shared::new(config.inbox_bytes)?;
        let epoll = Epoll::new()?;
        let mut host = Host::default();
        host.publish(&epoll, &config.published)?;
        let published = host.published()?;
        let tap = config.tap.as_ref().map(Tap::open).transpose()?;
        let seed = match config.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?,
        };
        let dns = config.dns.or_else(|| {
            std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|text| first_nameserver(&text))
        });
        let gateway = GatewayConfig {
            ip: if tap.is_some() { SECOND_GATEWAY_IP } else { GATEWAY_IP },
            dns,
            host_loopback: config.host_loopback,
            max_connections: config.max_connections,
            seed,
            ..GatewayConfig::default()
        };
        let switch = SwitchConfig {
            uplink: tap.is_some(),
            default_cell: config.default_cell,
            ..SwitchConfig::default()
        };
        let mut stack = Stack::new(switch, gateway, Instant::ZERO);
        (0..config.cells).for_each(|cell| stack.switch.cell_up(cell, config.offload));
        watch(&epoll, &shared.wake, KIND_WAKE)?;
        if let Some(tap) = &tap {
            watch(&epoll, tap, KIND_TAP)?;
        }
        let handle = NetHandle(shared.clone());
        let mut net = Net {
            stack,
            host,
            tap,
            epoll,
            shared,
            port,
            began: std::time::Instant::now(),
            tap_dropped: 0,
            messages: Vec::new(),
            buffer: vec![0; FRAME_MAX_BYTES],
        };
        let worker = Worker::spawn("net", exit, move |stop| net.run(stop))?;
        Ok(Self { handle, published, _worker: worker })
    }

    /// The way in for frames and news of cells.
    pub fn handle(&self) -> &NetHandle {
        &self.handle
    }

    /// The addresses that lead into the cluster, each with the port it leads to.
    pub fn published(&self) -> &[(SocketAddr, u16)] {
        &self.published
    }
}

fn watch(epoll: &Epoll, fd: &impl std::os::fd::AsRawFd, kind: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, kind << KIND_SHIFT))
}

/// Every connection takes a descriptor; the usual soft limit is for programs that use select.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a rlimit that lives as long as they take.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// All that the worker owns.
#[derive(Debug)]
struct Net {
    stack: Stack,
    host: Host,
    tap: Option<Tap>,
    epoll: Epoll,
    shared: Arc<Shared>,
    port: Arc<dyn FramePort>,
    began: std::time::Instant,
    tap_dropped: u64,
    messages: Vec<Message>,
    buffer: Vec<u8>,
}

impl Net {
    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn run(&mut self, stop: &Stop) -> anyhow::Result<()> {
        watch(&self.epoll, stop, KIND_STOP)?;
        let mut events = vec![EpollEvent::default(); TURN_EVENTS];
        let mut tap_more = false;
        let mut resumed = std::time::Instant::now();
        while !stop.is_triggered() {
            let frames = self.take_messages();
            tap_more = tap_more && self.read_tap();
            for id in std::mem::take(&mut self.host.again) {
                self.host.pump(&self.epoll, &mut self.stack.gateway, id);
            }
            self.settle();
            // A full batch means that more may be there; else only what the epoll set says.
            let busy =
                frames == TURN_FRAMES || tap_more || !self.host.again.is_empty() || self.shared.has_more();
            let mut timeout = if busy { 0 } else { self.timeout() };
            if self.host.is_paused() {
                if resumed.elapsed() >= RESUME {
                    resumed = std::time::Instant::now();
                    self.host.resume_listeners(&self.epoll);
                }
                let limit = RESUME.as_millis() as i32;
                timeout = if (0..limit).contains(&timeout) { timeout } else { limit };
            }
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                tap_more |= self.event(event.data(), event.event_set());
            }
        }
        Ok(())
    }

    /// Milliseconds until the stack has something to do; -1 if never.
    fn timeout(&self) -> i32 {
        match self.stack.deadline() {
            None => -1,
            Some(at) => {
                let left = (at - self.now()).total_micros().div_ceil(1000);
                if at <= self.now() { 0 } else { i32::try_from(left).unwrap_or(i32::MAX) }
            }
        }
    }

    /// Returns whether it was the uplink.
    fn event(&mut self, data: u64, events: EventSet) -> bool {
        let number = data & ((1 << KIND_SHIFT) - 1);
        let now = self.now();
        let gateway = &mut self.stack.gateway;
        match data >> KIND_SHIFT {
            KIND_WAKE => drop(self.shared.wake.read()),
            KIND_TAP => return true,
            KIND_LISTENER => self.host.accept(&self.epoll, gateway, number as usize),
            KIND_TCP => self.host.event(&self.epoll, gateway, now, number, events),
            KIND_UDP => self.host.recv_datagrams(gateway, now, number, &mut self.buffer),
            _ => {}
        }
        false
    }

    /// Returns how many there were.
    fn take_messages(&mut self) -> usize {
        let mut messages = std::mem::take(&mut self.messages);
        self.shared.take(TURN_FRAMES, &mut messages);
        let (count, now) = (messages.len(), self.now());
        for message in messages.drain(..) {
            let switch = &mut self.stack.switch;
            match message {
                Message::Frame(cell, frame) => {
                    self.stack.input(now, Port::Cell(cell), frame);
                    self.deliver();
                }
                Message::CellUp(cell, offload) => switch.cell_up(cell, offload),
                Message::CellDown(cell) => switch.cell_down(cell),
                Message::SetLoad(cell, load) => switch.set_load(cell, load),
                Message::SetListener(proto, port, cell, waiting) => {
                    switch.set_listener(proto, port, cell, waiting)
                }
                Message::RemoveListener(proto, port, cell) => switch.remove_listener(proto, port, cell),
            }
        }
        self.messages = messages;
        count
    }

    /// Returns whether there may be more.
    fn read_tap(&mut self) -> bool {
        let now = self.now();
        for _ in 0..TURN_FRAMES {
            let Some(tap) = &mut self.tap else { return false };
            match tap.read() {
                Ok(Some(frame)) => self.stack.input(now, Port::Uplink, frame),
                Ok(None) => return false,
                Err(error) => {
                    log::error!(
                        "the TAP device is gone, and with it the uplink; published ports go on: {error}"
                    );
                    self.tap = None;
                    return false;
                }
            }
            self.deliver();
        }
        true
    }

    /// Lets the stack do what is due, and carries out what it asks for.
    fn settle(&mut self) {
        loop {
            let now = self.now();
            self.stack.poll(now);
            self.deliver();
            let mut any = false;
            while let Some(event) = self.stack.pop_event() {
                any = true;
                let gateway = &mut self.stack.gateway;
                match event {
                    Event::Open { id, to } => self.host.open(&self.epoll, gateway, now, id, to),
                    Event::Ready { id } => self.host.pump(&self.epoll, gateway, id),
                    Event::Datagram { id, to, payload } => {
                        self.host.send_datagram(&self.epoll, gateway, id, to, &payload);
                    }
                    Event::DatagramOver { id } => self.host.close_datagram(id),
                }
            }
            if !any {
                break;
            }
        }
        self.port.flush();
        self.shared.publish(NetCounters {
            switch: *self.stack.switch.counters(),
            gateway: *self.stack.gateway.counters(),
            flows_count: self.stack.switch.flows().len() as u64,
            connections_count: self.stack.gateway.connections() as u64,
            inbox_dropped_count: 0,
            tap_dropped_count: self.tap_dropped,
        });
    }

    fn deliver(&mut self) {
        while let Some((to, frame)) = self.stack.pop_frame() {
            match (to, &mut self.tap) {
                (Port::Cell(cell), _) => self.port.deliver(cell, frame),
                (Port::Uplink, Some(tap)) => self.tap_dropped += u64::from(!tap.write(&frame)),
                _ => {}
            }
        }
    }
}
