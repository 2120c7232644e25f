use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ssi_images::{Cache, Images, Source, Ui, packages};
use ssi_proto::request::{Request, Status};

use super::state::{ClusterDir, DEFAULT_NAME, Record, State};
use super::{Fail, Host, Outcome, UpArgs, exit, show};
use crate::control::Client;
use crate::doctor;
use crate::fabric::Secret;
use crate::lab::cluster::now_ns;
use crate::lab::{Booted, LabCluster, LabError, LabImages};
use crate::launch::{
    self, Address, ClusterSpec, DsmSpec, FabricSpec, HostKind, LaunchError, Options, ProcessRecord, RootSpec,
};
use crate::runtime::leash::on_signals;
use crate::worker::Stop;

/// `up`.
pub fn run(args: &UpArgs, cluster: Option<&str>) -> Outcome {
    let name = args.name.as_deref().or(cluster).unwrap_or(DEFAULT_NAME);
    let dir = State::open()?.cluster(name)?;
    let _lock = dir.lock()?;
    // What is wrong with the command line, and what is taken, before anything is built.
    draft(args, name, HostKind::Lab, Path::new("/"))
        .check()
        .map_err(|error| Fail::new(exit::USAGE, error.to_string()))?;
    clear(&dir)?;
    launch::check_ports(&args.publish).map_err(|error| launch_failed(&error))?;
    let host = choose_host(args.host)?;
    let ui = Ui::detect();
    let built = build(host, ui)?;

    dir.create()?;
    let cancel = Stop::new()?;
    let _signals = on_signals(&cancel)?;
    let booted = match host {
        HostKind::Kvm => boot_kvm(args, &dir, &built, &cancel, ui),
        HostKind::Lab => boot_lab(args, &dir, &built, &cancel, ui),
    };
    let status = match booted {
        Ok(status) => status,
        Err(fail) => {
            let logs = dir.retire()?;
            if cancel.is_triggered() {
                return Err(Fail::new(exit::INTERRUPTED, "interrupted; nothing is left running"));
            }
            return Err(Fail::new(fail.status, format!("{fail}\nlogs: {}", logs.display())));
        }
    };
    show::say(&show::describe(&status))?;
    for ports in &args.publish {
        show::say(&format!(
            "way in: {}:{} is port {} of the cluster",
            ports.address, ports.host, ports.guest
        ))?;
    }
    Ok(0)
}

/// Nothing of that name may be up; what is left of one that ended by itself is put aside.
fn clear(dir: &ClusterDir) -> Result<(), Fail> {
    let name = &dir.name;
    if let Some(record) = dir.record()?
        && record.is_running()
    {
        return Err(Fail::new(
            exit::NAME_IN_USE,
            format!("cluster {name} is up; take it down (ssivmm -C {name} down), or choose another --name"),
        ));
    }
    if dir.exists() {
        dir.create()?;
        dir.retire()?;
    }
    Ok(())
}

pub(super) fn choose_host(wanted: Host) -> Result<HostKind, Fail> {
    let cannot = |why: String| Fail::new(exit::MACHINE, why);
    match wanted {
        Host::Lab => Ok(HostKind::Lab),
        Host::Kvm => match doctor::verdict::kvm_obstacle(&doctor::facts::gather()) {
            None => Ok(HostKind::Kvm),
            Some(why) => {
                Err(cannot(format!("cells cannot run on this machine's KVM: {why}; --host lab does without")))
            }
        },
        Host::Auto => match doctor::choose_host() {
            Ok(doctor::Choice::Kvm) => Ok(HostKind::Kvm),
            Ok(doctor::Choice::Lab) => {
                eprintln!("nodes run in an emulated host; `ssivmm doctor` says why");
                Ok(HostKind::Lab)
            }
            Err(error) => Err(cannot(format!("{error:#}"))),
        },
    }
}

/// Kernel and images, and the emulated host's where there is one; the path of its initramfs is part of it.
#[derive(Debug)]
struct Built {
    images: Images,
    initramfs: Option<PathBuf>,
    program: PathBuf,
}

fn build(host: HostKind, ui: Ui) -> Result<Built, Fail> {
    let cache = Cache::open()?;
    let source = Source::find()?;
    let program = std::env::current_exe().context("finding ssivmm itself")?;
    if host == HostKind::Lab {
        packages::ensure(&[packages::Purpose::Lab], &ui)
            .map_err(|error| Fail::new(exit::MACHINE, format!("{error:#}")))?;
    }
    let images = ssi_images::build_all(&cache, &source, &ui)?;
    let initramfs = match host {
        HostKind::Lab => Some(ssi_images::lab::build(&cache, &program, &ui)?),
        HostKind::Kvm => None,
    };
    Ok(Built { images, initramfs, program })
}

/// The description, but for what depends on images and host.
fn draft(args: &UpArgs, name: &str, host: HostKind, state: &Path) -> ClusterSpec {
    ClusterSpec {
        name: name.to_owned(),
        host,
        nodes: args.nodes,
        vcpus: args.vcpus,
        memory_bytes: args.memory,
        publish: args.publish.clone(),
        kernel: PathBuf::new(),
        cmdline_extra: String::new(),
        root: RootSpec { lower: vec![PathBuf::from("/")], upper: None },
        secret: PathBuf::new(),
        epoch_ns: now_ns(),
        control: Address::Unix(state.join("control.sock")),
        state: state.to_owned(),
        fabric: FabricSpec::Unix,
        dsm: DsmSpec {
            busy_poll_us: args.dsm_poll_us,
            cpus: args.dsm_cpus.clone(),
            window_memory_bytes: args.window_memory,
            async_pf: args.async_pf,
        },
    }
}

fn record(spec: ClusterSpec, control: Address, processes: Vec<ProcessRecord>) -> Record {
    let since_unix_s = now_ns() / 1_000_000_000;
    Record { version: Record::VERSION, control, processes, spec, since_unix_s }
}

fn boot_kvm(args: &UpArgs, dir: &ClusterDir, built: &Built, cancel: &Stop, ui: Ui) -> Result<Status, Fail> {
    let secret = Secret::create(&dir.secret()).context("making the cluster's secret")?;
    let mut spec = draft(args, &dir.name, HostKind::Kvm, &dir.run());
    spec.secret = dir.secret();
    spec.kernel.clone_from(&built.images.kernel.vmlinux);
    spec.root.lower = vec![built.images.tools.clone(), built.images.root.clone()];
    let options = Options {
        program: built.program.clone(),
        ready_within: Duration::from_secs(args.timeout),
        cancel: cancel.clone(),
        nodes_avoid_cpu: None,
    };
    let running = launch::start(&spec, &options, &mut |progress| ui.say(&progress.to_string()))
        .map_err(|error| launch_failed(&error))?;
    let status = Client::connect(&spec.control, &spec.name, &secret)?.ask(&Request::Status)?;
    let control = spec.control.clone();
    dir.commit(&record(spec, control, running.detach()))?;
    Ok(status)
}

fn launch_failed(error: &LaunchError) -> Fail {
    let status = if matches!(error, LaunchError::Port { .. }) { exit::PORT_IN_USE } else { exit::FAILED };
    Fail::new(status, error.to_string())
}

fn boot_lab(args: &UpArgs, dir: &ClusterDir, built: &Built, cancel: &Stop, ui: Ui) -> Result<Status, Fail> {
    let secret = Secret::create(&dir.secret()).context("making the cluster's secret")?;
    let spec = draft(args, &dir.name, HostKind::Lab, &dir.run());
    let images = &built.images;
    let cluster = LabCluster {
        spec: &spec,
        images: LabImages {
            bzimage: images.kernel.bzimage.clone(),
            initramfs: built.initramfs.clone().context("the lab's initramfs was not built")?,
            vmlinux: images.kernel.vmlinux.clone(),
            root: images.root.clone(),
            tools: images.tools.clone(),
        },
        secret: secret.bytes(),
        run_dir: dir.run(),
        ready_within: Duration::from_secs(args.timeout),
    };
    ui.say("lab: booting the emulated host");
    let Booted { mut lab, control } =
        cluster.boot(cancel, |line| ui.say(&format!("lab: {line}"))).map_err(|error| lab_failed(&error))?;
    let up = Client::connect(&control, &dir.name, &secret)
        .and_then(|client| client.ask::<Status>(&Request::Status))
        .map_err(Fail::from)
        .and_then(|mut status| {
            // As this machine sees them.
            status.publish = spec.publish.iter().map(ToString::to_string).collect();
            dir.commit(&record(spec.clone(), control, vec![ProcessRecord::of("lab", lab.pid())?]))?;
            Ok(status)
        });
    if up.is_err() {
        lab.kill().map_err(|error| lab_failed(&error))?;
    }
    up
}

pub(super) fn lab_failed(error: &LabError) -> Fail {
    let status = match error {
        LabError::NoQemu => exit::MACHINE,
        LabError::Port { .. } => exit::PORT_IN_USE,
        _ => exit::FAILED,
    };
    Fail::new(status, error.to_string())
}
