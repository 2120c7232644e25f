//! What nodes say to each other about a page. Bytes of pages travel beside a message, not in it: see
//! [`Message::carries_page`]. The encoding is in [`crate::wire`].

use crate::types::{Access, PageNo};

/// One message. *Version*: the number that the page's home gave to a copy when it handed it out; each is greater than
/// all before it from that home, and 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Asker to home: a copy to read.
    Read {
        /// Of which page.
        page: PageNo,
    },
    /// Asker to home: the right to write.
    Write {
        /// To which page.
        page: PageNo,
        /// Version of the shared copy that the asker holds, or 0.
        held: u64,
    },
    /// Home to asker: the copy, with the page's bytes.
    Data {
        /// Of which page.
        page: PageNo,
        /// What the asker may do with it.
        access: Access,
        /// Of this copy.
        version: u64,
    },
    /// Home to asker: write the copy that you hold; no bytes.
    Same {
        /// Which page.
        page: PageNo,
        /// Of the copy from now on.
        version: u64,
    },
    /// Home to asker: the only copy died with its node.
    Lost {
        /// Which page.
        page: PageNo,
    },
    /// Home to sharer: drop the copy of that version, and acknowledge.
    Invalidate {
        /// Which page.
        page: PageNo,
        /// Of the copy to drop.
        version: u64,
    },
    /// Sharer to home: the copy of that version is gone.
    Ack {
        /// Which page.
        page: PageNo,
        /// Of the copy that is gone.
        version: u64,
    },
    /// Home to owner: write no more, send the bytes, keep a copy to read.
    Downgrade {
        /// Which page.
        page: PageNo,
        /// Of the owner's copy.
        version: u64,
    },
    /// Home to owner: send the bytes and drop the copy.
    Recall {
        /// Which page.
        page: PageNo,
        /// Of the owner's copy.
        version: u64,
    },
    /// Owner to home: the bytes, asked for or given back.
    WriteBack {
        /// Which page.
        page: PageNo,
        /// Of the owner's copy.
        version: u64,
        /// Does the owner still read its copy?
        kept: bool,
    },
    /// Sharer to home: the copy of that version is gone, nobody asked.
    Evict {
        /// Which page.
        page: PageNo,
        /// Of the copy that is gone.
        version: u64,
    },
}

impl Message {
    /// The page it is about.
    pub fn page(&self) -> PageNo {
        match *self {
            Self::Read { page }
            | Self::Write { page, .. }
            | Self::Data { page, .. }
            | Self::Same { page, .. }
            | Self::Lost { page }
            | Self::Invalidate { page, .. }
            | Self::Ack { page, .. }
            | Self::Downgrade { page, .. }
            | Self::Recall { page, .. }
            | Self::WriteBack { page, .. }
            | Self::Evict { page, .. } => page,
        }
    }

    /// Do the page's 4096 bytes go with it?
    pub fn carries_page(&self) -> bool {
        matches!(self, Self::Data { .. } | Self::WriteBack { .. })
    }
}
