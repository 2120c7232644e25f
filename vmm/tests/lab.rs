//! Boots emulated hosts. Needs QEMU and the images; `cargo xtask test` sees to both and runs these.

use std::path::Path;
use std::time::{Duration, Instant};

use ssi_images::{Cache, Source, Ui};
use ssivmm::lab::{Lab, LabError, LabImages, LabSpec, Payload, Work};
use ssivmm::worker::Stop;

const LIMIT: Duration = Duration::from_secs(120);

fn spec(run_dir: &Path, argv: &[&str]) -> LabSpec {
    let (cache, ui) = (Cache::open().unwrap(), Ui::Lines);
    let images = ssi_images::build_all(&cache, &Source::find().unwrap(), &ui).unwrap();
    let initramfs = ssi_images::lab::build(&cache, Path::new(env!("CARGO_BIN_EXE_ssivmm")), &ui).unwrap();
    let images = LabImages {
        bzimage: images.kernel.bzimage,
        initramfs,
        vmlinux: images.kernel.vmlinux,
        root: images.root,
        tools: images.tools,
    };
    let argv = argv.iter().map(|text| (*text).to_owned()).collect();
    let payload =
        Payload { work: Work::Run { argv }, secret: vec![9; 32], realtime_ns: 1_700_000_000_000_000_000 };
    LabSpec {
        run_dir: run_dir.to_owned(),
        images,
        disks: vec![],
        memory_mib: 1024,
        cpus: 2,
        forwards: vec![],
        payload,
    }
}

/// Runs a shell script in an emulated host and returns how it ended and what the console showed.
fn run(script: &str) -> (Result<(), LabError>, String) {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), &["sh", "-c", script]);
    let stop = Stop::new().unwrap();
    let begun = Instant::now();
    let mut lab = Lab::boot(&spec).unwrap();
    let up = lab.wait_for("up", LIMIT, &stop, |_| ());
    let up_after = begun.elapsed();
    let ended = up.and_then(|()| lab.wait(&stop, |_| ()));
    println!("up after {up_after:?}, ended after {:?}", begun.elapsed());
    if lab.is_running() {
        lab.kill().unwrap();
    }
    (ended, std::fs::read_to_string(lab.console_log()).unwrap())
}

#[test]
#[ignore = "boots an emulated host; cargo xtask test runs it"]
fn an_emulated_host_runs_a_program_over_the_images_and_ends() {
    let (ended, console) = run("set -e
        echo root $(cat /etc/debian_version) year $(date +%Y)
        echo kvm $(ls -la /dev/kvm | cut -c1)
        echo net $(ip -4 -o addr show eth0 | grep -o 10.0.2.15/24) $(ip route | grep -c '^default via 10.0.2.2')
        echo thp $(cat /sys/kernel/mm/transparent_hugepage/shmem_enabled)
        echo secret $(stat -c %a:%s /run/ssi/secret)
        echo written > /root/x && echo file $(cat /root/x)
        sleep 0.01 & true");
    for line in
        ["root 12.", "year 2023", "kvm c", "net 10.0.2.15/24 1", "[advise]", "secret 600:32", "file written"]
    {
        assert!(console.contains(line), "`{line}` is not on the console:\n{console}");
    }
    assert!(ended.is_ok(), "{ended:?}\n{console}");
}

#[test]
#[ignore = "boots an emulated host; cargo xtask test runs it"]
fn a_program_that_fails_in_an_emulated_host_is_an_error_that_says_so() {
    let (ended, _) = run("echo it broke; exit 3");
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("exit status 3") && error.contains("it broke"), "{error}");
}
