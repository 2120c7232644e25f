//! `virtio_net_hdr_v1` (section 5.1.6): what the device has to know of it.

use super::{F_GUEST_CSUM, F_GUEST_TSO4, HEADER_BYTES};

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;
/// Offset of `num_buffers`.
const NUM_BUFFERS: usize = 10;

/// Makes a frame for the driver one that the driver agreed to take. False if that cannot be.
pub(super) fn adapt(frame: &mut [u8], features: u64) -> bool {
    let Some((header, body)) = frame.split_at_mut_checked(HEADER_BYTES) else { return false };
    match header[1] & !GSO_ECN {
        GSO_NONE => {}
        GSO_TCPV4 if features & F_GUEST_TSO4 != 0 => {}
        _ => return false,
    }
    if header[0] & F_NEEDS_CSUM != 0 && features & F_GUEST_CSUM == 0 {
        let start = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let offset = usize::from(u16::from_le_bytes([header[8], header[9]]));
        if !fill_checksum(body, start, offset) {
            return false;
        }
        header[0] &= !F_NEEDS_CSUM;
        header[6..10].fill(0);
    }
    true
}

/// Says in how many buffers the frame is.
pub(super) fn set_buffers(frame: &mut [u8], buffers: u16) {
    frame[NUM_BUFFERS..NUM_BUFFERS + 2].copy_from_slice(&buffers.to_le_bytes());
}

/// The Internet checksum (RFC 1071) from `start` to the end, stored `offset` behind it; what is there already is the sum
/// of the pseudo header.
fn fill_checksum(body: &mut [u8], start: usize, offset: usize) -> bool {
    if start.checked_add(offset).is_none_or(|at| at + 2 > body.len()) {
        return false;
    }
    let words = body[start..]
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A UDP checksum of zero would mean that there is none.
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        other => other,
    };
    body[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, gso: u8) -> Vec<u8> {
        let mut frame = vec![0u8; HEADER_BYTES];
        (frame[0], frame[1]) = (flags, gso);
        frame[6..8].copy_from_slice(&4u16.to_le_bytes());
        frame[8..10].copy_from_slice(&2u16.to_le_bytes());
        frame.extend([1, 2, 3, 4, 0x12, 0x34, 0, 0, 0x56]);
        frame
    }

    /// "5.1.6.4.1: if VIRTIO_NET_F_GUEST_CSUM is not negotiated, the device MUST set flags to zero and SHOULD supply a
    /// fully checksummed packet to the driver."
    #[test]
    fn verify_5_1_6_4_1_checksum_is_filled_in_for_a_driver_that_cannot() {
        let mut with = frame(F_NEEDS_CSUM, 0);
        assert!(adapt(&mut with, F_GUEST_CSUM));
        assert_eq!(with, frame(F_NEEDS_CSUM, 0));
        let mut without = frame(F_NEEDS_CSUM, 0);
        assert!(adapt(&mut without, 0));
        assert_eq!(without[0], 0);
        // 0x1234 + 0x5600 = 0x6834, complemented.
        assert_eq!(without[HEADER_BYTES + 6..HEADER_BYTES + 8], [0x97, 0xcb]);
    }

    /// "5.1.6.4.1: If none of the VIRTIO_NET_F_GUEST_TSO4 ... options have been negotiated, the device MUST set gso_type to
    /// VIRTIO_NET_HDR_GSO_NONE."
    #[test]
    fn verify_5_1_6_4_1_no_segment_that_the_driver_did_not_agree_to() {
        assert!(adapt(&mut frame(0, GSO_TCPV4), F_GUEST_TSO4));
        assert!(!adapt(&mut frame(0, GSO_TCPV4), 0));
        assert!(!adapt(&mut frame(0, 4), F_GUEST_TSO4), "TSO6 was not offered");
        assert!(!adapt(&mut [0; HEADER_BYTES - 1], F_GUEST_TSO4));
    }

    #[test]
    fn a_checksum_outside_of_the_frame_is_refused() {
        for (start, offset) in [(4u16, 4u16), (9, 0), (u16::MAX, u16::MAX)] {
            let mut bad = frame(F_NEEDS_CSUM, 0);
            bad[6..8].copy_from_slice(&start.to_le_bytes());
            bad[8..10].copy_from_slice(&offset.to_le_bytes());
            assert!(!adapt(&mut bad, 0), "{start} {offset}");
        }
    }
}
