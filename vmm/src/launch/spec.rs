//! The description of one cluster: all that the launcher needs, in one JSON document.
//!
//! `ssivmm up` writes it; on `--host kvm` the launcher of the same machine reads it, on `--host lab` it travels into
//! the emulated host and the launcher there reads it. Paths are those of the machine where the launcher runs.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use libc::CPU_SETSIZE;
use serde::{Deserialize, Serialize};
use ssi_proto::device::{MAX_CELLS, PAGE_SIZE, SLICE_ALIGN};

use crate::dsm::BUSY_POLL_US;

/// Bytes of each cell's private low RAM (`docs/interfaces.md`, address map).
pub const LOW_RAM_BYTES: u64 = 128 << 20;
/// Least memory of a node: low RAM and the smallest slice.
pub const MEMORY_MIN_BYTES: u64 = LOW_RAM_BYTES + SLICE_ALIGN;
/// Most memory of a node. Slices must fit the 46 physical address bits that every supported processor has, for 64 cells.
pub const MEMORY_MAX_BYTES: u64 = 512 << 30;
/// Most virtual CPUs of a node.
pub const VCPUS_MAX: u32 = 8;
/// Longest time that a thread of the DSM may poll, in microseconds.
pub const BUSY_POLL_MAX_US: u64 = 10_000;
/// Least pages of a window: a few instructions' worth, and what is fetched ahead.
pub const WINDOW_PAGES_MIN: u64 = 256;
/// Most bytes of a Unix socket's path (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Most characters of a cluster's name: it is part of socket paths, which end at 107 bytes.
pub const NAME_MAX: usize = 32;

/// Why a description is refused, for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

fn refuse<T>(why: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError(why.into()))
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Its name: 1 to 32 of `a-z 0-9 -`, not beginning with `-`. Also the guests' host name.
    pub name: String,
    /// Where the nodes run; what `status` shows.
    pub host: HostKind,
    /// How many nodes, 1 to 64.
    pub nodes: u32,
    /// Virtual CPUs of each node, 1 to 8.
    pub vcpus: u32,
    /// Memory of each node in bytes, low RAM included; a multiple of 128 MiB, at least 256 MiB.
    pub memory_bytes: u64,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// The cells' kernel: an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// Added to the end of the cells' kernel command line; usually empty.
    #[serde(default)]
    pub cmdline_extra: String,
    /// The root file system.
    pub root: RootSpec,
    /// File that holds the cluster's secret, 32 bytes, mode 0600.
    pub secret: PathBuf,
    /// CLOCK_REALTIME, in nanoseconds, of the cluster's epoch.
    pub epoch_ns: u64,
    /// Where the controller listens.
    pub control: Address,
    /// Directory of sockets, logs and configuration files; exists, mode 0700.
    pub state: PathBuf,
    /// How the processes reach one another.
    #[serde(default)]
    pub fabric: FabricSpec,
    /// How the nodes keep their memory coherent.
    #[serde(default)]
    pub dsm: DsmSpec,
}

/// How the nodes of a cluster keep their memory coherent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DsmSpec {
    /// The longest time that a thread polls for a message before it sleeps, in microseconds, at most 10,000; 0: it sleeps at once.
    pub busy_poll_us: u64,
    /// Processors of the host for the threads that serve the faults of a node: that of slice n runs on the n-th, counted round. Empty: on any.
    pub cpus: Vec<u32>,
    /// Memory of a node for pages of the others, in bytes, divided evenly among its windows; `None`: no bound.
    pub window_memory_bytes: Option<u64>,
    /// Have cells KVM's asynchronous page faults? They take pages for writing that are only read.
    pub async_pf: bool,
}

impl Default for DsmSpec {
    fn default() -> Self {
        Self { busy_poll_us: BUSY_POLL_US, cpus: Vec::new(), window_memory_bytes: None, async_pf: false }
    }
}

/// Where nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// On the machine's own KVM.
    Kvm,
    /// Inside an emulated host.
    Lab,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        })
    }
}

/// The root file system that all cells share: an overlay that the I/O server mounts in its own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootSpec {
    /// Read-only layers, uppermost first (`tools`, then `root`): a directory is used as it is; an image file or a block
    /// device is mounted as erofs.
    pub lower: Vec<PathBuf>,
    /// The writable layer: a directory on a file system that can be an overlay's upper (`upper/` and `work/` are made in it).
    /// `None`: a tmpfs, lost when the cluster ends.
    pub upper: Option<PathBuf>,
}

/// How the processes of a cluster reach one another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FabricSpec {
    /// Unix sockets in the state directory's `fabric/`.
    #[default]
    Unix,
    /// TCP: the I/O server listens on `base_port`, node n on `base_port + 1 + n`.
    Tcp {
        /// Address to listen on and to connect to.
        host: String,
        /// First port.
        base_port: u16,
    },
}

/// Where a process listens: `unix:/path` or `tcp:host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(String, u16),
}

impl FromStr for Address {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.len() > SOCKET_PATH_MAX {
                return refuse(format!("{text}: a Unix socket's path is absolute and has at most 107 bytes"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let parsed = text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':'));
        match parsed.map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) if !host.is_empty() => Ok(Self::Tcp(host.to_owned(), port)),
            _ => refuse(format!("{text}: an address is unix:/path or tcp:host:port")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// A published port: connections to `host` on the machine reach `guest` of the cluster's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// Address of the machine to listen on; 127.0.0.1 unless given.
    pub address: Ipv4Addr,
    /// Port of the machine.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
}

impl FromStr for Publish {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let bad =
            || SpecError(format!("{text}: a published port is [ADDRESS:]HOST:GUEST, for example 8080:80"));
        let port = |part: &str| part.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
        let parts: Vec<&str> = text.split(':').collect();
        let (address, host, guest) = match parts[..] {
            [host, guest] => (Ipv4Addr::LOCALHOST, host, guest),
            [address, host, guest] => (address.parse().map_err(|_| bad())?, host, guest),
            _ => return Err(bad()),
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)? })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address != Ipv4Addr::LOCALHOST {
            write!(f, "{}:", self.address)?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl TryFrom<String> for Publish {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> Self {
        publish.to_string()
    }
}

/// Is `name` a cluster's name?
///
/// # Errors
/// [`SpecError`] says what is wrong.
pub fn check_name(name: &str) -> Result<(), SpecError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || name.starts_with('-') || !name.chars().all(allowed) {
        return refuse(format!(
            "{name:?} is not a name for a cluster: 1 to {NAME_MAX} of a-z, 0-9 and -, not beginning with -"
        ));
    }
    Ok(())
}

impl ClusterSpec {
    /// Checks every number and name; no file is looked at.
    ///
    /// # Errors
    /// [`SpecError`] says what is wrong and what is allowed.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name(&self.name)?;
        if !(1..=MAX_CELLS).contains(&self.nodes) {
            return refuse(format!("{} nodes: a cluster has 1 to {MAX_CELLS}", self.nodes));
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return refuse(format!("{} virtual CPUs: a node has 1 to {VCPUS_MAX}", self.vcpus));
        }
        let memory = self.memory_bytes;
        if !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&memory) || !memory.is_multiple_of(SLICE_ALIGN) {
            return refuse(format!(
                "{memory} bytes of memory: a node has a multiple of 128 MiB, from 256 MiB to 512 GiB"
            ));
        }
        for (i, publish) in self.publish.iter().enumerate() {
            if self.publish[..i].iter().any(|p| (p.address, p.host) == (publish.address, publish.host)) {
                return refuse(format!("port {} is published twice", publish.host));
            }
        }
        if let FabricSpec::Tcp { base_port, .. } = &self.fabric
            && u32::from(*base_port) + self.nodes > u32::from(u16::MAX)
        {
            return refuse(format!("fabric ports from {base_port} on: {} nodes do not fit", self.nodes));
        }
        // `fabric/node-63.sock` is the longest.
        let socket = self.state.as_os_str().len() + "/fabric/node-63.sock".len();
        if self.fabric == FabricSpec::Unix && socket > SOCKET_PATH_MAX {
            return refuse(format!(
                "{}: this directory's name is too long for the sockets in it; choose a shorter one with SSIVMM_STATE",
                self.state.display()
            ));
        }
        if self.dsm.busy_poll_us > BUSY_POLL_MAX_US {
            return refuse(format!(
                "{} us of polling: a thread of the DSM polls for at most {BUSY_POLL_MAX_US} us",
                self.dsm.busy_poll_us
            ));
        }
        if let Some(cpu) = self.dsm.cpus.iter().find(|cpu| **cpu >= CPU_SETSIZE as u32) {
            return refuse(format!(
                "processor {cpu} for threads of the DSM: there are at most {CPU_SETSIZE}"
            ));
        }
        if let Some(bytes) = self.dsm.window_memory_bytes
            && self.window_pages() < WINDOW_PAGES_MIN
        {
            return refuse(format!(
                "{bytes} bytes of window memory: {} nodes need at least {} MiB",
                self.nodes,
                ((u64::from(self.nodes) - 1) * WINDOW_PAGES_MIN * PAGE_SIZE) >> 20
            ));
        }
        if self.root.lower.is_empty() {
            return refuse("the root file system has no layer");
        }
        Ok(())
    }

    /// Pages of another node's slice that may take memory in a node.
    pub fn window_pages(&self) -> u64 {
        let windows = u64::from(self.nodes).saturating_sub(1).max(1);
        self.dsm.window_memory_bytes.map_or(u64::MAX, |bytes| bytes / PAGE_SIZE / windows)
    }

    /// Bytes of each node's slice.
    pub fn slice_bytes(&self) -> u64 {
        self.memory_bytes - LOW_RAM_BYTES
    }

    /// Bytes from one slice to the next: a power of two, at least 1 GiB.
    pub fn slice_stride(&self) -> u64 {
        self.slice_bytes().next_power_of_two().max(1 << 30)
    }

    /// Where the I/O server's fabric listens.
    pub fn io_address(&self) -> Address {
        match &self.fabric {
            FabricSpec::Unix => Address::Unix(self.state.join("fabric/io.sock")),
            FabricSpec::Tcp { host, base_port } => Address::Tcp(host.clone(), *base_port),
        }
    }

    /// Where node `node`'s fabric listens; [`ClusterSpec::check`] has bounded the ports.
    pub fn node_address(&self, node: u32) -> Address {
        match &self.fabric {
            FabricSpec::Unix => Address::Unix(self.state.join(format!("fabric/node-{node}.sock"))),
            FabricSpec::Tcp { host, base_port } => {
                let port = u32::from(*base_port) + 1 + node;
                Address::Tcp(host.clone(), u16::try_from(port).unwrap_or(u16::MAX))
            }
        }
    }

    /// The log of a process: `io` or `node-N`.
    pub fn log_path(&self, process: &str) -> PathBuf {
        self.state.join("logs").join(format!("{process}.log"))
    }

    /// What cell `cell` wrote on its serial console.
    pub fn console_path(&self, cell: u32) -> PathBuf {
        self.state.join("logs").join(format!("cell-{cell}.console"))
    }

    /// Reads a description and checks it.
    ///
    /// # Errors
    /// [`SpecError`] if the file cannot be read, is not a description, or says what is not allowed.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let text = std::fs::read(path).map_err(|e| SpecError(format!("{}: {e}", path.display())))?;
        let spec: Self = serde_json::from_slice(&text)
            .map_err(|e| SpecError(format!("{}: not a cluster description: {e}", path.display())))?;
        spec.check()?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests;
