//! A cluster in an emulated host: the description for the launcher in there, and the ports that lead to it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use super::host::{Lab, LabError, LabSpec};
use super::payload::{Payload, Work, place};
use super::qemu::{Forward, LabImages};
use crate::launch::{Address, ClusterSpec, HostKind, Publish, RootSpec};
use crate::worker::Stop;

/// First of the ports that the controller may get in the emulated host; published ports may be in its way.
const CONTROL_PORT: u16 = 7070;
/// Time that an emulated host needs beyond that of its cells, on a busy machine.
const HOST_WITHIN: Duration = Duration::from_secs(60);
/// What the work of an emulated host says when every cell's agent answered.
pub const READY: &str = "ready";

/// A cluster to boot in the lab.
#[derive(Debug)]
pub struct LabCluster<'a> {
    /// Its description. Of its paths and of its control address nothing is used: those of the emulated host are put in.
    pub spec: &'a ClusterSpec,
    /// Images.
    pub images: LabImages,
    /// The cluster's secret.
    pub secret: &'a [u8],
    /// A folder of this run alone, mode 0700.
    pub run_dir: PathBuf,
    /// Cells' agents answer within this.
    pub ready_within: Duration,
}

/// A cluster that is up in an emulated host.
#[derive(Debug)]
pub struct Booted {
    /// The emulated host.
    pub lab: Lab,
    /// Where this machine reaches the controller.
    pub control: Address,
}

impl LabCluster<'_> {
    /// Boots the emulated host and waits until the cluster in it is up. `said` gets one line of progress at a time.
    ///
    /// # Errors
    /// [`LabError`]; the emulated host is not left running.
    pub fn boot(&self, cancel: &Stop, said: impl FnMut(&str)) -> Result<Booted, LabError> {
        let control = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()?);
        let inside = inside(self.spec);
        let mut forwards = vec![Forward { host: control, guest: inside.control_port }];
        forwards.extend(inside.forwards);
        let work = Work::Cluster { spec: Box::new(inside.spec), ready_within_s: self.ready_within.as_secs() };
        let memory_mib = LabSpec::memory_for(self.spec.nodes, self.spec.memory_bytes);
        let spec = LabSpec {
            run_dir: self.run_dir.clone(),
            images: self.images.clone(),
            disks: Vec::new(),
            memory_mib,
            cpus: cpus(),
            forwards,
            payload: Payload { work, secret: self.secret.to_vec(), realtime_ns: now_ns() },
        };
        let mut lab = Lab::boot(&spec)?;
        match lab.wait_for(READY, self.ready_within + HOST_WITHIN, cancel, said) {
            Ok(()) => Ok(Booted { lab, control: Address::Tcp(control.ip().to_string(), control.port()) }),
            Err(error) => {
                lab.kill()?;
                Err(error)
            }
        }
    }
}

/// What goes into the emulated host.
struct Inside {
    spec: ClusterSpec,
    control_port: u16,
    forwards: Vec<Forward>,
}

/// Translates a description. A published port is the same number in the emulated host as on the machine, unless two addresses
/// of the machine publish the same number.
fn inside(outside: &ClusterSpec) -> Inside {
    let mut used: Vec<u16> = Vec::new();
    let mut forwards = Vec::new();
    let mut publish = Vec::new();
    for port in &outside.publish {
        let number = unused(port.host, &used);
        used.push(number);
        forwards.push(Forward { host: SocketAddrV4::new(port.address, port.host), guest: number });
        publish.push(Publish { address: place::ADDRESS, host: number, guest: port.guest });
    }
    let control_port = unused(CONTROL_PORT, &used);
    let spec = ClusterSpec {
        host: HostKind::Lab,
        publish,
        kernel: place::KERNEL.into(),
        root: RootSpec { lower: vec![place::TOOLS.into(), place::ROOT.into()], upper: None },
        secret: place::SECRET.into(),
        control: Address::Tcp(place::ADDRESS.to_string(), control_port),
        state: place::STATE.into(),
        ..outside.clone()
    };
    Inside { spec, control_port, forwards }
}

/// The first port from `first` on that is not in `used`, wrapping at the end.
fn unused(first: u16, used: &[u16]) -> u16 {
    (first..=u16::MAX).chain(1024..first).find(|port| !used.contains(port)).unwrap_or(first)
}

/// A port of this machine's loopback that nobody has now.
fn free_port() -> Result<u16, LabError> {
    let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let address = found.map_err(|source| LabError::Io { what: "cannot find a free port".into(), source })?;
    Ok(address.port())
}

/// Processors of an emulated host: as many as the machine has for its cells, and one that no cell runs on
/// (`lab/init/mod.rs` says why); no more than its kernel takes.
pub fn cpus() -> u32 {
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(machine).unwrap_or(8).clamp(1, 7) + 1
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(publish: &[&str]) -> ClusterSpec {
        ClusterSpec {
            name: "x".into(),
            host: HostKind::Kvm,
            nodes: 2,
            vcpus: 1,
            memory_bytes: 512 << 20,
            publish: publish.iter().map(|text| text.parse().unwrap()).collect(),
            kernel: "/c/vmlinux".into(),
            cmdline_extra: "quiet".into(),
            root: RootSpec { lower: vec!["/c/root.erofs".into()], upper: Some("/c/upper".into()) },
            secret: "/s/secret".into(),
            epoch_ns: 5,
            control: Address::Unix("/s/control".into()),
            state: "/s".into(),
            fabric: Default::default(),
            dsm: Default::default(),
        }
    }

    #[test]
    fn inside_there_are_no_paths_of_the_machine() {
        let inside = inside(&spec(&["8080:80"])).spec;
        inside.check().unwrap();
        let text = serde_json::to_string(&inside).unwrap();
        for path in ["/c/", "\"/s", ":/s"] {
            assert!(!text.contains(path), "{path} in {text}");
        }
        assert_eq!((inside.nodes, inside.memory_bytes, inside.epoch_ns), (2, 512 << 20, 5));
        assert_eq!(inside.cmdline_extra, "quiet");
    }

    #[test]
    fn every_published_port_and_the_controller_have_a_port_of_their_own() {
        let inside = inside(&spec(&["8080:80", "127.0.0.2:8080:81", "7070:82"]));
        let mut ports: Vec<u16> = inside.spec.publish.iter().map(|port| port.host).collect();
        assert_eq!(ports, [8080, 8081, 7070]);
        ports.push(inside.control_port);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 4);
        let hosts: Vec<String> = inside.forwards.iter().map(|forward| forward.host.to_string()).collect();
        assert_eq!(hosts, ["127.0.0.1:8080", "127.0.0.2:8080", "127.0.0.1:7070"]);
        assert_eq!(unused(65535, &[65535]), 1024);
    }
}
