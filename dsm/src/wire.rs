//! Messages as bytes. One message is one frame of the fabric's `page` class, which delivers frames whole and, between two
//! nodes, in the order in which they were sent.
//!
//! ```text
//!  0         1         2         3         4                   8
//!  +---------+---------+---------+---------+-------------------+
//!  | format  | kind    | flags   | 0       | payload (le32)    |
//!  +---------+---------+---------+---------+-------------------+
//!  | page number: guest-physical address / 4096 (le64)         |
//!  +-----------------------------------------------------------+
//!  | version of the copy, 0 for none (le64)                    |
//!  +-----------------------------------------------------------+
//!  | payload: nothing, or the 4096 bytes of the page           |
//!  +-----------------------------------------------------------+
//! ```
//!
//! | kind | message | from, to | version | flags | payload |
//! |---|---|---|---|---|---|
//! | 1 | Read | asker, home | 0 | 0 | |
//! | 2 | Write | asker, home | of the copy held, or 0 | 0 | |
//! | 3 | Data | home, asker | of the copy given | bit 0: may write | page |
//! | 4 | Same | home, asker | of the copy from now on | 0 | |
//! | 5 | Lost | home, asker | 0 | 0 | |
//! | 6 | Invalidate | home, sharer | of the copy to drop | 0 | |
//! | 7 | Ack | sharer, home | of the copy dropped | 0 | |
//! | 8 | Downgrade | home, owner | of the owner's copy | 0 | |
//! | 9 | Recall | home, owner | of the owner's copy | 0 | |
//! | 10 | WriteBack | owner, home | of the owner's copy | bit 0: keeps a copy to read | page |
//! | 11 | Evict | sharer, home | of the copy dropped | 0 | |
//!
//! # Version rule
//! `format` is [`FORMAT`]. A node refuses every other value: there is no negotiation, since all nodes of a cluster run one
//! build (the fabric's handshake compares it). Any change of this table, a new kind included, is a new format.
//!
//! # Panic contract
//! The accessors of a [`Packet`] do not panic on what [`Packet::new_checked`] has accepted, whatever the peer sent.

use crate::protocol::Message;
use crate::types::{Access, PageNo};

/// The format that this file describes.
pub const FORMAT: u8 = 1;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 24;

/// Bytes of the longest message.
pub const MAX_BYTES: usize = HEADER_BYTES + PAGE_BYTES;

const PAGE_BYTES: usize = 4096;
const FLAG: u8 = 1;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than a header.
    #[error("{0} bytes are no message: a header has 24")]
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
    /// A flag that the kind does not have, a reserved byte that is not 0, or a version where there is none.
    #[error("a message of kind {0} with a reserved field set")]
    Reserved(u8),
    /// A page number whose address does not fit 64 bits.
    #[error("page number {0:#x} is no address")]
    Page(u64),
}

/// A checked view of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

/// A message and the bytes of the page that go with it. Only valid combinations can be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repr<'a> {
    /// The message.
    pub message: Message,
    /// The page, exactly if [`Message::carries_page`].
    pub page: Option<&'a [u8; PAGE_BYTES]>,
}

mod kind {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const DATA: u8 = 3;
    pub const SAME: u8 = 4;
    pub const LOST: u8 = 5;
    pub const INVALIDATE: u8 = 6;
    pub const ACK: u8 = 7;
    pub const DOWNGRADE: u8 = 8;
    pub const RECALL: u8 = 9;
    pub const WRITE_BACK: u8 = 10;
    pub const EVICT: u8 = 11;
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
        let wants = match kind {
            kind::DATA | kind::WRITE_BACK => PAGE_BYTES,
            kind::READ..=kind::EVICT => 0,
            _ => return Err(Error::Kind(kind)),
        };
        let said = u32::from_le_bytes(packet.field(4));
        let has = bytes.len() - HEADER_BYTES;
        if has != wants || said as usize != wants {
            return Err(Error::Payload { kind, said, has });
        }
        let flags = if wants > 0 { FLAG } else { 0 };
        let versioned = !matches!(kind, kind::READ | kind::LOST);
        if packet.flags() & !flags != 0 || bytes[3] != 0 || (!versioned && packet.version() != 0) {
            return Err(Error::Reserved(kind));
        }
        if packet.page_number() > u64::MAX >> 12 {
            return Err(Error::Page(packet.page_number()));
        }
        Ok(packet)
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
        u64::from_le_bytes(self.field(8))
    }

    /// Version of a copy.
    pub fn version(&self) -> u64 {
        u64::from_le_bytes(self.field(16))
    }

    /// The page's bytes, if the kind carries them.
    pub fn payload(&self) -> Option<&'a [u8; PAGE_BYTES]> {
        self.bytes[HEADER_BYTES..].first_chunk()
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
        let version = packet.version();
        let flag = packet.flags() & FLAG != 0;
        let message = match packet.kind() {
            kind::READ => Message::Read { page },
            kind::WRITE => Message::Write { page, held: version },
            kind::DATA => {
                Message::Data { page, access: if flag { Access::Write } else { Access::Read }, version }
            }
            kind::SAME => Message::Same { page, version },
            kind::LOST => Message::Lost { page },
            kind::INVALIDATE => Message::Invalidate { page, version },
            kind::ACK => Message::Ack { page, version },
            kind::DOWNGRADE => Message::Downgrade { page, version },
            kind::RECALL => Message::Recall { page, version },
            kind::WRITE_BACK => Message::WriteBack { page, version, kept: flag },
            kind::EVICT => Message::Evict { page, version },
            other => return Err(Error::Kind(other)),
        };
        Ok(Self { message, page: packet.payload() })
    }
}

/// Bytes of the message on the wire.
pub fn length(message: &Message) -> usize {
    HEADER_BYTES + if message.carries_page() { PAGE_BYTES } else { 0 }
}

/// Writes the message's header to the start of `buffer`, returns all of the message's bytes there. The page of a message
/// that carries one is the caller's to put after the header.
pub fn emit<'b>(message: &Message, buffer: &'b mut [u8; MAX_BYTES]) -> &'b mut [u8] {
    let (kind, flag, version) = match *message {
        Message::Read { .. } => (kind::READ, false, 0),
        Message::Write { held, .. } => (kind::WRITE, false, held),
        Message::Data { access, version, .. } => (kind::DATA, access == Access::Write, version),
        Message::Same { version, .. } => (kind::SAME, false, version),
        Message::Lost { .. } => (kind::LOST, false, 0),
        Message::Invalidate { version, .. } => (kind::INVALIDATE, false, version),
        Message::Ack { version, .. } => (kind::ACK, false, version),
        Message::Downgrade { version, .. } => (kind::DOWNGRADE, false, version),
        Message::Recall { version, .. } => (kind::RECALL, false, version),
        Message::WriteBack { version, kept, .. } => (kind::WRITE_BACK, kept, version),
        Message::Evict { version, .. } => (kind::EVICT, false, version),
    };
    let length = length(message);
    let payload = (length - HEADER_BYTES) as u32;
    buffer[..4].copy_from_slice(&[FORMAT, kind, u8::from(flag), 0]);
    buffer[4..8].copy_from_slice(&payload.to_le_bytes());
    buffer[8..16].copy_from_slice(&message.page().0.to_le_bytes());
    buffer[16..24].copy_from_slice(&version.to_le_bytes());
    &mut buffer[..length]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        let fields = (0..11u8, 0..=u64::MAX >> 12, any::<u64>(), any::<bool>());
        fields.prop_map(|(kind, page, version, flag)| {
            let page = PageNo(page);
            let access = if flag { Access::Write } else { Access::Read };
            match kind {
                0 => Message::Read { page },
                1 => Message::Write { page, held: version },
                2 => Message::Data { page, access, version },
                3 => Message::Same { page, version },
                4 => Message::Lost { page },
                5 => Message::Invalidate { page, version },
                6 => Message::Ack { page, version },
                7 => Message::Downgrade { page, version },
                8 => Message::Recall { page, version },
                9 => Message::WriteBack { page, version, kept: flag },
                _ => Message::Evict { page, version },
            }
        })
    }

    proptest! {
        #[test]
        fn parsing_what_was_emitted_gives_the_message_back(message in message(), fill: u8) {
            let mut buffer = [0xa5; MAX_BYTES];
            let bytes = emit(&message, &mut buffer);
            bytes[HEADER_BYTES..].fill(fill);
            let repr = Repr::parse(&Packet::new_checked(bytes).unwrap()).unwrap();
            prop_assert_eq!(repr.message, message);
            prop_assert_eq!(repr.page.is_some(), message.carries_page());
            prop_assert!(repr.page.is_none_or(|p| p.iter().all(|&b| b == fill)));
        }

        #[test]
        fn any_bytes_are_a_message_that_emits_to_them_or_an_error(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0..14u8, page: bool,
        ) {
            if let [format, k, ..] = bytes.as_mut_slice() {
                (*format, *k) = (FORMAT, kind);
            }
            if page && bytes.len() >= HEADER_BYTES {
                bytes.resize(MAX_BYTES, 7);
                bytes[2..8].copy_from_slice(&[1, 0, 0, 0x10, 0, 0]);
            }
            if let Ok(packet) = Packet::new_checked(&bytes) {
                let repr = Repr::parse(&packet).unwrap();
                let mut buffer = [0; MAX_BYTES];
                let emitted = emit(&repr.message, &mut buffer);
                prop_assert_eq!(&emitted[..HEADER_BYTES], &bytes[..HEADER_BYTES]);
                prop_assert_eq!(emitted.len(), bytes.len());
            }
        }

        #[test]
        fn a_message_cut_or_lengthened_is_refused(message in message(), cut in 0..MAX_BYTES) {
            let mut buffer = [0; MAX_BYTES];
            let mut bytes = emit(&message, &mut buffer).to_vec();
            bytes.push(0);
            prop_assert!(Packet::new_checked(&bytes).is_err());
            bytes.truncate(cut.min(bytes.len() - 2));
            prop_assert!(Packet::new_checked(&bytes).is_err());
        }
    }

    #[test]
    fn each_field_that_is_wrong_is_named() {
        let mut buffer = [0; MAX_BYTES];
        let good = emit(&Message::Read { page: PageNo(1) }, &mut buffer).to_vec();
        let with = |offset: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[offset] = value;
            Packet::new_checked(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 2), Error::Format(2));
        assert_eq!(with(1, 0), Error::Kind(0));
        assert_eq!(with(1, 12), Error::Kind(12));
        assert_eq!(with(1, 3), Error::Payload { kind: 3, said: 0, has: 0 });
        assert_eq!(with(2, 1), Error::Reserved(1));
        assert_eq!(with(3, 1), Error::Reserved(1));
        assert_eq!(with(4, 1), Error::Payload { kind: 1, said: 1, has: 0 });
        assert!(matches!(with(15, 0xff), Error::Page(_)));
        assert_eq!(with(16, 1), Error::Reserved(1));
        assert_eq!(Packet::new_checked(&good[..23]).unwrap_err(), Error::Short(23));
    }
}
