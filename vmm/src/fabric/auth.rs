//! The handshake: both ends prove that they know the cluster's secret before anything else is read from either.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::stream::{ByteStream, read_exact, write_all};
use super::wire::{
    CHALLENGE_BYTES, Challenge, HELLO_BYTES, Hello, PROOF_BYTES, Peer, Refusal, VERDICT_BYTES, emit_verdict,
    parse_verdict,
};

/// A handshake whose other side is silent for longer is given up. An emulated host on a busy machine takes seconds.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;

/// What the processes of one cluster know, and nobody else.
#[derive(Clone)]
pub struct Secret([u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other side sends us away.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// Whoever listens there does not know the secret.
    #[error("the other side does not know the cluster's secret")]
    Impostor,
    /// The other side took the connection and says nothing.
    #[error("no answer for {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Silent,
    /// The stream failed.
    #[error("handshake cut short: {0}")]
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for the payload of an emulated host.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Makes a fresh secret and writes it to a new file of mode 0600.
    ///
    /// # Errors
    /// If the file exists or cannot be written, or the system has no randomness.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        random(&mut bytes)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok(Self(bytes))
    }

    /// Reads it.
    ///
    /// # Errors
    /// If the file cannot be read, has another size, or can be read by others than its owner.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if meta.mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{}: others may read the cluster's secret; chmod 600 it", path.display()),
            ));
        }
        if meta.size() != SECRET_BYTES as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: not a secret of {SECRET_BYTES} bytes", path.display()),
            ));
        }
        let mut bytes = [0; SECRET_BYTES];
        file.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    fn mac(&self, label: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0)
            .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
        mac.update(label);
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|e| io::Error::other(format!("no randomness: {e}")))
}

const LISTENER: &[u8] = b"ssivmm fabric listener";
const DIALER: &[u8] = b"ssivmm fabric dialer";

/// Greets the listener at the other end of `stream`; `hello.nonce` is made here.
///
/// # Errors
/// [`HandshakeError`].
pub fn dial(stream: &dyn ByteStream, secret: &Secret, mut hello: Hello) -> Result<(), HandshakeError> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    random(&mut hello.nonce)?;
    let greeting = hello.emit();
    write_all(stream, &[&greeting])?;
    let mut answer = [0; CHALLENGE_BYTES];
    read_exact(stream, &mut answer)?;
    let challenge = Challenge::parse(&answer)?;
    secret
        .mac(LISTENER, &[&greeting, &challenge.nonce])
        .verify((&challenge.mac).into())
        .map_err(|_| HandshakeError::Impostor)?;
    let proof = secret.mac(DIALER, &[&greeting, &answer]).finalize().into_bytes();
    write_all(stream, &[&proof])?;
    let mut verdict = [0; VERDICT_BYTES];
    read_exact(stream, &mut verdict)?;
    parse_verdict(verdict)?;
    stream.set_read_timeout(None)?;
    Ok(())
}

/// Receives the dialer at the other end of `stream`, who wants `me` of cluster `name`. `admit` has the last word about a
/// dialer that proved itself.
///
/// # Errors
/// [`HandshakeError::Refused`] with what the dialer was told; the stream is then of no more use.
pub fn receive(
    stream: &dyn ByteStream,
    secret: &Secret,
    name: &str,
    me: Peer,
    admit: impl FnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Hello, HandshakeError> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let mut greeting = [0; HELLO_BYTES];
    read_exact(stream, &mut greeting)?;
    let hello = Hello::parse(&greeting).and_then(|hello| match () {
        () if hello.name != name => Err(Refusal::Cluster),
        () if hello.to != me => Err(Refusal::Destination),
        () => Ok(hello),
    });
    let hello = match hello {
        Ok(hello) => hello,
        Err(refusal) => {
            write_all(stream, &[&Challenge::emit_refusal(refusal)])?;
            return Err(refusal.into());
        }
    };
    let mut nonce = [0; 32];
    random(&mut nonce)?;
    let mac = secret.mac(LISTENER, &[&greeting, &nonce]).finalize().into_bytes().into();
    let challenge = Challenge { nonce, mac }.emit();
    write_all(stream, &[&challenge])?;
    let mut proof = [0; PROOF_BYTES];
    read_exact(stream, &mut proof)?;
    let verdict = secret
        .mac(DIALER, &[&greeting, &challenge])
        .verify((&proof).into())
        .map_err(|_| Refusal::Proof)
        .and_then(|()| admit(&hello));
    write_all(stream, &[&emit_verdict(verdict)])?;
    verdict?;
    stream.set_read_timeout(None)?;
    Ok(hello)
}
