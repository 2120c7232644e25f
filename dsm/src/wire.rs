//! Messages as bytes. One message is one frame of the fabric's `page` class, which delivers frames whole and, between two
//! nodes, in the order in which they were sent.
//!
//! ```text
//!  0         1         2         3         4                   8
//!  +---------+---------+---------+---------+-------------------+
//!  | format  | kind    | flags   | history | payload (le32)    |  payload: bytes after this header
//!  +---------+---------+---------+---------+-------------------+
//!  | page number: guest-physical address / 4096 (le64)         |  of a run, the first
//!  +-----------------------------------------------------------+
//!  | ticket (le64)                                             |  1 to 2^44 - 1
//!  +-----------------------------+--------------+--------------+
//!  | epoch of the sender (le32)  | node (le16)  | 0            |
//!  +-----------------------------+--------------+--------------+
//!  | words of the kind, le64 each                              |
//!  +-----------------------------------------------------------+
//!  | history: as many pairs of le64 (version before, lines)    |  Data, WriteBack
//!  +-----------------------------------------------------------+
//!  | body: nothing, pages of 4096 bytes, or a difference       |
//!  +-----------------------------------------------------------+
//! ```
//!
//! | kind | message | from, to | words | flags | body |
//! |---|---|---|---|---|---|
//! | 1 | Read | asker, home | held | | |
//! | 2 | Write | asker, home | held | | |
//! | 3 | ReadRun | asker, home | wanted | | |
//! | 4 | Data | home or owner, asker | version, held | 1: may write; 2: difference | page |
//! | 5 | DataRun | home, asker | version, given, skipped | | the pages given, in order |
//! | 6 | Same | home, asker | | 1: may write | |
//! | 7 | Lost | home, asker | | | |
//! | 8 | Invalidate | home, sharer | | | |
//! | 9 | Ack | sharer, home | | | |
//! | 10 | Recall | home, owner | ticket of the asker, its held, the home's held | 1: keep a copy to read | |
//! | 11 | WriteBack | owner, home | version, held | 1: keeps a copy to read; 2: difference | page |
//! | 12 | Passed | owner, home | | | |
//! | 13 | Evict | sharer, home | | | |
//! | 14 | Ask | home, asker | | 1: confirm | |
//! | 15 | Have | asker, home | | | |
//!
//! *Difference*: le64 of bits, one for each line of 64 bytes, then the lines whose bits are set. All other lines are those of
//! the version `held`. *History*: how the page came to its version, the oldest step first: the version before the step and the
//! lines that it changed; at most [`HISTORY_STEPS`] steps.
//!
//! # Version rule
//! `format` is [`FORMAT`]. A node refuses every other value: there is no negotiation, since all nodes of a cluster run one
//! build (the fabric's handshake compares it). Any change of this table, a new kind included, is a new format.
//!
//! # Panic contract
//! The accessors of a [`Packet`] do not panic on what [`Packet::new_checked`] has accepted, whatever the peer sent, and
//! nothing is allocated here but the frame that is emitted.

use crate::protocol::{Message, RUN_DATA_PAGES, TICKET_MAX};
use crate::types::{Access, NodeId, PageNo};

/// The format that this file describes.
pub const FORMAT: u8 = 2;

/// Bytes before the words.
pub const HEADER_BYTES: usize = 32;

/// Bytes of the longest message.
pub const MAX_BYTES: usize = HEADER_BYTES + 3 * 8 + RUN_DATA_PAGES * PAGE_BYTES;

/// Steps of the longest history.
pub const HISTORY_STEPS: usize = 8;

/// Bytes of a line, the unit of differences.
pub const LINE_BYTES: usize = 64;

/// The longest difference, in lines. What changed more goes whole.
pub const DIFFERENCE_LINES: u32 = 32;

const PAGE_BYTES: usize = 4096;
const FLAG: u8 = 1;
const DIFFERENCE: u8 = 2;
const PAGE_MAX: u64 = u64::MAX >> 12;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than a header.
    #[error("{0} bytes are no message: a header has 32")]
    Short(usize),
    /// Another format than ours.
    #[error("format {0}; this build speaks {FORMAT}")]
    Format(u8),
    /// No such kind.
    #[error("message kind {0} is unknown")]
    Kind(u8),
    /// The payload is not what the kind asks for, or not what the header says.
    #[error("a message of kind {kind} that says it has {said} bytes of payload, and has {has}")]
    Payload {
        /// Kind of the message.
        kind: u8,
        /// What its header says.
        said: u32,
        /// What came.
        has: usize,
    },
    /// A flag that the kind does not have, or a reserved field that is not 0.
    #[error("a message of kind {0} with a reserved field set")]
    Reserved(u8),
    /// A page number whose address does not fit 64 bits.
    #[error("page number {0:#x} is no address")]
    Page(u64),
    /// A ticket that nobody gives.
    #[error("ticket {0:#x} is out of range")]
    Ticket(u64),
    /// A set of pages that is empty, too large, or contradicts itself.
    #[error("a message of kind {0} with an impossible set of pages")]
    Run(u8),
    /// A difference that is too long.
    #[error("a difference of {0} lines")]
    Difference(u32),
}

/// A checked view of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

/// A message and what goes with it. Only valid combinations can be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repr<'a> {
    /// The message.
    pub message: Message,
    /// The sender's life.
    pub epoch: u32,
    /// Pages, or what makes them.
    pub body: Body<'a>,
}

/// The bytes beside a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// None.
    Nothing,
    /// As many pages as the message says.
    Pages {
        /// How the page came to its version.
        history: History<'a>,
        /// The pages.
        bytes: &'a [u8],
    },
    /// What has changed since the version that the receiver has.
    Difference {
        /// How the page came to its version.
        history: History<'a>,
        /// The lines that are here.
        lines: u64,
        /// The lines.
        bytes: &'a [u8],
    },
}

/// Steps of a page's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History<'a>(&'a [u8]);

impl<'a> History<'a> {
    /// The steps, the oldest first: version before, lines changed.
    pub fn steps(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        self.0.chunks_exact(16).map(|step| (le64(step, 0), le64(step, 8)))
    }
}

mod kind {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const READ_RUN: u8 = 3;
    pub const DATA: u8 = 4;
    pub const DATA_RUN: u8 = 5;
    pub const SAME: u8 = 6;
    pub const LOST: u8 = 7;
    pub const INVALIDATE: u8 = 8;
    pub const ACK: u8 = 9;
    pub const RECALL: u8 = 10;
    pub const WRITE_BACK: u8 = 11;
    pub const PASSED: u8 = 12;
    pub const EVICT: u8 = 13;
    pub const ASK: u8 = 14;
    pub const HAVE: u8 = 15;
}

/// Words of a kind, and its flags.
fn shape(kind: u8) -> Option<(usize, u8)> {
    Some(match kind {
        kind::READ | kind::WRITE | kind::READ_RUN => (1, 0),
        kind::DATA | kind::WRITE_BACK => (2, FLAG | DIFFERENCE),
        kind::DATA_RUN => (3, 0),
        kind::RECALL => (3, FLAG),
        kind::SAME | kind::ASK => (0, FLAG),
        kind::LOST..=kind::HAVE => (0, 0),
        _ => return None,
    })
}

fn le64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

impl<'a> Packet<'a> {
    /// Checks length, format, kind, payload and reserved fields.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() < HEADER_BYTES {
            return Err(Error::Short(bytes.len()));
        }
        let packet = Self { bytes };
        if bytes[0] != FORMAT {
            return Err(Error::Format(bytes[0]));
        }
        let kind = packet.kind();
        let (words, flags) = shape(kind).ok_or(Error::Kind(kind))?;
        packet.check_payload(kind, words)?;
        let history = if flags & DIFFERENCE != 0 { HISTORY_STEPS } else { 0 };
        let node = if kind == kind::RECALL { 0 } else { packet.node() };
        if packet.flags() & !flags != 0 || packet.history() > history || node != 0 || bytes[30..32] != [0; 2]
        {
            return Err(Error::Reserved(kind));
        }
        if packet.page_number() > PAGE_MAX {
            return Err(Error::Page(packet.page_number()));
        }
        if !(1..=TICKET_MAX).contains(&packet.ticket()) {
            return Err(Error::Ticket(packet.ticket()));
        }
        packet.check_words(kind)?;
        Ok(packet)
    }

    /// Has the payload the length that everything else says?
    fn check_payload(&self, kind: u8, words: usize) -> Result<(), Error> {
        let said = u32::from_le_bytes(self.field(4));
        let has = self.bytes.len() - HEADER_BYTES;
        let wrong = Error::Payload { kind, said, has };
        if said as usize != has || has < words * 8 {
            return Err(wrong);
        }
        let rest = words * 8 + self.history() * 16;
        let body = match kind {
            kind::DATA | kind::WRITE_BACK if self.flags() & DIFFERENCE != 0 => {
                let lines = self.lines().count_ones();
                if lines > DIFFERENCE_LINES {
                    return Err(Error::Difference(lines));
                }
                8 + lines as usize * LINE_BYTES
            }
            kind::DATA | kind::WRITE_BACK => PAGE_BYTES,
            kind::DATA_RUN => self.word(1).count_ones() as usize * PAGE_BYTES,
            _ => 0,
        };
        if has == rest + body { Ok(()) } else { Err(wrong) }
    }

    fn check_words(&self, kind: u8) -> Result<(), Error> {
        let run = match kind {
            kind::DATA | kind::WRITE_BACK if self.flags() & DIFFERENCE != 0 && self.word(1) == 0 => {
                return Err(Error::Reserved(kind));
            }
            kind::READ_RUN => self.word(0),
            kind::DATA_RUN => {
                let (given, skipped) = (self.word(1), self.word(2));
                if given & skipped != 0 || given.count_ones() as usize > RUN_DATA_PAGES {
                    return Err(Error::Run(kind));
                }
                given | skipped
            }
            kind::RECALL if self.word(0) > TICKET_MAX => return Err(Error::Ticket(self.word(0))),
            _ => 1,
        };
        let last = u64::from(run.checked_ilog2().ok_or(Error::Run(kind))?);
        if self.page_number() + last > PAGE_MAX {
            return Err(Error::Page(self.page_number()));
        }
        if self.ticket() + last > TICKET_MAX {
            return Err(Error::Ticket(self.ticket()));
        }
        Ok(())
    }

    /// Kind, as in the table.
    pub fn kind(&self) -> u8 {
        self.bytes[1]
    }

    /// Flags, as in the table.
    pub fn flags(&self) -> u8 {
        self.bytes[2]
    }

    /// Page number.
    pub fn page_number(&self) -> u64 {
        le64(self.bytes, 8)
    }

    /// Ticket of the copy or request.
    pub fn ticket(&self) -> u64 {
        le64(self.bytes, 16)
    }

    /// The sender's life.
    pub fn epoch(&self) -> u32 {
        u32::from_le_bytes(self.field(24))
    }

    /// The node that the message names, or 0.
    pub fn node(&self) -> u16 {
        u16::from_le_bytes(self.field(28))
    }

    fn history(&self) -> usize {
        self.bytes[3].into()
    }

    fn word(&self, n: usize) -> u64 {
        le64(self.bytes, HEADER_BYTES + n * 8)
    }

    /// Lines of a difference.
    fn lines(&self) -> u64 {
        le64(self.bytes, HEADER_BYTES + 16 + self.history() * 16)
    }

    /// What follows the words.
    pub fn body(&self) -> Body<'a> {
        let words = shape(self.kind()).map_or(0, |(words, _)| words);
        let rest = self.bytes.get(HEADER_BYTES + words * 8..).unwrap_or_default();
        let (history, bytes) = rest.split_at_checked(self.history() * 16).unwrap_or_default();
        let history = History(history);
        match self.kind() {
            kind::DATA | kind::WRITE_BACK if self.flags() & DIFFERENCE != 0 => {
                Body::Difference { history, lines: self.lines(), bytes: bytes.get(8..).unwrap_or_default() }
            }
            kind::DATA | kind::WRITE_BACK | kind::DATA_RUN => Body::Pages { history, bytes },
            _ => Body::Nothing,
        }
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[offset..offset + N]);
        field
    }
}

impl<'a> Repr<'a> {
    /// What the packet says.
    ///
    /// # Errors
    /// [`Error::Kind`] for a kind that [`Packet::new_checked`] would have refused.
    pub fn parse(packet: &Packet<'a>) -> Result<Self, Error> {
        let page = PageNo(packet.page_number());
        let ticket = packet.ticket();
        let flag = packet.flags() & FLAG != 0;
        let access = if flag { Access::Write } else { Access::Read };
        let (one, two, three) = (packet.word(0), packet.word(1), packet.word(2));
        let message = match packet.kind() {
            kind::READ => Message::Read { page, ticket, held: one },
            kind::WRITE => Message::Write { page, ticket, held: one },
            kind::READ_RUN => Message::ReadRun { page, ticket, wanted: one },
            kind::DATA => Message::Data { page, access, ticket, version: one, held: two },
            kind::DATA_RUN => Message::DataRun { page, ticket, version: one, given: two, skipped: three },
            kind::SAME => Message::Same { page, access, ticket },
            kind::LOST => Message::Lost { page, ticket },
            kind::INVALIDATE => Message::Invalidate { page, ticket },
            kind::ACK => Message::Ack { page, ticket },
            kind::RECALL => Message::Recall {
                page,
                ticket,
                keep: flag,
                to: NodeId(packet.node()),
                to_ticket: one,
                held: two,
                home_held: three,
            },
            kind::WRITE_BACK => Message::WriteBack { page, ticket, kept: flag, version: one, held: two },
            kind::PASSED => Message::Passed { page, ticket },
            kind::EVICT => Message::Evict { page, ticket },
            kind::ASK => Message::Ask { page, ticket, confirm: flag },
            kind::HAVE => Message::Have { page, ticket },
            other => return Err(Error::Kind(other)),
        };
        Ok(Self { message, epoch: packet.epoch(), body: packet.body() })
    }
}

/// Bytes of the message on the wire, if its pages go whole and without a history.
pub fn length(message: &Message) -> usize {
    let words = match message {
        Message::Read { .. } | Message::Write { .. } | Message::ReadRun { .. } => 1,
        Message::Data { .. } | Message::WriteBack { .. } => 2,
        Message::DataRun { .. } | Message::Recall { .. } => 3,
        _ => 0,
    };
    HEADER_BYTES + words * 8 + message.pages().count_ones() as usize * PAGE_BYTES
}

/// A message being written.
#[derive(Debug)]
pub struct Frame<'b> {
    bytes: &'b mut Vec<u8>,
}

impl<'b> Frame<'b> {
    /// Starts `message` in `bytes`, whose contents are dropped. What [`Message::pages`] says has to follow.
    pub fn new(message: &Message, epoch: u32, bytes: &'b mut Vec<u8>) -> Self {
        let (kind, flag, node, words): (_, _, _, [u64; 3]) = match *message {
            Message::Read { held, .. } => (kind::READ, false, 0, [held, 0, 0]),
            Message::Write { held, .. } => (kind::WRITE, false, 0, [held, 0, 0]),
            Message::ReadRun { wanted, .. } => (kind::READ_RUN, false, 0, [wanted, 0, 0]),
            Message::Data { access, version, held, .. } => {
                (kind::DATA, access == Access::Write, 0, [version, held, 0])
            }
            Message::DataRun { version, given, skipped, .. } => {
                (kind::DATA_RUN, false, 0, [version, given, skipped])
            }
            Message::Same { access, .. } => (kind::SAME, access == Access::Write, 0, [0; 3]),
            Message::Lost { .. } => (kind::LOST, false, 0, [0; 3]),
            Message::Invalidate { .. } => (kind::INVALIDATE, false, 0, [0; 3]),
            Message::Ack { .. } => (kind::ACK, false, 0, [0; 3]),
            Message::Recall { keep, to, to_ticket, held, home_held, .. } => {
                (kind::RECALL, keep, to.0, [to_ticket, held, home_held])
            }
            Message::WriteBack { kept, version, held, .. } => (kind::WRITE_BACK, kept, 0, [version, held, 0]),
            Message::Passed { .. } => (kind::PASSED, false, 0, [0; 3]),
            Message::Evict { .. } => (kind::EVICT, false, 0, [0; 3]),
            Message::Ask { confirm, .. } => (kind::ASK, confirm, 0, [0; 3]),
            Message::Have { .. } => (kind::HAVE, false, 0, [0; 3]),
        };
        bytes.clear();
        bytes.extend_from_slice(&[FORMAT, kind, u8::from(flag), 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&message.page().0.to_le_bytes());
        bytes.extend_from_slice(&message.ticket().to_le_bytes());
        bytes.extend_from_slice(&epoch.to_le_bytes());
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        let count = shape(kind).map_or(0, |(words, _)| words);
        for word in &words[..count] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        Self { bytes }
    }

    /// Adds the page's history, before its body: the oldest step first, at most [`HISTORY_STEPS`] of them.
    pub fn history(&mut self, steps: impl IntoIterator<Item = (u64, u64)>) {
        for (version, lines) in steps.into_iter().take(HISTORY_STEPS) {
            self.bytes[3] += 1;
            self.bytes.extend_from_slice(&version.to_le_bytes());
            self.bytes.extend_from_slice(&lines.to_le_bytes());
        }
    }

    /// Adds one page, for the caller to fill.
    pub fn page(&mut self) -> &mut [u8; PAGE_BYTES] {
        let start = self.bytes.len();
        self.bytes.resize(start + PAGE_BYTES, 0);
        match self.bytes[start..].first_chunk_mut() {
            Some(page) => page,
            None => unreachable!("the buffer was just made a page longer"),
        }
    }

    /// Adds `count` pages, one after the other, for the caller to fill; at most [`RUN_DATA_PAGES`] in all.
    pub fn pages(&mut self, count: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + count * PAGE_BYTES, 0);
        &mut self.bytes[start..]
    }

    /// Adds the lines of `page` whose bits are set, at most [`DIFFERENCE_LINES`].
    pub fn difference(&mut self, lines: u64, page: &[u8; PAGE_BYTES]) {
        self.bytes[2] |= DIFFERENCE;
        self.bytes.extend_from_slice(&lines.to_le_bytes());
        let set = page.chunks_exact(LINE_BYTES).enumerate().filter(|(n, _)| lines >> n & 1 == 1);
        for (_, line) in set {
            self.bytes.extend_from_slice(line);
        }
    }

    /// The whole message.
    pub fn finish(self) -> &'b [u8] {
        let payload = (self.bytes.len() - HEADER_BYTES) as u32;
        self.bytes[4..8].copy_from_slice(&payload.to_le_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests;
