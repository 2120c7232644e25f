//! Runs one program for a client: starts it on a terminal or on three pipes, and carries bytes, sizes and signals
//! between it and the stream (`ssi_proto::frame`) until it ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use ssi_proto::frame::{self, Frame, Kind};
use ssi_proto::request::{Exec, Exit, Response, Signal, Started, WindowSize};

use crate::users::User;

/// Bytes read from the program or the client in one go.
const CHUNK_BYTES: usize = 32768;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A connection to a client: read and written as bytes, polled as a descriptor.
pub trait Stream: Read + Write + AsFd {}
impl<T: Read + Write + AsFd> Stream for T {}

/// The program and the near ends of its descriptors.
#[derive(Debug)]
struct Program {
    child: Child,
    pidfd: OwnedFd,
    /// The terminal, or the pipe to standard input; dropped at end of file.
    input: Option<File>,
    /// What it writes to: terminal or standard output, then standard error; `None` from its end of file on.
    outputs: Vec<Option<(File, Kind)>>,
    terminal: bool,
}

/// Starts what `request` asks for, answers the client, and serves the stream to the program's end.
///
/// # Errors
/// If the stream fails. A program that cannot be started is an answer to the client, not an error.
pub fn serve(stream: &mut impl Stream, request: &Exec) -> Result<()> {
    let mut program = match start(request) {
        Ok(program) => program,
        Err(error) => {
            let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(errno_name);
            let response = Response::failed(format!("{error:#}"), code.as_deref());
            return Ok(Frame::json(Kind::Response, &response)?.write_to(stream)?);
        }
    };
    let response = Response::done(&Started { pid: program.child.id() })?;
    Frame::json(Kind::Response, &response)?.write_to(stream)?;
    let ended = pump(stream, &mut program);
    if ended.is_err() {
        hang_up(&program);
    }
    ended
}

/// The symbol of an errno, as in errno(3).
pub fn errno_name(code: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(code))
}

fn start(request: &Exec) -> Result<Program> {
    let Some(program) = request.argv.first().filter(|word| !word.is_empty()) else {
        bail!("no program was named");
    };
    let user = User::find(request.user.as_deref().unwrap_or("root"))?;
    let mut command = Command::new(program);
    command.args(&request.argv[1..]).current_dir(request.cwd.as_deref().unwrap_or("/"));
    command.env_clear().env("PATH", PATH).env("HOME", &user.home).env("USER", &user.name);
    command
        .env("LOGNAME", &user.name)
        .env("SHELL", &user.shell)
        .env("TERM", "xterm-256color")
        .env("LANG", "C.UTF-8");
    command.envs(&request.env);
    let pty = request.tty.map(open_terminal).transpose()?;
    match &pty {
        Some(pty) => {
            let copy = || pty.slave.try_clone().map(Stdio::from);
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        }
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    let terminal = pty.is_some();
    let groups: Vec<libc::gid_t> = user.groups.clone();
    let (uid, gid) = (user.uid, user.gid);
    // SAFETY: between fork and exec the closure makes only system calls on values it owns.
    unsafe { command.pre_exec(move || become_session(terminal, uid, gid, &groups)) };
    let spawned = command.spawn();
    drop(command);
    let mut child = spawned.with_context(|| format!("starting {program:?}"))?;
    let pidfd = open_pidfd(&child)?;
    let (input, outputs) = match pty {
        Some(pty) => {
            let master = File::from(pty.master);
            (Some(master.try_clone()?), vec![Some((master, Kind::Stdout))])
        }
        None => {
            let file = |fd: OwnedFd| File::from(fd);
            let input = child.stdin.take().map(|pipe| file(pipe.into()));
            let out = child.stdout.take().map(|pipe| (file(pipe.into()), Kind::Stdout));
            let err = child.stderr.take().map(|pipe| (file(pipe.into()), Kind::Stderr));
            (input, vec![out, err])
        }
    };
    if let Some(input) = &input {
        set_nonblocking(input)?;
    }
    for (output, _) in outputs.iter().flatten() {
        set_nonblocking(output)?;
    }
    Ok(Program { child, pidfd, input, outputs, terminal })
}

fn open_terminal(size: WindowSize) -> Result<OpenptyResult> {
    let winsize = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    openpty(Some(&winsize), None).context("opening a terminal")
}

/// In the child: a session of its own, the terminal as the controlling one, and the user's identity.
fn become_session(terminal: bool, uid: u32, gid: u32, groups: &[libc::gid_t]) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls; `groups` outlives its call.
    unsafe {
        check(libc::setsid())?;
        if terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            check(libc::fchown(0, uid, gid))?;
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        check(libc::sigemptyset(&raw mut none))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(gid))?;
        check(libc::setuid(uid))
    }
}

fn open_pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes a PID and flags; the child is not yet reaped, so the PID is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    match i32::try_from(fd) {
        // SAFETY: the call just returned this descriptor to us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_nonblocking(file: &File) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The client is gone: what a closed terminal does to its session.
fn hang_up(program: &Program) {
    if let Ok(pid) = i32::try_from(program.child.id()) {
        // SAFETY: the child is not reaped while `program` lives, so the number still names its session.
        unsafe { libc::kill(-pid, libc::SIGHUP) };
    }
}

/// One of the descriptors that the loop waits for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Client,
    Ended,
    Input,
    Output(usize),
}

fn pump(stream: &mut impl Stream, program: &mut Program) -> Result<()> {
    let mut unread = VecDeque::new();
    let mut pending: VecDeque<u8> = VecDeque::new();
    let mut input_ends = false;
    loop {
        for source in wait(stream, program, pending.is_empty())? {
            match source {
                Source::Client => {
                    let mut chunk = vec![0; CHUNK_BYTES];
                    let count = stream.read(&mut chunk)?;
                    if count == 0 {
                        bail!("the client hung up");
                    }
                    unread.extend(&chunk[..count]);
                    while let Some(frame) = take_frame(&mut unread)? {
                        input_ends |= obey(&frame, program, &mut pending)?;
                    }
                }
                Source::Input => feed(program, &mut pending),
                Source::Output(index) => forward(stream, program, index)?,
                Source::Ended => return finish(stream, program),
            }
        }
        if !pending.is_empty() {
            feed(program, &mut pending);
        }
        if input_ends && pending.is_empty() && !program.terminal {
            program.input = None;
        }
    }
}

fn wait(stream: &impl Stream, program: &Program, read_client: bool) -> Result<Vec<Source>> {
    let mut sources = vec![Source::Ended];
    let mut polled = vec![PollFd::new(program.pidfd.as_fd(), PollFlags::POLLIN)];
    // A client is not read while the program does not take what it already sent: back-pressure.
    let interest = if read_client { PollFlags::POLLIN } else { PollFlags::empty() };
    sources.push(Source::Client);
    polled.push(PollFd::new(stream.as_fd(), interest));
    for (index, output) in program.outputs.iter().enumerate() {
        if let Some((file, _)) = output {
            sources.push(Source::Output(index));
            polled.push(PollFd::new(file.as_fd(), PollFlags::POLLIN));
        }
    }
    if let (false, Some(input)) = (read_client, &program.input) {
        sources.push(Source::Input);
        polled.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
    }
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            result => break result.map(drop)?,
        }
    }
    let ready = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
    let mut ready: Vec<Source> =
        sources.into_iter().zip(&polled).filter(|(_, fd)| ready(fd)).map(|(source, _)| source).collect();
    // The end comes last, so that what the program wrote before it is sent before it.
    ready.sort_by_key(|source| matches!(source, Source::Ended));
    Ok(ready)
}

fn take_frame(bytes: &mut VecDeque<u8>) -> Result<Option<Frame>> {
    if bytes.len() < frame::HEADER_BYTES {
        return Ok(None);
    }
    let mut header = [0; frame::HEADER_BYTES];
    for (to, from) in header.iter_mut().zip(bytes.iter()) {
        *to = *from;
    }
    let (kind, len) = frame::parse_header(header)?;
    if bytes.len() < frame::HEADER_BYTES + len {
        return Ok(None);
    }
    bytes.drain(..frame::HEADER_BYTES);
    Ok(Some(Frame { kind, payload: bytes.drain(..len).collect() }))
}

/// Does what a frame of the client says; true if it ends the input.
fn obey(frame: &Frame, program: &Program, pending: &mut VecDeque<u8>) -> Result<bool> {
    match frame.kind {
        Kind::Stdin if frame.payload.is_empty() => {
            if program.terminal {
                pending.push_back(4); // ^D: end of file at a terminal
            }
            return Ok(true);
        }
        Kind::Stdin => pending.extend(&frame.payload),
        Kind::Resize => {
            let size: WindowSize = frame.record(Kind::Resize)?;
            let winsize = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
            if let (true, Some(input)) = (program.terminal, &program.input) {
                // SAFETY: TIOCSWINSZ reads one winsize.
                unsafe { libc::ioctl(input.as_raw_fd(), libc::TIOCSWINSZ, &raw const winsize) };
            }
        }
        Kind::Signal => {
            let Signal { signal } = frame.record(Kind::Signal)?;
            let pid = i32::try_from(program.child.id()).context("PID out of range")?;
            // SAFETY: the child is not reaped while `program` lives; the kernel refuses a bad number.
            unsafe { libc::kill(-pid, signal) };
        }
        kind => bail!(frame::FrameError::Unexpected(kind)),
    }
    Ok(false)
}

/// Gives the program what it takes of `pending`. A program that closed its input takes, and loses, everything.
fn feed(program: &mut Program, pending: &mut VecDeque<u8>) {
    let Some(input) = &mut program.input else {
        pending.clear();
        return;
    };
    while !pending.is_empty() {
        match input.write(pending.make_contiguous()) {
            Ok(count) => drop(pending.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                program.input = None;
                pending.clear();
                return;
            }
        }
    }
}

/// Sends what is there to read of one output, at most one chunk.
fn forward(stream: &mut impl Stream, program: &mut Program, index: usize) -> Result<()> {
    let Some((file, kind)) = &mut program.outputs[index] else { return Ok(()) };
    let mut chunk = vec![0; CHUNK_BYTES];
    match file.read(&mut chunk) {
        Ok(count) if count > 0 => Ok(Frame::bytes(*kind, &chunk[..count]).write_to(stream)?),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        // End of file; EIO is how a terminal says that nobody has it open any more.
        Ok(_) | Err(_) => {
            program.outputs[index] = None;
            Ok(())
        }
    }
}

/// The program ended: sends what it left in its outputs, then its status.
fn finish(stream: &mut impl Stream, program: &mut Program) -> Result<()> {
    for (file, kind) in program.outputs.iter_mut().flatten() {
        let mut chunk = vec![0; CHUNK_BYTES];
        // What runs on in the background may keep the other end open: only what is there now belongs to the program.
        while let Ok(count @ 1..) = file.read(&mut chunk) {
            Frame::bytes(*kind, &chunk[..count]).write_to(stream)?;
        }
    }
    let status = program.child.wait().context("waiting for the program")?;
    let exit = Exit { code: status.code(), signal: status.signal() };
    Ok(Frame::json(Kind::Exit, &exit)?.write_to(stream)?)
}

#[cfg(test)]
mod tests;
