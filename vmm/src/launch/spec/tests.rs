use super::*;

fn spec() -> ClusterSpec {
    ClusterSpec {
        name: "demo".into(),
        host: HostKind::Lab,
        nodes: 2,
        vcpus: 1,
        memory_bytes: 512 << 20,
        publish: vec!["8080:80".parse().unwrap()],
        kernel: "/k/vmlinux".into(),
        cmdline_extra: String::new(),
        root: RootSpec { lower: vec!["/r/tools.erofs".into(), "/r/root.erofs".into()], upper: None },
        secret: "/s/secret".into(),
        epoch_ns: 1,
        control: "tcp:127.0.0.1:4000".parse().unwrap(),
        state: "/s".into(),
        fabric: FabricSpec::default(),
        dsm: DsmSpec::default(),
    }
}

#[test]
fn a_description_reads_back_as_it_was_written() {
    let text = serde_json::to_string(&spec()).unwrap();
    assert!(text.contains(r#""publish":["8080:80"]"#), "{text}");
    assert!(text.contains(r#""control":"tcp:127.0.0.1:4000""#), "{text}");
    assert_eq!(serde_json::from_str::<ClusterSpec>(&text).unwrap(), spec());
}

#[test]
fn every_bound_of_a_description_is_checked() {
    assert_eq!(spec().check(), Ok(()));
    type Change = fn(&mut ClusterSpec);
    let bad: &[(Change, &str)] = &[
        (|s| s.nodes = 0, "0 nodes"),
        (|s| s.nodes = 65, "1 to 64"),
        (|s| s.vcpus = 0, "0 virtual CPUs"),
        (|s| s.vcpus = 9, "1 to 8"),
        (|s| s.memory_bytes = 128 << 20, "256 MiB"),
        (|s| s.memory_bytes = (512 << 20) + 4096, "multiple of 128 MiB"),
        (|s| s.name = "Demo".into(), "not a name"),
        (|s| s.name = "../x".into(), "not a name"),
        (|s| s.name = "-x".into(), "not a name"),
        (|s| s.name = "x".repeat(33), "not a name"),
        (|s| s.publish.push("8080:81".parse().unwrap()), "published twice"),
        (|s| s.fabric = FabricSpec::Tcp { host: "h".into(), base_port: 65534 }, "do not fit"),
        (|s| s.root.lower.clear(), "no layer"),
        (|s| s.state = format!("/{}", "x".repeat(88)).into(), "SSIVMM_STATE"),
    ];
    for (change, message) in bad {
        let mut one = spec();
        change(&mut one);
        let error = one.check().expect_err(message).to_string();
        assert!(error.contains(message), "{error} should say {message}");
    }
}

#[test]
fn the_address_map_follows_the_memory_size() {
    let mut one = spec();
    assert_eq!((one.slice_bytes(), one.slice_stride()), (384 << 20, 1 << 30));
    one.memory_bytes = (1 << 30) + (256 << 20);
    assert_eq!((one.slice_bytes(), one.slice_stride()), ((1 << 30) + (128 << 20), 2 << 30));
}

#[test]
fn addresses_and_ports_are_parsed_strictly() {
    for good in ["unix:/run/x.sock", "tcp:127.0.0.1:1", "tcp:host.example:65535"] {
        assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
    }
    for bad in ["", "unix:rel", "tcp:host", "tcp::1", "tcp:h:70000", "udp:h:1"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
    for good in ["8080:80", "0.0.0.0:8080:80"] {
        assert_eq!(good.parse::<Publish>().unwrap().to_string(), good);
    }
    for bad in ["80", "0:80", "80:0", "a:b", "1:2:3", "70000:1", "1:2:3:4", ""] {
        assert!(bad.parse::<Publish>().is_err(), "{bad}");
    }
}

#[test]
fn polling_longer_than_a_hold_is_refused() {
    let mut spec = spec();
    spec.dsm.busy_poll_us = BUSY_POLL_MAX_US;
    spec.check().unwrap();
    spec.dsm.busy_poll_us += 1;
    assert!(spec.check().unwrap_err().0.contains("10001 us of polling"));
}

#[test]
fn a_processor_that_no_host_has_is_refused() {
    let mut spec = spec();
    spec.dsm.cpus = vec![0, 1023];
    spec.check().unwrap();
    spec.dsm.cpus.push(1024);
    assert!(spec.check().unwrap_err().0.contains("processor 1024"));
}

#[test]
fn window_memory_is_divided_among_the_windows_and_too_little_is_refused() {
    let mut spec = spec();
    assert_eq!(spec.window_pages(), u64::MAX);
    spec.nodes = 5;
    spec.dsm.window_memory_bytes = Some(64 << 20);
    spec.check().unwrap();
    assert_eq!(spec.window_pages(), 4096);
    spec.dsm.window_memory_bytes = Some((4 << 20) - 1);
    assert!(spec.check().unwrap_err().0.contains("5 nodes need at least 4 MiB"));
}
