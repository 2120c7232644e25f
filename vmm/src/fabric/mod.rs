//! The fabric: authenticated connections between the nodes and the I/O server of one cluster.
//!
//! ```text
//!   node 0 ---- page, fetch, bulk, ctl ---- node 1          each line: one connection per class
//!      \                                     /
//!       `---- ctl, frame, fs ---- io -------'               + streams, any number, raw after they are opened
//! ```
//! Every process listens. The order io, node 0, node 1, ... says who dials: the later the earlier. A connection that ends is
//! not made again: its peer is dead, with all its connections, for every process that sees it (`membership`).
//!
//! # Why these classes
//! A class is a set of messages that may wait for one another. A page request waits for no bulk transfer; a network frame
//! waits for no file read. `fetch` and `bulk` are apart because a reader of `bulk` stops while its guest posts no receive
//! buffer, and that guest may be waiting for a fetch.
//!
//! # Back-pressure
//! | kind | waits, at most | then |
//! |---|---|---|
//! | Dsm | 64 MiB | connection broken: the protocol bounds what is under way (one request per faulting thread and prefetch slot), so the peer is stuck |
//! | Control, FetchRequest | 16 MiB | the same: nodes ask for 1024 pages at a time |
//! | FsRequest | 64 MiB | the same: the device bounds what is asked |
//! | Net | 4 MiB | the frame is dropped and counted, as a network does |
//! | Ssi | 1 MiB | the sender is refused and woken later: the guest's tx queue stops |
//! | FetchReply, FsReply | 4 MiB | the service's thread waits |
//!
//! # No deadlock
//! 1. A thread that reads a `page`, `fetch`, `frame`, `fs` or node-to-I/O-server `ctl` connection never waits for a send: its
//!    handler sends only kinds that never wait (Dsm, Control, Net, Ssi), or hands the work to a service thread through a queue
//!    whose bound the requester keeps (fetch, fs). So these connections are always drained, so a sender that waits for
//!    room on one of them always gets it, or learns that the peer is dead.
//! 2. A thread that reads Ssi messages waits for one thing only: that its own guest posts a receive buffer. It sends nothing.
//!    A guest posts buffers from a thread that waits for no message (`docs/ssi-device.md`), though maybe for a page or a
//!    fetch: both come by classes of (1).
//! 3. A thread that waits for room holds no lock that a reading thread takes: `Link` queues have their own lock, given up while
//!    waiting.

/// Handshakes of connections that come in.
pub mod accept;
/// The handshake and the secret.
pub mod auth;
/// All connections of a process.
pub mod hub;
/// Rate limits for logs.
pub mod limit;
/// One connection.
pub mod link;
/// Who is alive.
pub mod membership;
/// Its reading half.
pub mod reader;
/// Joining two streams.
pub mod relay;
/// Byte streams and addresses.
pub mod stream;
/// The wire format.
pub mod wire;

pub use accept::Identity;
pub use auth::Secret;
pub use hub::{Config, Fabric, FabricError, Handlers, StreamService};
pub use link::{Handler, RoomWaker, SendError, Violation};
pub use membership::{Death, Membership, View};
pub use reader::{Reader, Wait};
pub use wire::{Class, Header, Kind, Peer};

#[cfg(test)]
mod tests;
