use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::auth::{HandshakeError, dial};
use super::stream::{Pipe, SharedStream, connect, read_exact, write_all};
use super::wire::{CHALLENGE_BYTES, HEADER_BYTES, Hello, Refusal, VERDICT_BYTES, parse_verdict};
use super::*;
use crate::launch::Address;
use crate::worker::Exit;

/// Far longer than anything here takes: a test that gets there has failed.
const LONG: Duration = Duration::from_secs(60);

fn secret() -> Secret {
    Secret::new([7; 32])
}

fn at(dir: &Path, peer: Peer) -> Address {
    Address::Unix(dir.join(peer.to_string().replace(' ', "-")))
}

fn config(dir: &Path, me: Peer, nodes: u32) -> Config {
    Config {
        identity: Identity { cluster: "test".into(), me, secret: secret() },
        nodes,
        listen: at(dir, me),
        io: at(dir, Peer::Io),
        node: (0..nodes).map(|n| at(dir, Peer::Node(n))).collect(),
    }
}

type Got = (Peer, Class, Kind, u64, Vec<u8>);

/// Puts every message into a channel.
struct Record(Mutex<Sender<Got>>);

impl Handler for Record {
    fn message(&self, from: Peer, class: Class, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let _ = self.0.lock().unwrap().send((from, class, header.kind, header.tag, payload.to_vec()));
        Ok(())
    }
}

/// Stops until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Handler for Gate {
    fn message(&self, _: Peer, _: Class, _: Header, _: &[u8]) -> Result<(), Violation> {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
        Ok(())
    }
}

const LINKS: [Class; 6] = [Class::Page, Class::Fetch, Class::Bulk, Class::Ctl, Class::Frame, Class::Fs];

fn recorder() -> (Handlers, Receiver<Got>) {
    let (sender, receiver) = channel();
    let record: Arc<dyn Handler> = Arc::new(Record(Mutex::new(sender)));
    let handlers = LINKS.into_iter().fold(Handlers::default(), |all, class| all.with(class, record.clone()));
    (handlers, receiver)
}

fn kind_of(class: Class) -> Kind {
    match class {
        Class::Page => Kind::Dsm,
        Class::Fetch => Kind::FetchRequest,
        Class::Bulk => Kind::Ssi,
        Class::Ctl => Kind::Control,
        Class::Frame => Kind::Net,
        _ => Kind::FsRequest,
    }
}

struct Cluster {
    fabrics: Vec<Arc<Fabric>>,
    inboxes: Vec<Receiver<Got>>,
    exit: Exit,
    _dir: tempfile::TempDir,
}

/// An I/O server (index 0) and `nodes` nodes, all in this process; `handlers` replaces what node n has.
fn cluster(nodes: u32, tcp: bool, replace: impl Fn(u32, Handlers) -> Handlers) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let exit = Exit::new().unwrap();
    let mut fabrics: Vec<Arc<Fabric>> = Vec::new();
    let mut inboxes = Vec::new();
    for index in 0..=nodes {
        let me = if index == 0 { Peer::Io } else { Peer::Node(index - 1) };
        let mut config = config(dir.path(), me, nodes);
        if tcp {
            config.listen = Address::Tcp("127.0.0.1".into(), 0);
            for (earlier, fabric) in fabrics.iter().enumerate() {
                let address = fabric.listening().unwrap();
                match earlier {
                    0 => config.io = address,
                    n => config.node[n - 1] = address,
                }
            }
        }
        let fabric = Fabric::new(config, &exit);
        let (handlers, inbox) = recorder();
        let handlers = if index == 0 { handlers } else { replace(index - 1, handlers) };
        fabric.listen(handlers).unwrap();
        fabrics.push(fabric);
        inboxes.push(inbox);
    }
    std::thread::scope(|scope| {
        for fabric in &fabrics {
            scope.spawn(|| fabric.join(LONG).unwrap());
        }
    });
    Cluster { fabrics, inboxes, exit, _dir: dir }
}

#[test]
fn every_pair_is_joined_by_its_classes_and_each_class_keeps_order() {
    for tcp in [false, true] {
        let cluster = cluster(2, tcp, |_, handlers| handlers);
        for (i, from) in cluster.fabrics.iter().enumerate() {
            for (j, to) in cluster.fabrics.iter().enumerate() {
                for class in Class::between(from.me(), to.me()) {
                    for tag in 0..200 {
                        let body = vec![tag as u8; tag as usize * 7];
                        from.send(
                            to.me(),
                            *class,
                            kind_of(*class),
                            tag,
                            &[&body[..1.min(body.len())], &body[1.min(body.len())..]],
                        )
                        .unwrap();
                    }
                    for tag in 0..200 {
                        let got = cluster.inboxes[j].recv_timeout(LONG).unwrap();
                        let body = vec![tag as u8; tag as usize * 7];
                        assert_eq!(got, (from.me(), *class, kind_of(*class), tag, body), "{i} to {j}");
                    }
                }
            }
        }
        let refused = cluster.fabrics[0].send(Peer::Node(0), Class::Page, Kind::Dsm, 0, &[]);
        assert_eq!(refused, Err(SendError::Dead), "the I/O server has no page class");
        assert!(!cluster.exit.is_triggered());
    }
}

#[test]
fn large_messages_of_both_directions_pass_one_another() {
    let cluster = cluster(2, false, |_, handlers| handlers);
    let body = vec![0x5a; Kind::FetchReply.payload_max()];
    std::thread::scope(|scope| {
        for (me, peer) in [(1, 1), (2, 0)] {
            let (fabric, body) = (&cluster.fabrics[me], &body);
            scope.spawn(move || {
                for tag in 0..50 {
                    fabric.send(Peer::Node(peer), Class::Fetch, Kind::FetchReply, tag, &[body]).unwrap();
                }
            });
        }
    });
    for inbox in &cluster.inboxes[1..] {
        for tag in 0..50 {
            let got = inbox.recv_timeout(LONG).unwrap();
            assert_eq!((got.3, got.4.len()), (tag, body.len()));
        }
    }
}

fn hello(class: Class, from: Peer, to: Peer) -> Hello {
    Hello { class, from, to, name: "test".into(), nonce: [0; 32] }
}

#[test]
fn a_stranger_is_refused_and_told_why() {
    let cluster = cluster(1, false, |_, handlers| handlers);
    let io = cluster.fabrics[0].listening().unwrap();
    let try_as = |secret: &Secret, hello: Hello| {
        let stream = connect(&io).unwrap();
        dial(stream.as_ref(), secret, hello)
    };
    let refusal = |result| match result {
        Err(HandshakeError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let stream_hello = || hello(Class::Stream, Peer::Node(0), Peer::Io);
    // A dialer with another secret finds out first, and says no more.
    assert!(matches!(try_as(&Secret::new([8; 32]), stream_hello()), Err(HandshakeError::Impostor)));
    let mut other = stream_hello();
    other.name = "other".into();
    assert_eq!(refusal(try_as(&secret(), other)), Refusal::Cluster);
    assert_eq!(
        refusal(try_as(&secret(), hello(Class::Stream, Peer::Node(0), Peer::Node(0)))),
        Refusal::Destination
    );
    for (class, from) in [
        (Class::Session, Peer::Client),
        (Class::Stream, Peer::Client),
        (Class::Stream, Peer::Node(1)),
        (Class::Page, Peer::Node(0)),
        (Class::Ctl, Peer::Io),
        // The connection is there already.
        (Class::Ctl, Peer::Node(0)),
    ] {
        assert_eq!(
            refusal(try_as(&secret(), hello(class, from, Peer::Io))),
            Refusal::Unexpected,
            "{class:?}"
        );
    }
    // None of them did any harm.
    assert!(cluster.fabrics[0].membership().is_alive(Peer::Node(0)));
    cluster.fabrics[1].send(Peer::Io, Class::Ctl, Kind::Control, 1, &[]).unwrap();
    assert_eq!(cluster.inboxes[0].recv_timeout(LONG).unwrap().3, 1);
}

#[test]
fn a_proof_made_without_the_secret_or_played_back_is_refused() {
    let cluster = cluster(1, false, |_, handlers| handlers);
    let io = cluster.fabrics[0].listening().unwrap();
    let challenge_of = |stream: &SharedStream| {
        write_all(stream.as_ref(), &[&hello(Class::Stream, Peer::Node(0), Peer::Io).emit()]).unwrap();
        let mut challenge = [0; CHALLENGE_BYTES];
        read_exact(stream.as_ref(), &mut challenge).unwrap();
        challenge
    };
    for reflect in [false, true] {
        let stream = connect(&io).unwrap();
        let challenge = challenge_of(&stream);
        // The listener's own MAC, sent back to it, is no proof: the labels differ.
        let proof = if reflect { &challenge[40..72] } else { &[0; 32] };
        write_all(stream.as_ref(), &[proof]).unwrap();
        let mut verdict = [0; VERDICT_BYTES];
        read_exact(stream.as_ref(), &mut verdict).unwrap();
        assert_eq!(parse_verdict(verdict), Err(Refusal::Proof));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then it ends");
    }
}

#[test]
fn silent_strangers_keep_nobody_out() {
    let cluster = cluster(1, false, |_, handlers| handlers);
    let io = cluster.fabrics[0].listening().unwrap();
    let _silent: Vec<_> = (0..8).map(|_| connect(&io).unwrap()).collect();
    let stream = connect(&io).unwrap();
    dial(stream.as_ref(), &secret(), hello(Class::Stream, Peer::Node(0), Peer::Io)).unwrap();
}

/// Node 0 of a cluster whose node 1 is played by the test: returns its raw page and other connections.
fn with_raw_peer() -> (Arc<Fabric>, Vec<SharedStream>, Receiver<Death>, tempfile::TempDir, Exit) {
    let dir = tempfile::tempdir().unwrap();
    let exit = Exit::new().unwrap();
    let fabric = Fabric::new(config(dir.path(), Peer::Node(0), 2), &exit);
    let (sender, deaths) = channel();
    let sender = Mutex::new(sender);
    fabric.membership().on_death(move |death| {
        let _ = sender.lock().unwrap().send(death.clone());
    });
    fabric.listen(recorder().0).unwrap();
    let raw = Class::between(Peer::Node(0), Peer::Node(1))
        .iter()
        .map(|class| {
            let stream = connect(&fabric.listening().unwrap()).unwrap();
            dial(stream.as_ref(), &secret(), hello(*class, Peer::Node(1), Peer::Node(0))).unwrap();
            // The dialler knows first.
            while fabric.link(Peer::Node(1), *class).is_none() {
                std::thread::yield_now();
            }
            stream
        })
        .collect();
    (fabric, raw, deaths, dir, exit)
}

#[test]
fn a_peer_that_breaks_the_wire_format_is_dead_and_its_length_is_never_allocated() {
    let oversize = {
        let mut header = Header { kind: Kind::Dsm, len: 0, tag: 0 }.emit().unwrap();
        header[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        header.to_vec()
    };
    let wrong_class = Header { kind: Kind::Net, len: 0, tag: 0 }.emit().unwrap().to_vec();
    let unknown = vec![0xff; HEADER_BYTES];
    for (bytes, message) in [(oversize, "at most"), (wrong_class, "Net message"), (unknown, "unknown kind")] {
        let (fabric, raw, deaths, _dir, exit) = with_raw_peer();
        write_all(raw[0].as_ref(), &[&bytes]).unwrap();
        let death = deaths.recv_timeout(LONG).unwrap();
        assert_eq!((death.peer, death.view.alive, death.view.generation), (Peer::Node(1), 0b01, 1));
        assert!(death.why.contains(message), "{}", death.why);
        // All its classes end, and it is not let in again.
        for stream in &raw {
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        }
        assert_eq!(fabric.send(Peer::Node(1), Class::Ctl, Kind::Ssi, 0, &[]), Err(SendError::Dead));
        let again = connect(&fabric.listening().unwrap()).unwrap();
        let refused = dial(again.as_ref(), &secret(), hello(Class::Ctl, Peer::Node(1), Peer::Node(0)));
        assert!(matches!(refused, Err(HandshakeError::Refused(Refusal::Unexpected))));
        assert!(!exit.is_triggered(), "a peer's fault ends no process");
    }
}

#[test]
fn the_death_of_a_peer_is_seen_and_wakes_those_who_wait_for_it() {
    let (fabric, raw, deaths, _dir, _exit) = with_raw_peer();
    let sender = fabric.clone();
    // Nobody reads at the other end: this thread ends up waiting for room.
    let waiter = std::thread::spawn(move || {
        let body = vec![0; Kind::FetchReply.payload_max()];
        let mut sent = 0;
        while sender.send(Peer::Node(1), Class::Fetch, Kind::FetchReply, 0, &[&body]).is_ok() {
            sent += 1;
        }
        sent
    });
    let bulk = fabric.link(Peer::Node(1), Class::Fetch).unwrap().clone();
    while bulk.metrics().sent_count.load(Ordering::Relaxed) < 16 {
        std::thread::yield_now();
    }
    drop(raw);
    assert_eq!(deaths.recv_timeout(LONG).unwrap().peer, Peer::Node(1));
    assert!(waiter.join().unwrap() >= 16);
    assert!(deaths.try_recv().is_err(), "a death is told once, though four connections ended");
}

#[test]
fn a_stopped_bulk_reader_delays_no_page() {
    let gate = Arc::new(Gate::default());
    let cluster =
        cluster(
            2,
            false,
            |node, handlers| {
                if node == 1 { handlers.with(Class::Bulk, gate.clone()) } else { handlers }
            },
        );
    let (node0, inbox1) = (&cluster.fabrics[1], &cluster.inboxes[2]);
    let (woken, wakes) = channel();
    let woken = Mutex::new(woken);
    node0.on_room(Arc::new(move || {
        let _ = woken.lock().unwrap().send(());
    }));
    let body = vec![0; Kind::Ssi.payload_max()];
    let bulk = |tag| node0.send(Peer::Node(1), Class::Bulk, Kind::Ssi, tag, &[&body]);
    let mut sent = 0;
    while bulk(sent).is_ok() {
        sent += 1;
        assert!(sent < 200, "200 messages do not fit what may wait");
    }
    assert_eq!(bulk(sent), Err(SendError::Full));
    for tag in 0..1000 {
        for class in [Class::Page, Class::Fetch, Class::Ctl] {
            node0.send(Peer::Node(1), class, kind_of(class), tag, &[&[1; 100]]).unwrap();
            assert_eq!(inbox1.recv_timeout(LONG).unwrap().1, class);
        }
    }
    gate.open();
    while bulk(sent) == Err(SendError::Full) {
        wakes.recv_timeout(LONG).unwrap();
    }
}

#[test]
fn a_dsm_send_never_waits_and_a_frame_is_dropped_rather_than_queued_for_ever() {
    let gate = Arc::new(Gate::default());
    let cluster = cluster(2, false, |_, handlers| {
        handlers.with(Class::Page, gate.clone()).with(Class::Frame, gate.clone())
    });
    let (io, node0) = (&cluster.fabrics[0], &cluster.fabrics[1]);
    let frame = vec![0; 60_000];
    for _ in 0..300 {
        io.send(Peer::Node(0), Class::Frame, Kind::Net, 0, &[&frame]).unwrap();
    }
    let frames = io.link(Peer::Node(0), Class::Frame).unwrap();
    assert!(frames.metrics().dropped_count.load(Ordering::Relaxed) > 100);
    let page = vec![0; Kind::Dsm.payload_max()];
    let mut sent = 0_usize;
    while node0.send(Peer::Node(1), Class::Page, Kind::Dsm, 0, &[&page]).is_ok() {
        sent += page.len();
        assert!(sent < 80 << 20, "the bound is 64 MiB and the socket's buffer");
    }
    assert!(sent > 60 << 20);
    gate.open();
}

struct Echo;

impl StreamService for Echo {
    fn open(&self, from: Peer, target: u64) -> Result<SharedStream, String> {
        if target == 13 {
            return Err("nobody listens on port 13".into());
        }
        let (near, mut far) = UnixStream::pair().map_err(|e| e.to_string())?;
        std::thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            all.extend_from_slice(format!(" from {from} to {target}").as_bytes());
            std::io::Write::write_all(&mut far, &all).unwrap();
        });
        Ok(Arc::new(near))
    }
}

#[test]
fn a_stream_is_a_raw_pipe_that_can_be_half_closed() {
    let cluster = cluster(1, false, |_, handlers| handlers.with_streams(Arc::new(Echo)));
    let io = &cluster.fabrics[0];
    let stream = io.open_stream(Peer::Node(0), 1024).unwrap();
    let body = vec![b'x'; 300_000];
    write_all(stream.as_ref(), &[&body]).unwrap();
    stream.shutdown_write();
    let mut all = Vec::new();
    Pipe(stream).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), body.len() + b" from io to 1024".len());
    assert!(all.ends_with(b" from io to 1024"));
    let refused = io.open_stream(Peer::Node(0), 13).unwrap_err();
    assert_eq!(refused.to_string(), "nobody listens on port 13");
}

#[test]
fn joining_without_everybody_there_names_who_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let exit = Exit::new().unwrap();
    let io = Fabric::new(config(dir.path(), Peer::Io, 2), &exit);
    io.listen(recorder().0).unwrap();
    let error = io.join(Duration::ZERO).unwrap_err().to_string();
    assert_eq!(error, "not connected in time: node 0, node 1");
    let node = Fabric::new(config(dir.path(), Peer::Node(1), 2), &exit);
    node.listen(recorder().0).unwrap();
    let error = node.join(Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("node 0"), "{error}");
    let twice = Fabric::new(config(dir.path(), Peer::Node(1), 2), &exit);
    assert!(matches!(twice.listen(recorder().0), Err(FabricError::Listen { .. })));
}
