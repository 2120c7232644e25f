use super::super::payload::Work;
use super::*;

fn payload() -> Payload {
    Payload { work: Work::Run { argv: vec!["true".into()] }, secret: vec![7; 32], realtime_ns: 0 }
}

fn spec(dir: &Path, forwards: Vec<Forward>) -> LabSpec {
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, "x").unwrap();
        path
    };
    let images = LabImages {
        bzimage: file("bzImage"),
        initramfs: file("initramfs"),
        vmlinux: file("vmlinux"),
        root: file("root"),
        tools: file("tools"),
    };
    LabSpec {
        run_dir: dir.to_owned(),
        images,
        disks: vec![],
        memory_mib: 64,
        cpus: 1,
        forwards,
        payload: payload(),
    }
}

#[test]
fn a_port_in_use_is_named_before_anything_starts() {
    if ssi_images::command::which(PROGRAM).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(host) = taken.local_addr().unwrap() else { unreachable!() };
    let error = Lab::boot(&spec(dir.path(), vec![Forward { host, guest: 80 }])).unwrap_err();
    assert!(error.to_string().contains(&host.to_string()), "{error}");
    assert!(!dir.path().join("payload").exists());
}

#[test]
fn a_missing_image_is_named() {
    if ssi_images::command::which(PROGRAM).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), vec![]);
    fs::remove_file(&spec.images.root).unwrap();
    assert!(matches!(Lab::boot(&spec).unwrap_err(), LabError::NoImage(path) if path == spec.images.root));
}

#[test]
fn a_process_that_is_not_the_recorded_one_is_not_attached_to() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Lab::attach(dir.path()).unwrap().is_none());
    let pid = i32::try_from(std::process::id()).unwrap();
    let record = |start_ticks| serde_json::to_vec(&Record { pid, start_ticks }).unwrap();
    // The number came again, for a process (this one) that began at another time.
    fs::write(dir.path().join("lab.json"), record(1)).unwrap();
    assert!(Lab::attach(dir.path()).unwrap().is_none());
    fs::write(dir.path().join("lab.json"), record(start_ticks(pid).unwrap())).unwrap();
    assert_eq!(Lab::attach(dir.path()).unwrap().unwrap().pid(), pid);
    fs::write(dir.path().join("lab.json"), "{").unwrap();
    assert!(Lab::attach(dir.path()).is_err());
}

#[test]
fn the_payload_with_the_secret_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    fs::write(&path, "readable by all").unwrap();
    write_private(&path, b"secret").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn memory_grows_with_the_nodes() {
    assert!(LabSpec::memory_for(2, 512 << 20) >= 2 * 512 + 256);
    assert!(LabSpec::memory_for(4, 512 << 20) > LabSpec::memory_for(2, 512 << 20));
}
