//! Messages made by hand: bounds, errors, and no way out of the root.

use proptest::prelude::*;

use super::super::{FsSession, MAX_REQUEST};
use super::server;

const LOOKUP: u32 = 1;
const READ: u32 = 15;
const OPEN: u32 = 14;
const INIT: u32 = 26;
const GETXATTR: u32 = 22;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(40 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&7u64.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(body);
    bytes
}

/// `fuse_init_in` of a 7.39 client that can everything.
fn init_body() -> Vec<u8> {
    let mut words = [0u32; 16];
    words[..4].copy_from_slice(&[7, 39, 1 << 20, u32::MAX]);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn init(session: &FsSession) {
    let reply = session.handle(message(INIT, 0, &init_body()));
    assert_eq!(error(&reply), 0);
}

fn error(reply: &[u8]) -> i32 {
    assert_eq!(u32::from_le_bytes(reply[..4].try_into().unwrap()) as usize, reply.len());
    i32::from_le_bytes(reply[4..8].try_into().unwrap())
}

fn node(reply: &[u8]) -> u64 {
    u64::from_le_bytes(reply[16..24].try_into().unwrap())
}

#[test]
fn init_offers_requests_of_one_mebibyte_and_no_writeback_cache() {
    let root = tempfile::tempdir().unwrap();
    let session = server(root.path()).session(0).unwrap();
    let reply = session.handle(message(INIT, 0, &init_body()));
    let flags = u32::from_le_bytes(reply[16 + 12..16 + 16].try_into().unwrap());
    let max_write = u32::from_le_bytes(reply[16 + 20..16 + 24].try_into().unwrap());
    assert_eq!(max_write, 1 << 20);
    assert_eq!(flags & (1 << 16), 0, "WRITEBACK_CACHE");
    assert_ne!(flags & (1 << 22), 0, "MAX_PAGES");
}

#[test]
fn a_name_cannot_lead_out_of_the_root() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("secret"), "x").unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::os::unix::fs::symlink("../../secret", root.join("sub/link")).unwrap();
    let session = server(&root).session(0).unwrap();
    init(&session);
    let sub = node(&session.handle(message(LOOKUP, 1, b"sub\0")));
    for (node, name) in [
        (1, &b"..\0"[..]),
        (sub, b"..\0"),
        (sub, b"../../secret\0"),
        (1, b"/etc\0"),
        (1, b"sub/link\0"),
        (1, b"\0"),
    ] {
        assert_eq!(error(&session.handle(message(LOOKUP, node, name))), -libc::EINVAL, "{name:?}");
    }
    // A link is an inode of its own; it cannot be opened, only read.
    let link = node(&session.handle(message(LOOKUP, sub, b"link\0")));
    assert_eq!(error(&session.handle(message(OPEN, link, &[0; 8]))), -libc::EBADF);
}

#[test]
fn device_nodes_are_made_for_the_guest_and_never_opened_here() {
    let root = tempfile::tempdir().unwrap();
    let session = server(root.path()).session(0).unwrap();
    init(&session);
    let mut body = Vec::new();
    for word in [libc::S_IFCHR | 0o666, 0x103, 0, 0] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(b"null\0");
    let made = session.handle(message(8, 1, &body));
    if error(&made) == -libc::EPERM {
        eprintln!("SKIP: this user may not make device nodes");
        return;
    }
    assert_eq!(error(&session.handle(message(OPEN, node(&made), &[0; 8]))), -libc::EBADF);
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("file"), "content").unwrap();
    let session = server(root.path()).session(0).unwrap();
    init(&session);
    // A header that says more, or less, than there is.
    let mut long = message(LOOKUP, 1, b"file\0");
    long[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(error(&session.handle(long)), -libc::EINVAL);
    assert_eq!(error(&session.handle(vec![0; MAX_REQUEST + 1])), -libc::EINVAL);
    assert_eq!(error(&session.handle(vec![1])), -libc::EINVAL);
    // READ of 4 GiB; GETXATTR into 4 GiB; a batch of 4 billion forgets.
    let file = node(&session.handle(message(LOOKUP, 1, b"file\0")));
    let opened = session.handle(message(OPEN, file, &[0; 8]));
    let mut read = opened[16..24].to_vec();
    read.extend_from_slice(&0u64.to_le_bytes());
    read.extend_from_slice(&u32::MAX.to_le_bytes());
    read.extend_from_slice(&[0; 20]);
    assert_ne!(error(&session.handle(message(READ, file, &read))), 0);
    let mut get = u32::MAX.to_le_bytes().to_vec();
    get.extend_from_slice(&[0; 4]);
    get.extend_from_slice(b"user.x\0");
    assert_ne!(error(&session.handle(message(GETXATTR, file, &get))), 0);
    let mut forget = u32::MAX.to_le_bytes().to_vec();
    forget.extend_from_slice(&[0; 20]);
    assert!(session.handle(message(BATCH_FORGET, 0, &forget)).is_empty());
}

#[test]
fn destroy_is_answered_and_a_new_init_starts_afresh() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("file"), "content").unwrap();
    let session = server(root.path()).session(0).unwrap();
    init(&session);
    let file = node(&session.handle(message(LOOKUP, 1, b"file\0")));
    assert_eq!(error(&session.handle(message(DESTROY, 0, &[]))), 0);
    init(&session);
    assert_eq!(
        error(&session.handle(message(OPEN, file, &[0; 8]))),
        -libc::EBADF,
        "handles of the old session"
    );
    // And without a DESTROY, as after a crash of the cell.
    let file = node(&session.handle(message(LOOKUP, 1, b"file\0")));
    init(&session);
    assert_eq!(error(&session.handle(message(OPEN, file, &[0; 8]))), -libc::EBADF);
}

#[test]
fn a_full_queue_refuses_and_never_blocks() {
    let root = tempfile::tempdir().unwrap();
    let options = super::super::Options { threads: 1, queue: 1, ..Default::default() };
    let exit = crate::worker::Exit::new().unwrap();
    let server = super::super::FsServer::new(root.path(), options, &exit).unwrap();
    let session = server.session(0).unwrap();
    init(&session);
    let (hold, held) = crossbeam_channel::bounded::<()>(0);
    let (entered, inside) = crossbeam_channel::bounded::<()>(0);
    session.submit(message(LOOKUP, 1, b"a\0"), move |_| {
        entered.send(()).unwrap();
        let _ = held.recv();
    });
    inside.recv().unwrap();
    session.submit(message(LOOKUP, 1, b"b\0"), |_| {});
    let (tx, rx) = crossbeam_channel::unbounded();
    session.submit(message(LOOKUP, 1, b"c\0"), move |reply| tx.send(reply).unwrap());
    assert_eq!(error(&rx.recv().unwrap()), -libc::ENOBUFS);
    assert_eq!(server.metrics().refused_count.get(), 1);
    drop(hold);
}

/// Requests that have some sense: a header that is right, a node and a handle that may exist, numbers and names.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![Just(0u64), 0u64..4, Just(1 << 31), Just(u64::MAX), any::<u64>()];
    let name = prop_oneof![
        Just("a"),
        Just("b"),
        Just("sub"),
        Just("../canary"),
        Just(".."),
        Just("."),
        Just("user.x")
    ];
    (0u32..52, 0u64..6, prop::collection::vec(word, 0..8), prop::collection::vec(name, 0..3), 0usize..8)
        .prop_map(|(opcode, node, words, names, cut)| {
            let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            for name in names {
                body.extend_from_slice(name.as_bytes());
                body.push(0);
            }
            body.truncate(body.len() - cut.min(body.len()));
            message(opcode, node, &body)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a cell sends: no panic, a well-formed reply or none, and nothing outside the root changes.
    #[test]
    fn hostile_messages_are_answered_and_contained(
        messages in prop::collection::vec(
            prop_oneof![4 => likely(), 1 => prop::collection::vec(any::<u8>(), 0..200)], 1..40),
    ) {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("canary"), "alive").unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a"), "content").unwrap();
        let server = server(&root);
        let session = server.session(0).unwrap();
        init(&session);
        for message in messages {
            let reply = session.handle(message);
            if !reply.is_empty() {
                prop_assert!(error(&reply) <= 0);
            }
        }
        let metrics = server.metrics();
        prop_assert_eq!(metrics.panics_count.get(), 0);
        let mut outside: Vec<_> =
            std::fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        outside.sort();
        prop_assert_eq!(outside, ["canary", "root"]);
        prop_assert_eq!(std::fs::read(outer.path().join("canary")).unwrap(), b"alive");
    }
}

/// The root may be mounted over, moved, or in another mount namespace when a cell's first request comes.
#[test]
fn the_root_is_what_it_was_when_the_server_started() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), "content").unwrap();
    let server = server(&root);
    let session = server.session(0).unwrap();
    drop(server);
    std::fs::rename(&root, outer.path().join("moved")).unwrap();
    std::fs::create_dir(&root).unwrap();
    init(&session);
    assert_eq!(error(&session.handle(message(LOOKUP, 1, b"file\0"))), 0);
}

#[test]
fn a_root_that_is_no_directory_is_refused_with_a_reason() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let exit = crate::worker::Exit::new().unwrap();
    for (path, says) in [(file.path(), "Not a directory"), (std::path::Path::new("/no/such"), "No such file")]
    {
        let error = super::super::FsServer::new(path, Default::default(), &exit).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("give a directory"), "{error}");
    }
}
