//! FUSE messages as bytes (`linux/fuse.h`): the header of a request, the room that its reply needs, error replies.

use fuse_backend_rs::abi::fuse_abi::Opcode;

/// Largest request: a WRITE of 1 MiB (256 pages) with its headers.
pub const MAX_REQUEST: usize = MAX_DATA + HEADER_ROOM;
/// Largest reply: a READ of 1 MiB with its header.
pub const MAX_REPLY: usize = MAX_DATA + HEADER_ROOM;
/// Bytes of data in one request or reply at most: what the service offers as `max_pages`.
const MAX_DATA: usize = 1 << 20;
/// Room for headers in front of the data.
const HEADER_ROOM: usize = 4096;
/// Bytes of `fuse_in_header`.
const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;
/// Largest value of an extended attribute (`XATTR_SIZE_MAX`) and list of names (`XATTR_LIST_MAX`).
pub(super) const XATTR_MAX: u32 = 65536;
/// A reply without variable data, and READLINK (PATH_MAX), fit in this.
const SMALL_REPLY: usize = 8192;

/// What the service has to know of a request before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// `FUSE_*`.
    pub opcode: u32,
    /// Repeated in the reply.
    pub unique: u64,
    /// Bytes that the reply may need.
    pub room: usize,
}

/// A message that is no request: what is wrong, and what can be said in reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed {
    /// `unique` when there was one to read.
    pub unique: u64,
    /// Is a reply expected?
    pub wants_reply: bool,
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Checks the header of `message`: its length is that of the message and within [`MAX_REQUEST`].
pub(super) fn parse(message: &[u8]) -> Result<Request, Malformed> {
    let unique = le64(message, 8).unwrap_or(0);
    let opcode = le32(message, 4);
    let malformed = Malformed { unique, wants_reply: opcode.is_none_or(wants_reply) };
    let (Some(opcode), Some(length)) = (opcode, le32(message, 0)) else { return Err(malformed) };
    if message.len() < IN_HEADER || message.len() > MAX_REQUEST || length as usize != message.len() {
        return Err(malformed);
    }
    let sized =
        |at: usize, most: usize| le32(message, IN_HEADER + at).map_or(0, |size| (size as usize).min(most));
    let room = match opcode {
        // READ and READDIR: fh u64, offset u64, size u32.
        x if x == Opcode::Read as u32 => OUT_HEADER + sized(16, MAX_DATA),
        x if x == Opcode::Readdir as u32 || x == Opcode::Readdirplus as u32 => {
            SMALL_REPLY + sized(16, MAX_DATA)
        }
        // GETXATTR and LISTXATTR: size u32.
        x if x == Opcode::Getxattr as u32 || x == Opcode::Listxattr as u32 => {
            SMALL_REPLY + sized(0, XATTR_MAX as usize)
        }
        _ => SMALL_REPLY,
    };
    Ok(Request { opcode, unique, room })
}

/// Does the client wait for a reply to this kind of request?
pub(super) fn wants_reply(opcode: u32) -> bool {
    ![Opcode::Forget as u32, Opcode::BatchForget as u32, Opcode::Interrupt as u32].contains(&opcode)
}

/// Is it an operation that the server may decode? Others are answered ENOSYS before it sees them: DAX mappings,
/// ioctl and poll make no sense for a regular file here; locks are kept by the cells.
pub(super) fn is_served(opcode: u32) -> bool {
    matches!(opcode, 1..=6 | 8..=18 | 20..=24 | 26..=30 | 34..=36 | 38 | 42..=46)
}

/// A reply that carries `errno` (positive) and nothing else.
pub fn error_reply(unique: u64, errno: i32) -> Vec<u8> {
    header(OUT_HEADER, -errno, unique)
}

/// A reply that carries success and nothing else.
pub(super) fn ok_reply(unique: u64) -> Vec<u8> {
    header(OUT_HEADER, 0, unique)
}

fn header(length: usize, error: i32, unique: u64) -> Vec<u8> {
    let mut reply = Vec::with_capacity(length);
    reply.extend_from_slice(&(length as u32).to_le_bytes());
    reply.extend_from_slice(&error.to_le_bytes());
    reply.extend_from_slice(&unique.to_le_bytes());
    reply
}

/// The length of the whole reply in `buffer`, if one for `unique` is there.
pub(super) fn reply_length(buffer: &[u8], unique: u64) -> Option<usize> {
    let length = le32(buffer, 0)? as usize;
    (le64(buffer, 8)? == unique && (OUT_HEADER..=buffer.len()).contains(&length)).then_some(length)
}

/// The `unique` of a request, to answer it without decoding it; 0 when it is too short to have one.
pub(crate) fn unique_of(request: &[u8]) -> u64 {
    le64(request, 8).unwrap_or(0)
}
