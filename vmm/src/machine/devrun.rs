//! `ssivmm dev-run`, a hidden command for kernel developers: several cells in one process, their ssi devices joined by
//! function calls. All cells map the same slices, so that windows are plain shared memory: no coherence protocol, no
//! network. What a cell does here, it does in a cluster, faster.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ssi_proto::device::{PAGE_SIZE, PageOp, PageStatus, SLICE_ALIGN, SLICE0_BASE, TxStatus, emit_lost};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::slice_stride;
use super::{Config, End, Machine, Mapping, RamKind, RamRegion, resident_beyond};
use crate::devices::lock;
use crate::devices::terminal::{Terminal, Waker};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::ssi::{
    CellLink, Class, DeliverError, PageService, PageTask, Sent, SsiConfig, SsiDevice, SsiHandle,
};
use crate::worker::{Exit, Stop, Worker};

/// Arguments of `ssivmm dev-run`.
#[derive(Debug, Clone, clap::Args)]
pub struct DevRunArgs {
    /// Kernel of all cells: an uncompressed ELF vmlinux
    #[arg(long)]
    kernel: PathBuf,
    /// Initial RAM disk of all cells
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Number of cells
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cells: u32,
    /// Memory of each cell's slice, a multiple of 128M
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    memory: u64,
    /// Private low RAM of each cell
    #[arg(long, default_value = "128M", value_parser = parse_bytes)]
    low: u64,
    /// vCPUs of each cell
    #[arg(long, default_value_t = 1)]
    vcpus: u8,
    /// More kernel command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
}

/// A number of bytes: digits, then K, M, G or nothing.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is no size; try 256M"))?;
    number.checked_mul(1 << unit).ok_or_else(|| format!("'{text}' is too large"))
}

/// What the cells of one process know of each other.
#[derive(Debug, Default)]
struct Peers {
    handles: OnceLock<Vec<SsiHandle>>,
    // Weak: a cell that is gone takes its memory with it.
    rams: OnceLock<Vec<Weak<GuestMemoryMmap<()>>>>,
}

/// Carries messages by putting them into the other cell's inbox.
struct LocalLink {
    cell: u32,
    peers: Arc<Peers>,
    wakers: Mutex<Vec<Waker>>,
}

impl fmt::Debug for LocalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLink").field("cell", &self.cell).finish_non_exhaustive()
    }
}

impl CellLink for LocalLink {
    fn send(&self, cell: u32, _class: Class, message: &[u8]) -> Sent {
        let Some(peer) = self.peers.handles.get().and_then(|handles| handles.get(cell as usize)) else {
            return Sent::Done(TxStatus::NoSuchCell);
        };
        match peer.inbox().deliver(self.cell, message.to_vec()) {
            Ok(()) => Sent::Done(TxStatus::Accepted),
            Err(DeliverError::Full(_)) => Sent::Busy,
            Err(DeliverError::Malformed) => Sent::Done(TxStatus::Malformed),
        }
    }

    fn on_room(&self, wake: Waker) {
        lock(&self.wakers).push(wake);
    }
}

/// Fetches pages by copying them from the other cell's memory.
#[derive(Debug)]
struct LocalPages {
    peers: Arc<Peers>,
}

impl LocalPages {
    fn fetch(&self, cell: u32, remote: u64) -> Option<Box<[u8; PAGE_SIZE as usize]>> {
        let ram = self.peers.rams.get()?.get(cell as usize)?.upgrade()?;
        let mut bytes = Box::new([0; PAGE_SIZE as usize]);
        ram.read_slice(&mut bytes[..], GuestAddress(remote)).ok()?;
        Some(bytes)
    }
}

impl PageService for LocalPages {
    fn bury(&self, _: u64) {}

    fn submit(&self, op: PageOp, tasks: Vec<PageTask>) {
        for task in tasks {
            match op {
                PageOp::Fetch => match self.fetch(task.cell, task.remote) {
                    Some(bytes) => task.done.fetched(bytes),
                    None => task.done.finished(PageStatus::Failed),
                },
                // Every window always has every page.
                PageOp::Prefetch | PageOp::Release => task.done.finished(PageStatus::Done),
                // Nobody dies here alone.
                PageOp::Lost => task.done.fetched(emit_lost(&[])),
            }
        }
    }
}

/// One console on standard output: whole lines, each with the label of its console, and what looks like a prompt.
#[derive(Debug)]
struct Labelled {
    label: String,
    line: Vec<u8>,
    // The label of the line is out already, with a prompt.
    begun: bool,
}

/// A line longer than this is broken.
const LINE_MAX: usize = 4096;

impl Labelled {
    fn new(label: String) -> Box<Self> {
        Box::new(Self { label, line: Vec::new(), begun: false })
    }

    fn show(&mut self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.begun {
            write!(out, "[{}] ", self.label)?;
        }
        out.write_all(&self.line)?;
        self.begun = !self.line.ends_with(b"\n");
        self.line.clear();
        out.flush()
    }

    fn is_prompt(&self) -> bool {
        [b"# ", b"$ ", b"> ", b": ", b"? "].iter().any(|end| self.line.ends_with(*end))
    }
}

impl Write for Labelled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.show()?;
            }
        }
        if self.is_prompt() {
            self.show()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Cell {
    machine: Machine,
    handle: SsiHandle,
    exit: Exit,
    serial: Terminal,
    ended: bool,
}

/// The slices: one mapping each, which every cell uses.
fn slices(args: &DevRunArgs) -> anyhow::Result<Vec<Arc<Mapping>>> {
    let len = usize::try_from(args.memory)?;
    (0..args.cells)
        .map(|cell| {
            let name = std::ffi::CString::new(format!("slice{cell}"))?;
            let file = File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?);
            file.set_len(args.memory)?;
            Ok(Arc::new(Mapping::shared(&file, 0, len).context("mapping a slice")?))
        })
        .collect()
}

fn regions(args: &DevRunArgs, cell: u32, slices: &[Arc<Mapping>]) -> anyhow::Result<Vec<RamRegion>> {
    let stride = slice_stride(args.memory);
    let mut regions = vec![RamRegion::low(args.low)?];
    for (index, slice) in (0_u32..).zip(slices) {
        let kind = if index == cell { RamKind::Own } else { RamKind::Window };
        regions.push(RamRegion::new(SLICE0_BASE + u64::from(index) * stride, kind, slice.clone()));
    }
    Ok(regions)
}

fn build(args: &DevRunArgs) -> anyhow::Result<Vec<Cell>> {
    let slices = slices(args)?;
    let peers = Arc::new(Peers::default());
    let epoch_ns = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let mut cells = Vec::new();
    let mut links = Vec::new();
    for cell in 0..args.cells {
        let exit = Exit::new()?;
        let link = Arc::new(LocalLink { cell, peers: peers.clone(), wakers: Mutex::default() });
        let config = SsiConfig {
            cell,
            cells: args.cells,
            slice_stride: slice_stride(args.memory),
            slice_size: args.memory,
            low_end: args.low,
            epoch_ns,
        };
        let ssi = SsiDevice::new(config, link.clone(), Arc::new(LocalPages { peers: peers.clone() }), &exit)?;
        let handle = ssi.handle();
        let (serial, hvc) = (Terminal::new(), Terminal::new());
        serial.add_sink(Labelled::new(cell.to_string()));
        hvc.add_sink(Labelled::new(format!("{cell} hvc0")));
        let devices: Vec<Box<dyn VirtioDevice>> =
            vec![Box::new(ssi), Box::new(Rng::new(&exit)), Box::new(Console::new(&hvc, &exit)?)];
        let config = Config {
            name: format!("cell{cell}"),
            vcpus: args.vcpus,
            async_pf: false,
            lost_faults: Arc::default(),
            kernel: args.kernel.clone(),
            initrd: args.initrd.clone(),
            cmdline: format!(
                "console=ttyS0 reboot=k panic=-1 iommu=off ssi.cell={cell} ssi.cells={} ssi.epoch_ns={epoch_ns} {}",
                args.cells, args.append
            ),
            serial,
            exit: exit.clone(),
        };
        let machine = Machine::new(&config, regions(args, cell, &slices)?, devices)
            .with_context(|| format!("cell {cell}"))?;
        cells.push(Cell { machine, handle, exit, serial: config.serial, ended: false });
        links.push(link);
    }
    join(&peers, &cells, &links)?;
    Ok(cells)
}

/// Makes the cells known to each other; all are alive.
fn join(peers: &Peers, cells: &[Cell], links: &[Arc<LocalLink>]) -> anyhow::Result<()> {
    let handles: Vec<_> = cells.iter().map(|cell| cell.handle.clone()).collect();
    for (index, handle) in handles.iter().enumerate() {
        for link in links.iter().filter(|link| link.cell as usize != index) {
            lock(&link.wakers).iter().for_each(|wake| handle.inbox().on_room(wake.clone()));
        }
        handle.set_alive(u64::MAX);
    }
    let rams = cells.iter().filter_map(|cell| cell.machine.ram().map(Arc::downgrade)).collect();
    ensure!(peers.handles.set(handles).is_ok() && peers.rams.set(rams).is_ok(), "cells were joined twice");
    Ok(())
}

/// Types standard input into `serial`, until its end or `stop`.
fn type_stdin(stop: &Stop, serial: &Terminal) -> anyhow::Result<()> {
    let mut stdin = io::stdin();
    let mut bytes = [0; 4096];
    loop {
        let stopped = borrowed(stop);
        let mut fds =
            [PollFd::new(stopped, PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        if stop.is_triggered() {
            return Ok(());
        }
        match stdin.read(&mut bytes)? {
            0 => return Ok(()),
            len => {
                let taken = serial.push_input(&bytes[..len]);
                if taken < len {
                    log::warn!("{} bytes of input do not fit and are lost", len - taken);
                }
            }
        }
    }
}

fn borrowed(stop: &Stop) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `stop` is borrowed.
    unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) }
}

/// Waits until one more machine has ended, stops it, and tells the other cells of its death.
fn wait_for_an_end(cells: &mut [Cell]) -> anyhow::Result<()> {
    let mut fds: Vec<_> = cells
        .iter()
        .filter(|cell| !cell.ended)
        .map(|cell| PollFd::new(borrowed(&cell.exit), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    for cell in cells.iter_mut().filter(|cell| !cell.ended && cell.exit.is_triggered()) {
        cell.machine.stop();
        cell.ended = true;
    }
    let alive =
        cells.iter().enumerate().filter(|(_, cell)| !cell.ended).fold(0, |mask, (n, _)| mask | 1_u64 << n);
    cells.iter().for_each(|cell| cell.handle.set_alive(alive));
    Ok(())
}

/// Boots the cells and runs them until the last one has ended; true if none of them failed.
///
/// # Errors
/// If a machine cannot be made, or the arguments are not those of a cluster.
pub fn run(args: &DevRunArgs) -> anyhow::Result<bool> {
    ensure!(
        args.memory > 0 && args.memory.is_multiple_of(SLICE_ALIGN),
        "--memory is a multiple of {}M, at least that",
        SLICE_ALIGN >> 20
    );
    let mut cells = build(args)?;
    let serial = cells[0].serial.clone();
    let stdin_exit = Exit::new()?;
    let _stdin = Worker::spawn("stdin", &stdin_exit, move |stop| type_stdin(stop, &serial))?;
    for cell in &mut cells {
        cell.machine.run()?;
    }
    while cells.iter().any(|cell| !cell.ended) {
        wait_for_an_end(&mut cells)?;
    }
    let regions: Vec<_> = cells.iter().flat_map(|cell| cell.machine.regions().iter().cloned()).collect();
    match resident_beyond(&regions) {
        Ok(bytes) => {
            log::info!("resident beyond the guests' memory: {} KiB for {} cells", bytes >> 10, cells.len())
        }
        Err(error) => log::warn!("resident memory cannot be told: {error}"),
    }
    for (index, cell) in cells.iter().enumerate() {
        let counters: Vec<_> =
            cell.handle.metrics().snapshot().into_iter().filter(|(_, count)| *count > 0).collect();
        log::info!("cell {index}: {:?}; ssi: {counters:?}", cell.machine.end());
    }
    Ok(cells.iter().all(|cell| !matches!(cell.machine.end(), Some(End::Failed(_)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        assert_eq!(parse_bytes("256M"), Ok(256 << 20));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for bad in ["", "M", "-1", "1.5G", "99999999999G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
