//! The device against a driver written by hand that speaks like a guest's kernel (section 5.10.6).

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use proptest::prelude::*;

use super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::{BUFFERS, Driver, RAM_END};
use crate::worker::Exit;

const LONG: Duration = Duration::from_secs(20);
const CID: u64 = 3;
const RX_BUFFER: u64 = 4096;
const TX: u64 = BUFFERS + (1 << 20);

struct Guest {
    device: Vsock,
    driver: Driver,
    exit: Exit,
}

impl Guest {
    fn new(features: u64, buffers: u64) -> Self {
        let exit = Exit::new().unwrap();
        let mut device = Vsock::new(0, &exit).unwrap();
        let (driver, activation) = Driver::new(&QUEUE_SIZES, features);
        device.activate(activation).unwrap();
        let mut guest = Self { device, driver, exit };
        for n in 0..buffers {
            guest.give(n);
        }
        guest.driver.rings[QUEUE_RX].kick();
        guest
    }

    fn give(&mut self, n: u64) {
        self.driver.rings[QUEUE_RX].add(&[(BUFFERS + n * RX_BUFFER, RX_BUFFER as u32, true)]);
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let mut bytes = header.emit().to_vec();
        bytes.extend_from_slice(data);
        self.driver.write(TX, &bytes);
        self.driver.rings[QUEUE_TX].add(&[(TX, bytes.len() as u32, false)]);
        self.driver.rings[QUEUE_TX].kick();
        self.driver.wait_used(QUEUE_TX);
    }

    /// As a guest would, to the host port that `to` names.
    fn send(&mut self, ports: (u32, u32), op: u16, flags: u32, counts: (u32, u32), data: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            len: data.len() as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: counts.0,
            fwd_cnt: counts.1,
        };
        self.send_raw(&header, data);
    }

    /// The next packet, whose buffer is given back.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        // One buffer is out of the ring at a time, so the oldest came back.
        let (head, len) = self.driver.wait_used(QUEUE_RX);
        let at = BUFFERS + u64::from(head) * RX_BUFFER;
        let bytes = self.driver.read(at, len as usize);
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, TYPE_STREAM));
        self.give(u64::from(head));
        self.driver.rings[QUEUE_RX].kick();
        (header, bytes[HEADER_BYTES..].to_vec())
    }

    /// A connection that the host opens to port 1024, which the guest takes with `credit`.
    fn connected(&mut self, credit: u32) -> (UnixStream, (u32, u32)) {
        let waiting = connect(self, 1024);
        let (request, _) = self.receive();
        assert_eq!((request.op, request.dst_port, request.buf_alloc), (op::REQUEST, 1024, CREDIT_BYTES));
        let ports = (request.src_port, request.dst_port);
        self.send(ports, op::RESPONSE, 0, (credit, 0), &[]);
        (waiting.join().unwrap().unwrap(), ports)
    }
}

fn connect(guest: &Guest, port: u32) -> JoinHandle<std::io::Result<UnixStream>> {
    let handle = guest.device.handle();
    spawn(move || handle.connect(port, LONG))
}

#[test]
fn verify_5_10_4_the_cid_is_in_the_configuration_space() {
    let device = Vsock::new(4, &Exit::new().unwrap()).unwrap();
    let mut config = [0xff; 8];
    device.read_config(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn host_and_guest_exchange_data_and_close() {
    for features in [0, 1 << 29] {
        let mut guest = Guest::new(features, 8);
        let (mut stream, ports) = guest.connected(65536);
        stream.write_all(b"from the host").unwrap();
        let (header, data) = guest.receive();
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RW, ports.0, ports.1));
        assert_eq!(data, b"from the host");
        guest.send(ports, op::RW, 0, (65536, 13), b"from the guest");
        let mut read = [0; 14];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"from the guest");
        drop(stream);
        let mut flags = 0;
        while flags != SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
            let (header, _) = guest.receive();
            assert_eq!(header.op, op::SHUTDOWN);
            flags |= header.flags;
        }
        guest.send(ports, op::RST, 0, (65536, 13), &[]);
        assert!(!guest.exit.is_triggered());
    }
}

/// First one direction, then all: the guest learns of both.
#[test]
fn a_host_that_goes_after_a_half_close_is_told_of() {
    let mut guest = Guest::new(0, 8);
    let (stream, _) = guest.connected(65536);
    stream.shutdown(Shutdown::Write).unwrap();
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    drop(stream);
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
}

#[test]
fn a_guest_that_answers_rst_refuses_and_one_without_driver_is_not_connected() {
    let mut guest = Guest::new(0, 8);
    let waiting = connect(&guest, 7);
    let (request, _) = guest.receive();
    guest.send((request.src_port, 7), op::RST, 0, (0, 0), &[]);
    assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let waiting = connect(&guest, 7);
    guest.receive();
    guest.device.reset();
    assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(connect(&guest, 7).join().unwrap().unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn a_connect_that_times_out_is_taken_back() {
    let mut guest = Guest::new(0, 8);
    let error = guest.device.handle().connect(9, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let (request, _) = guest.receive();
    assert_eq!((request.op, guest.receive().0.op), (op::REQUEST, op::RST));
    // An answer that comes now is to no connection.
    guest.send((request.src_port, 9), op::RESPONSE, 0, (100, 0), &[]);
    assert_eq!(guest.receive().0.op, op::RST);
}

/// "5.10.6.5": each direction closes for itself, and what was sent before arrives.
#[test]
fn verify_5_10_6_5_half_close_both_ways() {
    let mut guest = Guest::new(0, 8);
    let (mut stream, ports) = guest.connected(65536);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().1, b"question");
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    guest.send(ports, op::RW, 0, (65536, 8), b"answer");
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, (65536, 8), &[]);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(guest.receive().0.op, op::RST);

    // The guest closes its side first; the host still sends.
    let (mut stream, ports) = guest.connected(65536);
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND, (65536, 0), &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    stream.write_all(b"still here").unwrap();
    assert_eq!(guest.receive().1, b"still here");
    // A guest that receives no more: the host's writes fail.
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_RECEIVE, (65536, 0), &[]);
    assert_eq!(guest.receive().0.op, op::RST);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// "5.10.6.3: data packets are only sent when the peer has sufficient free buffer space."
#[test]
fn verify_5_10_6_3_the_guests_credit_is_honoured() {
    let mut guest = Guest::new(0, 8);
    let (mut stream, ports) = guest.connected(1000);
    let writer = spawn(move || {
        stream.write_all(&[5; 2500]).unwrap();
        stream
    });
    let mut got = 0u32;
    let mut told = 0;
    while got < 2500 {
        let (header, data) = guest.receive();
        match header.op {
            op::RW => got += data.len() as u32,
            op::CREDIT_REQUEST => {
                assert_eq!(got - told, 1000, "asked only when there is none left");
                told = got;
                guest.send(ports, op::CREDIT_UPDATE, 0, (1000, told), &[]);
            }
            other => panic!("operation {other}"),
        }
        assert!(got - told <= 1000);
    }
    drop(writer.join().unwrap());
}

/// A host end that does not read: the guest may send its credit, and not a byte more.
#[test]
fn verify_5_10_6_3_credit_given_to_the_guest_is_what_is_kept() {
    let mut guest = Guest::new(0, 8);
    let (stream, ports) = guest.connected(1000);
    let piece = [1; 32 << 10];
    let mut sent = 0u32;
    // The socket itself takes some, which comes back as credit; past that nothing does.
    let mut free = CREDIT_BYTES;
    while free >= piece.len() as u32 {
        guest.send(ports, op::RW, 0, (1000, 0), &piece);
        sent += piece.len() as u32;
        guest.send(ports, op::CREDIT_REQUEST, 0, (1000, 0), &[]);
        let header = loop {
            let (header, _) = guest.receive();
            if header.op == op::CREDIT_UPDATE {
                break header;
            }
        };
        free = header.buf_alloc - (sent - header.fwd_cnt);
        assert!(sent < 64 << 20, "the device never stops taking");
    }
    guest.send(ports, op::RW, 0, (1000, 0), &piece);
    loop {
        match guest.receive().0.op {
            op::RST => break,
            op::CREDIT_UPDATE => {}
            other => panic!("operation {other}"),
        }
    }
    assert_eq!(guest.device.metrics().violations_count.get(), 1);
    // What came within the credit is there to be read.
    let mut stream = stream;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent as usize);
}

#[test]
fn the_guest_reaches_a_listener_and_nothing_else() {
    let mut guest = Guest::new(0, 8);
    guest.send((5, 700), op::REQUEST, 0, (4096, 0), &[]);
    assert_eq!(guest.receive().0.op, op::RST);
    let handle = guest.device.handle();
    let listener = handle.listen(5).unwrap();
    assert_eq!(handle.listen(5).unwrap_err().kind(), ErrorKind::AddrInUse);
    guest.send((5, 700), op::REQUEST, 0, (4096, 0), &[]);
    let (response, _) = guest.receive();
    assert_eq!((response.op, response.src_port, response.dst_port), (op::RESPONSE, 5, 700));
    let mut stream = listener.accept(LONG).unwrap();
    guest.send((5, 700), op::RW, 0, (4096, 0), b"hello");
    let mut read = [0; 5];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    drop(listener);
    guest.send((5, 701), op::REQUEST, 0, (4096, 0), &[]);
    assert_eq!(guest.receive().0.op, op::RST);
    drop(stream);
    assert_eq!(guest.receive().0.op, op::SHUTDOWN);
    assert_eq!(guest.device.metrics().guest_connects_count.get(), 1);
}

/// Many connections share one receive buffer in turn, and one that writes without end starves none.
#[test]
fn connections_have_their_turns() {
    let mut guest = Guest::new(0, 1);
    let (mut greedy, _) = guest.connected(u32::MAX);
    let others: Vec<_> = (0..20).map(|_| guest.connected(u32::MAX)).collect();
    let flood = spawn(move || while greedy.write_all(&[0; 4096]).is_ok() {});
    let mut seen = 0;
    for (stream, _) in &others {
        let mut stream = stream;
        stream.write_all(b"small").unwrap();
    }
    for _ in 0..200 {
        let (header, data) = guest.receive();
        if header.op == op::RW && data == b"small" {
            seen += 1;
        }
        if seen == others.len() {
            break;
        }
    }
    assert_eq!(seen, others.len());
    guest.device.reset();
    flood.join().unwrap();
}

#[test]
fn there_are_never_more_connections_than_the_bound() {
    let mut guest = Guest::new(0, 8);
    let listener = guest.device.handle().listen(5).unwrap();
    let mut accepted = Vec::new();
    for port in 0..CONNECTIONS_MAX as u32 + 10 {
        guest.send((5, port), op::REQUEST, 0, (4096, 0), &[]);
        let expect = if port < CONNECTIONS_MAX as u32 { op::RESPONSE } else { op::RST };
        assert_eq!(guest.receive().0.op, expect, "{port}");
        if expect == op::RESPONSE {
            accepted.push(listener.accept(LONG).unwrap());
        }
    }
    assert!(guest.device.handle().connect(1, LONG).is_err());
    // When one goes, another may come.
    accepted.pop();
    let (header, _) = guest.receive();
    assert_eq!(header.op, op::SHUTDOWN);
    guest.send((5, header.dst_port), op::RST, 0, (4096, 0), &[]);
    guest.send((5, 9999), op::REQUEST, 0, (4096, 0), &[]);
    assert_eq!(guest.receive().0.op, op::RESPONSE);
}

/// A listener that accepts nobody: its backlog, and then RST.
#[test]
fn a_backlog_is_bounded() {
    let mut guest = Guest::new(0, 8);
    let _listener = guest.device.handle().listen(5).unwrap();
    for port in 0..BACKLOG as u32 + 1 {
        guest.send((5, port), op::REQUEST, 0, (4096, 0), &[]);
        assert_eq!(guest.receive().0.op == op::RESPONSE, port < BACKLOG as u32);
    }
}

#[test]
fn megabytes_go_both_ways_unchanged() {
    let mut guest = Guest::new(1 << 29, 32);
    let (stream, ports) = guest.connected(CREDIT_BYTES);
    let data: Vec<u8> = (0..3 << 20).map(|n: u32| (n.wrapping_mul(2654435761) >> 24) as u8).collect();
    let (mut reader, mut writer, sent) = (stream.try_clone().unwrap(), stream, data.clone());
    let write = spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        let mut echo = Vec::new();
        reader.read_to_end(&mut echo).unwrap();
        echo
    });
    // The guest echoes, as far as its credit goes.
    let (mut taken, mut back, mut credit, mut pending) = (0u32, 0u32, CREDIT_BYTES, Vec::new());
    let mut eof = false;
    while !eof || !pending.is_empty() {
        let room = (credit as usize).min(pending.len()).min(PACKET_BYTES_MAX);
        if room > 0 {
            let piece: Vec<u8> = pending.drain(..room).collect();
            guest.send(ports, op::RW, 0, (CREDIT_BYTES, taken), &piece);
            back += room as u32;
            credit -= room as u32;
            continue;
        }
        let (header, got) = guest.receive();
        match header.op {
            op::RW => {
                taken += got.len() as u32;
                pending.extend(got);
            }
            op::SHUTDOWN => eof = true,
            op::CREDIT_REQUEST => guest.send(ports, op::CREDIT_UPDATE, 0, (CREDIT_BYTES, taken), &[]),
            _ => {}
        }
        credit = header.buf_alloc - (back - header.fwd_cnt);
    }
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, (CREDIT_BYTES, taken), &[]);
    assert!(write.join().unwrap() == data);
}

#[test]
fn packets_that_lie_are_dropped_and_counted() {
    let mut guest = Guest::new(0, 8);
    let good = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        kind: TYPE_STREAM,
        op: op::RW,
        src_port: 1,
        dst_port: 2,
        ..Header::default()
    };
    // Longer than it is, longer than any may be, of another guest.
    guest.send_raw(&Header { len: 5, ..good }, b"four");
    guest.send_raw(&Header { len: u32::MAX, ..good }, b"four");
    guest.send_raw(&Header { src_cid: 99, ..good }, b"");
    // To another host, of another type: refused. A RST is never answered.
    guest.send_raw(&Header { op: op::RST, ..good }, b"");
    guest.send_raw(&Header { dst_cid: 99, ..good }, b"");
    guest.send_raw(&Header { kind: 2, ..good }, b"");
    assert_eq!((guest.receive().0.op, guest.receive().0.op), (op::RST, op::RST));
    assert_eq!(guest.device.metrics().malformed_count.get(), 3);
}

fn arbitrary_packet() -> impl Strategy<Value = (u32, u16, u32, u32, u32, usize)> {
    let counts = prop_oneof![Just(0u32), 0u32..100_000, any::<u32>()];
    (0u32..4, 0u16..9, 0u32..4, counts.clone(), counts, 0usize..3000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever packets and descriptors a guest sends: the device goes on, and a new connection works.
    #[test]
    fn arbitrary_packets_and_chains_do_not_stop_the_device(
        packets in prop::collection::vec(arbitrary_packet(), 0..30),
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20, any::<bool>()), 16),
        heads in prop::collection::vec(prop_oneof![0u16..20, any::<u16>()], 0..8),
    ) {
        let mut guest = Guest::new(1 << 29, 64);
        let listener = guest.device.handle().listen(0).unwrap();
        for (port, op, flags, buf_alloc, fwd_cnt, len) in packets {
            guest.send((port % 2, port), op, flags, (buf_alloc, fwd_cnt), &vec![1; len]);
            while guest.driver.rings[QUEUE_RX].take_used().is_some() {}
        }
        while listener.accept(Duration::ZERO).is_ok() {}
        for (n, &(address, len, flags, next, near)) in descriptors.iter().enumerate() {
            let (address, len) = if near { (address % RAM_END, len % 0x2000) } else { (address, len) };
            guest.driver.rings[QUEUE_TX].descriptor(100 + n as u16, address.max(BUFFERS), len, flags, 100 + next);
        }
        for &head in &heads {
            guest.driver.rings[QUEUE_TX].offer(head.saturating_add(100));
        }
        guest.driver.rings[QUEUE_TX].kick();
        // Everything is as new after a reset, as far as anybody can see.
        guest.device.reset();
        let (driver, activation) = Driver::new(&QUEUE_SIZES, 0);
        guest.device.activate(activation).unwrap();
        guest.driver = driver;
        (0..8).for_each(|n| guest.give(n));
        guest.driver.rings[QUEUE_RX].kick();
        let (mut stream, _) = guest.connected(4096);
        stream.write_all(b"alive").unwrap();
        prop_assert_eq!(guest.receive().1, b"alive");
        prop_assert!(!guest.exit.is_triggered());
    }
}
