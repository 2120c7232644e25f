//! The single-IP switch (clauses NET-1, NET-3): one address outside, many cells inside.
//!
//! The life of a frame, by where it comes from:
//! ```text
//! cell     src is not the cluster's address ............ dropped
//!          its flow is another cell's .................. dropped (a cell that gave a flow away is heard no more)
//!          else its flow is learnt, or its class moves; then by destination:
//!            cluster's address ......................... as from outside, to another cell
//!            MAC of the gateway ........................ gateway
//!            else ...................................... uplink
//! outside  ARP or ping for the cluster's address ....... answered here
//!          ICMP error .................................. the cell whose packet it quotes
//!          a flow in the table ......................... its cell
//!          a SYN, or anything for an unknown flow ...... placed: by the listener table; where that knows nothing,
//!                                                        asked of one cell after the other until one takes it
//! ```
//! A cell's answers teach: SYN-ACK makes it a listener of the port, RST passes the question on to the next cell, and
//! only when every cell has refused does the refusal go out. So nothing is refused while any cell could accept it.

mod counters;
/// Frames that the switch makes itself.
pub mod local;
mod probes;

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use smoltcp::time::Instant;
use smoltcp::wire::{ArpOperation, ArpRepr, EthernetAddress, EthernetFrame};

pub use counters::Counters;
use probes::Probes;

use crate::flows::{Class, Flow, FlowKey, FlowLimits, FlowTable};
use crate::frags::{DatagramKey, FragTable, Later};
use crate::listeners::ListenerTable;
use crate::offload::{Offload, adapt};
use crate::view::{Content, Head, IpHead, Proto, Quoted, TcpFlags, Transport, View};
use crate::vnet::{VnetPacket, VnetRepr};
use crate::{
    CLUSTER_IP, CLUSTER_MAC, Cell, FRAME_MAX_BYTES, GATEWAY_IP, GATEWAY_MAC, MAX_CELLS, Port, VNET_HDR_BYTES,
};

/// What the switch is told at its start.
#[derive(Debug, Clone)]
pub struct SwitchConfig {
    /// The cluster's address.
    pub cluster_ip: Ipv4Addr,
    /// The user-mode gateway's address; `None` if there is no such gateway.
    pub gateway_ip: Option<Ipv4Addr>,
    /// Is there an uplink?
    pub uplink: bool,
    /// The cell that is asked first about a port that the listener table does not know.
    pub default_cell: Cell,
    /// Bounds of the flow table.
    pub limits: FlowLimits,
    /// Most frames that wait to be fetched.
    pub max_output: usize,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            cluster_ip: CLUSTER_IP,
            gateway_ip: Some(GATEWAY_IP),
            uplink: false,
            default_cell: 0,
            limits: FlowLimits::default(),
            max_output: 16_384,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct CellState {
    /// What its card takes; `None` while it is down.
    up: Option<Offload>,
    load: u64,
}

/// The switch. Frames go in by [`Switch::input`] and come out of [`Switch::pop`].
#[derive(Debug)]
pub struct Switch {
    config: SwitchConfig,
    cells: Vec<CellState>,
    flows: FlowTable,
    listeners: ListenerTable,
    frags: FragTable,
    probes: Probes,
    output: VecDeque<(Port, Vec<u8>)>,
    counters: Counters,
}

impl Switch {
    /// A switch with no cell yet.
    pub fn new(config: SwitchConfig) -> Self {
        Self {
            flows: FlowTable::new(config.limits),
            config,
            cells: vec![CellState::default(); MAX_CELLS as usize],
            listeners: ListenerTable::default(),
            frags: FragTable::default(),
            probes: Probes::default(),
            output: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Cell `cell` is there, and its card takes `offload`. Numbers from [`MAX_CELLS`] on are ignored.
    pub fn cell_up(&mut self, cell: Cell, offload: Offload) {
        if let Some(state) = self.cells.get_mut(cell as usize) {
            state.up = Some(offload);
        }
    }

    /// Cell `cell` is gone, with its flows and listeners.
    pub fn cell_down(&mut self, cell: Cell) {
        if let Some(state) = self.cells.get_mut(cell as usize) {
            *state = CellState::default();
            self.flows.remove_cell(cell);
            self.listeners.remove_cell(cell);
        }
    }

    /// Is `cell` there?
    pub fn is_up(&self, cell: Cell) -> bool {
        self.cells.get(cell as usize).is_some_and(|state| state.up.is_some())
    }

    /// How loaded `cell` is, in any unit that is the same for all: the first criterion of placement, before the number
    /// of its flows.
    pub fn set_load(&mut self, cell: Cell, load: u64) {
        if let Some(state) = self.cells.get_mut(cell as usize) {
            state.load = load;
        }
    }

    /// Cell `cell` has a socket on `port`, where `waiting` acceptors wait.
    pub fn set_listener(&mut self, proto: Proto, port: u16, cell: Cell, waiting: u32) {
        if cell < MAX_CELLS {
            self.listeners.set(proto, port, cell, waiting);
        }
    }

    /// Cell `cell` has no socket on `port` any more.
    pub fn remove_listener(&mut self, proto: Proto, port: u16, cell: Cell) {
        self.listeners.remove(proto, port, cell);
    }

    /// The flow table.
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// The listener table.
    pub fn listeners(&self) -> &ListenerTable {
        &self.listeners
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes the next frame that is to go out.
    pub fn pop(&mut self) -> Option<(Port, Vec<u8>)> {
        self.output.pop_front()
    }

    /// Ages the tables. To be called at [`Switch::deadline`], or later.
    pub fn poll(&mut self, now: Instant) {
        self.flows.expire(now);
        self.frags.expire(now);
    }

    /// When [`Switch::poll`] will next have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        [self.flows.deadline(), self.frags.deadline()].into_iter().flatten().min()
    }

    /// A frame, with its vnet header, came from `from`.
    pub fn input(&mut self, now: Instant, from: Port, frame: Vec<u8>) {
        self.counters.frames_in_count += 1;
        self.counters.frames_in_bytes += frame.len() as u64;
        self.poll(now);
        if frame.len() > FRAME_MAX_BYTES {
            self.counters.malformed_count += 1;
            return;
        }
        if let Port::Cell(cell) = from
            && !self.is_up(cell)
        {
            self.counters.cell_down_count += 1;
            return;
        }
        let Ok(repr) = VnetPacket::new_checked(&frame[..]).and_then(|packet| VnetRepr::parse(&packet)) else {
            self.counters.malformed_count += 1;
            return;
        };
        let Ok((dst, head)) =
            View::parse(&frame[VNET_HDR_BYTES..]).map(|view| (view.dst, view.content.head()))
        else {
            self.counters.malformed_count += 1;
            return;
        };
        let transit = Transit { from, dst, frame, repr };
        match (head, from) {
            (Head::Arp(arp), _) => self.arp(&arp, transit),
            (Head::Ipv4(head), Port::Cell(cell)) => self.cell_input(now, cell, &head, transit),
            (Head::Ipv4(head), _) => self.outside_input(now, &head, transit),
            (Head::Other, _) => self.counters.not_ours_count += 1,
        }
    }

    fn arp(&mut self, arp: &ArpRepr, transit: Transit) {
        let ArpRepr::EthernetIpv4 { operation, target_protocol_addr: target, .. } = *arp else { return };
        let from_cell = matches!(transit.from, Port::Cell(_));
        let mac = if Some(target) == self.config.gateway_ip {
            Some(GATEWAY_MAC)
        } else {
            // A cell that asks for the cluster's address asks whether another has it: to be answered by silence.
            (target == self.config.cluster_ip && !from_cell).then_some(CLUSTER_MAC)
        };
        match (operation, mac) {
            (ArpOperation::Request, Some(mac)) => {
                if let Some(reply) = local::arp_reply(arp, mac) {
                    self.counters.arp_replies_count += 1;
                    self.answer(transit.from, reply);
                }
            }
            (ArpOperation::Request, None)
                if from_cell && self.config.uplink && target != self.config.cluster_ip =>
            {
                self.emit(Port::Uplink, transit.frame, transit.repr);
            }
            // All cards have one address: which cell asked is not to be seen, and an answer that was not asked for
            // changes nothing.
            (ArpOperation::Reply, _) if transit.from == Port::Uplink => {
                for cell in self.up_cells() {
                    self.deliver(cell, transit.frame.clone(), transit.repr);
                }
            }
            _ => {}
        }
    }

    fn cell_input(&mut self, now: Instant, cell: Cell, head: &IpHead, transit: Transit) {
        if head.src != self.config.cluster_ip {
            self.counters.not_ours_count += 1;
        } else if !self.learn(now, cell, head) {
            // Not the owner, or a refusal that became a question to another cell.
        } else if head.dst == self.config.cluster_ip {
            self.cluster_input(now, head, transit);
        } else if transit.dst == GATEWAY_MAC && self.config.gateway_ip.is_some() {
            self.emit(Port::Gateway, transit.frame, transit.repr);
        } else if self.config.uplink {
            self.emit(Port::Uplink, transit.frame, transit.repr);
        } else {
            self.counters.not_ours_count += 1;
        }
    }

    fn outside_input(&mut self, now: Instant, head: &IpHead, transit: Transit) {
        if head.dst == self.config.cluster_ip {
            self.cluster_input(now, head, transit);
        } else if let Transport::Udp { dst: port, .. } = head.transport
            && transit.dst.is_multicast()
        {
            let cells: Vec<Cell> = self.listeners.cells(Proto::Udp, port).collect();
            for cell in cells {
                self.deliver_as_is(cell, transit.frame.clone(), transit.repr);
            }
        } else {
            self.counters.not_ours_count += 1;
        }
    }

    /// What a frame that `cell` sends teaches. Returns whether the frame goes on.
    fn learn(&mut self, now: Instant, cell: Cell, head: &IpHead) -> bool {
        match head.transport {
            Transport::Tcp { src, dst, flags } => {
                let key = FlowKey { proto: Proto::Tcp, local_port: src, remote: head.dst, remote_port: dst };
                self.learn_tcp(now, cell, key, flags)
            }
            Transport::Udp { src, dst } => {
                self.learn_datagram(now, cell, (Proto::Udp, src), (head.dst, dst));
                true
            }
            Transport::Echo { ident, request: true } => {
                self.learn_datagram(now, cell, (Proto::Icmp, ident), (head.dst, 0));
                true
            }
            Transport::Error(quoted) => !self.refused_datagram(now, cell, &quoted),
            Transport::Echo { request: false, .. } | Transport::Opaque => true,
        }
    }

    fn learn_tcp(&mut self, now: Instant, cell: Cell, key: FlowKey, flags: TcpFlags) -> bool {
        let connects = flags.syn && !flags.ack;
        match self.flows.get(&key) {
            Some(flow) if flow.cell == cell => {
                if flags.rst {
                    if self.retry(now, &key, cell) {
                        return false;
                    }
                } else if self.probes.remove(&key) && flags.syn && flags.ack {
                    self.listeners.learn(Proto::Tcp, key.local_port, cell);
                }
                self.flows.update(&key, now, |flow| step_tcp(flow, flags, true));
                true
            }
            Some(flow) if flow.class == Class::Established || !connects => {
                self.counters.not_owner_count += 1;
                false
            }
            _ => {
                if !flags.rst {
                    let mut flow = Flow::new(cell, Class::Embryonic);
                    step_tcp(&mut flow, flags, true);
                    self.flows.insert(key, flow, now);
                    self.probes.remove(&key);
                }
                true
            }
        }
    }

    /// Who last sent from a datagram port owns it.
    fn learn_datagram(&mut self, now: Instant, cell: Cell, local: (Proto, u16), remote: (Ipv4Addr, u16)) {
        let key = FlowKey { proto: local.0, local_port: local.1, remote: remote.0, remote_port: remote.1 };
        self.probes.remove(&key);
        if self.flows.update(&key, now, |flow| flow.cell = cell).is_none() {
            self.flows.insert(key, Flow::new(cell, Class::Datagram), now);
        }
    }

    /// A cell's ICMP error about a packet that it got: if it has no socket on that port, another may.
    fn refused_datagram(&mut self, now: Instant, cell: Cell, quoted: &Quoted) -> bool {
        let key = FlowKey {
            proto: quoted.proto,
            local_port: quoted.dst_port,
            remote: quoted.src,
            remote_port: quoted.src_port,
        };
        quoted.proto == Proto::Udp
            && quoted.port_unreachable
            && self.flows.get(&key).is_some_and(|flow| flow.cell == cell)
            && self.retry(now, &key, cell)
    }

    /// `cell` refused the first frame of a flow: gives it to the next that might take it. `false` if none is left.
    fn retry(&mut self, now: Instant, key: &FlowKey, cell: Cell) -> bool {
        let Some((tried, frame, repr)) = self.probes.get(key) else { return false };
        self.listeners.refused(key.proto, key.local_port, cell);
        let next = self.candidate(key.proto, key.local_port, tried);
        let Some(next) = next else {
            self.probes.remove(key);
            return false;
        };
        self.probes.tried(key, next);
        self.counters.syns_retried_count += 1;
        self.flows.update(key, now, |flow| flow.cell = next);
        self.deliver(next, frame, repr);
        true
    }

    /// The cell to ask about a port: by the listener table, else the default cell, else the first that is up;
    /// none of those whose bit is set in `not`.
    fn candidate(&mut self, proto: Proto, port: u16, not: u64) -> Option<Cell> {
        let (cells, flows) = (&self.cells, &self.flows);
        let may = |cell: Cell| {
            not & (1 << cell) == 0 && cells.get(cell as usize).is_some_and(|state| state.up.is_some())
        };
        let load = |cell: Cell| {
            let reported = cells.get(cell as usize).map_or(0, |state| state.load);
            (reported, u64::from(flows.of_cell(cell)))
        };
        self.listeners
            .place(proto, port, may, load)
            .or_else(|| Some(self.config.default_cell).filter(|cell| may(*cell)))
            .or_else(|| (0..MAX_CELLS).find(|cell| may(*cell)))
    }

    /// A packet for the cluster's address, from outside or from a cell.
    fn cluster_input(&mut self, now: Instant, head: &IpHead, transit: Transit) {
        let datagram = head.fragment.map(|part| {
            (part, DatagramKey { src: head.src, dst: head.dst, proto: part.proto, ident: part.ident })
        });
        if let Some((part, key)) = datagram
            && part.offset != 0
        {
            match self.frags.later(key, transit.frame, now) {
                Later::To(cell, frame) => self.deliver(cell, frame, transit.repr),
                Later::Kept => {}
                Later::Dropped => self.counters.fragments_dropped_count += 1,
            }
            return;
        }
        let key = match head.transport {
            Transport::Tcp { src, dst, .. } => (Proto::Tcp, dst, head.src, src),
            Transport::Udp { src, dst } => (Proto::Udp, dst, head.src, src),
            Transport::Echo { request: true, .. } if datagram.is_none() => return self.echo(&transit),
            // In parts: a cell puts them together and answers.
            Transport::Echo { ident, request: true } => (Proto::Icmp, ident, head.src, 1),
            Transport::Echo { ident, request: false } => (Proto::Icmp, ident, head.src, 0),
            Transport::Error(quoted) => (quoted.proto, quoted.src_port, quoted.dst, quoted.dst_port),
            Transport::Opaque => {
                self.counters.not_ours_count += 1;
                return;
            }
        };
        let key = FlowKey { proto: key.0, local_port: key.1, remote: key.2, remote_port: key.3 };
        let repr = transit.repr;
        if let Some(cell) = self.flow_input(now, &key, head, transit)
            && let Some((_, datagram)) = datagram
        {
            for part in self.frags.first(datagram, cell, now) {
                self.deliver(cell, part, repr);
            }
        }
    }

    /// A packet of a flow: to its cell, which is placed if the flow is new. Returns the cell.
    fn flow_input(&mut self, now: Instant, key: &FlowKey, head: &IpHead, transit: Transit) -> Option<Cell> {
        let flags = if let Transport::Tcp { flags, .. } = head.transport { Some(flags) } else { None };
        let connects = flags.is_some_and(|flags| flags.syn && !flags.ack);
        let known = self
            .flows
            .get(key)
            .filter(|flow| !(connects && flow.class == Class::Closing))
            .map(|flow| flow.cell);
        let may_place = match head.transport {
            Transport::Tcp { flags, .. } => !flags.rst,
            Transport::Udp { .. } | Transport::Echo { request: true, .. } => true,
            _ => false,
        };
        let source = if let Port::Cell(cell) = transit.from { Some(cell) } else { None };
        match known {
            // A cell has no use for the switch to talk to itself.
            Some(cell) if Some(cell) == source => {
                self.counters.no_owner_count += 1;
                None
            }
            Some(cell) => {
                if !matches!(head.transport, Transport::Error(_)) {
                    self.flows.update(key, now, |flow| flags.map(|flags| step_tcp(flow, flags, false)));
                }
                self.deliver(cell, transit.frame, transit.repr);
                Some(cell)
            }
            None if may_place => self.place(now, key, connects, source, transit),
            None => {
                self.counters.no_owner_count += 1;
                None
            }
        }
    }

    fn place(
        &mut self,
        now: Instant,
        key: &FlowKey,
        connects: bool,
        from: Option<Cell>,
        transit: Transit,
    ) -> Option<Cell> {
        let not = from.map_or(0, |cell| 1u64 << cell);
        let Some(cell) = self.candidate(key.proto, key.local_port, not) else {
            self.counters.no_owner_count += 1;
            self.refuse(&transit);
            return None;
        };
        let class = if key.proto == Proto::Tcp { Class::Embryonic } else { Class::Datagram };
        self.flows.insert(*key, Flow::new(cell, class), now);
        self.counters.syns_placed_count += u64::from(connects);
        self.probes.insert(*key, not | 1 << cell, &transit.frame, transit.repr);
        self.deliver(cell, transit.frame, transit.repr);
        Some(cell)
    }

    /// No cell is left that could take it: says so to whoever sent a TCP segment.
    fn refuse(&mut self, transit: &Transit) {
        if let Ok(View { src, content: Content::Ipv4(ip), .. }) =
            View::parse(&transit.frame[VNET_HDR_BYTES..])
            && let Some(reset) = local::reset(&ip, CLUSTER_MAC, src)
        {
            self.answer(transit.from, reset);
        }
    }

    fn echo(&mut self, transit: &Transit) {
        if let Ok(View { src, content: Content::Ipv4(ip), .. }) =
            View::parse(&transit.frame[VNET_HDR_BYTES..])
            && let Some(reply) = local::echo_reply(&ip, CLUSTER_MAC, src)
        {
            self.counters.echo_replies_count += 1;
            self.answer(transit.from, reply);
        }
    }

    fn up_cells(&self) -> Vec<Cell> {
        (0..MAX_CELLS).filter(|cell| self.is_up(*cell)).collect()
    }

    /// A frame of ours, back to where the question came from.
    fn answer(&mut self, to: Port, frame: Vec<u8>) {
        self.emit(to, frame, VnetRepr::PLAIN);
    }

    /// To a cell, addressed to its card.
    fn deliver(&mut self, cell: Cell, mut frame: Vec<u8>, repr: VnetRepr) {
        EthernetFrame::new_unchecked(&mut frame[VNET_HDR_BYTES..]).set_dst_addr(CLUSTER_MAC);
        self.deliver_as_is(cell, frame, repr);
    }

    fn deliver_as_is(&mut self, cell: Cell, mut frame: Vec<u8>, repr: VnetRepr) {
        let Some(offload) = self.cells.get(cell as usize).and_then(|state| state.up) else {
            self.counters.cell_down_count += 1;
            return;
        };
        repr.emit(&mut frame);
        let mut adapted = Vec::new();
        if adapt(frame, repr, offload, |frame| adapted.push(frame)) == 0 {
            self.counters.malformed_count += 1;
        }
        adapted.into_iter().for_each(|frame| self.push(Port::Cell(cell), frame));
    }

    fn emit(&mut self, to: Port, frame: Vec<u8>, repr: VnetRepr) {
        match to {
            Port::Cell(cell) => self.deliver_as_is(cell, frame, repr),
            _ => self.push(to, frame),
        }
    }

    fn push(&mut self, to: Port, frame: Vec<u8>) {
        if self.output.len() >= self.config.max_output {
            self.counters.queue_full_count += 1;
            return;
        }
        self.counters.frames_out_count += 1;
        self.counters.frames_out_bytes += frame.len() as u64;
        self.output.push_back((to, frame));
    }
}

/// A frame on its way through.
#[derive(Debug)]
struct Transit {
    from: Port,
    dst: EthernetAddress,
    frame: Vec<u8>,
    repr: VnetRepr,
}

/// How a segment moves its flow from class to class. `out`: the owner sent it.
fn step_tcp(flow: &mut Flow, flags: TcpFlags, out: bool) {
    if flags.rst {
        flow.class = Class::Closing;
        return;
    }
    if flags.syn {
        if !flags.ack && flow.class == Class::Closing {
            *flow = Flow::new(flow.cell, Class::Embryonic);
        }
        return;
    }
    if flags.fin {
        *(if out { &mut flow.fin_out } else { &mut flow.fin_in }) = true;
    }
    if flow.fin_out && flow.fin_in {
        flow.class = Class::Closing;
    } else if flow.class == Class::Embryonic {
        flow.class = Class::Established;
    }
}

#[cfg(test)]
mod tests;
