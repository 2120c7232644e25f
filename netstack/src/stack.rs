//! Switch and gateway, joined: what the glue drives.

use smoltcp::time::Instant;

use crate::Port;
use crate::gateway::{Event, Gateway, GatewayConfig};
use crate::switch::{Switch, SwitchConfig};

/// The switch with the gateway at its port. Frames go in by [`Stack::input`]; [`Stack::poll`] after each batch of
/// calls; then frames come out of [`Stack::pop_frame`] and events out of [`Stack::pop_event`].
#[derive(Debug)]
pub struct Stack {
    /// The switch: tables, cells and counters.
    pub switch: Switch,
    /// The gateway: connections.
    pub gateway: Gateway,
    output: std::collections::VecDeque<(Port, Vec<u8>)>,
}

impl Stack {
    /// Both, with `switch` told of `gateway`.
    pub fn new(mut switch: SwitchConfig, gateway: GatewayConfig, now: Instant) -> Self {
        switch.gateway_ip = Some(gateway.ip);
        switch.cluster_ip = gateway.cluster_ip;
        Self { switch: Switch::new(switch), gateway: Gateway::new(gateway, now), output: Default::default() }
    }

    /// A frame came from a cell or the uplink.
    pub fn input(&mut self, now: Instant, from: Port, frame: Vec<u8>) {
        self.switch.input(now, from, frame);
        self.settle(now);
    }

    /// Does all that is due.
    pub fn poll(&mut self, now: Instant) {
        self.switch.poll(now);
        loop {
            self.gateway.poll(now);
            let before = self.gateway.is_blocked();
            self.settle(now);
            if !before {
                break;
            }
        }
    }

    /// When [`Stack::poll`] will next have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        [self.switch.deadline(), self.gateway.deadline()].into_iter().flatten().min()
    }

    /// Takes the next frame for a cell or the uplink.
    pub fn pop_frame(&mut self) -> Option<(Port, Vec<u8>)> {
        self.output.pop_front()
    }

    /// Takes the next event of the gateway.
    pub fn pop_event(&mut self) -> Option<Event> {
        self.gateway.pop_event()
    }

    /// Carries frames between switch and gateway until there is none. It ends: the gateway answers a frame with a
    /// bounded number of frames, all for cells.
    fn settle(&mut self, now: Instant) {
        loop {
            while let Some((port, frame)) = self.switch.pop() {
                match port {
                    Port::Gateway => self.gateway.input(now, frame),
                    _ => self.output.push_back((port, frame)),
                }
            }
            let Some(frame) = self.gateway.pop_frame() else { break };
            self.switch.input(now, Port::Gateway, frame);
        }
    }
}
