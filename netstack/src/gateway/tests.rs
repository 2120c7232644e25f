use super::*;
use crate::testing::*;
use crate::view::Head;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Packet, TcpControl, TcpPacket};

const NOW: Instant = Instant::ZERO;
const SERVER: (Ipv4Addr, u16) = (OUTSIDE, 443);

fn gateway(config: GatewayConfig) -> Gateway {
    Gateway::new(GatewayConfig { seed: 7, ..config }, NOW)
}

fn small() -> Gateway {
    gateway(GatewayConfig { rx_buffer_bytes: 4096, tx_buffer_bytes: 4096, ..GatewayConfig::default() })
}

fn frames(gateway: &mut Gateway) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| gateway.pop_frame()).collect()
}

fn events(gateway: &mut Gateway) -> Vec<Event> {
    std::iter::from_fn(|| gateway.pop_event()).collect()
}

/// A cell's end of one connection, segment by segment.
struct Peer {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    seq: i32,
    ack: i32,
}

impl Peer {
    fn segment(&mut self, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        let ack = self.ack != 0;
        let mut frame = tcp(self.from, self.to, (control, ack), payload);
        let mut segment = TcpPacket::new_unchecked(&mut frame[VNET_HDR_BYTES + 34..]);
        segment.set_seq_number(smoltcp::wire::TcpSeqNumber(self.seq));
        segment.set_ack_number(smoltcp::wire::TcpSeqNumber(self.ack));
        let flags = i32::from(matches!(control, TcpControl::Syn | TcpControl::Fin));
        self.seq = self.seq.wrapping_add(payload.len() as i32 + flags);
        frame
    }

    /// Takes the gateway's segments; returns their flags (SYN, FIN, RST) and payload bytes.
    fn take(&mut self, gateway: &mut Gateway) -> Vec<(bool, bool, bool, usize)> {
        let mut seen = Vec::new();
        for frame in frames(gateway) {
            let segment = TcpPacket::new_checked(&frame[VNET_HDR_BYTES + 34..]).unwrap();
            let (syn, fin, rst) = (segment.syn(), segment.fin(), segment.rst());
            let end = segment.seq_number() + segment.segment_len();
            self.ack = end.0;
            seen.push((syn, fin, rst, segment.payload().len()));
        }
        seen
    }
}

/// A connection of a cell to [`SERVER`], past its handshake.
fn outgoing(gateway: &mut Gateway) -> (ConnId, Peer) {
    let mut peer = Peer { from: (CLUSTER_IP, 40000), to: SERVER, seq: 100, ack: 0 };
    gateway.input(NOW, peer.segment(TcpControl::Syn, b""));
    let Some(Event::Open { id, to }) = gateway.pop_event() else { panic!("no connection") };
    assert_eq!(to, SocketAddrV4::new(SERVER.0, SERVER.1));
    gateway.poll(NOW);
    assert!(peer.take(gateway).is_empty(), "no answer before the other side is open");
    gateway.opened(NOW, id);
    gateway.poll(NOW);
    assert_eq!(peer.take(gateway), [(true, false, false, 0)]);
    gateway.input(NOW, peer.segment(TcpControl::None, b""));
    gateway.poll(NOW);
    assert_eq!(events(gateway), [Event::Ready { id }]);
    (id, peer)
}

#[test]
fn net_1_a_cell_is_answered_when_and_as_the_outside_answers() {
    outgoing(&mut small());
    for (why, code) in [(Refusal::NetUnreachable, 0), (Refusal::HostUnreachable, 1)] {
        let mut gateway = small();
        gateway.input(NOW, tcp((CLUSTER_IP, 1), SERVER, SYN, b""));
        let Some(Event::Open { id, .. }) = gateway.pop_event() else { panic!("no connection") };
        gateway.input(NOW, tcp((CLUSTER_IP, 1), SERVER, SYN, b""));
        assert_eq!(events(&mut gateway), [], "a SYN sent again opens nothing");
        gateway.refused(NOW, id, why);
        let out = frames(&mut gateway);
        let icmp = Icmpv4Packet::new_checked(&out[0][VNET_HDR_BYTES + 34..]).unwrap();
        assert_eq!((icmp.msg_code(), icmp.verify_checksum(), gateway.connections()), (code, true, 0));
        let Transport::Error(quoted) = transport(&out[0]) else { panic!("no ICMP error") };
        assert_eq!((quoted.src_port, quoted.dst, quoted.dst_port), (1, SERVER.0, SERVER.1));
    }
    let mut gateway = small();
    gateway.input(NOW, tcp((CLUSTER_IP, 1), SERVER, SYN, b""));
    let Some(Event::Open { id, .. }) = gateway.pop_event() else { panic!("no connection") };
    gateway.refused(NOW, id, Refusal::Refused);
    assert!(
        matches!(transport(&frames(&mut gateway)[0]), Transport::Tcp { flags, .. } if flags.rst && flags.ack)
    );
}

/// A slow reader outside closes the cell's window; nothing in between grows.
#[test]
fn back_pressure_reaches_the_cell_and_the_host() {
    let mut gateway = small();
    let (id, mut peer) = outgoing(&mut gateway);
    assert_eq!(gateway.recv(id, |_| 0), Progress::Blocked);
    for _ in 0..4 {
        gateway.input(NOW, peer.segment(TcpControl::Psh, &[1; 1000]));
    }
    // Beyond the buffer of 4096.
    gateway.input(NOW, peer.segment(TcpControl::Psh, &[1; 1000]));
    gateway.poll(NOW + Duration::from_secs(1));
    assert_eq!(events(&mut gateway), [Event::Ready { id }], "one event, however much came");
    gateway.input(NOW, peer.segment(TcpControl::None, b""));
    gateway.poll(NOW + Duration::from_secs(1));
    assert_eq!(events(&mut gateway), [], "and none more before it was heeded");
    let out = frames(&mut gateway);
    let last = TcpPacket::new_checked(&out.last().unwrap()[VNET_HDR_BYTES + 34..]).unwrap();
    assert!(last.window_len() < 1000, "the window is all but closed");
    let mut got = 0;
    while let Progress::Moved(len) = gateway.recv(id, |bytes| bytes.len().min(700)) {
        got += len;
    }
    assert!((4000..=4096).contains(&got), "{got}");
    // The other way: the cell acknowledges nothing, and the host can write no more than the buffer has room for.
    let mut sent = 0;
    while let Progress::Moved(len) = gateway.send(id, |room| room.len().min(999)) {
        sent += len;
    }
    assert_eq!((sent, gateway.send(id, |_| 1)), (4096, Progress::Blocked));
    gateway.poll(NOW + Duration::from_secs(1));
    assert_eq!(events(&mut gateway), []);
}

#[test]
fn net_3_an_end_in_one_direction_leaves_the_other_open() {
    let mut gateway = small();
    let (id, mut peer) = outgoing(&mut gateway);
    gateway.input(NOW, peer.segment(TcpControl::Fin, b"last words"));
    gateway.poll(NOW);
    let mut got = Vec::new();
    let read = |gateway: &mut Gateway, got: &mut Vec<u8>| {
        gateway.recv(id, |bytes| {
            got.extend_from_slice(bytes);
            bytes.len()
        })
    };
    assert_eq!(read(&mut gateway, &mut got), Progress::Moved(10));
    assert_eq!((read(&mut gateway, &mut got), &got[..]), (Progress::End, &b"last words"[..]));
    let answer = |room: &mut [u8]| {
        room[..3].copy_from_slice(b"yes");
        3
    };
    assert_eq!(gateway.send(id, answer), Progress::Moved(3));
    gateway.finish(id);
    gateway.release(id);
    gateway.poll(NOW);
    let out = peer.take(&mut gateway);
    assert_eq!(out.last(), Some(&(false, true, false, 3)), "the answer and the end of it");
    gateway.input(NOW, peer.segment(TcpControl::None, b""));
    gateway.poll(NOW);
    assert_eq!((gateway.connections(), gateway.counters().reset_count), (0, 0));
}

#[test]
fn a_reset_is_seen_after_what_came_before_it() {
    let mut gateway = small();
    let (id, mut peer) = outgoing(&mut gateway);
    gateway.input(NOW, peer.segment(TcpControl::Psh, b"abc"));
    gateway.input(NOW, peer.segment(TcpControl::Rst, b""));
    gateway.poll(NOW);
    assert_eq!(gateway.recv(id, |bytes| bytes.len()), Progress::Moved(3));
    assert_eq!(gateway.recv(id, |bytes| bytes.len()), Progress::Reset);
    assert_eq!(gateway.send(id, |room| room.len()), Progress::Reset);
    gateway.release(id);
    gateway.poll(NOW);
    assert_eq!((gateway.connections(), gateway.counters().reset_count), (0, 1));

    events(&mut gateway);
    let (id, mut peer) = outgoing(&mut gateway);
    gateway.abort(id);
    gateway.poll(NOW);
    assert!(peer.take(&mut gateway).iter().any(|(_, _, rst, _)| *rst), "and the other way");
    assert_eq!(gateway.connections(), 0);
}

#[test]
fn connections_are_bounded_and_silent_ones_end() {
    let mut gateway = gateway(GatewayConfig { max_connections: 3, ..GatewayConfig::default() });
    for port in 1..6 {
        gateway.input(NOW, tcp((CLUSTER_IP, port), SERVER, SYN, b""));
    }
    assert_eq!(
        (gateway.connections(), gateway.counters().full_count, gateway.connect(80)),
        (3, 2, Err(Full))
    );
    assert!(!gateway.has_room());
    // A client of a published port whose cells never answer.
    let mut gateway = small();
    let id = gateway.connect(80).unwrap();
    gateway.poll(NOW);
    let mut now = NOW;
    while let Some(at) = gateway.deadline().filter(|_| gateway.connections() > 0) {
        now = at;
        gateway.poll(now);
        if events(&mut gateway) == [Event::Ready { id }] {
            assert_eq!(gateway.recv(id, |_| 0), Progress::Reset);
            gateway.release(id);
            gateway.poll(now);
        }
    }
    assert_eq!(
        (gateway.connections(), now >= NOW + CONNECT_TIMEOUT, now < NOW + CONNECT_TIMEOUT * 2),
        (0, true, true)
    );
}

#[test]
fn time_wait_is_bounded_and_gives_way_to_a_new_connection() {
    let mut gateway = gateway(GatewayConfig { max_time_wait: 2, ..GatewayConfig::default() });
    for port in 1..=5 {
        let mut peer = Peer { from: (CLUSTER_IP, port), to: SERVER, seq: 100, ack: 0 };
        gateway.input(NOW, peer.segment(TcpControl::Syn, b""));
        let Some(Event::Open { id, .. }) = gateway.pop_event() else { panic!("no connection") };
        gateway.opened(NOW, id);
        gateway.poll(NOW);
        peer.take(&mut gateway);
        gateway.input(NOW, peer.segment(TcpControl::None, b""));
        gateway.finish(id);
        gateway.poll(NOW);
        peer.take(&mut gateway);
        gateway.input(NOW, peer.segment(TcpControl::Fin, b""));
        gateway.poll(NOW);
        assert_eq!(gateway.recv(id, |_| 0), Progress::End);
        gateway.release(id);
        gateway.poll(NOW);
        peer.take(&mut gateway);
        events(&mut gateway);
    }
    assert_eq!(gateway.connections(), 2);
    let mut again = Peer { from: (CLUSTER_IP, 5), to: SERVER, seq: 9_000_000, ack: 0 };
    gateway.input(NOW, again.segment(TcpControl::Syn, b""));
    assert!(matches!(events(&mut gateway)[..], [Event::Open { .. }]), "the four numbers are used anew");
    gateway.poll(NOW + Duration::from_secs(60));
    assert_eq!(gateway.connections(), 1, "and TIME-WAIT ends");
}

#[test]
fn the_gateways_own_address_is_refused_unless_it_is_meant_for_something() {
    let syn = |port| tcp((CLUSTER_IP, 9), (GATEWAY_IP, port), SYN, b"");
    let dns = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 53), 5300);
    for (host_loopback, port, to) in [
        (false, 22, None),
        (false, 53, Some(dns)),
        (true, 22, Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 22))),
        (true, 53, Some(dns)),
    ] {
        let mut gateway =
            gateway(GatewayConfig { dns: Some(dns), host_loopback, ..GatewayConfig::default() });
        gateway.input(NOW, syn(port));
        let opened = events(&mut gateway).into_iter().find_map(|event| match event {
            Event::Open { to, .. } => Some(to),
            _ => None,
        });
        assert_eq!(opened, to);
        gateway.input(NOW, udp((CLUSTER_IP, 9), (GATEWAY_IP, port), b"?"));
        let asked = events(&mut gateway).into_iter().find_map(|event| match event {
            Event::Datagram { to, .. } => Some(to),
            _ => None,
        });
        assert_eq!(asked, to);
        assert_eq!(frames(&mut gateway).len(), if to.is_some() { 0 } else { 2 }, "a refusal each");
    }
}

#[test]
fn datagram_flows_are_bounded_aged_and_answered() {
    let mut gateway = gateway(GatewayConfig { max_datagram_flows: 2, ..GatewayConfig::default() });
    for port in 1..=3 {
        gateway.input(NOW, udp((CLUSTER_IP, port), SERVER, &[port as u8]));
    }
    let seen = events(&mut gateway);
    let over: Vec<_> = seen.iter().filter(|event| matches!(event, Event::DatagramOver { .. })).collect();
    assert_eq!((seen.len(), over.len()), (4, 1));
    let Some(Event::Datagram { id, .. }) = seen.last().cloned() else { panic!("no datagram") };
    gateway.datagram(NOW + Duration::from_secs(100), id, &[9; 4000]);
    let parts = frames(&mut gateway);
    assert_eq!(parts.len(), 3);
    for (index, frame) in parts.iter().enumerate() {
        assert!(frame.len() <= VNET_HDR_BYTES + 14 + 1500);
        let Head::Ipv4(head) = View::parse(&frame[VNET_HDR_BYTES..]).unwrap().content.head() else {
            panic!("not IPv4")
        };
        let part = head.fragment.unwrap();
        assert_eq!((usize::from(part.offset), part.more), (index * 1480, index < 2));
    }
    gateway.datagram_refused(id);
    let Transport::Error(quoted) = transport(&frames(&mut gateway)[0]) else { panic!("no ICMP error") };
    assert!(quoted.port_unreachable && quoted.src_port == 3);
    gateway.poll(NOW + udp::TTL);
    assert_eq!(events(&mut gateway).len(), 1, "the other one aged");
    gateway.poll(NOW + udp::TTL + Duration::from_secs(100));
    assert_eq!(events(&mut gateway), [Event::DatagramOver { id }]);
    assert_eq!(gateway.deadline(), None);
    for _ in 0..5000 {
        gateway.input(NOW, udp((CLUSTER_IP, 1), SERVER, &[0; 1400]));
    }
    assert!(events(&mut gateway).len() <= 1024, "a glue that sleeps is not buried");
}

#[test]
fn net_1_ping_of_the_gateway_is_answered_and_of_others_refused() {
    let mut gateway = small();
    gateway.input(NOW, ping(CLUSTER_IP, GATEWAY_IP, 3, true));
    gateway.input(NOW, ping(CLUSTER_IP, OUTSIDE, 3, true));
    let out = frames(&mut gateway);
    assert_eq!(transport(&out[0]), Transport::Echo { ident: 3, request: false });
    assert!(matches!(transport(&out[1]), Transport::Error(_)));
}

/// What an adversary in a cell can send: good segments of a few connections, spoilt here and there, and noise.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let segment = (0u16..3, 0usize..6, any::<i32>(), any::<i32>(), 0usize..2000, proptest::bool::ANY);
    let near = segment.prop_map(|(port, kind, seq, ack, len, near)| {
        let kind = [SYN, SYN_ACK, ACK, FIN, RST, (TcpControl::Psh, true)][kind];
        let to = if port == 2 { (GATEWAY_IP, 1024 + 7) } else { SERVER };
        let mut frame = tcp((CLUSTER_IP, if port == 2 { 80 } else { port }), to, kind, &vec![1; len]);
        let mut segment = TcpPacket::new_unchecked(&mut frame[VNET_HDR_BYTES + 34..]);
        if !near {
            segment.set_seq_number(smoltcp::wire::TcpSeqNumber(seq));
            segment.set_ack_number(smoltcp::wire::TcpSeqNumber(ack));
        }
        frame
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let others = prop_oneof![
        Just(udp((CLUSTER_IP, 1), SERVER, &[7; 64])),
        Just(fragments(&udp((CLUSTER_IP, 1), SERVER, &[7; 640]), 64, 3)[2].clone()),
        Just(ping(CLUSTER_IP, GATEWAY_IP, 1, true)),
    ];
    let spoils = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (prop_oneof![6 => near, 1 => others, 1 => noise], spoils).prop_map(|(mut frame, spoils)| {
        if !frame.is_empty() {
            spoils.into_iter().for_each(|(at, byte)| *at.get_mut(&mut frame) = byte);
        }
        frame
    })
}

proptest! {
    #[test]
    fn arbitrary_segments_never_panic_the_gateway(steps in proptest::collection::vec((any_frame(), 0u8..8), 0..80)) {
        let mut gateway = small();
        let mut now = NOW;
        let published = gateway.connect(80).unwrap();
        let mut ids = vec![published];
        for (frame, act) in steps {
            now += Duration::from_millis(400);
            gateway.input(now, frame);
            for event in events(&mut gateway) {
                match event {
                    Event::Open { id, .. } if act % 2 == 0 => {
                        gateway.opened(now, id);
                        ids.push(id);
                    }
                    Event::Open { id, .. } => gateway.refused(now, id, Refusal::Refused),
                    _ => {}
                }
            }
            let id = ids[usize::from(act) % ids.len()];
            match act {
                0..=2 => { gateway.send(id, |room| room.len().min(700)); }
                3 | 4 => { gateway.recv(id, |bytes| bytes.len()); }
                5 => gateway.finish(id),
                6 => gateway.release(id),
                _ => gateway.abort(id),
            }
            gateway.poll(now);
            for frame in frames(&mut gateway) {
                let view = View::parse(&frame[VNET_HDR_BYTES..]).unwrap();
                prop_assert!(matches!(view.content.head(), Head::Ipv4(head) if head.dst == CLUSTER_IP));
            }
        }
        // With everything let go, nothing stays.
        ids.into_iter().for_each(|id| gateway.abort(id));
        gateway.poll(now);
        prop_assert!(gateway.connections() <= 2, "those that were opening or released are in TIME-WAIT at most");
    }
}
