use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use crossbeam_channel::Sender;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VsockMetrics;
use crate::devices::lock;

/// What a handle asks of the worker.
#[derive(Debug)]
pub(super) enum Command {
    /// Connect to the guest's port.
    Connect {
        /// Names the command, to cancel it.
        id: u64,
        /// The guest's port.
        port: u32,
        /// The device's end.
        stream: UnixStream,
        /// Told when the guest has answered.
        answer: Sender<io::Result<()>>,
    },
    /// Nobody waits for this connection any more.
    Cancel(u64),
}

#[derive(Debug, Default)]
struct Requests {
    active: bool,
    next_id: u64,
    commands: VecDeque<Command>,
}

/// What device, worker and handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub guest_cid: u64,
    pub metrics: VsockMetrics,
    /// By host port: where accepted connections go.
    pub listeners: Mutex<BTreeMap<u32, Sender<UnixStream>>>,
    requests: Mutex<Requests>,
    event: EventFd,
}

impl Shared {
    pub fn new(guest_cid: u64) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let metrics = VsockMetrics::default();
        Ok(Self { guest_cid, metrics, listeners: Mutex::default(), requests: Mutex::default(), event })
    }

    /// Readable when there are commands.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Gives the worker a command made with a new id. False, and nothing given, if there is no driver.
    pub fn command(&self, make: impl FnOnce(u64) -> Command) -> Option<u64> {
        let id = {
            let mut requests = lock(&self.requests);
            if !requests.active {
                return None;
            }
            requests.next_id += 1;
            let id = requests.next_id;
            requests.commands.push_back(make(id));
            id
        };
        if let Err(error) = self.event.write(1) {
            log::error!("vsock event could not be written: {error}");
        }
        Some(id)
    }

    /// Takes all commands.
    pub fn take_commands(&self) -> VecDeque<Command> {
        std::mem::take(&mut lock(&self.requests).commands)
    }

    /// The driver is there, or has gone: then what was asked for fails.
    pub fn set_active(&self, active: bool) {
        let mut requests = lock(&self.requests);
        requests.active = active;
        requests.commands.clear();
    }
}
