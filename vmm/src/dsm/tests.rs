use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ssi_dsm::NodeId;
use ssi_dsm::memory::PAGE_SIZE;
use ssi_dsm::protocol::{Config, SliceMap};

use super::*;
use crate::worker::{Exit, Worker};

const BASE: u64 = 4 << 30;
const STRIDE: u64 = 1 << 30;

fn config(me: u16, nodes: u16) -> Config {
    let slices = SliceMap { base: BASE, stride: STRIDE, size: 4 << 20, nodes };
    Config { me: NodeId(me), slices, hold_us: 200 }
}

/// Nodes of one process.
struct Cluster {
    dsms: Vec<Arc<Dsm>>,
    exit: Exit,
    _links: Vec<Worker>,
}

impl Cluster {
    fn new(nodes: u16) -> Self {
        let (exit, links) = (Exit::new().unwrap(), LocalLinks::new(nodes));
        let dsms: Vec<_> = (0..nodes).map(|me| Dsm::new(config(me, nodes)).unwrap()).collect();
        let mut workers = vec![];
        for (me, dsm) in (0..).map(NodeId).zip(&dsms) {
            dsm.start(links.of(me), &exit).unwrap();
            workers.push(links.deliver(me, dsm, &exit).unwrap());
        }
        Self { dsms, exit, _links: workers }
    }

    /// A counter in page `page` of slice `slice`, as node `node` sees it. It lives as long as the cluster.
    fn counter(&self, node: usize, slice: u16, page: usize) -> &AtomicU64 {
        let memory = self.dsms[node].memory(NodeId(slice)).unwrap();
        // SAFETY: the page is in the slice, aligned, and all accesses to it are atomic.
        unsafe { &*memory.guest_addr().add(page * PAGE_SIZE).cast::<AtomicU64>() }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert!(!self.exit.is_triggered(), "a worker has failed");
            for counters in self.dsms.iter().flat_map(|dsm| dsm.counters()) {
                assert_eq!((counters.malformed_count, counters.refused_count.len()), (0, 0), "{counters:?}");
            }
        }
    }
}

fn increment(cluster: &Cluster, times: u64, slices: u16, pages: usize) {
    thread::scope(|scope| {
        for node in 0..cluster.dsms.len() {
            scope.spawn(move || {
                for _ in 0..times {
                    for slice in 0..slices {
                        for page in 0..pages {
                            cluster.counter(node, slice, page).fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let expected = times * cluster.dsms.len() as u64;
    for node in 0..cluster.dsms.len() {
        for slice in 0..slices {
            for page in 0..pages {
                assert_eq!(cluster.counter(node, slice, page).load(Ordering::Relaxed), expected);
            }
        }
    }
}

#[test]
fn dsm_i2_increments_of_two_nodes_in_each_others_slices_add_up() {
    increment(&Cluster::new(2), 500, 2, 3);
}

#[test]
fn dsm_i2_increments_of_three_nodes_on_one_page_add_up() {
    increment(&Cluster::new(3), 500, 1, 1);
}
