use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use ssi_netstack::GATEWAY_IP;
use ssi_netstack::sim::{SimCell, SimRecv, SimSocket};

use super::fake::{FakePort, spawn};
use super::*;
use crate::worker::{Exit, Worker};

pub(super) const BODY: &str = "<html><body><h1>It works!</h1></body></html>\n";

/// An HTTP/1.0 server: one request, one answer, end.
#[derive(Default)]
pub(super) struct Http {
    open: Vec<(SimSocket, Vec<u8>)>,
    listening: bool,
}

impl Http {
    pub(super) fn serve(&mut self, cell: &mut SimCell, port: u16) {
        if !std::mem::replace(&mut self.listening, true) {
            cell.listen(port, 64);
        }
        while let Some(socket) = cell.accept(port) {
            self.open.push((socket, Vec::new()));
        }
        self.open.retain_mut(|(socket, request)| {
            let mut buffer = [0; 4096];
            while let SimRecv::Data(len) = cell.recv(*socket, &mut buffer) {
                request.extend_from_slice(&buffer[..len]);
            }
            if !request.windows(4).any(|end| end == b"\r\n\r\n") {
                return true;
            }
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
            assert_eq!(cell.send(*socket, answer.as_bytes()), answer.len());
            cell.finish(*socket);
            false
        });
    }
}

struct Rig {
    exit: Exit,
    _cells: Vec<Worker>,
    service: NetService,
}

impl Rig {
    fn http(&self) -> SocketAddr {
        self.service.published()[0].0
    }
}

pub(super) fn config(publish: &str) -> NetConfig {
    NetConfig {
        published: vec![publish.parse().unwrap()],
        seed: Some(1),
        dns: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9)),
        ..NetConfig::default()
    }
}

/// What runs in a fake cell.
type App = Box<dyn FnMut(&mut SimCell) + Send>;

/// A service with one fake cell per app.
fn rig(mut config: NetConfig, apps: Vec<App>) -> Rig {
    let exit = Exit::new().unwrap();
    config.cells = apps.len() as u32;
    let port = FakePort::new(config.cells);
    let service = NetService::start(&config, port.clone(), &exit).unwrap();
    let offload = config.offload == Offload::ALL;
    let cells = apps
        .into_iter()
        .enumerate()
        .map(|(cell, app)| {
            spawn(cell as u32, offload, port.clone(), service.handle().clone(), &exit, app).unwrap()
        })
        .collect();
    Rig { exit, _cells: cells, service }
}

pub(super) fn get(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// NET-1: "the cluster has one address": a page comes whole through a published port, whichever cell has the server.
#[test]
fn net_1_a_page_comes_through_a_published_port_from_whichever_cell_serves_it() {
    for offload in [Offload::ALL, Offload::NONE] {
        let mut http = Http::default();
        let idle = Box::new(|_: &mut SimCell| {});
        let server = Box::new(move |cell: &mut SimCell| http.serve(cell, 80));
        let rig = rig(NetConfig { offload, ..config("127.0.0.1:0:80") }, vec![idle, server]);
        for _ in 0..20 {
            assert!(get(rig.http()).ends_with(BODY));
        }
        assert!(rig.service.handle().counters().gateway.inbound_count >= 20);
        assert!(!rig.exit.is_triggered());
    }
}

#[test]
fn net_1_many_clients_at_once() {
    let mut http = Http::default();
    let rig = rig(config("127.0.0.1:0:80"), vec![Box::new(move |cell: &mut SimCell| http.serve(cell, 80))]);
    let addr = rig.http();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..40).for_each(|_| assert!(get(addr).ends_with(BODY))));
        }
    });
    assert_eq!(rig.service.handle().counters().gateway.inbound_count, 320);
}

/// A stream of `total` bytes each way, half-closed by the client, checked byte by byte.
#[test]
fn net_3_a_large_stream_comes_back_whole_and_ends_in_both_directions() {
    let mut echo = Echo::default();
    let rig = rig(config("127.0.0.1:0:7"), vec![Box::new(move |cell: &mut SimCell| echo.serve(cell, 7))]);
    let stream = TcpStream::connect(rig.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let total = 8 << 20;
    let pattern = |at: usize| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes: Vec<u8> = (0..total).map(pattern).collect();
            (&stream).write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), total);
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    });
}

#[derive(Default)]
struct Echo {
    open: Vec<(SimSocket, Vec<u8>, bool)>,
    listening: bool,
}

impl Echo {
    fn serve(&mut self, cell: &mut SimCell, port: u16) {
        if !std::mem::replace(&mut self.listening, true) {
            cell.listen(port, 8);
        }
        while let Some(socket) = cell.accept(port) {
            self.open.push((socket, Vec::new(), false));
        }
        let mut buffer = vec![0; 65536];
        self.open.retain_mut(|(socket, queue, ended)| {
            while queue.len() < 65536 && !*ended {
                match cell.recv(*socket, &mut buffer) {
                    SimRecv::Data(len) => queue.extend_from_slice(&buffer[..len]),
                    SimRecv::Blocked => break,
                    _ => *ended = true,
                }
            }
            let sent = cell.send(*socket, queue);
            queue.drain(..sent);
            let over = *ended && queue.is_empty();
            if over {
                cell.finish(*socket);
            }
            !over
        });
    }
}

/// A refusal of the cell reaches the client as a reset, and no other way.
#[test]
fn a_port_that_nobody_has_resets_its_client() {
    let rig =
        rig(config("127.0.0.1:0:81"), vec![Box::new(|_: &mut SimCell| {}), Box::new(|_: &mut SimCell| {})]);
    let mut stream = TcpStream::connect(rig.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// What a cell does once: connects out, sends, checks what comes back.
fn client(to: SocketAddrV4, report: mpsc::Sender<(Vec<u8>, SimRecv)>) -> App {
    let mut socket = None;
    let mut sent = false;
    let mut got = Vec::new();
    Box::new(move |cell: &mut SimCell| {
        let name = *socket.get_or_insert_with(|| cell.connect(to, 40_000));
        if !sent && cell.send(name, b"from the cell") > 0 {
            sent = true;
            cell.finish(name);
        }
        let mut buffer = [0; 4096];
        match cell.recv(name, &mut buffer) {
            SimRecv::Data(len) => got.extend_from_slice(&buffer[..len]),
            SimRecv::Blocked => {}
            end => drop(report.send((got.clone(), end))),
        }
    })
}

#[test]
fn net_1_a_cell_connects_out_through_the_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
    // The gateway's address stands for the machine's loopback where that is allowed.
    let (report, reports) = mpsc::channel();
    let config = NetConfig { host_loopback: true, ..config("127.0.0.1:0:80") };
    let _rig = rig(config, vec![client(SocketAddrV4::new(GATEWAY_IP, addr.port()), report)]);
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "from the cell");
    stream.write_all(b"from outside").unwrap();
    drop(stream);
    let (got, end) = reports.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!((&got[..], end), (&b"from outside"[..], SimRecv::End));
}

#[test]
fn a_refused_outgoing_connection_is_refused_in_the_cell() {
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for host_loopback in [true, false] {
        let (report, reports) = mpsc::channel();
        let config = NetConfig { host_loopback, ..config("127.0.0.1:0:80") };
        let _rig = rig(config, vec![client(SocketAddrV4::new(GATEWAY_IP, free), report)]);
        assert_eq!(reports.recv_timeout(Duration::from_secs(60)).unwrap(), (vec![], SimRecv::Reset));
    }
}

#[test]
fn net_1_a_cell_asks_names_by_udp() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = server.local_addr().unwrap() else { unreachable!() };
    let (report, reports) = mpsc::channel();
    let mut asked = false;
    let app = move |cell: &mut SimCell| {
        if !std::mem::replace(&mut asked, true) {
            cell.udp_bind(5353);
            cell.udp_send(5353, SocketAddrV4::new(GATEWAY_IP, 53), b"who?");
        }
        if let Some(answer) = cell.udp_recv(5353) {
            let _ = report.send(answer);
        }
    };
    let _rig = rig(NetConfig { dns: Some(addr), ..config("127.0.0.1:0:80") }, vec![Box::new(app)]);
    let mut buffer = [0; 64];
    let (len, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"who?");
    server.send_to(b"me", from).unwrap();
    let answer = reports.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(answer, (SocketAddrV4::new(GATEWAY_IP, 53), b"me".to_vec()));
}

#[test]
fn a_port_in_use_is_said_so_with_what_to_do() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    let exit = Exit::new().unwrap();
    let error =
        NetService::start(&config(&format!("{}:80", taken.port())), FakePort::new(1), &exit).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("port {} is in use on 127.0.0.1: publish another port", taken.port())),
        "{text}"
    );
    let error = NetService::start(&config("192.0.2.1:0:80"), FakePort::new(1), &exit).unwrap_err();
    assert!(matches!(error, NetError::NotOurAddress(_)), "{error}");
}

#[test]
fn publish_is_parsed_or_refused_with_the_form_it_has() {
    let parse = |text: &str| text.parse::<Publish>();
    let v4 = |bind: [u8; 4], host_port, guest_port| Publish { bind: bind.into(), host_port, guest_port };
    assert_eq!(parse("8080:80"), Ok(v4([127, 0, 0, 1], 8080, 80)));
    assert_eq!(parse("0.0.0.0:8080:80"), Ok(v4([0, 0, 0, 0], 8080, 80)));
    assert_eq!(parse("[::1]:1:2").unwrap().bind, std::net::Ipv6Addr::LOCALHOST);
    for bad in ["", "80", "a:80", "8080:0", "8080:65536", "host:8080:80", ":80", "8080:"] {
        let text = parse(bad).unwrap_err().to_string();
        assert!(text.contains("HOST_PORT:GUEST_PORT"), "{text}");
    }
}

#[test]
fn the_inbox_is_bounded_and_counts_what_it_drops() {
    let shared = handle::Shared::new(10_000).unwrap();
    let handle = NetHandle(shared.clone());
    (0..100).for_each(|_| handle.input(0, vec![0; 1000]));
    handle.input(1, vec![0; 1000]);
    handle.input(64, vec![0; 1000]);
    let mut out = Vec::new();
    shared.take(1000, &mut out);
    assert_eq!(out.len(), 11, "ten of cell 0, one of cell 1, none of a cell that cannot be");
    shared.publish(NetCounters::default());
    assert_eq!(handle.counters().inbox_dropped_count, 91);
    handle.input(0, vec![0; 1000]);
    out.clear();
    shared.take(1000, &mut out);
    assert_eq!(out.len(), 1, "what was taken makes room");
}

#[test]
fn the_first_ipv4_nameserver_is_taken() {
    let text =
        "# a comment\nsearch example\nnameserver fe80::1\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n";
    assert_eq!(config::first_nameserver(text), Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 53), 53)));
    assert_eq!(config::first_nameserver(""), None);
}

#[test]
fn a_service_that_is_dropped_frees_its_ports() {
    let exit = Exit::new().unwrap();
    let port: Arc<dyn FramePort> = FakePort::new(1);
    let service = NetService::start(&config("127.0.0.1:0:80"), port.clone(), &exit).unwrap();
    let taken = service.published()[0].0;
    drop(service);
    NetService::start(&config(&format!("{}:80", taken.port())), port, &exit).unwrap();
}
