//! The cell of a node: a KVM machine, its devices, and their other ends on the fabric.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use ssi_dsm::NodeId;
use ssi_proto::request::DsmStatus;

use super::fetch::Fetch;
use super::memory::Memory;
use super::messages::{Deliver, FabricMessages};
use super::services::{DeliverFrames, FabricFiles, FabricFrames};
use super::streams::Streams;
use super::{Cell, Outcome, Parts};
use crate::devices::terminal::Terminal;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::net::{Net, NetConfig};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::ssi::{SsiConfig, SsiDevice, SsiHandle};
use crate::devices::virtio::vsock::{Vsock, VsockHandle};
use crate::dsm::{FabricLink, Tuning};
use crate::fabric::stream::wait_readable;
use crate::fabric::{Class, Handler, Handlers, View};
use crate::launch::ClusterSpec;
use crate::launch::spec::LOW_RAM_BYTES;
use crate::machine::{Config, End, Machine};
use crate::worker::{Exit, Worker};

/// Address of every cell's card (`docs/interfaces.md`).
pub const MAC: [u8; 6] = [0x02, 0x53, 0x53, 0x49, 0x00, 0x02];
/// A guest answers a connection within this.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A cell that runs under KVM.
#[derive(Debug)]
pub struct MachineCell {
    // Dropped in this order: nothing may use guest memory when it goes.
    machine: Mutex<Machine>,
    watch: Mutex<Option<Worker>>,
    machine_exit: Exit,
    exit: Exit,
    outcome: Outcome,
    node: u32,
    deliver: Arc<Deliver>,
    files: Arc<FabricFiles>,
    frames: Arc<DeliverFrames>,
    streams: Arc<Streams>,
    fetch: Arc<Fetch>,
    _fetch_worker: Worker,
    ssi: SsiHandle,
    memory: Arc<Memory>,
    serial: Terminal,
}

/// Lines of its serial console that are logged when a cell ends by itself.
const LAST_WORDS_LINES: usize = 60;

/// The last `most` lines of `bytes`, without control characters: a guest wrote them.
fn last_lines(bytes: &[u8], most: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(most);
    lines[from..].iter().map(|line| line.chars().filter(|c| !c.is_control()).collect()).collect()
}

/// The command line of a cell's kernel (`docs/interfaces.md`); the machine adds its devices.
fn command_line(spec: &ClusterSpec, node: u32) -> String {
    let mut line = format!(
        "console=ttyS0 loglevel=5 reboot=k panic=-1 iommu=off root=ssiroot rootfstype=virtiofs rw init=/usr/lib/ssi/init \
         ssi.cell={node} ssi.cells={} ssi.epoch_ns={} ssi.name={} ssi.ip=10.64.0.2/24 ssi.gw=10.64.0.1",
        spec.nodes, spec.epoch_ns, spec.name
    );
    if !spec.cmdline_extra.is_empty() {
        line.push(' ');
        line.push_str(&spec.cmdline_extra);
    }
    line
}

impl MachineCell {
    /// The cell of a node, its kernel loaded, not running.
    ///
    /// # Errors
    /// If KVM, memory or a device cannot be had, or the kernel is none.
    pub fn build(parts: Parts<'_>) -> anyhow::Result<Arc<dyn Cell>> {
        let Parts { spec, node, fabric, outcome, exit } = parts;
        let memory = Memory::new(spec, node).context("guest memory")?;
        memory.dsm().start(
            Arc::new(FabricLink::new(fabric)),
            exit,
            Tuning { busy_poll_us: spec.dsm.busy_poll_us, cpus: spec.dsm.cpus.clone() },
        )?;
        let (fetch, fetch_worker) = Fetch::start(fabric, spec.nodes, memory.clone(), exit)?;
        let config = SsiConfig {
            cell: node,
            cells: spec.nodes,
            slice_stride: spec.slice_stride(),
            slice_size: spec.slice_bytes(),
            low_end: LOW_RAM_BYTES,
            epoch_ns: spec.epoch_ns,
        };
        let ssi = SsiDevice::new(config, FabricMessages::new(fabric), fetch.clone(), exit)?;
        let handle = ssi.handle();
        let lost_faults = ssi.lost_faults();
        let told = handle.clone();
        memory.dsm().on_lost(move |pages| told.set_lost(pages));
        let files = FabricFiles::new(fabric);
        let net = Net::new(NetConfig { mac: MAC, mtu: None }, FabricFrames::new(fabric), exit)?;
        let frames = Arc::new(DeliverFrames(net.input()));
        let vsock = Vsock::new(node, exit)?;
        let (serial, hvc) = consoles(spec, node)?;
        let streams = Arc::new(streams(vsock.handle(), &serial, exit));
        let devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(Fs::new(files.clone(), exit)),
            Box::new(net),
            Box::new(vsock),
            Box::new(ssi),
            Box::new(Rng::new(exit)),
            Box::new(Console::new(&hvc, exit)?),
        ];
        let machine_exit = Exit::new()?;
        let config = Config {
            name: format!("cell{node}"),
            vcpus: u8::try_from(spec.vcpus)?,
            async_pf: spec.dsm.async_pf,
            lost_faults,
            kernel: spec.kernel.clone(),
            initrd: None,
            cmdline: command_line(spec, node),
            serial: serial.clone(),
            exit: machine_exit.clone(),
        };
        let machine = Machine::new(&config, memory.regions(), devices)?;
        Ok(Arc::new(Self {
            machine: Mutex::new(machine),
            watch: Mutex::default(),
            machine_exit,
            exit: exit.clone(),
            outcome: outcome.clone(),
            node,
            deliver: Deliver::new(handle.inbox()),
            files,
            frames,
            streams,
            fetch,
            _fetch_worker: fetch_worker,
            ssi: handle,
            memory,
            serial,
        }))
    }

    fn machine(&self) -> std::sync::MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The serial console, which goes to a file too, and hvc0.
fn consoles(spec: &ClusterSpec, node: u32) -> anyhow::Result<(Terminal, Terminal)> {
    let path = spec.console_path(node);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let serial = Terminal::new();
    serial.add_sink(Box::new(file));
    Ok((serial, Terminal::new()))
}

fn streams(vsock: VsockHandle, serial: &Terminal, exit: &Exit) -> Streams {
    Streams::new(Box::new(move |port| vsock.connect(port, CONNECT_WITHIN)), serial.clone(), exit)
}

impl Cell for MachineCell {
    fn handlers(&self, handlers: Handlers) -> Handlers {
        handlers
            .with(Class::Page, self.memory.dsm().clone())
            .with(Class::Fetch, self.fetch.clone())
            .with(Class::Bulk, self.deliver.clone())
            .with(Class::Frame, self.frames.clone())
            .with(Class::Fs, self.files.clone())
            .with_streams(self.streams.clone())
    }

    fn messages(&self) -> Arc<dyn Handler> {
        self.deliver.clone()
    }

    fn run(&self) -> anyhow::Result<()> {
        self.ssi.set_alive(u64::MAX);
        self.machine().run()?;
        let (ended, outcome) = (self.machine_exit.clone(), self.outcome.clone());
        let watch = Worker::spawn("machine", &self.exit, move |stop| {
            wait_readable(ended.as_raw_fd(), stop)?;
            if !stop.is_triggered() {
                outcome.end("the machine ended");
            }
            Ok(())
        })?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    fn changed(&self, dead: u32, view: View) {
        if let Ok(dead) = u16::try_from(dead) {
            self.memory.dsm().node_died(NodeId(dead));
        }
        self.fetch.died(dead);
        self.ssi.set_alive(view.alive);
    }

    fn ram(&self) -> Vec<Range<u64>> {
        self.memory.host_ranges()
    }

    fn dsm(&self) -> DsmStatus {
        self.memory.dsm().status()
    }

    fn stop(&self) {
        self.deliver.stop();
        self.files.stop();
        let mut machine = self.machine();
        machine.stop();
        match machine.end() {
            Some(End::Failed(why)) => log::error!("cell {}: {why}", self.node),
            end => log::info!("cell {}: {end:?}", self.node),
        }
        if machine.end() != Some(End::Stopped) {
            for line in last_lines(&self.serial.history(), LAST_WORDS_LINES) {
                log::error!("cell {} said last: {line}", self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_documented_one() {
        let spec: ClusterSpec = serde_json::from_value(serde_json::json!({
            "name": "demo", "host": "kvm", "nodes": 2, "vcpus": 1, "memory_bytes": 512 << 20, "publish": [],
            "kernel": "/k", "cmdline_extra": "quiet", "root": {"lower": ["/r"], "upper": null}, "secret": "/s",
            "epoch_ns": 7, "control": "unix:/c", "state": "/x"
        }))
        .unwrap();
        let line = command_line(&spec, 1);
        for word in
            ["root=ssiroot", "ssi.cell=1", "ssi.cells=2", "ssi.epoch_ns=7", "ssi.name=demo", "panic=-1"]
        {
            assert!(line.split(' ').any(|w| w == word), "{line} lacks {word}");
        }
        assert!(line.ends_with(" quiet") && !line.contains("  "), "{line}");
    }

    #[test]
    fn last_words_are_the_last_lines_and_nothing_that_a_terminal_obeys() {
        assert_eq!(last_lines(b"one\r\ntwo\x1b[2J\nthree\n", 2), ["two[2J", "three"]);
        assert_eq!(last_lines(b"one", 2), ["one"]);
        assert!(last_lines(b"", 2).is_empty());
    }
}
