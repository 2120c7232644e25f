//! What travels on a fabric connection. All integers are little-endian.
//!
//! ```text
//! dialer                                                   listener
//!   | HELLO  magic, version, class, from, to, name, nonce_d    |
//!   |--------------------------------------------------------->|
//!   |     CHALLENGE  version, nonce_l, MAC("listener", HELLO, nonce_l)
//!   |<---------------------------------------------------------|
//!   | PROOF  MAC("dialer", HELLO, CHALLENGE)                   |
//!   |--------------------------------------------------------->|
//!   |                        VERDICT  0, or why not, then end  |
//!   |<---------------------------------------------------------|
//!   | messages {len, kind, tag, payload}, or raw bytes (stream)|
//!   |<-------------------------------------------------------->|
//! ```
//! The MAC is HMAC-SHA256 under the cluster's secret; the two labels keep one side's answer from being played back as the
//! other's. A refusal may come in place of CHALLENGE or as VERDICT.
//!
//! Version rule: HELLO keeps its first 8 bytes for ever; any other change is a new [`VERSION`], and two versions do not talk.
//!
//! Panic contract: `parse` functions take arrays of the exact size or check the length first; no input panics.

use std::fmt;

use ssi_proto::device::{MAX_CELLS, MESSAGE_MAX_BYTES, PAGE_REQUEST_MAX, PAGE_SIZE};

/// "SSIF".
const MAGIC: u32 = 0x4649_5353;
/// Version of everything in this file.
pub const VERSION: u16 = 1;
/// Bytes of HELLO.
pub const HELLO_BYTES: usize = 80;
/// Bytes of CHALLENGE.
pub const CHALLENGE_BYTES: usize = 72;
/// Bytes of PROOF: a MAC.
pub const PROOF_BYTES: usize = 32;
/// Bytes of VERDICT.
pub const VERDICT_BYTES: usize = 4;
/// Bytes before a message's payload.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Most pages in one fetch reply.
pub const FETCH_REPLY_PAGES: usize = 64;

const NAME_BYTES: usize = 32;
const IO: u32 = 0xffff_fffe;
const CLIENT: u32 = 0xffff_ffff;

/// Who is at an end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The I/O server and controller.
    Io,
    /// A node, by number; below 64.
    Node(u32),
    /// A command line: it may only open a session with the controller.
    Client,
}

impl Peer {
    fn code(self) -> u32 {
        match self {
            Self::Io => IO,
            Self::Node(n) => n,
            Self::Client => CLIENT,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            IO => Some(Self::Io),
            CLIENT => Some(Self::Client),
            n if n < MAX_CELLS => Some(Self::Node(n)),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("io"),
            Self::Node(n) => write!(f, "node {n}"),
            Self::Client => f.write_str("a client"),
        }
    }
}

/// Traffic classes: one connection each, so that none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// DSM messages; latency critical. Node to node.
    Page = 1,
    /// Page FETCH requests and replies. Node to node.
    Fetch = 2,
    /// Bulk messages between kernels; may stop while a guest posts no buffers. Node to node.
    Bulk = 3,
    /// Messages between kernels (node to node), membership and statistics (node to I/O server).
    Ctl = 4,
    /// Network frames. Node to I/O server.
    Frame = 5,
    /// File requests and replies. Node to I/O server.
    Fs = 6,
    /// After the handshake and one [`Kind::Open`], a raw byte pipe. Any to any, any number.
    Stream = 7,
    /// After the handshake, the exec stream of `ssi_proto::frame`. Client to controller.
    Session = 8,
}

impl Class {
    /// The classes that join `a` and `b` for as long as both live.
    pub fn between(a: Peer, b: Peer) -> &'static [Class] {
        match (a, b) {
            (Peer::Node(x), Peer::Node(y)) if x != y => &[Class::Page, Class::Fetch, Class::Bulk, Class::Ctl],
            (Peer::Io, Peer::Node(_)) | (Peer::Node(_), Peer::Io) => &[Class::Ctl, Class::Frame, Class::Fs],
            _ => &[],
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Page,
            2 => Self::Fetch,
            3 => Self::Bulk,
            4 => Self::Ctl,
            5 => Self::Frame,
            6 => Self::Fs,
            7 => Self::Stream,
            8 => Self::Session,
            _ => return None,
        })
    }
}

/// Why a listener sends a dialer away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum Refusal {
    /// Not a HELLO, or one with fields outside their ranges.
    #[error("the greeting is malformed")]
    Malformed = 1,
    /// Another [`VERSION`].
    #[error("the two sides run different versions of ssivmm")]
    Version = 2,
    /// Another cluster's name.
    #[error("this is another cluster")]
    Cluster = 3,
    /// Meant for another process.
    #[error("this is another process of the cluster")]
    Destination = 4,
    /// The dialer does not know the secret.
    #[error("wrong secret")]
    Proof = 5,
    /// This pair has no such class, or has it already, or one side was declared dead.
    #[error("no such connection is expected")]
    Unexpected = 6,
    /// Too many handshakes at once.
    #[error("too many connections at once")]
    Busy = 7,
}

impl Refusal {
    fn from_code(code: u16) -> Self {
        match code {
            2 => Self::Version,
            3 => Self::Cluster,
            4 => Self::Destination,
            5 => Self::Proof,
            6 => Self::Unexpected,
            7 => Self::Busy,
            _ => Self::Malformed,
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// First record of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub class: Class,
    /// Who dials.
    pub from: Peer,
    /// Whom it wants.
    pub to: Peer,
    /// The cluster's name, at most 32 bytes without zeros.
    pub name: String,
    /// Fresh random bytes.
    pub nonce: [u8; NONCE_BYTES],
}

impl Hello {
    /// Writes it; a name over 32 bytes is cut (the listener then refuses it).
    pub fn emit(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.class as u8;
        out[8..12].copy_from_slice(&self.from.code().to_le_bytes());
        out[12..16].copy_from_slice(&self.to.code().to_le_bytes());
        let name = &self.name.as_bytes()[..self.name.len().min(NAME_BYTES)];
        out[16..16 + name.len()].copy_from_slice(name);
        out[48..80].copy_from_slice(&self.nonce);
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], [`Refusal::Version`].
    pub fn parse(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Refusal> {
        if le32(bytes, 0) != MAGIC {
            return Err(Refusal::Malformed);
        }
        if le16(bytes, 4) != VERSION {
            return Err(Refusal::Version);
        }
        let name = &bytes[16..16 + NAME_BYTES];
        let end = name.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
        let fields = (
            Class::from_code(bytes[6]),
            Peer::from_code(le32(bytes, 8)),
            Peer::from_code(le32(bytes, 12)),
            std::str::from_utf8(&name[..end]),
        );
        let (Some(class), Some(from), Some(to), Ok(text)) = fields else { return Err(Refusal::Malformed) };
        if bytes[7] != 0 || name[end..].iter().any(|b| *b != 0) {
            return Err(Refusal::Malformed);
        }
        Ok(Self { class, from, to, name: text.to_owned(), nonce: array(bytes, 48) })
    }
}

/// The listener's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Fresh random bytes.
    pub nonce: [u8; NONCE_BYTES],
    /// Proof that the listener knows the secret.
    pub mac: [u8; PROOF_BYTES],
}

impl Challenge {
    /// Writes it.
    pub fn emit(&self) -> [u8; CHALLENGE_BYTES] {
        let mut out = challenge_start(0);
        out[8..40].copy_from_slice(&self.nonce);
        out[40..72].copy_from_slice(&self.mac);
        out
    }

    /// A refusal in its place.
    pub fn emit_refusal(refusal: Refusal) -> [u8; CHALLENGE_BYTES] {
        challenge_start(refusal as u16)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The [`Refusal`] that came in its place, or what is wrong with it.
    pub fn parse(bytes: &[u8; CHALLENGE_BYTES]) -> Result<Self, Refusal> {
        if le32(bytes, 0) != MAGIC {
            return Err(Refusal::Malformed);
        }
        match (le16(bytes, 6), le16(bytes, 4)) {
            (0, VERSION) => Ok(Self { nonce: array(bytes, 8), mac: array(bytes, 40) }),
            (0, _) => Err(Refusal::Version),
            (code, _) => Err(Refusal::from_code(code)),
        }
    }
}

fn challenge_start(code: u16) -> [u8; CHALLENGE_BYTES] {
    let mut out = [0; CHALLENGE_BYTES];
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6..8].copy_from_slice(&code.to_le_bytes());
    out
}

/// The listener's last word, written.
pub fn emit_verdict(verdict: Result<(), Refusal>) -> [u8; VERDICT_BYTES] {
    verdict.map_or_else(|refusal| u32::from(refusal as u16), |()| 0).to_le_bytes()
}

/// The listener's last word, read.
///
/// # Errors
/// The [`Refusal`] in it.
pub fn parse_verdict(bytes: [u8; VERDICT_BYTES]) -> Result<(), Refusal> {
    match u32::from_le_bytes(bytes) {
        0 => Ok(()),
        code => Err(u16::try_from(code).map_or(Refusal::Malformed, Refusal::from_code)),
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message of the coherence protocol; opaque here.
    Dsm = 1,
    /// A message between kernels, header and payload as in `docs/ssi-device.md`.
    Ssi = 2,
    /// `count` le64 guest-physical addresses; the tag comes back in the replies.
    FetchRequest = 3,
    /// le32 index of the first entry, le32 count, `count` le32 of status, then 4096 bytes for each status 0.
    FetchReply = 4,
    /// A network frame with its virtio-net header, or a command of the network service; opaque here.
    Net = 5,
    /// A file request; opaque here.
    FsRequest = 6,
    /// Its reply, same tag.
    FsReply = 7,
    /// JSON of `control::node`; requests and replies are matched by tag.
    Control = 8,
    /// First message on a stream: tag 0 is the cell's serial console, else the vsock port to connect to.
    Open = 9,
    /// Its answer: empty, or why not, in UTF-8; after the empty one raw bytes.
    Opened = 10,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Dsm,
            2 => Self::Ssi,
            3 => Self::FetchRequest,
            4 => Self::FetchReply,
            5 => Self::Net,
            6 => Self::FsRequest,
            7 => Self::FsReply,
            8 => Self::Control,
            9 => Self::Open,
            10 => Self::Opened,
            _ => return None,
        })
    }

    /// May it travel on a connection of `class`?
    pub fn travels_on(self, class: Class) -> bool {
        match self {
            Self::Dsm => class == Class::Page,
            Self::Ssi => matches!(class, Class::Ctl | Class::Bulk),
            Self::FetchRequest | Self::FetchReply => class == Class::Fetch,
            Self::Net => class == Class::Frame,
            Self::FsRequest | Self::FsReply => class == Class::Fs,
            Self::Control => class == Class::Ctl,
            Self::Open | Self::Opened => class == Class::Stream,
        }
    }

    /// Most bytes of its payload.
    pub fn payload_max(self) -> usize {
        let page = PAGE_SIZE as usize;
        match self {
            Self::Dsm => 16 * page + 1024,
            Self::Ssi => MESSAGE_MAX_BYTES,
            Self::FetchRequest => PAGE_REQUEST_MAX * 8,
            Self::FetchReply => 8 + FETCH_REPLY_PAGES * (4 + page),
            Self::Net => 17 * page,
            Self::FsRequest | Self::FsReply => (1 << 20) + 16 * page,
            Self::Control => 16 * page,
            Self::Open => 0,
            Self::Opened => 1024,
        }
    }
}

/// Why a message is not one; the connection that carried it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A kind this version does not know.
    #[error("message of unknown kind {0}")]
    Kind(u8),
    /// A kind that has no business in this class.
    #[error("{0:?} message on a {1:?} connection")]
    Class(Kind, Class),
    /// Over [`Kind::payload_max`]; nothing was allocated.
    #[error("{kind:?} message of {len} bytes; at most {} are allowed", kind.payload_max())]
    TooLong {
        /// What it is.
        kind: Kind,
        /// What it claims.
        len: usize,
    },
    /// A reserved field is not zero.
    #[error("reserved bits are set")]
    Reserved,
}

/// Header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: usize,
    /// The services' own.
    pub tag: u64,
}

impl Header {
    /// Writes it.
    ///
    /// # Errors
    /// [`MessageError::TooLong`].
    pub fn emit(&self) -> Result<[u8; HEADER_BYTES], MessageError> {
        let too_long = MessageError::TooLong { kind: self.kind, len: self.len };
        let len = u32::try_from(self.len).map_err(|_| too_long)?;
        if self.len > self.kind.payload_max() {
            return Err(too_long);
        }
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&len.to_le_bytes());
        out[4] = self.kind as u8;
        out[8..16].copy_from_slice(&self.tag.to_le_bytes());
        Ok(out)
    }

    /// Reads the header of a message that came on a connection of `class`.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8; HEADER_BYTES], class: Class) -> Result<Self, MessageError> {
        let kind = Kind::from_code(bytes[4]).ok_or(MessageError::Kind(bytes[4]))?;
        if !kind.travels_on(class) {
            return Err(MessageError::Class(kind, class));
        }
        let len = le32(bytes, 0) as usize;
        if len > kind.payload_max() {
            return Err(MessageError::TooLong { kind, len });
        }
        if bytes[5..8] != [0; 3] {
            return Err(MessageError::Reserved);
        }
        Ok(Self { kind, len, tag: le64(bytes, 8) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASSES: [Class; 8] = [
        Class::Page,
        Class::Fetch,
        Class::Bulk,
        Class::Ctl,
        Class::Frame,
        Class::Fs,
        Class::Stream,
        Class::Session,
    ];

    fn peer() -> impl Strategy<Value = Peer> {
        prop_oneof![Just(Peer::Io), Just(Peer::Client), (0..MAX_CELLS).prop_map(Peer::Node)]
    }

    proptest! {
        #[test]
        fn hello_parses_what_it_emits(class in 0..8_usize, from in peer(), to in peer(), name in "[a-z0-9-]{0,32}", nonce: [u8; 32]) {
            let hello = Hello { class: CLASSES[class], from, to, name, nonce };
            prop_assert_eq!(Hello::parse(&hello.emit()), Ok(hello));
        }

        #[test]
        fn challenge_parses_what_it_emits(nonce: [u8; 32], mac: [u8; 32], code in 1..=7_u16) {
            let challenge = Challenge { nonce, mac };
            prop_assert_eq!(Challenge::parse(&challenge.emit()), Ok(challenge));
            let refusal = Refusal::from_code(code);
            prop_assert_eq!(refusal as u16, code);
            prop_assert_eq!(Challenge::parse(&Challenge::emit_refusal(refusal)), Err(refusal));
            prop_assert_eq!(parse_verdict(emit_verdict(Err(refusal))), Err(refusal));
        }

        #[test]
        fn header_parses_what_it_emits(code in 1..=10_u8, len: u32, tag: u64) {
            let kind = Kind::from_code(code).unwrap();
            let header = Header { kind, len: len as usize % (kind.payload_max() + 1), tag };
            let bytes = header.emit().unwrap();
            for class in CLASSES {
                let parsed = Header::parse(&bytes, class);
                if kind.travels_on(class) {
                    prop_assert_eq!(parsed, Ok(header));
                } else {
                    prop_assert_eq!(parsed, Err(MessageError::Class(kind, class)));
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(hello: [u8; 16], header: [u8; HEADER_BYTES], verdict: [u8; 4]) {
            let mut bytes = [0x61; HELLO_BYTES];
            bytes[..16].copy_from_slice(&hello);
            let _ = Hello::parse(&bytes);
            bytes[..8].copy_from_slice(&[0x53, 0x53, 0x49, 0x46, 1, 0, hello[0] % 10, 0]);
            let _ = Hello::parse(&bytes);
            for class in CLASSES {
                let _ = Header::parse(&header, class);
            }
            let _ = parse_verdict(verdict);
        }
    }

    #[test]
    fn an_oversized_message_is_refused_by_its_header() {
        for code in 1..=10 {
            let kind = Kind::from_code(code).unwrap();
            let class = CLASSES.into_iter().find(|class| kind.travels_on(*class)).unwrap();
            let len = kind.payload_max() + 1;
            assert_eq!(Header { kind, len, tag: 0 }.emit(), Err(MessageError::TooLong { kind, len }));
            let mut bytes = Header { kind, len: 0, tag: 0 }.emit().unwrap();
            bytes[0..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
            assert_eq!(Header::parse(&bytes, class), Err(MessageError::TooLong { kind, len }));
        }
    }

    #[test]
    fn another_version_is_named_as_such() {
        let hello =
            Hello { class: Class::Ctl, from: Peer::Io, to: Peer::Node(0), name: "a".into(), nonce: [0; 32] };
        let mut bytes = hello.emit();
        bytes[4] = 2;
        assert_eq!(Hello::parse(&bytes), Err(Refusal::Version));
    }
}
