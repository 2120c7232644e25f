//! `ssivmm bench net`: frames per second through the switch, and TCP through the gateway as a share of a plain
//! loopback stream of the same run. It prints what it measures and judges nothing.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant as Clock};

use anyhow::Context;
use ssi_netstack::sim::{SimCell, SimRecv, SimSocket};
use ssi_netstack::switch::{Switch, SwitchConfig, local};
use ssi_netstack::{CLUSTER_IP, CLUSTER_MAC, GATEWAY_MAC, Instant, Port};

use super::fake::{FakePort, spawn};
use super::{NetConfig, NetService, Offload};
use crate::worker::Exit;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchArgs {
    /// Time of each measurement.
    pub seconds: f64,
    /// Flows in the switch's table.
    pub flows: u32,
    /// Connections, one after the other, of the connection measurement.
    pub connections: u32,
}

impl Default for BenchArgs {
    fn default() -> Self {
        Self { seconds: 2.0, flows: 10_000, connections: 500 }
    }
}

/// Measures, and returns a table to print.
///
/// # Errors
/// No socket or thread can be had.
pub fn run(args: &BenchArgs) -> anyhow::Result<String> {
    anyhow::ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "seconds must be above 0 and at most 600");
    anyhow::ensure!((1..=1_000_000).contains(&args.flows), "flows must be from 1 to 1000000");
    anyhow::ensure!(args.connections >= 1, "connections must be at least 1");
    let time = Duration::from_secs_f64(args.seconds);
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<44} {value}");
    };
    let (rate, per_flow) = switch_frames(args.flows, time);
    line(&format!("switch, 64-byte segments, {} flows", args.flows), format!("{:.2} M frames/s", rate / 1e6));
    line("switch, memory per flow", format!("{per_flow:.0} bytes"));
    let plain = loopback(time).context("measuring a plain loopback stream")?;
    line("loopback TCP, no gateway", format!("{:.0} MB/s", plain / 1e6));
    for (name, offload) in [("with offload", Offload::ALL), ("without offload", Offload::NONE)] {
        let rig = Rig::new(offload)?;
        let out_of_cell = rig.download(time).context("measuring the gateway")?;
        let into_cell = rig.upload(time).context("measuring the gateway")?;
        let share = |rate: f64| format!("{:.0} MB/s, {:.2} of loopback", rate / 1e6, rate / plain);
        line(&format!("gateway, cell to client, {name}"), share(out_of_cell));
        line(&format!("gateway, client to cell, {name}"), share(into_cell));
        if offload == Offload::ALL {
            let (each, echo) = rig.connections(args.connections)?;
            line("gateway, connect + 1 KiB + close", format!("{:.0} us", each * 1e6));
            line("loopback, the same", format!("{:.0} us, ratio {:.2}", echo * 1e6, each / echo));
        }
    }
    Ok(out)
}

/// Frames per second through a switch with `flows` established flows, and bytes per flow (resident memory before and
/// after).
fn switch_frames(flows: u32, time: Duration) -> (f64, f64) {
    let before = resident_bytes();
    let mut switch = Switch::new(SwitchConfig {
        limits: ssi_netstack::flows::FlowLimits { max_flows: flows as usize, ..Default::default() },
        ..SwitchConfig::default()
    });
    (0..4).for_each(|cell| switch.cell_up(cell, Offload::ALL));
    let frames: Vec<(u32, Vec<u8>, Vec<u8>)> =
        (0..flows.min(4096)).map(|n| (n % 4, segment(n, true), segment(n, false))).collect();
    let now = Instant::ZERO;
    for flow in 0..flows {
        switch.input(now, Port::Cell(flow % 4), segment(flow, true));
        while switch.pop().is_some() {}
    }
    let per_flow = resident_bytes().saturating_sub(before) as f64 / f64::from(flows);
    let began = Clock::now();
    let mut count = 0u64;
    while began.elapsed() < time {
        for (cell, outward, inward) in &frames {
            switch.input(now, Port::Cell(*cell), outward.clone());
            switch.input(now, Port::Gateway, inward.clone());
            while switch.pop().is_some() {
                count += 1;
            }
        }
    }
    (count as f64 / began.elapsed().as_secs_f64(), per_flow)
}

/// A TCP acknowledgement of flow `flow`, from its cell or to it.
fn segment(flow: u32, outward: bool) -> Vec<u8> {
    let remote = Ipv4Addr::from_bits(0xc612_0000 + flow / 50_000);
    let port = (flow % 50_000 + 1024) as u16;
    let (src, dst, ports) =
        if outward { (CLUSTER_IP, remote, [80, port]) } else { (remote, CLUSTER_IP, [port, 80]) };
    let macs = if outward { (CLUSTER_MAC, GATEWAY_MAC) } else { (GATEWAY_MAC, CLUSTER_MAC) };
    local::ipv4_frame(macs, (src, dst, 6.into()), 30, |bytes| {
        bytes[0..2].copy_from_slice(&ports[0].to_be_bytes());
        bytes[2..4].copy_from_slice(&ports[1].to_be_bytes());
        // A header of 20 bytes, ACK.
        bytes[12] = 5 << 4;
        bytes[13] = 0x10;
    })
}

/// Resident memory of this process, from /proc/self/statm; 0 if that cannot be read.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .map_or(0, |pages| pages * 4096)
}

fn drain(stream: &mut TcpStream, time: Duration) -> anyhow::Result<f64> {
    let mut buffer = vec![0; 256 << 10];
    // The connection is there when the first bytes are.
    anyhow::ensure!(stream.read(&mut buffer)? > 0, "the stream ended early");
    let mut bytes = 0u64;
    let began = Clock::now();
    while began.elapsed() < time {
        let len = stream.read(&mut buffer)?;
        anyhow::ensure!(len > 0, "the stream ended early");
        bytes += len as u64;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// Bytes per second of a plain stream.
fn loopback(time: Duration) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut reader = TcpStream::connect(listener.local_addr()?)?;
    let (mut writer, _) = listener.accept()?;
    let exit = Exit::new()?;
    let _writer = crate::worker::Worker::spawn("bench-source", &exit, move |_| {
        let block = vec![7; 256 << 10];
        // It ends when the reader has gone.
        while writer.write_all(&block).is_ok() {}
        Ok(())
    })?;
    let rate = drain(&mut reader, time);
    drop(reader);
    rate
}

const SOURCE_PORT: u16 = 19;
const SINK_PORT: u16 = 9;
const ECHO_PORT: u16 = 7;

/// The service with a fake cell that serves all three ports.
struct Rig {
    _cell: crate::worker::Worker,
    service: NetService,
}

impl Rig {
    fn new(offload: Offload) -> anyhow::Result<Self> {
        let exit = Exit::new()?;
        let publish =
            |guest_port| super::Publish { bind: Ipv4Addr::LOCALHOST.into(), host_port: 0, guest_port };
        let config = NetConfig {
            offload,
            published: [SOURCE_PORT, SINK_PORT, ECHO_PORT].map(publish).to_vec(),
            dns: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 53)),
            ..NetConfig::default()
        };
        let port = FakePort::new(1);
        let service = NetService::start(&config, port.clone(), &exit)?;
        let mut app = App::default();
        let cell = spawn(0, offload == Offload::ALL, port, service.handle().clone(), &exit, move |cell| {
            app.serve(cell)
        })?;
        Ok(Self { _cell: cell, service })
    }

    fn addr(&self, port: u16) -> anyhow::Result<SocketAddr> {
        let found = self.service.published().iter().find(|(_, guest)| *guest == port);
        Ok(found.context("the port was published")?.0)
    }

    fn download(&self, time: Duration) -> anyhow::Result<f64> {
        drain(&mut TcpStream::connect(self.addr(SOURCE_PORT)?)?, time)
    }

    fn upload(&self, time: Duration) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.addr(SINK_PORT)?)?;
        let block = vec![7; 256 << 10];
        let mut bytes = 0u64;
        let began = Clock::now();
        while began.elapsed() < time {
            stream.write_all(&block)?;
            bytes += block.len() as u64;
        }
        Ok(bytes as f64 / began.elapsed().as_secs_f64())
    }

    /// Seconds of a short connection through the gateway, and of the same without.
    fn connections(&self, count: u32) -> anyhow::Result<(f64, f64)> {
        short_connections(self.addr(ECHO_PORT)?, 1)?;
        let through = short_connections(self.addr(ECHO_PORT)?, count)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let exit = Exit::new()?;
        let _server = crate::worker::Worker::spawn("bench-echo", &exit, move |_| {
            for _ in 0..count {
                let (mut stream, _) = listener.accept()?;
                let mut buffer = [0; 1024];
                stream.read_exact(&mut buffer)?;
                stream.write_all(&buffer)?;
            }
            Ok(())
        })?;
        Ok((through, short_connections(addr, count)?))
    }
}

fn short_connections(addr: SocketAddr, count: u32) -> anyhow::Result<f64> {
    let mut buffer = [0; 1024];
    let began = Clock::now();
    for _ in 0..count {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
    }
    Ok(began.elapsed().as_secs_f64() / f64::from(count))
}

/// What runs in the fake cell.
#[derive(Default)]
struct App {
    listening: bool,
    open: Vec<(u16, SimSocket)>,
    closing: Vec<SimSocket>,
    block: Vec<u8>,
}

impl App {
    fn serve(&mut self, cell: &mut SimCell) {
        if !std::mem::replace(&mut self.listening, true) {
            [SOURCE_PORT, SINK_PORT, ECHO_PORT].into_iter().for_each(|port| cell.listen(port, 4));
            self.block = vec![7; 64 << 10];
        }
        for port in [SOURCE_PORT, SINK_PORT, ECHO_PORT] {
            while let Some(socket) = cell.accept(port) {
                self.open.push((port, socket));
            }
        }
        let (block, closing) = (&mut self.block, &mut self.closing);
        self.open.retain(|(port, socket)| {
            let over = match *port {
                SOURCE_PORT => {
                    while cell.send(*socket, block) > 0 {}
                    !cell.is_open(*socket)
                        || matches!(cell.recv(*socket, block), SimRecv::End | SimRecv::Reset)
                }
                _ => loop {
                    match cell.recv(*socket, block) {
                        SimRecv::Data(len) if *port == ECHO_PORT => drop(cell.send(*socket, &block[..len])),
                        SimRecv::Data(_) => {}
                        SimRecv::Blocked => break false,
                        SimRecv::End | SimRecv::Reset => break true,
                    }
                },
            };
            if over {
                cell.finish(*socket);
                closing.push(*socket);
            }
            !over
        });
        closing.retain(|socket| {
            let open = cell.is_open(*socket);
            if !open {
                cell.drop_socket(*socket);
            }
            open
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_is_there_and_none_is_zero() {
        let text = run(&BenchArgs { seconds: 0.05, flows: 100, connections: 5 }).unwrap();
        assert_eq!(text.lines().count(), 9, "{text}");
        assert!(!text.contains(" 0 MB/s"), "{text}");
        assert!(run(&BenchArgs { seconds: 0.0, ..BenchArgs::default() }).is_err());
    }

    #[test]
    fn the_frames_of_the_benchmark_are_frames() {
        let mut switch = Switch::new(SwitchConfig::default());
        switch.cell_up(0, Offload::ALL);
        switch.input(Instant::ZERO, Port::Cell(0), segment(3, true));
        assert_eq!(switch.pop().map(|(port, _)| port), Some(Port::Gateway));
        switch.input(Instant::ZERO, Port::Gateway, segment(3, false));
        assert_eq!(switch.pop().map(|(port, _)| port), Some(Port::Cell(0)));
    }
}
