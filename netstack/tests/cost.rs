//! What a connection costs in frames, bytes and simulated time, as a text snapshot: a change shows as a difference of
//! `tests/snapshots/cost.txt`. `SSI_UPDATE_SNAPSHOTS=1 cargo test -p ssi-netstack --test cost` writes it anew.

mod world;

use std::fmt::Write;
use std::net::SocketAddrV4;

use ssi_netstack::{CLUSTER_IP, Duration, Instant};
use world::{Faults, HOST, PERFECT, World};

fn measure(out: &mut String, name: &str, world: &mut World, done: impl Fn(&World) -> bool) {
    let counters = *world.stack.switch.counters();
    let (began, to, from) = (world.now, world.frames_to_cells, world.frames_from_cells);
    world.run(Duration::from_secs(60), done);
    let after = world.stack.switch.counters();
    writeln!(
        out,
        "{name:<44} {:>6} {:>6} {:>9} {:>8}",
        world.frames_to_cells - to,
        world.frames_from_cells - from,
        after.frames_in_bytes - counters.frames_in_bytes,
        (world.now - began).total_micros(),
    )
    .unwrap();
}

fn over(world: &World) -> bool {
    world.host.values().all(|client| client.over.is_some())
        && world.outgoing.iter().all(|(_, _, client)| client.over.is_some())
}

#[test]
fn the_cost_of_a_connection_is_as_written() {
    let mut out = String::from(
        "# one connection that sends so many bytes and gets them back; wires of 20 us; times are simulated\n",
    );
    writeln!(out, "{:<44} {:>6} {:>6} {:>9} {:>8}", "#", "to", "from", "bytes in", "us").unwrap();
    for offload in [true, false] {
        let with = if offload { "offload" } else { "no offload" };
        let mut world = World::new(2, offload, 1, PERFECT);
        world.serve(0, 80);
        world.client(80, 1);
        // The first ones pay for ARP.
        world.connect(1, SocketAddrV4::new(CLUSTER_IP, 80), 1);
        world.connect(1, SocketAddrV4::new(HOST, 80), 1);
        world.run(Duration::from_secs(60), |_| false);
        world.run(Duration::from_secs(60), over);
        for total in [1, 1000, 100_000, 1_000_000] {
            world.client(80, total);
            measure(&mut out, &format!("client of a published port, {total}, {with}"), &mut world, over);
        }
        for total in [1000, 1_000_000] {
            world.connect(1, SocketAddrV4::new(HOST, 80), total);
            measure(&mut out, &format!("cell connects out, {total}, {with}"), &mut world, over);
        }
        world.connect(1, SocketAddrV4::new(CLUSTER_IP, 80), 100_000);
        measure(&mut out, &format!("cell to cell, 100000, {with}"), &mut world, over);
        world.run(Duration::from_secs(60), |_| false);
        for _ in 0..10 {
            world.client(80, 1000);
        }
        measure(&mut out, &format!("ten clients at once, 1000 each, {with}"), &mut world, over);
    }
    let mut lossy = World::new(1, true, 3, Faults { loss: 0.02, duplicate: 0.0, max_delay_us: 100 });
    lossy.serve(0, 80);
    lossy.client(80, 1_000_000);
    measure(&mut out, "client, 1000000, offload, 2% of frames lost", &mut lossy, over);
    assert_eq!(lossy.stack.switch.counters().malformed_count, 0);
    assert!(lossy.now > Instant::ZERO);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/cost.txt");
    if std::env::var_os("SSI_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &out).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        kept, out,
        "the cost has changed; if that is meant, SSI_UPDATE_SNAPSHOTS=1 writes it anew:\n{out}"
    );
}
