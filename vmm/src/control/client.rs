//! Asking: a controller (with the handshake) or an agent (over a stream that is there already).

use std::io;
use std::time::Duration;

use ssi_proto::frame::{Frame, FrameError, Kind};
use ssi_proto::request::{Progress, Request, Response};

use crate::fabric::auth::{HandshakeError, Secret, dial};
use crate::fabric::stream::{Pipe, SharedStream, connect};
use crate::fabric::wire::{Class, Hello, Peer};
use crate::launch::Address;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no controller at {address}: {source}")]
    Unreachable {
        /// Where.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// It is not our controller.
    #[error("the controller at {address}: {source}")]
    Handshake {
        /// Where.
        address: Address,
        /// Why not.
        source: HandshakeError,
    },
    /// The answer is not one.
    #[error(transparent)]
    Frame(FrameError),
    /// There was none within the time of [`Client::set_timeout`].
    #[error("no answer in time")]
    Late,
    /// The other side ended the stream without an answer.
    #[error("the other side ended the connection without an answer")]
    Silent,
    /// The answer is no.
    #[error("{error}")]
    Refused {
        /// Why, for a person.
        error: String,
        /// The errno's name, where there is one.
        code: Option<String>,
    },
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        match &error {
            FrameError::Io(io)
                if matches!(io.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Self::Late
            }
            _ => Self::Frame(error),
        }
    }
}

/// A session: one request, its answer, and the frames after it.
#[derive(Debug)]
pub struct Client {
    stream: SharedStream,
}

impl Client {
    /// Opens a session with the controller of cluster `name`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Handshake`].
    pub fn connect(address: &Address, name: &str, secret: &Secret) -> Result<Self, ClientError> {
        let stream = connect(address)
            .map_err(|source| ClientError::Unreachable { address: address.clone(), source })?;
        let hello = Hello {
            class: Class::Session,
            from: Peer::Client,
            to: Peer::Io,
            name: name.to_owned(),
            nonce: [0; 32],
        };
        dial(stream.as_ref(), secret, hello)
            .map_err(|source| ClientError::Handshake { address: address.clone(), source })?;
        stream
            .allow_slow_reader()
            .map_err(|source| ClientError::Unreachable { address: address.clone(), source })?;
        Ok(Self { stream })
    }

    /// Talks to whoever is at the other end of `stream`.
    pub fn over(stream: SharedStream) -> Self {
        Self { stream }
    }

    /// The stream under it.
    pub fn stream(&self) -> &SharedStream {
        &self.stream
    }

    /// Gives up waiting for any one frame after `bound`.
    ///
    /// # Errors
    /// The stream's own.
    pub fn set_timeout(&self, bound: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(bound)
    }

    /// Asks, and waits for the answer; what comes as progress before goes to `progress`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the answer is no; the others if there is none.
    pub fn ask_with(
        &self,
        request: &Request,
        mut progress: impl FnMut(&str),
    ) -> Result<Option<serde_json::Value>, ClientError> {
        self.send(&Frame::json(Kind::Request, request)?)?;
        loop {
            let frame = self.receive()?.ok_or(ClientError::Silent)?;
            if frame.kind == Kind::Progress {
                progress(&frame.record::<Progress>(Kind::Progress)?.message);
                continue;
            }
            let answer: Response = frame.record(Kind::Response)?;
            if answer.ok {
                return Ok(answer.data);
            }
            let error = answer.error.unwrap_or_else(|| "refused, without a reason".to_owned());
            return Err(ClientError::Refused { error, code: answer.code });
        }
    }

    /// Asks for a record, and waits for it.
    ///
    /// # Errors
    /// As [`Client::ask_with`].
    pub fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let data = self.ask_with(request, |_| {})?.unwrap_or_default();
        Ok(serde_json::from_value(data).map_err(FrameError::from)?)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The stream's own.
    pub fn send(&self, frame: &Frame) -> Result<(), FrameError> {
        frame.write_to(&mut Pipe(self.stream.clone()))
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn receive(&self) -> Result<Option<Frame>, FrameError> {
        Frame::read_from(&mut Pipe(self.stream.clone()))
    }
}
