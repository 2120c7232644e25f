//! The agent of a cell: runs programs and answers questions for the controller, over vsock
//! (`docs/interfaces.md`, exec stream).

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::signal::{self, Signal};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use nix::unistd::Pid;
use ssi_proto::frame::{Frame, Kind};
use ssi_proto::request::{AGENT_PORT, Pong, Request, Response};
use ssi_tools::{cmdline::Parameters, exec, processes};

/// Serves the exec stream on vsock port 1024 of this cell.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Write one byte to this descriptor once the port is open.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let parameters = Parameters::of_this_kernel()?;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a vsock socket")?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, AGENT_PORT))
        .with_context(|| format!("binding vsock port {AGENT_PORT}"))?;
    listen(&listener, Backlog::new(64)?).context("listening")?;
    if let Some(fd) = arguments.ready_fd {
        // SAFETY: init hands over this descriptor and keeps nothing of it.
        let mut ready = unsafe { File::from_raw_fd(fd) };
        ready.write_all(b"r").context("telling init")?;
    }
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept4 just returned this descriptor to us alone.
            Ok(fd) => start(unsafe { OwnedFd::from_raw_fd(fd) }, parameters.cell),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            Err(error) => bail!("accepting a connection: {error}"),
        }
    }
}

/// Each connection is one request and a thread of its own.
fn start(connection: OwnedFd, cell: u32) {
    // A connected stream socket of any family reads, writes and polls the same.
    let mut stream = UnixStream::from(connection);
    let serve = move || {
        if let Err(error) = answer(&mut stream, cell) {
            eprintln!("ssi-agent: {error:#}");
        }
        drop(stream.shutdown(Shutdown::Both));
    };
    if let Err(error) = std::thread::Builder::new().name("exec".into()).spawn(serve) {
        eprintln!("ssi-agent: a thread for a request could not be started: {error}");
    }
}

fn answer(stream: &mut UnixStream, cell: u32) -> Result<()> {
    let Some(frame) = Frame::read_from(stream)? else { return Ok(()) };
    let response = match frame.record(Kind::Request) {
        Ok(Request::Exec(request)) => return exec::serve(stream, &request),
        Ok(Request::Ps) => Response::done(&processes::list(Path::new("/proc"), cell)?)?,
        Ok(Request::Ping) => Response::done(&Pong { cell })?,
        Ok(Request::Shutdown) => {
            // The answer first: init ends this program too.
            Frame::json(Kind::Response, &Response::done(&Pong { cell })?)?.write_to(stream)?;
            return signal::kill(Pid::from_raw(1), Signal::SIGTERM).context("telling init");
        }
        Ok(other) => {
            Response::failed(format!("{other:?} is for the controller, not for a cell"), Some("EOPNOTSUPP"))
        }
        Err(error) => Response::failed(format!("not a request: {error}"), Some("EINVAL")),
    };
    Ok(Frame::json(Kind::Response, &response)?.write_to(stream)?)
}
