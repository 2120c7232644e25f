use super::*;
use crate::testing::*;
use proptest::prelude::*;
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket};

use crate::vnet::{Checksum, Gso};

const NOW: Instant = Instant::ZERO;

fn switch(cells: Cell) -> Switch {
    let mut switch = Switch::new(SwitchConfig { uplink: true, ..SwitchConfig::default() });
    (0..cells).for_each(|cell| switch.cell_up(cell, Offload::ALL));
    switch
}

/// Puts a frame in and returns where frames come out.
fn pass(switch: &mut Switch, from: Port, frame: Vec<u8>) -> Vec<Port> {
    switch.input(NOW, from, frame);
    drain(switch).into_iter().map(|(port, _)| port).collect()
}

fn drain(switch: &mut Switch) -> Vec<(Port, Vec<u8>)> {
    std::iter::from_fn(|| switch.pop()).collect()
}

const GW: Port = Port::Gateway;
const C0: Port = Port::Cell(0);
const C1: Port = Port::Cell(1);
const C2: Port = Port::Cell(2);

/// NET-1: "All IP traffic passes an I/O server, so that the cluster has one address."
#[test]
fn net_1_frames_of_a_flow_go_to_the_cell_that_owns_it() {
    let mut switch = switch(3);
    assert_eq!(pass(&mut switch, C1, outbound(5000, 40000, SYN)), [GW]);
    assert_eq!(pass(&mut switch, GW, inbound(5000, 40000, SYN_ACK)), [C1]);
    assert_eq!(pass(&mut switch, C2, outbound(5001, 40000, SYN)), [GW]);
    for _ in 0..3 {
        assert_eq!(pass(&mut switch, GW, inbound(5000, 40000, ACK)), [C1]);
        assert_eq!(pass(&mut switch, GW, inbound(5001, 40000, ACK)), [C2]);
    }
    assert_eq!((switch.flows().of_cell(1), switch.flows().of_cell(2)), (1, 1));
}

#[test]
fn net_1_a_syn_goes_by_the_listener_table_the_least_loaded_first() {
    let mut switch = switch(3);
    switch.set_listener(Proto::Tcp, 80, 1, 1);
    switch.set_listener(Proto::Tcp, 80, 2, 2);
    switch.set_load(1, 10);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, SYN)), [C2]);
    assert_eq!(
        pass(&mut switch, GW, inbound(1, 80, SYN)),
        [C2],
        "a SYN sent again goes where the first went"
    );
    assert_eq!(pass(&mut switch, GW, inbound(2, 80, SYN)), [C2]);
    assert_eq!(pass(&mut switch, GW, inbound(3, 80, SYN)), [C1], "2 has no acceptor left");
    let turns: Vec<_> = (4..8).flat_map(|client| pass(&mut switch, GW, inbound(client, 80, SYN))).collect();
    assert_eq!(turns, [C2, C1, C2, C1], "none waits: in turn");
    assert_eq!(switch.counters().syns_placed_count, 7);
}

/// "Nothing is refused while any cell could accept it."
#[test]
fn net_1_an_unknown_port_is_asked_of_one_cell_after_the_other() {
    let mut switch = switch(3);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, SYN)), [C0]);
    assert_eq!(pass(&mut switch, C0, outbound(1, 80, RST)), [C1], "the question, not the refusal");
    assert_eq!(pass(&mut switch, C1, outbound(1, 80, RST)), [C2]);
    assert_eq!(pass(&mut switch, C2, outbound(1, 80, SYN_ACK)), [GW]);
    assert_eq!(switch.listeners().cells(Proto::Tcp, 80).collect::<Vec<_>>(), [2], "the answer teaches");
    assert_eq!(pass(&mut switch, GW, inbound(2, 80, SYN)), [C2]);
    assert_eq!(pass(&mut switch, C2, outbound(2, 80, RST)), [C0], "and a refusal unlearns");
    assert_eq!(pass(&mut switch, C0, outbound(2, 80, RST)), [C1]);
    assert_eq!(pass(&mut switch, C1, outbound(2, 80, RST)), [GW], "all have refused");
}

/// A table that lost a flow finds its owner again, and no other cell's reset gets out.
#[test]
fn net_3_a_flow_that_was_forgotten_finds_its_cell_again() {
    let mut switch = switch(3);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, ACK)), [C0]);
    assert_eq!(pass(&mut switch, C0, outbound(1, 80, RST)), [C1]);
    assert_eq!(pass(&mut switch, C1, outbound(1, 80, ACK)), [GW]);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, ACK)), [C1]);
    assert_eq!(pass(&mut switch, GW, inbound(2, 80, RST)), [], "a reset is no question");
}

#[test]
fn net_2_a_cell_that_does_not_own_a_flow_is_not_heard() {
    let mut switch = switch(2);
    switch.set_listener(Proto::Tcp, 80, 0, 1);
    pass(&mut switch, GW, inbound(1, 80, SYN));
    pass(&mut switch, C0, outbound(1, 80, SYN_ACK));
    pass(&mut switch, GW, inbound(1, 80, ACK));
    for kind in [RST, FIN, ACK, SYN] {
        assert_eq!(pass(&mut switch, C1, outbound(1, 80, kind)), []);
    }
    assert_eq!(switch.counters().not_owner_count, 4);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, ACK)), [C0]);
    // Four numbers that are over can be used by another cell.
    pass(&mut switch, C0, outbound(1, 80, RST));
    assert_eq!(pass(&mut switch, C1, outbound(1, 80, SYN)), [GW]);
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, SYN_ACK)), [C1]);
}

#[test]
fn net_1_classes_follow_the_connection() {
    let mut switch = switch(1);
    let class = |switch: &Switch| {
        let key = FlowKey { proto: Proto::Tcp, local_port: 80, remote: OUTSIDE, remote_port: 1 };
        switch.flows().get(&key).map(|flow| flow.class)
    };
    pass(&mut switch, GW, inbound(1, 80, SYN));
    pass(&mut switch, C0, outbound(1, 80, SYN_ACK));
    assert_eq!(class(&switch), Some(Class::Embryonic), "a client that never answers gets no long stay");
    pass(&mut switch, GW, inbound(1, 80, ACK));
    assert_eq!(class(&switch), Some(Class::Established));
    pass(&mut switch, GW, inbound(1, 80, FIN));
    assert_eq!(class(&switch), Some(Class::Established), "half closed is open");
    pass(&mut switch, C0, outbound(1, 80, FIN));
    assert_eq!(class(&switch), Some(Class::Closing));
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, ACK)), [C0], "the last acknowledgement arrives");
    pass(&mut switch, GW, inbound(1, 80, SYN));
    assert_eq!(class(&switch), Some(Class::Embryonic), "used anew");
    switch.poll(NOW + Duration::from_secs(10_000));
    assert!(switch.flows().is_empty());
}

/// "Cell to cell: a connection to the cluster's own address finds its listener in whichever cell it is."
#[test]
fn net_1_cell_to_cell() {
    let mut switch = switch(3);
    let (a, b) = ((CLUSTER_IP, 40000), (CLUSTER_IP, 80));
    assert_eq!(pass(&mut switch, C1, tcp(a, b, SYN, b"")), [C0]);
    assert_eq!(pass(&mut switch, C0, tcp(b, a, RST, b"")), [C2], "never asked of the cell that asks");
    switch.input(NOW, C2, tcp(b, a, SYN_ACK, b""));
    let out = drain(&mut switch);
    assert_eq!(out[0].0, C1);
    assert_eq!(out[0].1[VNET_HDR_BYTES..VNET_HDR_BYTES + 6], CLUSTER_MAC.0, "addressed to its card");
    assert_eq!(pass(&mut switch, C1, tcp(a, b, ACK, b"x")), [C2]);
    assert_eq!(switch.flows().len(), 2, "each end is a flow");
    // Nobody is left to ask: whoever asked is refused.
    let mut alone = self::switch(1);
    alone.input(NOW, C0, tcp(a, b, SYN, b""));
    let out = drain(&mut alone);
    assert_eq!(out[0].0, C0);
    assert!(matches!(
        transport(&out[0].1),
        Transport::Tcp { flags: TcpFlags { rst: true, ack: true, .. }, .. }
    ));
}

/// "UDP sockets and ICMP errors follow their owner."
#[test]
fn net_1_datagrams_and_icmp_errors_follow_their_owner() {
    let mut switch = switch(3);
    let (client, server) = ((OUTSIDE, 9), (CLUSTER_IP, 53));
    let question = udp((CLUSTER_IP, 5353), (OUTSIDE, 53), b"?");
    assert_eq!(pass(&mut switch, C2, question.clone()), [GW]);
    assert_eq!(pass(&mut switch, GW, udp((OUTSIDE, 53), (CLUSTER_IP, 5353), b"!")), [C2]);
    assert_eq!(pass(&mut switch, GW, icmp_error(OUTSIDE, CLUSTER_IP, 1, &question)), [C2]);
    let unknown = udp((CLUSTER_IP, 1), (OUTSIDE, 53), b"?");
    assert_eq!(
        pass(&mut switch, GW, icmp_error(OUTSIDE, CLUSTER_IP, 1, &unknown)),
        [],
        "about nobody's packet"
    );
    let syn = outbound(7, 40001, SYN);
    pass(&mut switch, C1, syn.clone());
    assert_eq!(pass(&mut switch, GW, icmp_error(GATEWAY_IP, CLUSTER_IP, 1, &syn)), [C1]);
    // A datagram for a port nobody is known to have is asked around, too.
    let first = udp(client, server, b"hello");
    assert_eq!(pass(&mut switch, GW, first.clone()), [C0]);
    assert_eq!(pass(&mut switch, C0, icmp_error(CLUSTER_IP, OUTSIDE, 3, &first)), [C1]);
    assert_eq!(pass(&mut switch, C1, udp(server, client, b"yes")), [GW]);
    assert_eq!(pass(&mut switch, GW, first.clone()), [C1]);
    assert_eq!(
        pass(&mut switch, C1, icmp_error(CLUSTER_IP, OUTSIDE, 3, &first)),
        [GW],
        "it took the flow: no question"
    );
    // Ping from a cell: its answer comes back to it.
    assert_eq!(pass(&mut switch, C2, ping(CLUSTER_IP, OUTSIDE, 77, true)), [GW]);
    assert_eq!(pass(&mut switch, GW, ping(OUTSIDE, CLUSTER_IP, 77, false)), [C2]);
    assert_eq!(pass(&mut switch, GW, ping(OUTSIDE, CLUSTER_IP, 78, false)), []);
}

/// "The I/O server answers ARP and ping for it."
#[test]
fn net_1_arp_and_ping_are_answered_for_the_cells() {
    let mut switch = switch(2);
    let host = EthernetAddress([2, 0, 0, 0, 0, 9]);
    let answers = |switch: &mut Switch, from, frame| {
        switch.input(NOW, from, frame);
        drain(switch)
    };
    let out = answers(&mut switch, Port::Uplink, arp_request((host, OUTSIDE), CLUSTER_IP));
    assert_eq!((out.len(), out[0].0), (1, Port::Uplink));
    let Content::Arp(ArpRepr::EthernetIpv4 { operation, source_hardware_addr, .. }) =
        View::parse(&out[0].1[VNET_HDR_BYTES..]).unwrap().content
    else {
        panic!("not ARP")
    };
    assert_eq!((operation, source_hardware_addr), (ArpOperation::Reply, CLUSTER_MAC));
    let out = answers(&mut switch, C1, arp_request(CELL_SIDE, GATEWAY_IP));
    assert_eq!((out.len(), out[0].0), (1, C1), "a cell that asks for the gateway gets the gateway");
    assert_eq!(
        answers(&mut switch, C1, arp_request(CELL_SIDE, CLUSTER_IP)),
        [],
        "no cell is told that it is not alone"
    );
    assert_eq!(pass(&mut switch, C1, arp_request(CELL_SIDE, OUTSIDE)), [Port::Uplink]);
    let reply = local::arp_reply(
        &ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: CLUSTER_MAC,
            source_protocol_addr: CLUSTER_IP,
            target_hardware_addr: host,
            target_protocol_addr: OUTSIDE,
        },
        host,
    );
    assert_eq!(
        pass(&mut switch, Port::Uplink, reply.unwrap()),
        [C0, C1],
        "which of them asked is not to be seen"
    );
    let out = answers(&mut switch, GW, ping(OUTSIDE, CLUSTER_IP, 5, true));
    assert_eq!((out.len(), out[0].0), (1, GW));
    assert_eq!(transport(&out[0].1), Transport::Echo { ident: 5, request: false });
    assert_eq!(switch.counters().echo_replies_count, 1);
}

#[test]
fn later_fragments_follow_the_first_to_its_cell() {
    let mut switch = switch(2);
    switch.set_listener(Proto::Udp, 9, 1, 1);
    let parts = fragments(&udp((OUTSIDE, 1), (CLUSTER_IP, 9), &[5; 4000]), 1480, 42);
    assert_eq!(pass(&mut switch, GW, parts[1].clone()), [], "kept");
    assert_eq!(pass(&mut switch, GW, parts[0].clone()), [C1, C1], "and sent on behind the first");
    assert_eq!(pass(&mut switch, GW, parts[2].clone()), [C1]);
    let mut odd = parts[0].clone();
    // The first part of a TCP packet with less than its header is nobody's.
    odd[VNET_HDR_BYTES + 14 + 9] = 6;
    assert_eq!(pass(&mut switch, GW, odd), []);
}

#[test]
fn frames_that_are_not_the_clusters_go_nowhere() {
    let mut switch = switch(1);
    assert_eq!(pass(&mut switch, C0, tcp((OUTSIDE, 1), (GATEWAY_IP, 2), SYN, b"")), [], "another's address");
    assert_eq!(pass(&mut switch, GW, tcp((OUTSIDE, 1), (GATEWAY_IP, 2), SYN, b"")), []);
    assert_eq!(pass(&mut switch, Port::Cell(7), outbound(1, 2, SYN)), [], "no such cell");
    assert_eq!(pass(&mut switch, C0, vec![0; 11]), []);
    let mut bad = outbound(1, 2, SYN);
    bad[VNET_HDR_BYTES + 14 + 8] ^= 1;
    assert_eq!(pass(&mut switch, C0, bad), [], "bad checksum");
    let counters = *switch.counters();
    assert_eq!((counters.not_ours_count, counters.cell_down_count, counters.malformed_count), (2, 1, 2));
    assert!(switch.flows().is_empty(), "and teach nothing");
}

#[test]
fn a_cell_that_goes_down_is_asked_no_more() {
    let mut switch = switch(2);
    switch.set_listener(Proto::Tcp, 80, 0, 5);
    pass(&mut switch, GW, inbound(1, 80, SYN));
    switch.cell_down(0);
    assert!(switch.flows().is_empty() && switch.listeners().iter().next().is_none());
    assert_eq!(pass(&mut switch, GW, inbound(1, 80, SYN)), [C1]);
    switch.cell_down(1);
    switch.input(NOW, GW, inbound(2, 80, SYN));
    let out = drain(&mut switch);
    assert_eq!(out[0].0, GW, "with no cell at all, the client is refused");
    assert!(matches!(transport(&out[0].1), Transport::Tcp { flags: TcpFlags { rst: true, .. }, .. }));
}

#[test]
fn output_and_probes_are_bounded() {
    let mut switch = Switch::new(SwitchConfig { max_output: 10, ..SwitchConfig::default() });
    switch.cell_up(0, Offload::ALL);
    for client in 0..20_000u16 {
        switch.input(NOW, GW, inbound(client, 80, SYN));
    }
    assert_eq!(drain(&mut switch).len(), 10);
    assert_eq!(switch.counters().queue_full_count, 19_990);
    assert!(switch.probes.len() <= probes::MAX_PROBES);
}

#[test]
fn large_segments_are_cut_only_for_a_cell_that_cannot_take_them() {
    let payload: Vec<u8> = (0..20_000u32).map(|at| at as u8).collect();
    let mut large = tcp((OUTSIDE, 1), (CLUSTER_IP, 80), FIN, &payload);
    let gso = Gso { size: 1460.try_into().unwrap(), hdr_len: 54, ecn: false };
    VnetRepr { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: Some(gso) }.emit(&mut large);
    for (offload, count) in [(Offload::ALL, 1), (Offload::NONE, 14)] {
        let mut switch = Switch::new(SwitchConfig::default());
        switch.cell_up(0, offload);
        switch.input(NOW, GW, large.clone());
        let out = drain(&mut switch);
        assert_eq!(out.len(), count);
        if offload == Offload::ALL {
            assert_eq!(out[0].1[10..], large[10..], "as it came");
            continue;
        }
        let mut bytes = Vec::new();
        for (index, (_, frame)) in out.iter().enumerate() {
            let ip = Ipv4Packet::new_checked(&frame[VNET_HDR_BYTES + 14..]).unwrap();
            let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
            let ends = (IpAddress::Ipv4(OUTSIDE), IpAddress::Ipv4(CLUSTER_IP));
            assert!(ip.verify_checksum() && tcp.verify_checksum(&ends.0, &ends.1));
            assert_eq!(frame[..10], [0; 10], "nothing is left to do");
            assert_eq!(tcp.seq_number().0, 1000 + bytes.len() as i32);
            assert_eq!(tcp.fin(), index + 1 == count, "only the last has the FIN");
            bytes.extend_from_slice(tcp.payload());
        }
        assert_eq!(bytes, payload);
    }
}

fn port() -> impl Strategy<Value = Port> {
    prop_oneof![(0..4u32).prop_map(Port::Cell), Just(Port::Gateway), Just(Port::Uplink)]
}

/// A good frame, then spoilt in a few places.
fn spoilt() -> impl Strategy<Value = Vec<u8>> {
    let ends = ((0u16..4, 0u16..4), proptest::bool::ANY, 0usize..5);
    let good = ends.prop_map(|((a, b), out, kind)| {
        let kind = [SYN, SYN_ACK, ACK, FIN, RST][kind];
        if out { outbound(a, b, kind) } else { inbound(a, b, kind) }
    });
    let others = prop_oneof![
        Just(udp((OUTSIDE, 1), (CLUSTER_IP, 2), &[7; 64])),
        Just(udp((CLUSTER_IP, 2), (CLUSTER_IP, 3), &[7; 64])),
        Just(ping(OUTSIDE, CLUSTER_IP, 1, true)),
        Just(arp_request(GATEWAY_SIDE, CLUSTER_IP)),
        Just(icmp_error(OUTSIDE, CLUSTER_IP, 3, &outbound(1, 2, SYN))),
        Just(fragments(&udp((OUTSIDE, 1), (CLUSTER_IP, 2), &[7; 640]), 64, 3)[2].clone()),
    ];
    let spoils = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4);
    (prop_oneof![good, others], spoils, any::<proptest::sample::Index>(), proptest::bool::weighted(0.2))
        .prop_map(|(mut frame, spoils, end, cut)| {
            spoils.into_iter().for_each(|(at, byte)| *at.get_mut(&mut frame) = byte);
            if cut {
                frame.truncate(end.index(frame.len()));
            }
            frame
        })
}

proptest! {
    #[test]
    fn arbitrary_frames_never_panic_the_switch(frames in proptest::collection::vec((port(), prop_oneof![
        spoilt(), proptest::collection::vec(any::<u8>(), 0..200)]), 0..60)) {
        let mut switch = switch(3);
        let mut now = NOW;
        for (from, frame) in frames {
            now += Duration::from_secs(3);
            switch.input(now, from, frame);
            for (to, frame) in drain(&mut switch) {
                prop_assert!(frame.len() >= VNET_HDR_BYTES + 14);
                prop_assert!(!matches!(to, Port::Cell(cell) if cell >= 3));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_view(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
        let mut bytes = bytes;
        if bytes.len() > 34 {
            // Past the first checks: Ethernet of IPv4, and a header that its checksum fits.
            bytes[12..14].copy_from_slice(&[8, 0]);
            bytes[14] = 0x45;
            bytes[23] = [1, 6, 17, 47][kind];
            let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut bytes[14..]);
            let len = ip.as_ref().len() as u16;
            ip.set_total_len(len);
            ip.fill_checksum();
        }
        let _ = View::parse(&bytes);
        let mut count = 0;
        crate::offload::segment_tcpv4(&bytes, 7.try_into().unwrap(), |_| count += 1);
        prop_assert!(count <= 200);
    }
}
