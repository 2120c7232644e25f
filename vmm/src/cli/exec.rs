use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ssi_proto::frame::{Frame, Kind, PAYLOAD_MAX_BYTES};
use ssi_proto::request::{self, Exec, Request, Started};

use super::state::State;
use super::terminal::{Raw, size};
use super::{ExecArgs, Fail, Outcome, exit};
use crate::control::{Client, ClientError};
use crate::fabric::stream::wait_readable;
use crate::worker::{Stop, Worker};

/// Bytes that one read of standard input asks for.
const CHUNK_BYTES: usize = 16 << 10;

/// `exec`.
pub fn run(args: ExecArgs, cluster: Option<&str>) -> Outcome {
    let (client, _) = State::open()?.session(cluster)?;
    let exec = Exec {
        argv: args.argv,
        cell: args.cell,
        env: environment(args.tty, args.env),
        cwd: args.cwd,
        user: args.user,
        tty: args.tty.then(size),
    };
    let program = exec.argv.first().cloned().unwrap_or_default();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
        signals.add(signal);
    }
    signals.thread_block()?;
    match client.ask::<Started>(&Request::Exec(exec)) {
        Ok(_) => {}
        Err(ClientError::Refused { error, code }) => {
            let status = match code.as_deref() {
                Some("ENOENT") => exit::NOT_FOUND,
                Some("EACCES" | "ENOEXEC") => exit::NOT_EXECUTABLE,
                _ => exit::EXEC,
            };
            return Err(Fail::new(status, format!("{program}: {error}")));
        }
        Err(error) => return Err(Fail::new(exit::EXEC, error.to_string())),
    }
    let raw = if args.tty { Raw::enter()? } else { None };
    let outcome = session(client, signals);
    drop(raw);
    outcome
}

/// What the program's environment gets from ours: the terminal's kind, and what was asked for.
fn environment(tty: bool, asked: Vec<(String, String)>) -> std::collections::BTreeMap<String, String> {
    let term = std::env::var("TERM").ok().filter(|_| tty).map(|term| ("TERM".to_owned(), term));
    term.into_iter().chain(asked).collect()
}

/// Sends frames from several threads, one at a time.
#[derive(Debug, Clone)]
struct Sender(Arc<Mutex<Client>>);

impl Sender {
    fn send(&self, frame: &Frame) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(frame).is_ok()
    }
}

/// Carries bytes and signals until the program has ended.
fn session(client: Client, signals: SigSet) -> Outcome {
    let failed = Stop::new()?;
    let receiver = Client::over(client.stream().clone());
    let sender = Sender(Arc::new(Mutex::new(client)));
    let (input, control) = (sender.clone(), sender);
    let _input = Worker::spawn("stdin", &failed, move |stop| copy_input(&input, stop))?;
    let given_up = receiver.stream().clone();
    let _signals = Worker::spawn("signals", &failed, move |stop| {
        let interrupted = carry_signals(&control, &signals, stop)?;
        if interrupted {
            given_up.shutdown();
        }
        Ok(())
    })?;
    loop {
        let frame = match receiver.receive() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                return Err(Fail::new(
                    exit::EXEC,
                    "the connection to the program was lost; its cell or node has died, or it was given up",
                ));
            }
            Err(error) => return Err(Fail::new(exit::EXEC, error.to_string())),
        };
        let written = match frame.kind {
            Kind::Stdout => write_out(&mut io::stdout(), &frame.payload),
            Kind::Stderr => write_out(&mut io::stderr(), &frame.payload),
            Kind::Exit => {
                let end: request::Exit = frame.record(Kind::Exit)?;
                return Ok(status_of(end));
            }
            _ => Ok(()),
        };
        if let Err(error) = written {
            // As a program at the other end of a pipe that nobody reads any more.
            let broken = error.kind() == io::ErrorKind::BrokenPipe;
            return if broken { Ok(128 + 13) } else { Err(Fail::new(exit::EXEC, error.to_string())) };
        }
    }
}

fn write_out(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// The exit status that says how a program ended.
fn status_of(end: request::Exit) -> u8 {
    let code = end.code.unwrap_or_else(|| 128 + end.signal.unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(exit::EXEC)
}

fn copy_input(sender: &Sender, stop: &Stop) -> anyhow::Result<()> {
    let mut buffer = [0; CHUNK_BYTES];
    const _: () = assert!(CHUNK_BYTES <= PAYLOAD_MAX_BYTES);
    loop {
        wait_readable(0, stop)?;
        if stop.is_triggered() {
            return Ok(());
        }
        let count = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => continue,
            // A terminal that is gone, a closed descriptor: no more input.
            Err(_) => 0,
        };
        if !sender.send(&Frame::bytes(Kind::Stdin, &buffer[..count])) || count == 0 {
            return Ok(());
        }
    }
}

/// Sends signals and new sizes of the terminal on. Returns true if the user insists: a second Ctrl-C.
fn carry_signals(sender: &Sender, signals: &SigSet, stop: &Stop) -> anyhow::Result<bool> {
    let source = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut interrupts = 0;
    loop {
        wait_readable(source.as_raw_fd(), stop)?;
        if stop.is_triggered() {
            return Ok(false);
        }
        let Some(info) = source.read_signal()? else { continue };
        let signal = i32::try_from(info.ssi_signo)?;
        let frame = if signal == libc::SIGWINCH {
            Frame::json(Kind::Resize, &size())?
        } else {
            Frame::json(Kind::Signal, &request::Signal { signal })?
        };
        if signal == libc::SIGINT {
            interrupts += 1;
        }
        if !sender.send(&frame) || interrupts > 1 {
            return Ok(interrupts > 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_program_is_carried_in_the_exit_status() {
        assert_eq!(status_of(request::Exit { code: Some(42), signal: None }), 42);
        assert_eq!(status_of(request::Exit { code: Some(0), signal: None }), 0);
        assert_eq!(status_of(request::Exit { code: None, signal: Some(9) }), 137);
    }
}
