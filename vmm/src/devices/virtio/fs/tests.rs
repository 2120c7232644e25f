//! The device against a driver written by hand (section 5.11.6).

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::devices::lock;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::{BUFFERS, Driver, RAM_END};
use crate::worker::Exit;

/// Keeps requests until the test answers them.
#[derive(Debug, Default)]
struct Keep {
    requests: Mutex<Vec<(Vec<u8>, Reply)>>,
    /// Answer at once, with the request itself.
    echo: bool,
}

impl FsLink for Keep {
    fn submit(&self, request: Vec<u8>, reply: Reply) {
        if self.echo {
            reply.send(request);
        } else {
            lock(&self.requests).push((request, reply));
        }
    }
}

fn device(echo: bool, features: u64) -> (Arc<Keep>, Fs, Driver) {
    let link = Arc::new(Keep { echo, ..Keep::default() });
    let mut fs = Fs::new(link.clone(), &Exit::new().unwrap());
    let (driver, activation) = Driver::new(&QUEUE_SIZES, features);
    fs.activate(activation).unwrap();
    (link, fs, driver)
}

fn request(unique: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xab; len];
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&unique.to_le_bytes());
    bytes
}

/// "5.11.4 Device configuration layout": tag, padded with NUL, and the number of request queues.
#[test]
fn verify_5_11_4_configuration_space() {
    let fs = Fs::new(Arc::new(Keep::default()), &Exit::new().unwrap());
    let mut config = [0xff; 48];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..7], b"ssiroot");
    assert!(config[7..36].iter().all(|&byte| byte == 0));
    assert_eq!(config[36..40], [1, 0, 0, 0]);
    assert!(config[40..].iter().all(|&byte| byte == 0));
    fs.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 48]);
}

/// A request that is scattered over buffers goes out whole, and replies come back in any order.
#[test]
fn requests_are_gathered_and_replies_scattered_out_of_order() {
    for features in [0, 1 << 29] {
        let (link, _fs, mut driver) = device(false, features);
        let mut heads = Vec::new();
        for n in 0..3u64 {
            let at = BUFFERS + n * 0x1_0000;
            driver.write(at, &request(n, 100));
            let buffers = [
                (at, 40, false),
                (at + 40, 1, false),
                (at + 41, 59, false),
                (at + 0x1000, 16, true),
                (at + 0x2000, 4, true),
            ];
            heads.push(driver.rings[QUEUE_REQUEST].add(&buffers));
        }
        driver.rings[QUEUE_REQUEST].kick();
        while lock(&link.requests).len() < 3 {
            std::thread::yield_now();
        }
        for n in [2usize, 0, 1] {
            let position = lock(&link.requests).iter().position(|(bytes, _)| bytes[8] == n as u8).unwrap();
            let (bytes, reply) = lock(&link.requests).remove(position);
            assert_eq!(bytes, request(n as u64, 100));
            reply.send((0..18).map(|byte| byte + n as u8).collect());
            assert_eq!(driver.wait_used(QUEUE_REQUEST), (heads[n], 18));
            let at = BUFFERS + n as u64 * 0x1_0000;
            let mut answer = driver.read(at + 0x1000, 16);
            answer.extend(driver.read(at + 0x2000, 2));
            assert_eq!(answer, (0..18).map(|byte| byte + n as u8).collect::<Vec<_>>());
        }
    }
}

/// A FORGET has no writable buffer; its chain comes back when the link is done with it.
#[test]
fn a_forget_needs_no_reply() {
    let (link, fs, mut driver) = device(false, 0);
    driver.write(BUFFERS, &request(5, 48));
    let head = driver.rings[QUEUE_HIPRIO].add(&[(BUFFERS, 48, false)]);
    driver.rings[QUEUE_HIPRIO].kick();
    while lock(&link.requests).is_empty() {
        std::thread::yield_now();
    }
    lock(&link.requests).clear();
    assert_eq!(driver.wait_used(QUEUE_HIPRIO), (head, 0));
    assert_eq!(fs.metrics().oversized_replies_count.get(), 0);
}

#[test]
fn a_dropped_or_oversized_reply_is_eio() {
    let (link, fs, mut driver) = device(false, 0);
    for oversized in [false, true] {
        driver.write(BUFFERS, &request(77, 40));
        let head = driver.rings[QUEUE_REQUEST].add(&[(BUFFERS, 40, false), (BUFFERS + 0x1000, 64, true)]);
        driver.rings[QUEUE_REQUEST].kick();
        let reply = loop {
            if let Some((_, reply)) = lock(&link.requests).pop() {
                break reply;
            }
            std::thread::yield_now();
        };
        if oversized {
            reply.send(vec![1; 65]);
        } else {
            drop(reply);
        }
        assert_eq!(driver.wait_used(QUEUE_REQUEST), (head, 16));
        let answer = driver.read(BUFFERS + 0x1000, 16);
        assert_eq!(answer[4..8], (-libc::EIO).to_le_bytes());
        assert_eq!(answer[8..16], 77u64.to_le_bytes());
    }
    assert_eq!((fs.metrics().dropped_count.get(), fs.metrics().oversized_replies_count.get()), (1, 1));
}

/// What is no request comes back at once, and nothing of its size is allocated.
#[test]
fn malformed_chains_are_returned_and_counted() {
    let (_link, fs, mut driver) = device(true, 0);
    let bad: [&[(u64, u32, bool)]; 5] = [
        // Too short, too long (the same memory many times), outside of memory, no readable part, wrapping around.
        &[(BUFFERS, 39, false), (BUFFERS, 16, true)],
        &[(BUFFERS, 16 << 20, false), (BUFFERS, 16 << 20, false), (BUFFERS, 16, true)],
        &[(RAM_END, 40, false), (BUFFERS, 16, true)],
        &[(BUFFERS, 16, true)],
        &[(u64::MAX - 10, 40, false), (BUFFERS, 16, true)],
    ];
    for chain in bad {
        let head = driver.rings[QUEUE_REQUEST].add(chain);
        driver.rings[QUEUE_REQUEST].kick();
        assert_eq!(driver.wait_used(QUEUE_REQUEST), (head, 16), "{chain:?}");
    }
    assert_eq!(fs.metrics().malformed_chains_count.get(), 5);
}

/// A driver that offers a chain again and again without waiting cannot make the device hold more than its bounds.
#[test]
fn what_waits_is_bounded_and_goes_on_when_answered() {
    let (link, fs, mut driver) = device(false, 0);
    let len = 1 << 20;
    driver.write(BUFFERS, &request(1, len));
    let ring = &mut driver.rings[QUEUE_REQUEST];
    let head = ring.add(&[(BUFFERS, len as u32, false), (BUFFERS + (2 << 20), 16, true)]);
    for _ in 0..99 {
        ring.offer(head);
    }
    ring.kick();
    let mut answered = 0;
    while answered < 100 {
        let kept = std::mem::take(&mut *lock(&link.requests));
        assert!(kept.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() <= WAITING_BYTES_MAX);
        for (_, reply) in kept {
            reply.send(vec![0; 16]);
            driver.wait_used(QUEUE_REQUEST);
            answered += 1;
        }
        std::thread::yield_now();
    }
    assert!(fs.metrics().throttled_count.get() > 0);
}

/// After a reset, old replies go nowhere, and the device works again.
#[test]
fn replies_after_a_reset_are_ignored() {
    let (link, mut fs, mut driver) = device(false, 0);
    driver.write(BUFFERS, &request(1, 40));
    driver.rings[QUEUE_REQUEST].add(&[(BUFFERS, 40, false), (BUFFERS + 0x1000, 64, true)]);
    driver.rings[QUEUE_REQUEST].kick();
    while lock(&link.requests).is_empty() {
        std::thread::yield_now();
    }
    fs.reset();
    let (_, old) = lock(&link.requests).pop().unwrap();
    old.send(vec![9; 16]);
    assert_eq!(driver.rings[QUEUE_REQUEST].take_used(), None);
    let (mut driver, activation) = Driver::new(&QUEUE_SIZES, 0);
    fs.activate(activation).unwrap();
    driver.write(BUFFERS, &request(2, 40));
    let head = driver.rings[QUEUE_REQUEST].add(&[(BUFFERS, 40, false), (BUFFERS + 0x1000, 64, true)]);
    driver.rings[QUEUE_REQUEST].kick();
    while lock(&link.requests).is_empty() {
        std::thread::yield_now();
    }
    lock(&link.requests).pop().unwrap().1.send(vec![7; 16]);
    assert_eq!(driver.wait_used(QUEUE_REQUEST), (head, 16));
}

/// The device in front of the file service: what a guest's kernel does first.
#[test]
fn the_file_service_answers_through_the_device() {
    let root = tempfile::tempdir().unwrap();
    let exit = Exit::new().unwrap();
    let server = crate::io::fs::FsServer::new(root.path(), Default::default(), &exit).unwrap();
    let mut fs = Fs::new(Arc::new(server.session(0).unwrap()), &exit);
    let (mut driver, activation) = Driver::new(&QUEUE_SIZES, 1 << 29);
    fs.activate(activation).unwrap();
    let mut init = request(1, 104);
    init[4..8].copy_from_slice(&26u32.to_le_bytes());
    init[40..].fill(0);
    init[40..48].copy_from_slice(&[7, 0, 0, 0, 39, 0, 0, 0]);
    driver.write(BUFFERS, &init);
    let head = driver.rings[QUEUE_REQUEST].add(&[(BUFFERS, 104, false), (BUFFERS + 0x1000, 80, true)]);
    driver.rings[QUEUE_REQUEST].kick();
    assert_eq!(driver.wait_used(QUEUE_REQUEST), (head, 80));
    let answer = driver.read(BUFFERS + 0x1000, 80);
    assert_eq!(answer[4..8], [0; 4]);
    assert_eq!(answer[16], 7, "FUSE major version");
    assert!(!exit.is_triggered());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever descriptors a driver writes, loops and all, the device goes on: a sound request after it is answered.
    #[test]
    fn arbitrary_chains_do_not_stop_the_device(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20, any::<bool>()), 16),
        heads in prop::collection::vec(0u16..20, 1..8),
    ) {
        let (_link, _fs, mut driver) = device(true, 0);
        for (n, &(address, len, flags, next, near)) in descriptors.iter().enumerate() {
            let (address, len) = if near { (address % RAM_END, len % 0x2000) } else { (address, len) };
            driver.rings[QUEUE_REQUEST].descriptor(n as u16, address.max(BUFFERS), len, flags, next);
        }
        for &head in &heads {
            driver.rings[QUEUE_REQUEST].offer(head);
        }
        driver.rings[QUEUE_REQUEST].kick();
        driver.write(BUFFERS, &request(3, 40));
        let head = driver.rings[QUEUE_HIPRIO].add(&[(BUFFERS, 40, false), (BUFFERS + 0x1000, 64, true)]);
        driver.rings[QUEUE_HIPRIO].kick();
        prop_assert_eq!(driver.wait_used(QUEUE_HIPRIO), (head, 40));
    }
}
