use super::*;
use proptest::prelude::*;

fn key(port: u16) -> FlowKey {
    FlowKey { proto: Proto::Tcp, local_port: 80, remote: Ipv4Addr::new(192, 0, 2, 1), remote_port: port }
}

fn limits(max_flows: usize) -> FlowLimits {
    FlowLimits { max_flows, ..FlowLimits::default() }
}

fn secs(secs: i64) -> Instant {
    Instant::from_secs(secs)
}

#[test]
fn net_1_the_table_is_bounded_and_a_flood_of_syns_drowns_itself() {
    let mut table = FlowTable::new(limits(100));
    for port in 0..50 {
        table.insert(key(port), Flow::new(0, Class::Established), secs(0));
    }
    for port in 1000..5000 {
        table.insert(key(port), Flow::new(1, Class::Embryonic), secs(1));
        assert!(table.len() <= 100);
    }
    assert_eq!(table.of_class(Class::Established), 50, "no connection fell victim");
    assert_eq!(table.evicted_count(), 4000 - 50);
    assert_eq!((table.of_cell(0), table.of_cell(1)), (50, 50));
    for port in 6000..6100 {
        table.insert(key(port), Flow::new(2, Class::Established), secs(2));
    }
    assert_eq!(table.of_cell(2), 100, "the newest connections stay");
}

#[test]
fn net_1_flows_age_by_class_and_use_keeps_them() {
    let bounds = limits(100);
    let mut table = FlowTable::new(bounds);
    for (port, class) in
        [Class::Closing, Class::Embryonic, Class::Datagram, Class::Established].into_iter().enumerate()
    {
        table.insert(key(port as u16), Flow::new(0, class), secs(0));
    }
    assert_eq!(table.deadline(), Some(secs(0) + bounds.closing));
    table.expire(secs(0) + bounds.embryonic);
    assert_eq!(table.len(), 2);
    table.update(&key(2), secs(179), |_| ());
    table.expire(secs(181));
    assert!(table.get(&key(2)).is_some(), "it was used");
    table.update(&key(3), secs(200), |flow| flow.class = Class::Closing);
    table.expire(secs(200) + bounds.closing);
    assert!(table.get(&key(3)).is_none(), "its class is what counts");
    table.expire(secs(100_000));
    assert_eq!((table.len(), table.deadline(), table.expired_count()), (0, None, 4));
}

#[test]
fn a_cell_that_goes_takes_its_flows_with_it() {
    let mut table = FlowTable::new(limits(100));
    (0..10).for_each(|port| {
        table.insert(key(port), Flow::new(u32::from(port) % 2, Class::Established), secs(0))
    });
    table.update(&key(0), secs(0), |flow| flow.cell = 1);
    assert_eq!(table.remove_cell(1), 6);
    assert_eq!((table.len(), table.of_cell(0), table.of_cell(1)), (4, 4, 0));
}

proptest! {
    /// Against the plainest model: a list in order of use.
    #[test]
    fn the_table_agrees_with_a_plain_list(ops in proptest::collection::vec((0u8..4, 0u16..24, 0usize..4, 0u32..3), 0..400)) {
        let classes = [Class::Closing, Class::Embryonic, Class::Datagram, Class::Established];
        let bounds = limits(12);
        let mut table = FlowTable::new(bounds);
        let mut model: Vec<(FlowKey, Cell, Class, Instant)> = Vec::new();
        let mut now = secs(0);
        for (op, port, class, cell) in ops {
            let (key, class) = (key(port), classes[class]);
            now += Duration::from_secs(7);
            match op {
                0 => {
                    model.retain(|entry| entry.0 != key);
                    if model.len() >= 12 {
                        let victim = model.iter().enumerate().min_by_key(|(at, entry)| (entry.2, *at)).unwrap().0;
                        model.remove(victim);
                    }
                    model.push((key, cell, class, now));
                    table.insert(key, Flow::new(cell, class), now);
                }
                1 => {
                    let known = table.update(&key, now, |flow| { flow.class = class; flow.cell = cell; });
                    let at = model.iter().position(|entry| entry.0 == key);
                    prop_assert_eq!(known.is_some(), at.is_some());
                    if let Some(at) = at {
                        model.remove(at);
                        model.push((key, cell, class, now));
                    }
                }
                2 => {
                    table.remove(&key);
                    model.retain(|entry| entry.0 != key);
                }
                _ => {
                    table.expire(now);
                    model.retain(|entry| entry.3 + bounds.ttl(entry.2) > now);
                }
            }
            prop_assert_eq!(table.len(), model.len());
            for entry in &model {
                prop_assert_eq!(table.get(&entry.0).map(|flow| (flow.cell, flow.class)), Some((entry.1, entry.2)));
            }
            for cell in 0..3 {
                prop_assert_eq!(table.of_cell(cell) as usize, model.iter().filter(|entry| entry.1 == cell).count());
            }
            prop_assert_eq!(table.deadline(), model.iter().map(|entry| entry.3 + bounds.ttl(entry.2)).min());
        }
    }
}
