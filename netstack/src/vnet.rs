//! `virtio_net_hdr_v1` (virtio 1.2, section 5.1.6), in two layers: [`VnetPacket`] is bytes whose length was checked,
//! [`VnetRepr`] can only be a valid header.
//!
//! Neither panics on any input. `VnetPacket`'s accessors panic only if it was made by hand of fewer than
//! [`HDR_BYTES`] bytes, which [`VnetPacket::new_checked`] excludes.

use core::num::NonZeroU16;

/// Bytes of the header, `num_buffers` included.
pub const HDR_BYTES: usize = 12;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VnetError {
    /// Fewer bytes than a header has.
    #[error("frame of {0} bytes is shorter than its {HDR_BYTES}-byte header")]
    Short(usize),
    /// A kind of segmentation that no side of ours offers.
    #[error("segmentation type {0:#x} was not offered")]
    GsoType(u8),
    /// Segmentation without a size, or without a checksum to complete.
    #[error("segmentation is asked for without a size or without a partial checksum")]
    GsoFields,
    /// The checksum would lie outside the frame.
    #[error("checksum at {start}+{offset} lies outside a frame of {len} bytes")]
    Checksum {
        /// Where the sum starts.
        start: u16,
        /// Where the result goes, from there.
        offset: u16,
        /// Bytes of the Ethernet frame.
        len: usize,
    },
}

/// Bytes of a header and the frame behind it.
#[derive(Debug)]
pub struct VnetPacket<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> VnetPacket<T> {
    /// Looks at `buffer` as a header and its frame.
    ///
    /// # Errors
    /// [`VnetError::Short`].
    pub fn new_checked(buffer: T) -> Result<Self, VnetError> {
        let len = buffer.as_ref().len();
        if len < HDR_BYTES { Err(VnetError::Short(len)) } else { Ok(Self { buffer }) }
    }

    fn u16_at(&self, at: usize) -> u16 {
        let bytes = self.buffer.as_ref();
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    /// The flags.
    pub fn flags(&self) -> u8 {
        self.buffer.as_ref()[0]
    }
    /// The kind of segmentation, with the ECN bit.
    pub fn gso_type(&self) -> u8 {
        self.buffer.as_ref()[1]
    }
    /// Bytes of headers that each segment repeats; a hint.
    pub fn hdr_len(&self) -> u16 {
        self.u16_at(2)
    }
    /// Payload bytes of a segment.
    pub fn gso_size(&self) -> u16 {
        self.u16_at(4)
    }
    /// Where the checksum starts, in bytes from the Ethernet header.
    pub fn csum_start(&self) -> u16 {
        self.u16_at(6)
    }
    /// Where the checksum goes, from `csum_start`.
    pub fn csum_offset(&self) -> u16 {
        self.u16_at(8)
    }
    /// The Ethernet frame.
    pub fn frame(&self) -> &[u8] {
        &self.buffer.as_ref()[HDR_BYTES..]
    }
}

/// State of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// In the frame, complete; not verified by anyone yet.
    Full,
    /// Verified by whoever sent it on, or known to be good.
    Valid,
    /// The field holds the sum of the pseudo-header; the rest is the receiver's to add.
    Partial {
        /// Where the sum starts, from the Ethernet header.
        start: u16,
        /// Where the result goes, from `start`.
        offset: u16,
    },
}

/// A TCP segment over IPv4 larger than the link takes, to be cut on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes of a segment.
    pub size: NonZeroU16,
    /// Bytes of Ethernet, IP and TCP headers; a hint.
    pub hdr_len: u16,
    /// The first segment alone keeps the CWR flag (RFC 3168).
    pub ecn: bool,
}

/// A valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetRepr {
    /// Of the transport checksum.
    pub checksum: Checksum,
    /// Set for a segment that is to be cut; `checksum` is then `Partial`.
    pub gso: Option<Gso>,
}

impl VnetRepr {
    /// A frame with nothing left to do.
    pub const PLAIN: Self = Self { checksum: Checksum::Full, gso: None };

    /// Reads a header.
    ///
    /// # Errors
    /// [`VnetError`]: what is in it was not offered, or does not fit the frame.
    pub fn parse<T: AsRef<[u8]>>(packet: &VnetPacket<T>) -> Result<Self, VnetError> {
        let len = packet.frame().len();
        let checksum = if packet.flags() & F_NEEDS_CSUM != 0 {
            let (start, offset) = (packet.csum_start(), packet.csum_offset());
            if usize::from(start) + usize::from(offset) + 2 > len {
                return Err(VnetError::Checksum { start, offset, len });
            }
            Checksum::Partial { start, offset }
        } else if packet.flags() & F_DATA_VALID != 0 {
            Checksum::Valid
        } else {
            Checksum::Full
        };
        let gso = match packet.gso_type() & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => {
                let size = NonZeroU16::new(packet.gso_size()).ok_or(VnetError::GsoFields)?;
                if !matches!(checksum, Checksum::Partial { .. }) {
                    return Err(VnetError::GsoFields);
                }
                Some(Gso { size, hdr_len: packet.hdr_len(), ecn: packet.gso_type() & GSO_ECN != 0 })
            }
            other => return Err(VnetError::GsoType(other)),
        };
        Ok(Self { checksum, gso })
    }

    /// Writes the header, with `num_buffers` 1.
    ///
    /// # Panics
    /// If `out` is shorter than [`HDR_BYTES`].
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..HDR_BYTES];
        out.fill(0);
        match self.checksum {
            Checksum::Full => {}
            Checksum::Valid => out[0] = F_DATA_VALID,
            Checksum::Partial { start, offset } => {
                out[0] = F_NEEDS_CSUM;
                out[6..8].copy_from_slice(&start.to_le_bytes());
                out[8..10].copy_from_slice(&offset.to_le_bytes());
            }
        }
        if let Some(gso) = self.gso {
            out[1] = GSO_TCPV4 | if gso.ecn { GSO_ECN } else { 0 };
            out[2..4].copy_from_slice(&gso.hdr_len.to_le_bytes());
            out[4..6].copy_from_slice(&gso.size.get().to_le_bytes());
        }
        out[10] = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn header_parses_what_it_emits(partial: bool, valid: bool, gso: bool, start in 0u16..64, offset in 0u16..32,
                                       size in 1u16.., hdr_len: u16, ecn: bool) {
            let checksum = if partial || gso { Checksum::Partial { start, offset } }
                           else if valid { Checksum::Valid } else { Checksum::Full };
            let gso = gso.then(|| Gso { size: NonZeroU16::new(size).unwrap(), hdr_len, ecn });
            let repr = VnetRepr { checksum, gso };
            let mut bytes = [0xffu8; HDR_BYTES + 128];
            repr.emit(&mut bytes);
            prop_assert_eq!(VnetRepr::parse(&VnetPacket::new_checked(&bytes[..]).unwrap()), Ok(repr));
        }

        #[test]
        fn arbitrary_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = VnetPacket::new_checked(&bytes) {
                let _ = VnetRepr::parse(&packet);
            }
        }
    }

    #[test]
    fn a_header_that_points_outside_its_frame_is_refused() {
        let mut bytes = [0u8; HDR_BYTES + 40];
        bytes[0] = 1;
        bytes[6] = 34;
        bytes[8] = 6;
        let parse = |bytes: &[u8]| VnetRepr::parse(&VnetPacket::new_checked(bytes).unwrap());
        assert_eq!(parse(&bytes), Err(VnetError::Checksum { start: 34, offset: 6, len: 40 }));
        bytes[8] = 4;
        assert!(parse(&bytes).is_ok());
        bytes[1] = 1;
        assert_eq!(parse(&bytes), Err(VnetError::GsoFields), "no segment size");
        bytes[1] = 3;
        assert_eq!(parse(&bytes), Err(VnetError::GsoType(3)));
    }
}
