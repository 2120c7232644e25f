//! Nodes that are nothing but their DSM, each a process of its own, joined over loopback TCP by the fabric's connections: what
//! benchmarks and litmus tests run on.
//!
//! The process that starts a [`Rig`] is one of the nodes. It starts its own program again for the others, which find out by
//! [`child`] what they are, and then do as they are told ([`Program`]) until the first one ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child as Process, Command};
use std::sync::Arc;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use ssi_dsm::memory::PAGE_SIZE;
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_dsm::{Access, NodeId};

use super::{BUSY_POLL_US, Dsm, StreamLinks, Tuning};
use crate::worker::{Exit, Worker};

/// Set for the processes that a rig starts.
const CHILD: &str = "SSIVMM_RIG_CHILD";
/// First byte of a connection: from a child to the first process, of the DSM, of the program.
const CONTROL: u8 = b'c';
const PAGES: u8 = b'd';
const STREAM: u8 = b's';

/// What the nodes of a rig are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// How many, at least 1.
    pub nodes: u16,
    /// Of each slice: a multiple of 2 MiB, at most 1 GiB.
    pub slice_bytes: u64,
    /// How long a granted page stays at least, in microseconds.
    pub hold_us: u64,
    /// How long it stays at most.
    pub hold_max_us: u64,
    /// Pages that are fetched ahead at most.
    pub prefetch_pages: u64,
    /// Pages of a window that take memory at most; `u64::MAX`: no bound.
    pub window_pages: u64,
    /// Pages of a slice whose changes are followed, for differences.
    pub twin_pages: u64,
    /// See [`Tuning`].
    pub busy_poll_us: u64,
    /// Has each node processors of its own? Nodes of a cluster have: two that share one are woken by a switch of threads, which
    /// no message between machines is. With fewer processors than nodes, nodes 0 and 1 are apart.
    pub apart: bool,
}

impl Layout {
    /// So many nodes with slices of so many bytes: no hold, no bound, nothing fetched ahead, placed by the scheduler.
    pub fn new(nodes: u16, slice_bytes: u64) -> Self {
        Self {
            nodes,
            slice_bytes,
            hold_us: 0,
            hold_max_us: 0,
            prefetch_pages: 0,
            window_pages: u64::MAX,
            twin_pages: 0,
            busy_poll_us: BUSY_POLL_US,
            apart: false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Birth {
    me: u16,
    port: u16,
    layout: Layout,
}

/// One node: its DSM and its connections.
#[derive(Debug)]
pub struct RigNode {
    /// Which.
    pub me: NodeId,
    /// Its DSM, running.
    pub dsm: Arc<Dsm>,
    layout: Layout,
    links: Arc<StreamLinks>,
    exit: Exit,
}

impl RigNode {
    fn new(me: NodeId, layout: Layout) -> anyhow::Result<Self> {
        if layout.apart {
            place(me, layout.nodes)?;
        }
        let Layout { nodes, slice_bytes, busy_poll_us, .. } = layout;
        let slices = SliceMap { base: 4 << 30, stride: 1 << 30, size: slice_bytes, nodes };
        let dsm = Dsm::new(Config {
            hold_us: layout.hold_us,
            hold_max_us: layout.hold_max_us,
            prefetch_pages: layout.prefetch_pages,
            window_pages: layout.window_pages,
            twin_pages: layout.twin_pages,
            ..Config::new(me, slices)
        })?;
        let (links, exit) = (Arc::new(StreamLinks::new(nodes)), Exit::new()?);
        dsm.start(links.clone(), &exit, Tuning { busy_poll_us, ..Tuning::default() })?;
        Ok(Self { me, dsm, layout, links, exit })
    }

    /// How many nodes the rig has.
    pub fn nodes(&self) -> u16 {
        self.layout.nodes
    }

    /// Starts a thread that uses the node.
    ///
    /// # Errors
    /// If none can be had.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<Worker> {
        Worker::spawn(name, &self.exit, move |_| {
            body();
            Ok(())
        })
    }

    /// Page `index` of slice `slice`, in this process. Valid while `self` lives.
    ///
    /// # Errors
    /// There is no such page.
    pub fn page(&self, slice: NodeId, index: usize) -> anyhow::Result<*mut u8> {
        let memory = self.dsm.memory(slice).with_context(|| format!("there is no slice {slice}"))?;
        ensure!(index < memory.pages(), "page {index} is outside the slice");
        // SAFETY: the page lies in the mapping, which lives as long as `self`.
        Ok(unsafe { memory.guest_addr().add(index * PAGE_SIZE) })
    }

    /// Reads, or writes, the first byte of a page.
    ///
    /// # Errors
    /// There is no such page.
    pub fn touch(&self, slice: NodeId, index: usize, access: Access) -> anyhow::Result<()> {
        let page = self.page(slice, index)?;
        // SAFETY: the page is mapped memory of this process, used by nobody but volatile and atomic accesses.
        unsafe {
            match access {
                Access::Read => drop(std::hint::black_box(page.read_volatile())),
                Access::Write => page.write_volatile(1),
            }
        }
        Ok(())
    }

    fn join(&self, to: NodeId, stream: TcpStream) -> anyhow::Result<()> {
        Ok(self.links.join(to, Arc::new(stream), &self.dsm, &self.exit)?)
    }
}

/// Gives this process its share of the processors.
fn place(me: NodeId, nodes: u16) -> anyhow::Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the processors")?;
    let processors: Vec<usize> =
        (0..CpuSet::count()).filter(|n| allowed.is_set(*n).unwrap_or_default()).collect();
    let mut share = CpuSet::new();
    for n in share_of(usize::from(me.0), usize::from(nodes), &processors) {
        share.set(n)?;
    }
    sched_setaffinity(Pid::from_raw(0), &share).context("choosing processors")
}

fn share_of(node: usize, nodes: usize, processors: &[usize]) -> Vec<usize> {
    let shares = processors.len().min(nodes);
    let mine = |(n, _): &(usize, &usize)| n * shares / processors.len() == node % shares;
    processors.iter().enumerate().filter(mine).map(|(_, processor)| *processor).collect()
}

/// What the nodes do that a rig starts.
pub trait Program: Sync {
    /// Does what a line says, and answers with a line.
    ///
    /// # Errors
    /// Ends the node, and with it the rig.
    fn command(&self, node: &RigNode, words: &[&str]) -> anyhow::Result<String>;

    /// Serves a connection that [`Rig::stream`] has made, on a thread of its own.
    fn stream(&self, stream: TcpStream);
}

/// Lines to and from another process.
#[derive(Debug)]
pub struct Control(BufReader<TcpStream>);

impl Control {
    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(self.0.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    /// `None` at the end.
    fn hear(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = String::new();
        let got = self.0.read_line(&mut line)?;
        Ok((got > 0).then(|| line.trim_end().to_owned()))
    }
}

fn connect(port: u16, kind: u8, from: NodeId) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind, u8::try_from(from.0)?])?;
    Ok(stream)
}

fn accept(listener: &TcpListener) -> anyhow::Result<(TcpStream, u8, NodeId)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut hello = [0; 2];
    stream.read_exact(&mut hello)?;
    Ok((stream, hello[0], NodeId(hello[1].into())))
}

/// Is this process one that a rig has started? Then it does what it is told, and this returns when that is over.
///
/// # Errors
/// No memory, userfaultfd or connection can be had; those of `program`.
pub fn child(program: &'static dyn Program) -> anyhow::Result<bool> {
    let Ok(birth) = std::env::var(CHILD) else { return Ok(false) };
    let Birth { me, port, layout } = serde_json::from_str(&birth)?;
    let me = NodeId(me);
    let node = RigNode::new(me, layout)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut control = Control(BufReader::new(connect(port, CONTROL, me)?));
    control.say(&listener.local_addr()?.port().to_string())?;
    let mut streams = vec![];
    while let Some(line) = control.hear()? {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["accept"] => {
                let (stream, kind, from) = accept(&listener)?;
                if kind == STREAM {
                    streams.push(Worker::spawn("rig-stream", &node.exit, move |_| {
                        program.stream(stream);
                        Ok(())
                    })?);
                } else {
                    node.join(from, stream)?;
                }
                "ok".to_owned()
            }
            ["connect", to, port] => {
                node.join(NodeId(to.parse()?), connect(port.parse()?, PAGES, me)?)?;
                "ok".to_owned()
            }
            words => program.command(&node, words)?,
        };
        control.say(&answer)?;
    }
    Ok(true)
}

/// Another node's process. Ends with the rig, however that ends.
#[derive(Debug)]
struct Remote {
    control: Control,
    port: u16,
    process: Process,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All nodes, as the process that started them sees them.
#[derive(Debug)]
pub struct Rig {
    /// This process's own.
    pub node: Arc<RigNode>,
    remotes: BTreeMap<NodeId, Remote>,
}

impl Rig {
    /// Starts the other nodes: this program with `args`, which gets to a call of [`child`]. This process is node `me`.
    ///
    /// # Errors
    /// No process, memory, userfaultfd or connection can be had.
    pub fn start(me: NodeId, layout: Layout, args: &[OsString]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let exe = std::env::current_exe()?;
        let mut remotes = BTreeMap::new();
        for node in (0..layout.nodes).filter(|node| *node != me.0) {
            let birth = serde_json::to_string(&Birth { me: node, port, layout })?;
            let process = Command::new(&exe)
                .args(args)
                .env(CHILD, birth)
                .stdout(std::process::Stdio::null())
                .spawn()
                .with_context(|| format!("starting {}", exe.display()))?;
            let (stream, _, from) = accept(&listener)?;
            let mut remote = Remote { control: Control(BufReader::new(stream)), port: 0, process };
            let line = remote.control.hear()?.context("a node has ended")?;
            remote.port = line.parse().with_context(|| format!("a node's port: {line:?}"))?;
            remotes.insert(from, remote);
        }
        let mut rig = Self { node: Arc::new(RigNode::new(me, layout)?), remotes };
        let ports: Vec<(NodeId, u16)> = rig.remotes.iter().map(|(node, r)| (*node, r.port)).collect();
        for (i, (to, port)) in ports.iter().enumerate() {
            let stream = connect(*port, PAGES, me)?;
            rig.tell(*to, "accept")?;
            rig.node.join(*to, stream)?;
            for (from, _) in &ports[..i] {
                rig.say(*to, "accept")?;
                rig.tell(*from, &format!("connect {} {port}", to.0))?;
                rig.hear(*to)?;
            }
        }
        Ok(rig)
    }

    fn remote(&mut self, node: NodeId) -> anyhow::Result<&mut Remote> {
        self.remotes.get_mut(&node).with_context(|| format!("{node} is no other node of the rig"))
    }

    /// Tells a node what to do; it does it meanwhile.
    ///
    /// # Errors
    /// There is no such node, or it has ended.
    pub fn say(&mut self, node: NodeId, line: &str) -> anyhow::Result<()> {
        self.remote(node)?.control.say(line)
    }

    /// Waits for a node's answer.
    ///
    /// # Errors
    /// There is no such node, or it has ended.
    pub fn hear(&mut self, node: NodeId) -> anyhow::Result<String> {
        self.remote(node)?.control.hear()?.with_context(|| format!("{node} has ended; its message is above"))
    }

    /// Tells a node what to do, and waits until it is done.
    ///
    /// # Errors
    /// There is no such node, or it has ended.
    pub fn tell(&mut self, node: NodeId, line: &str) -> anyhow::Result<String> {
        self.say(node, line)?;
        self.hear(node)
    }

    /// Tells all other nodes the same, does `mine` meanwhile, and returns the others' answers in the order of the nodes.
    ///
    /// # Errors
    /// A node has ended; those of `mine`.
    pub fn all(
        &mut self,
        line: &str,
        mine: impl FnOnce(&RigNode) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let others: Vec<NodeId> = self.remotes.keys().copied().collect();
        for node in &others {
            self.say(*node, line)?;
        }
        mine(&self.node)?;
        others.into_iter().map(|node| self.hear(node)).collect()
    }

    /// A connection of its own to a node, which [`Program::stream`] serves there.
    ///
    /// # Errors
    /// There is no such node, or it has ended.
    pub fn stream(&mut self, node: NodeId) -> anyhow::Result<TcpStream> {
        let (port, me) = (self.remote(node)?.port, self.node.me);
        let stream = connect(port, STREAM, me)?;
        self.tell(node, "accept")?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_are_apart_share_no_processor_while_there_are_enough() {
        let all = |processors: &[usize]| [0, 1, 2].map(|node| share_of(node, 3, processors));
        assert_eq!(all(&[0, 1, 2, 5]), [vec![0, 1], vec![2], vec![5]]);
        assert_eq!(all(&[3, 4]), [vec![3], vec![4], vec![3]]);
        assert_eq!(all(&[7]), [vec![7], vec![7], vec![7]]);
    }
}
