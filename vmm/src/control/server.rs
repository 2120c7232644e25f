//! The controller: one session, one request.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ssi_proto::frame::{Frame, Kind};
use ssi_proto::request::{AGENT_PORT, NodeStatus, Pong, Process, Progress, Request, Response, Status};

use super::cells::{CellState, Cells};
use super::client::Client;
use super::migrate::{migrate, processes};
use crate::fabric::accept::{Acceptor, Identity, Reception};
use crate::fabric::relay::relay;
use crate::fabric::stream::{Listener, Pipe, SharedStream};
use crate::fabric::wire::{Class, Hello, Peer, Refusal};
use crate::launch::{Address, ClusterSpec};
use crate::worker::{Exit, Stop, Worker};

/// An agent that is asked for a list answers within this.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries to reach an agent that is not up yet.
const PING_EVERY: Duration = Duration::from_millis(100);
/// An agent that takes a connection answers a ping within this, or is asked again.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Cells get this long to write back their files and stop, then their nodes are stopped.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(30);

/// What sessions share.
struct Shared {
    spec: ClusterSpec,
    cells: Arc<dyn Cells>,
    up: Mutex<BTreeSet<u32>>,
    started: Instant,
    /// Triggered when the cluster was shut down, after the answer has left.
    done: Stop,
    exit: Exit,
}

/// The controller and its threads. Dropping it ends them and every session.
pub struct Controller {
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
    watchers: Vec<Worker>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("cluster", &self.shared.spec.name).finish_non_exhaustive()
    }
}

impl Controller {
    /// Listens at the control address of `spec`. `done` is triggered when somebody had the cluster shut down.
    ///
    /// # Errors
    /// If the address or a thread cannot be had.
    pub fn start(
        spec: &ClusterSpec,
        identity: Identity,
        cells: Arc<dyn Cells>,
        done: Stop,
        exit: &Exit,
    ) -> io::Result<Self> {
        let listener = Listener::bind(&spec.control)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {}: {e}", spec.control)))?;
        let shared = Arc::new(Shared {
            spec: spec.clone(),
            cells,
            up: Mutex::default(),
            started: Instant::now(),
            done,
            exit: exit.clone(),
        });
        let acceptor = Acceptor::start(listener, identity, Arc::new(Desk(shared.clone())), exit)?;
        let watchers = (0..spec.nodes)
            .map(|cell| {
                let shared = shared.clone();
                Worker::spawn(&format!("watch-{cell}"), exit, move |stop| {
                    watch(&shared, cell, stop);
                    Ok(())
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self { shared, acceptor: Some(acceptor), watchers })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<&Address> {
        self.acceptor.as_ref().map(Acceptor::address)
    }

    /// State of `cell`.
    pub fn state(&self, cell: u32) -> CellState {
        self.shared.state(cell)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.acceptor = None;
        self.watchers.clear();
    }
}

/// Asks the agent of `cell` until it answers.
fn watch(shared: &Shared, cell: u32, stop: &Stop) {
    while !stop.is_triggered() {
        let answer = shared.cells.connect(cell, AGENT_PORT).and_then(|stream| {
            let client = Client::over(stream);
            client.set_timeout(Some(PING_TIMEOUT)).map_err(|e| e.to_string())?;
            client.ask::<Pong>(&Request::Ping).map_err(|e| e.to_string())
        });
        match answer {
            Ok(pong) if pong.cell == cell => {
                log::info!("cell {cell} is up");
                shared.up.lock().unwrap_or_else(PoisonError::into_inner).insert(cell);
                return;
            }
            Ok(pong) => log::error!("the agent of cell {cell} says that it is cell {}", pong.cell),
            Err(error) => log::debug!("cell {cell} does not answer yet: {error}"),
        }
        std::thread::sleep(PING_EVERY);
    }
}

struct Desk(Arc<Shared>);

impl Reception for Desk {
    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.class == Class::Session && hello.from == Peer::Client {
            Ok(())
        } else {
            Err(Refusal::Unexpected)
        }
    }

    fn serve(&self, _: Hello, stream: SharedStream) {
        if let Err(error) = self.0.serve(&stream) {
            log::debug!("a session failed: {error:#}");
        }
        stream.shutdown();
    }
}

fn answer(stream: &SharedStream, response: &Response) -> anyhow::Result<()> {
    Ok(Frame::json(Kind::Response, response)?.write_to(&mut Pipe(stream.clone()))?)
}

fn failed(stream: &SharedStream, error: impl Into<String>, code: Option<&str>) -> anyhow::Result<()> {
    answer(stream, &Response::failed(error, code))
}

impl Shared {
    fn state(&self, cell: u32) -> CellState {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner).contains(&cell);
        match (up, self.cells.is_alive(cell)) {
            (true, true) => CellState::Up,
            (false, true) => CellState::Starting,
            (_, false) => CellState::Dead,
        }
    }

    fn serve(&self, stream: &SharedStream) -> anyhow::Result<()> {
        stream.allow_slow_reader()?;
        let Some(frame) = Frame::read_from(&mut Pipe(stream.clone()))? else { return Ok(()) };
        let request: Request = match frame.record(Kind::Request) {
            Ok(request) => request,
            Err(error) => return failed(stream, format!("not a request: {error}"), Some("EINVAL")),
        };
        match request {
            Request::Status => answer(stream, &Response::done(&self.status())?),
            Request::Ps => match self.ps() {
                Ok(all) => answer(stream, &Response::done(&all)?),
                Err(error) => failed(stream, error, None),
            },
            Request::Exec(exec) => {
                let cell = exec.cell;
                let connected = self.known(cell).and_then(|()| match self.cells.connect(cell, AGENT_PORT) {
                    Ok(stream) => Ok(stream),
                    Err(error) => Err((format!("cell {cell}: {error}"), "EHOSTUNREACH")),
                });
                match connected {
                    Err((error, code)) => failed(stream, error, Some(code)),
                    Ok(agent) => {
                        frame.write_to(&mut Pipe(agent.clone()))?;
                        Ok(relay(stream, &agent, &self.exit)?)
                    }
                }
            }
            Request::Migrate { pid, cell, eager } => match migrate(self.cells.as_ref(), pid, cell, eager) {
                Ok(moved) => answer(stream, &Response::done(&moved)?),
                Err(refused) => failed(stream, refused.error, refused.code.as_deref()),
            },
            Request::Console { cell } => {
                match self.known(cell).and_then(|()| {
                    self.cells.console(cell).map_err(|e| (format!("cell {cell}: {e}"), "EHOSTUNREACH"))
                }) {
                    Ok(console) => self.console(stream, &console),
                    Err((error, code)) => failed(stream, error, Some(code)),
                }
            }
            Request::Shutdown => self.shutdown(stream),
            Request::Ping => failed(stream, "ping is for a cell's agent; ask for status", Some("EOPNOTSUPP")),
        }
    }

    fn known(&self, cell: u32) -> Result<(), (String, &'static str)> {
        let count = self.cells.count();
        if cell >= count {
            return Err((format!("there is no cell {cell}; the cells are 0 to {}", count - 1), "ENODEV"));
        }
        if !self.cells.is_alive(cell) {
            return Err((format!("cell {cell} is dead"), "EHOSTUNREACH"));
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let nodes = (0..self.cells.count()).map(|node| {
            let state = self.state(node);
            let stats = if state == CellState::Dead { None } else { self.cells.stats(node) };
            let all = match state {
                CellState::Up => processes(self.cells.as_ref(), node).unwrap_or_default(),
                _ => Vec::new(),
            };
            let here = all.iter().filter(|process| !process.deputy && !process.command.starts_with('['));
            let guests = all.iter().filter(|process| !process.deputy && process.home != node);
            NodeStatus {
                node,
                state: state.word().to_owned(),
                vcpus: self.spec.vcpus,
                memory_bytes: self.spec.memory_bytes,
                vmm_overhead_bytes: stats.as_ref().map_or(0, |stats| stats.overhead_bytes),
                processes: u32::try_from(here.count()).unwrap_or(u32::MAX),
                guests: u32::try_from(guests.count()).unwrap_or(u32::MAX),
                dsm: stats.map(|stats| stats.dsm).unwrap_or_default(),
            }
        });
        Status {
            name: self.spec.name.clone(),
            host: self.spec.host.to_string(),
            publish: self.spec.publish.iter().map(ToString::to_string).collect(),
            uptime_s: self.started.elapsed().as_secs(),
            nodes: nodes.collect(),
        }
    }

    /// Every process of the cluster that answers, deputies included.
    fn ps(&self) -> Result<Vec<Process>, String> {
        let mut all = Vec::new();
        for cell in (0..self.cells.count()).filter(|cell| self.cells.is_alive(*cell)) {
            all.extend(processes(self.cells.as_ref(), cell)?);
        }
        all.sort_by_key(|process| (process.pid, process.deputy));
        Ok(all)
    }

    /// Bytes of the console become STDOUT frames; STDIN frames become bytes; an empty one ends it.
    fn console(&self, stream: &SharedStream, console: &SharedStream) -> anyhow::Result<()> {
        answer(stream, &Response::done(&())?)?;
        let (from, to) = (console.clone(), stream.clone());
        let reader = Worker::spawn("console", &self.exit, move |_| {
            let mut buffer = [0; 4096];
            while let Ok(n) = from.read(&mut buffer) {
                let frame = Frame::bytes(Kind::Stdout, &buffer[..n]);
                if n == 0 || frame.write_to(&mut Pipe(to.clone())).is_err() {
                    break;
                }
            }
            to.shutdown();
            Ok(())
        })?;
        while let Ok(Some(frame)) = Frame::read_from(&mut Pipe(stream.clone())) {
            if frame.kind == Kind::Stdin && frame.payload.is_empty() {
                break;
            }
            if frame.kind == Kind::Stdin && console.write_vectored(&[IoSlice::new(&frame.payload)]).is_err() {
                break;
            }
        }
        console.shutdown();
        drop(reader);
        Ok(())
    }

    /// Stops every cell, then the nodes, then says so, then ends the controller.
    fn shutdown(&self, stream: &SharedStream) -> anyhow::Result<()> {
        let say = |message: String| {
            log::info!("{message}");
            if let Ok(frame) = Frame::json(Kind::Progress, &Progress { message }) {
                // Whoever asked may be gone: the shutdown goes on.
                let _ = frame.write_to(&mut Pipe(stream.clone()));
            }
        };
        let deadline = Instant::now() + SHUTDOWN_WITHIN;
        let mut waiting: Vec<u32> = Vec::new();
        for cell in (0..self.cells.count()).filter(|cell| self.state(*cell) == CellState::Up) {
            say(format!("cell {cell}: shutting down"));
            let asked = self.cells.connect(cell, AGENT_PORT).and_then(|agent| {
                let client = Client::over(agent);
                client.set_timeout(Some(PING_TIMEOUT)).map_err(|e| e.to_string())?;
                client.ask_with(&Request::Shutdown, |_| {}).map_err(|e| e.to_string())
            });
            match asked {
                Ok(_) => waiting.push(cell),
                Err(error) => say(format!("cell {cell} cannot be asked to stop: {error}")),
            }
        }
        while !waiting.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            waiting.retain(|cell| self.cells.is_alive(*cell));
        }
        for cell in waiting {
            say(format!(
                "cell {cell} did not stop within {} s; its node is stopped",
                SHUTDOWN_WITHIN.as_secs()
            ));
        }
        self.cells.stop();
        let answered = answer(stream, &Response::done(&())?);
        self.done.trigger();
        answered
    }
}
