//! The exec stream: frames of {u8 kind, le32 length, payload} over any ordered byte stream.
//!
//! ```text
//! client                          server
//!   | REQUEST  {"op":"exec",...}    |
//!   |------------------------------>|
//!   |    RESPONSE {"ok":true,...}   |
//!   |<------------------------------|
//!   | STDIN / RESIZE / SIGNAL       |   only after an accepted exec or console
//!   |------------------------------>|
//!   |      STDOUT / STDERR          |
//!   |<------------------------------|
//!   |            EXIT {"code":0}    |   the last frame
//!   |<------------------------------|
//! ```
//! An empty STDIN frame is end of file. Version rule: a new kind may be added; a receiver refuses a kind it does
//! not know with [`FrameError::Kind`].

use std::io::{self, Read, Write};

/// Most bytes of a frame's payload.
pub const PAYLOAD_MAX_BYTES: usize = 65536;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// JSON [`crate::request::Request`].
    Request = 0x01,
    /// JSON [`crate::request::Response`].
    Response = 0x02,
    /// Bytes for the program's standard input; empty: end of file.
    Stdin = 0x10,
    /// Bytes of the program's standard output, or of its terminal.
    Stdout = 0x11,
    /// Bytes of the program's standard error.
    Stderr = 0x12,
    /// JSON [`crate::request::WindowSize`].
    Resize = 0x13,
    /// JSON [`crate::request::Signal`].
    Signal = 0x14,
    /// JSON [`crate::request::Exit`]; the last frame of a stream.
    Exit = 0x15,
    /// JSON progress of a long operation (`up` inside a lab, `drain`): [`crate::request::Progress`].
    Progress = 0x16,
}

impl Kind {
    /// The kind that `code` names.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x01 => Self::Request,
            0x02 => Self::Response,
            0x10 => Self::Stdin,
            0x11 => Self::Stdout,
            0x12 => Self::Stderr,
            0x13 => Self::Resize,
            0x14 => Self::Signal,
            0x15 => Self::Exit,
            0x16 => Self::Progress,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// At most [`PAYLOAD_MAX_BYTES`].
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A kind this version does not know.
    #[error("frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// The length is over the limit; nothing was allocated.
    #[error("frame of {0} bytes; at most {PAYLOAD_MAX_BYTES} are allowed")]
    TooLong(usize),
    /// The stream ended inside a frame, or failed.
    #[error("frame cut short: {0}")]
    Io(#[from] io::Error),
    /// The payload is not the JSON that its kind asks for.
    #[error("frame does not hold what its kind asks for: {0}")]
    Json(#[from] serde_json::Error),
    /// A frame came where another kind is due.
    #[error("{0:?} frame came where it is not allowed")]
    Unexpected(Kind),
}

/// Reads a header: kind and length of the payload.
///
/// # Errors
/// [`FrameError::Kind`], [`FrameError::TooLong`].
pub fn parse_header(header: [u8; HEADER_BYTES]) -> Result<(Kind, usize), FrameError> {
    let kind = Kind::from_code(header[0]).ok_or(FrameError::Kind(header[0]))?;
    let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if len > PAYLOAD_MAX_BYTES {
        return Err(FrameError::TooLong(len));
    }
    Ok((kind, len))
}

/// The bytes before a payload of `len` bytes.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn emit_header(kind: Kind, len: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    let checked =
        u32::try_from(len).ok().filter(|_| len <= PAYLOAD_MAX_BYTES).ok_or(FrameError::TooLong(len))?;
    let le = checked.to_le_bytes();
    Ok([kind as u8, le[0], le[1], le[2], le[3]])
}

impl Frame {
    /// A frame that carries bytes; the caller keeps to [`PAYLOAD_MAX_BYTES`].
    pub fn bytes(kind: Kind, payload: &[u8]) -> Self {
        Self { kind, payload: payload.to_vec() }
    }

    /// A frame that carries a JSON record.
    ///
    /// # Errors
    /// [`FrameError::Json`] if the record cannot be written as JSON.
    pub fn json<T: serde::Serialize>(kind: Kind, record: &T) -> Result<Self, FrameError> {
        Ok(Self { kind, payload: serde_json::to_vec(record)? })
    }

    /// The JSON record inside, if the frame is of kind `kind`.
    ///
    /// # Errors
    /// [`FrameError::Unexpected`], [`FrameError::Json`].
    pub fn record<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> Result<T, FrameError> {
        if self.kind != kind {
            return Err(FrameError::Unexpected(self.kind));
        }
        Ok(serde_json::from_slice(&self.payload)?)
    }

    /// The frame as it travels.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn emit(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = emit_header(self.kind, self.payload.len())?.to_vec();
        out.extend_from_slice(&self.payload);
        Ok(out)
    }

    /// Reads one frame; `None` if the stream ended before its first byte.
    ///
    /// # Errors
    /// Any [`FrameError`] of the header, or the stream's own.
    pub fn read_from(stream: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut header = [0; HEADER_BYTES];
        if stream.read(&mut header[..1])? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut header[1..])?;
        let (kind, len) = parse_header(header)?;
        let mut payload = vec![0; len];
        stream.read_exact(&mut payload)?;
        Ok(Some(Self { kind, payload }))
    }

    /// Writes one frame in one call.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], or the stream's own.
    pub fn write_to(&self, stream: &mut impl Write) -> Result<(), FrameError> {
        Ok(stream.write_all(&self.emit()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frame_parses_what_it_emits(code: u8, payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let Some(kind) = Kind::from_code(code) else { return Ok(()) };
            let frame = Frame { kind, payload };
            let bytes = frame.emit().unwrap();
            prop_assert_eq!(Frame::read_from(&mut bytes.as_slice()).unwrap(), Some(frame));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::read_from(&mut bytes.as_slice());
        }
    }

    #[test]
    fn an_oversized_length_is_refused_before_the_payload_is_read() {
        let header = [Kind::Stdin as u8, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(parse_header(header), Err(FrameError::TooLong(0xffff_ffff))));
        assert!(matches!(Frame::read_from(&mut header.as_slice()), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_an_error_and_at_its_edge_is_none() {
        let bytes = Frame::bytes(Kind::Stdout, b"abc").emit().unwrap();
        assert!(Frame::read_from(&mut &bytes[..0]).unwrap().is_none());
        for cut in 1..bytes.len() {
            assert!(matches!(Frame::read_from(&mut &bytes[..cut]), Err(FrameError::Io(_))), "cut at {cut}");
        }
    }
}
