//! Seeded simulations of whole streams through switch and gateway. A failure prints its seed;
//! `SSI_NET_SEED=<seed> cargo test -p ssi-netstack --test streams` replays it.

mod world;

use std::net::SocketAddrV4;

use ssi_netstack::{CLUSTER_IP, Duration};
use world::{CLOSED_PORT, Faults, HOST, PERFECT, World};

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SSI_NET_SEED") {
        Ok(seed) => vec![seed.parse().expect("SSI_NET_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

const LOSSY: Faults = Faults { loss: 0.02, duplicate: 0.01, max_delay_us: 400 };

/// NET-3: "A client outside sees no difference": every byte, in order, once, and both ends.
#[test]
fn net_3_streams_of_clients_survive_loss_and_reordering() {
    for seed in seeds(6) {
        println!("seed {seed}");
        let mut world = World::new(2, seed % 2 == 0, seed, LOSSY);
        world.serve((seed % 2) as u32, 80);
        let clients: Vec<_> = (0..6).map(|n| world.client(80, 1 + n * 37_111)).collect();
        world.run(Duration::from_secs(600), |world| world.host.values().all(|client| client.over.is_some()));
        for id in clients {
            assert!(world.host[&id].is_done(), "seed {seed}: {:?}", world.host[&id]);
        }
        assert_eq!(world.cells.iter().map(|cell| cell.bad_frames()).sum::<u64>(), 0, "seed {seed}");
    }
}

#[test]
fn net_1_outgoing_streams_of_cells_survive_loss_and_reordering() {
    for seed in seeds(6) {
        println!("seed {seed}");
        let mut world = World::new(3, seed % 2 == 0, seed, LOSSY);
        for n in 0..6 {
            world.connect(n % 3, SocketAddrV4::new(HOST, 80), 1 + n as usize * 37_111);
        }
        world.run(Duration::from_secs(600), |world| {
            world.outgoing.iter().all(|(_, _, client)| client.over.is_some())
        });
        for (_, _, client) in &world.outgoing {
            assert!(client.is_done(), "seed {seed}: {client:?}");
        }
    }
}

/// "Cell to cell: a connection to the cluster's own address finds its listener in whichever cell it is."
#[test]
fn net_1_a_connection_to_the_clusters_own_address_finds_its_listener() {
    for seed in seeds(4) {
        println!("seed {seed}");
        let mut world = World::new(4, seed % 2 == 0, seed, LOSSY);
        world.serve(3, 7777);
        for cell in 0..3 {
            world.connect(cell, SocketAddrV4::new(CLUSTER_IP, 7777), 50_000);
        }
        world.run(Duration::from_secs(600), |world| {
            world.outgoing.iter().all(|(_, _, client)| client.over.is_some())
        });
        for (_, _, client) in &world.outgoing {
            assert!(client.is_done(), "seed {seed}: {client:?}");
        }
        assert_eq!(world.served, [0, 0, 0, 3]);
    }
}

#[test]
fn a_refusal_reaches_whoever_connects_from_either_side() {
    let mut world = World::new(2, true, 1, PERFECT);
    let inbound = world.client(81, 10);
    world.connect(0, SocketAddrV4::new(HOST, CLOSED_PORT), 10);
    world.connect(1, SocketAddrV4::new(CLUSTER_IP, 4444), 10);
    world.run(Duration::from_secs(30), |_| false);
    assert!(world.host[&inbound].reset && world.host[&inbound].got == 0);
    for (_, _, client) in &world.outgoing {
        assert!(client.reset, "{client:?}");
    }
    assert_eq!(world.stack.gateway.connections(), 0, "nothing is left behind");
}

/// Backlogs of hundreds: nothing is lost between them, and nothing is left when they are over.
#[test]
fn net_1_hundreds_of_connections_at_once() {
    let mut world = World::new(2, true, 5, Faults { loss: 0.0, duplicate: 0.0, max_delay_us: 100 });
    world.serve(0, 80);
    let ids: Vec<_> = (0..300).map(|_| world.client(80, 3000)).collect();
    world.run(Duration::from_secs(300), |world| world.host.values().all(|client| client.over.is_some()));
    let failed = ids.iter().filter(|id| !world.host[id].is_done()).count();
    // smoltcp in the place of the guest has a backlog of 16 and refuses what is beyond it: so does the cluster.
    assert!(ids.len() - failed >= 16, "{failed} of {} failed", ids.len());
    world.run(Duration::from_secs(60), |_| false);
    assert_eq!(world.stack.gateway.connections(), 0);
}
