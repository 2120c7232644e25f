//! What nodes say to each other about a page. Bytes of pages travel beside a message, not in it: see
//! [`Message::pages`]. The encoding is in [`crate::wire`].

use crate::types::{Access, NodeId, PageNo};

/// Pages of the longest run, [`Message::ReadRun`].
pub const RUN_PAGES: usize = 64;

/// Pages that one [`Message::DataRun`] carries at most.
pub const RUN_DATA_PAGES: usize = 16;

/// One message.
///
/// *Ticket*: the number that the asker gave to its request. The copy that answers it has that number too, until another one
/// is granted in its place; an asker never uses a number twice, so (node, ticket) names one copy for ever.
///
/// *Version*: the name of a page's bytes; equal versions are equal bytes. 0 is none. See [`version`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Asker to home: a copy to read.
    Read {
        /// Of which page.
        page: PageNo,
        /// Of the request.
        ticket: u64,
        /// Version of the bytes that the asker still has, or 0.
        held: u64,
    },
    /// Asker to home: the right to write.
    Write {
        /// To which page.
        page: PageNo,
        /// Of the request.
        ticket: u64,
        /// Version of the bytes that the asker still has, or 0.
        held: u64,
    },
    /// Asker to home: copies to read of those pages that can be had at once. A hint: it takes nothing from anybody.
    ReadRun {
        /// The first.
        page: PageNo,
        /// Of the first page; bit n's has the ticket that is n more.
        ticket: u64,
        /// Bit n: page + n is wanted.
        wanted: u64,
    },
    /// Home or owner to asker: the copy, with the page's bytes.
    Data {
        /// Of which page.
        page: PageNo,
        /// What the asker may do with it.
        access: Access,
        /// Of the request.
        ticket: u64,
        /// Of the bytes.
        version: u64,
        /// What the asker said that it has.
        held: u64,
    },
    /// Home to asker: answer of [`Message::ReadRun`], or a part of it, with the bytes of the pages that are given.
    DataRun {
        /// The first page of the run.
        page: PageNo,
        /// Of the request.
        ticket: u64,
        /// Of all bytes that are given.
        version: u64,
        /// Bit n: page + n is given, to be read. At most [`RUN_DATA_PAGES`] bits.
        given: u64,
        /// Bit n: page + n cannot be had at once. No bit of `given`.
        skipped: u64,
    },
    /// Home to asker: what you have is current; no bytes.
    Same {
        /// Which page.
        page: PageNo,
        /// What the asker may do with it.
        access: Access,
        /// Of the request.
        ticket: u64,
    },
    /// Home to asker: the only copy died with its node.
    Lost {
        /// Which page.
        page: PageNo,
        /// Of the request.
        ticket: u64,
    },
    /// Home to sharer: drop the copy, and acknowledge.
    Invalidate {
        /// Which page.
        page: PageNo,
        /// Of the copy to drop.
        ticket: u64,
    },
    /// Sharer to home: the copy is gone.
    Ack {
        /// Which page.
        page: PageNo,
        /// Of the copy that is gone.
        ticket: u64,
    },
    /// Home to owner: give the page to a node that asks for it, or to the home.
    Recall {
        /// Which page.
        page: PageNo,
        /// Of the owner's copy.
        ticket: u64,
        /// The owner keeps a copy to read, and the asker gets one to read; else the asker gets all of it.
        keep: bool,
        /// Who asks; the home itself, if it is the home.
        to: NodeId,
        /// Of the asker's request; 0 if it is the home.
        to_ticket: u64,
        /// Version of the bytes that the asker has, or 0.
        held: u64,
        /// Version of the bytes that the home has, or 0.
        home_held: u64,
    },
    /// Owner to home: the bytes, asked for or given back.
    WriteBack {
        /// Which page.
        page: PageNo,
        /// Of the owner's copy.
        ticket: u64,
        /// Does the owner still read its copy?
        kept: bool,
        /// Of the bytes.
        version: u64,
        /// What the home said that it has, or 0.
        held: u64,
    },
    /// Owner to home: the page, with the right to write it, has gone to the asker.
    Passed {
        /// Which page.
        page: PageNo,
        /// Of the copy that the owner had.
        ticket: u64,
    },
    /// Sharer to home: the copy is gone, or will not come, and nobody had asked for that.
    Evict {
        /// Which page.
        page: PageNo,
        /// Of the copy.
        ticket: u64,
    },
    /// Home to asker: who was to give you the page has died; say so if you lack it.
    Ask {
        /// Which page.
        page: PageNo,
        /// Of the request.
        ticket: u64,
        /// Say so too if you have it; a copy to read is sent home ([`Message::WriteBack`]), which has none.
        confirm: bool,
    },
    /// Answer of [`Message::Ask`]: it has come, and may be written.
    Have {
        /// Which page.
        page: PageNo,
        /// Of the copy.
        ticket: u64,
    },
}

/// Names the bytes that a page has when the time ends in which `node` might write it under `ticket`.
pub fn version(node: NodeId, ticket: u64) -> u64 {
    (u64::from(node.0) + 1) << TICKET_BITS | (ticket & TICKET_MAX)
}

const TICKET_BITS: u32 = 44;

/// The greatest ticket.
pub const TICKET_MAX: u64 = (1 << TICKET_BITS) - 1;

impl Message {
    /// The page it is about; of a run, the first.
    pub fn page(&self) -> PageNo {
        match *self {
            Self::Read { page, .. }
            | Self::Write { page, .. }
            | Self::ReadRun { page, .. }
            | Self::Data { page, .. }
            | Self::DataRun { page, .. }
            | Self::Same { page, .. }
            | Self::Lost { page, .. }
            | Self::Invalidate { page, .. }
            | Self::Ack { page, .. }
            | Self::Recall { page, .. }
            | Self::WriteBack { page, .. }
            | Self::Passed { page, .. }
            | Self::Evict { page, .. }
            | Self::Ask { page, .. }
            | Self::Have { page, .. } => page,
        }
    }

    /// The ticket it is about; of a run, the first page's.
    pub fn ticket(&self) -> u64 {
        match *self {
            Self::Read { ticket, .. }
            | Self::Write { ticket, .. }
            | Self::ReadRun { ticket, .. }
            | Self::Data { ticket, .. }
            | Self::DataRun { ticket, .. }
            | Self::Same { ticket, .. }
            | Self::Lost { ticket, .. }
            | Self::Invalidate { ticket, .. }
            | Self::Ack { ticket, .. }
            | Self::Recall { ticket, .. }
            | Self::WriteBack { ticket, .. }
            | Self::Passed { ticket, .. }
            | Self::Evict { ticket, .. }
            | Self::Ask { ticket, .. }
            | Self::Have { ticket, .. } => ticket,
        }
    }

    /// The pages of a run, as bits counted from [`Message::page`]; bit 0 for all other messages.
    pub fn run(&self) -> u64 {
        match *self {
            Self::ReadRun { wanted, .. } => wanted,
            Self::DataRun { given, skipped, .. } => given | skipped,
            _ => 1,
        }
    }

    /// The pages whose 4096 bytes go with it, as bits counted from [`Message::page`].
    pub fn pages(&self) -> u64 {
        match *self {
            Self::Data { .. } | Self::WriteBack { .. } => 1,
            Self::DataRun { given, .. } => given,
            _ => 0,
        }
    }
}

/// The pages of a set of bits, counted from `first`, in order, each with its bit's number.
pub fn run_pages(first: PageNo, bits: u64) -> impl Iterator<Item = (u64, PageNo)> {
    (0..u64::from(u64::BITS)).filter(move |n| bits >> n & 1 == 1).map(move |n| (n, PageNo(first.0 + n)))
}
