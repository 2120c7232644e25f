//! The same with Linux's own TCP: a network namespace behind a TAP device stands for a cell, so that what a guest's
//! kernel does with large segments, partial checksums, fragments, resets and half-closed streams is what is tested.
//! Another namespace is the outside of a TAP uplink.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ssi_netstack::sim::SimCell;
use ssi_netstack::{CLUSTER_IP, GATEWAY_IP};

use super::fake::{FakePort, spawn};
use super::tap::Tap;
use super::tests::{BODY, Http, config, get};
use super::*;
use crate::worker::{Exit, Worker};

/// Why these tests cannot run here, if they cannot.
fn missing() -> Option<String> {
    // SAFETY: geteuid has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root, so no network namespace can be made".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun cannot be opened: {error}"));
    }
    match Command::new("ip").arg("-V").output() {
        Ok(_) => None,
        Err(error) => Some(format!("the command `ip` (package iproute2) cannot be run: {error}")),
    }
}

/// True if the test is to be skipped, having said why.
fn skip() -> bool {
    let why = missing();
    if let Some(why) = &why {
        println!("SKIP: {why}");
    }
    why.is_some()
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Moves the calling thread, and what it starts, to a network namespace of its own.
fn enter_namespace() {
    // SAFETY: unshare has no memory arguments; of this process only the calling thread is moved.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    ip("link set lo up");
}

/// A cell whose kernel is this machine's. Jobs run in its namespace.
struct KernelCell {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    runner: Option<std::thread::JoinHandle<()>>,
    pump: Option<Worker>,
    service: NetService,
}

/// Writes frames for the cell to its card.
#[derive(Debug)]
struct TapPort(Mutex<Option<File>>);

impl FramePort for TapPort {
    fn deliver(&self, _: u32, frame: Vec<u8>) {
        if let Some(file) = &mut *self.0.lock().unwrap() {
            let _ = file.write(&frame);
        }
    }
}

impl KernelCell {
    fn start(config: &NetConfig) -> Self {
        let exit = Exit::new().unwrap();
        let port = Arc::new(TapPort(Mutex::new(None)));
        let service = NetService::start(config, port.clone(), &exit).unwrap();
        let (jobs, inbox): (Sender<Box<dyn FnOnce() + Send>>, Receiver<_>) = channel();
        let (ready, tap) = channel();
        let runner = std::thread::spawn(move || {
            enter_namespace();
            let tap = Tap::open(&TapConfig { name: "eth0".into(), host_addr: None }).unwrap();
            ip("link set eth0 address 02:53:53:49:00:02");
            ip("address add 10.64.0.2/24 dev eth0");
            ip("link set eth0 up");
            ip("route add default via 10.64.0.1");
            ready.send(tap).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        let mut tap = tap.recv().unwrap();
        *port.0.lock().unwrap() = Some(tap.try_clone().unwrap());
        let handle = service.handle().clone();
        let pump = Worker::spawn("kernel-cell", &exit, move |stop| {
            let fds = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            while !stop.is_triggered() {
                let mut fds = [fds(stop.as_raw_fd()), fds(tap.as_raw_fd())];
                // SAFETY: `fds` are two pollfds, which poll reads and writes.
                unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
                while let Some(frame) = tap.read()? {
                    handle.input(0, frame);
                }
            }
            Ok(())
        })
        .unwrap();
        Self { jobs: Some(jobs), runner: Some(runner), pump: Some(pump), service }
    }

    /// Runs `job` in the cell and waits for what it returns.
    fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, result) = channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the job of the cell failed")
    }

    /// Runs `server` in the cell for each connection to `port`, on threads of its own.
    fn serve(&self, port: u16, server: fn(TcpStream)) {
        self.run(move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            std::thread::spawn(move || {
                listener
                    .incoming()
                    .flatten()
                    .for_each(|stream| drop(std::thread::spawn(move || server(stream))));
            });
        });
    }

    fn addr(&self) -> SocketAddr {
        self.service.published()[0].0
    }
}

impl Drop for KernelCell {
    fn drop(&mut self) {
        self.pump.take();
        self.jobs.take();
        if let Some(runner) = self.runner.take() {
            let _ = runner.join();
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65536];
    while let Ok(len) = stream.read(&mut buffer)
        && len > 0
    {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Sends a stream of `total` bytes, finishes, and checks that the same comes back, and then the end.
fn check_echo(stream: &TcpStream, total: usize) {
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let pattern = |at: usize| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes: Vec<u8> = (0..total).map(pattern).collect();
            { stream }.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        { stream }.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), total);
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "a byte differs");
    });
}

fn linger_zero(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

/// NET-3, with a guest's TCP: with its offloads, and for a card that has none.
#[test]
fn net_3_a_linux_cell_serves_large_streams_through_a_published_port() {
    if skip() {
        return;
    }
    for offload in [Offload::ALL, Offload::NONE] {
        let cell = KernelCell::start(&NetConfig { offload, ..config("127.0.0.1:0:7") });
        cell.serve(7, echo);
        for total in [0, 1, 100_000, 16 << 20] {
            check_echo(&TcpStream::connect(cell.addr()).unwrap(), total);
        }
        let counters = cell.service.handle().counters();
        println!("{offload:?}: {counters:?}");
        let (frames, bytes) = (counters.switch.frames_in_count, counters.switch.frames_in_bytes);
        assert_eq!(counters.switch.malformed_count, 0);
        assert!(bytes > 32 << 20);
        assert!(bytes / frames > 2000, "large frames stay large: {bytes} bytes in {frames} frames");
    }
}

#[test]
fn net_1_a_linux_cell_connects_out() {
    if skip() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cell = KernelCell::start(&NetConfig { host_loopback: true, ..config("127.0.0.1:0:7") });
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|s| drop(std::thread::spawn(|| echo(s))))
    });
    cell.run(move || check_echo(&TcpStream::connect((GATEWAY_IP, port)).unwrap(), 8 << 20));
    let refused = cell.run(move || TcpStream::connect((GATEWAY_IP, free)).unwrap_err().kind());
    assert_eq!(refused, ErrorKind::ConnectionRefused);
}

#[test]
fn a_reset_travels_as_a_reset_in_both_directions() {
    if skip() {
        return;
    }
    let cell = KernelCell::start(&config("127.0.0.1:0:7"));
    static SEEN: Mutex<Option<ErrorKind>> = Mutex::new(None);
    cell.serve(7, |mut stream| {
        // The first byte says who resets.
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first[0] == b'c' {
            return linger_zero(&stream);
        }
        stream.write_all(b"go").unwrap();
        *SEEN.lock().unwrap() = stream.read(&mut first).err().map(|error| error.kind());
    });
    let mut stream = TcpStream::connect(cell.addr()).unwrap();
    stream.write_all(b"c").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let mut stream = TcpStream::connect(cell.addr()).unwrap();
    stream.write_all(b"h").unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    linger_zero(&stream);
    drop(stream);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while SEEN.lock().unwrap().is_none() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(*SEEN.lock().unwrap(), Some(ErrorKind::ConnectionReset));
}

#[test]
fn net_1_large_datagrams_go_in_parts_and_come_back_whole() {
    if skip() {
        return;
    }
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = server.local_addr().unwrap() else { unreachable!() };
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            buffer[..len].reverse();
            let _ = server.send_to(&buffer[..len], from);
        }
    });
    let cell = KernelCell::start(&NetConfig { dns: Some(addr), ..config("127.0.0.1:0:7") });
    cell.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.connect((GATEWAY_IP, 53)).unwrap();
        for len in [1, 1472, 1473, 9000, 60_000] {
            let sent: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            socket.send(&sent).unwrap();
            let mut got = vec![0; 65536];
            let count = socket.recv(&mut got).unwrap();
            assert!(got[..count].iter().rev().eq(&sent), "{len} bytes");
        }
        let nobody = UdpSocket::bind("0.0.0.0:0").unwrap();
        nobody.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        nobody.connect((GATEWAY_IP, 54)).unwrap();
        nobody.send(b"?").unwrap();
        assert_eq!(nobody.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// As ApacheBench does: short connections, several at once.
#[test]
fn net_1_many_short_connections_to_a_linux_cell() {
    if skip() {
        return;
    }
    let cell = KernelCell::start(&config("127.0.0.1:0:80"));
    cell.serve(80, |mut stream| {
        let mut buffer = [0; 1024];
        if stream.read(&mut buffer).is_ok() {
            let _ = stream.write_all(BODY.as_bytes());
        }
    });
    let addr = cell.addr();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(move || (0..50).for_each(|_| assert_eq!(get(addr), BODY)));
        }
    });
    let counters = cell.service.handle().counters();
    assert_eq!((counters.gateway.inbound_count, counters.gateway.reset_count), (500, 0), "{counters:?}");
}

/// NET-1 with a TAP uplink: the outside reaches the cluster's address itself, and pings it.
#[test]
fn net_1_the_outside_of_a_tap_uplink_reaches_the_cluster() {
    if skip() {
        return;
    }
    let outside = std::thread::spawn(|| {
        enter_namespace();
        let exit = Exit::new().unwrap();
        let port = FakePort::new(2);
        let tap = TapConfig { name: "ssi0".into(), host_addr: Some((GATEWAY_IP, 24)) };
        let config = NetConfig { cells: 2, tap: Some(tap), ..config("127.0.0.1:0:80") };
        let service = NetService::start(&config, port.clone(), &exit).unwrap();
        let mut http = Http::default();
        let app = move |cell: &mut SimCell| http.serve(cell, 80);
        let handle = service.handle().clone();
        let _idle = spawn(0, true, port.clone(), handle.clone(), &exit, |_| {}).unwrap();
        let _cell = spawn(1, true, port, handle.clone(), &exit, app).unwrap();
        let cluster = SocketAddr::V4(SocketAddrV4::new(CLUSTER_IP, 80));
        assert!(get(cluster).ends_with(BODY));
        assert!(get(service.published()[0].0).ends_with(BODY), "published ports lead in beside the uplink");
        if let Ok(ping) = Command::new("ping").args(["-c", "1", "-W", "30", "10.64.0.2"]).output() {
            assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
            assert_eq!(handle.counters().switch.echo_replies_count, 1);
        } else {
            println!("no `ping` here: ping of the cluster's address was not tried");
        }
        let second = NetService::start(&config, FakePort::new(2), &exit).unwrap_err();
        assert!(second.to_string().contains("cannot use TAP device 'ssi0'"), "{second}");
    });
    outside.join().unwrap();
}
