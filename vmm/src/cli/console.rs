use std::io::{self, Write};

use ssi_proto::frame::{Frame, Kind};
use ssi_proto::request::Request;

use super::Outcome;
use super::state::{State, refusal};
use super::terminal::Raw;
use crate::control::Client;
use crate::fabric::stream::wait_readable;
use crate::worker::{Stop, Worker};

/// Ctrl-].
const DETACH: u8 = 0x1d;

/// `console`.
pub fn run(cell: u32, cluster: Option<&str>) -> Outcome {
    let (client, _) = State::open()?.session(cluster)?;
    client.ask_with(&Request::Console { cell }, |_| {}).map_err(refusal)?;
    let raw = Raw::enter()?;
    if raw.is_some() {
        eprint!("[console of cell {cell}; Ctrl-] detaches]\r\n");
    }
    let failed = Stop::new()?;
    let sender = Client::over(client.stream().clone());
    let _input = Worker::spawn("stdin", &failed, move |stop| {
        copy_input(&sender, stop)?;
        // An empty frame ends the session, and with it the loop below.
        let _ = sender.send(&Frame::bytes(Kind::Stdin, &[]));
        Ok(())
    })?;
    while let Ok(Some(frame)) = client.receive() {
        if frame.kind == Kind::Stdout {
            io::stdout().write_all(&frame.payload)?;
            io::stdout().flush()?;
        }
    }
    drop(raw);
    Ok(0)
}

/// Until the end of the input, or [`DETACH`].
fn copy_input(sender: &Client, stop: &Stop) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        wait_readable(0, stop)?;
        if stop.is_triggered() {
            return Ok(());
        }
        let count = nix::unistd::read(io::stdin(), &mut buffer).unwrap_or(0);
        let typed = &buffer[..count];
        let end = typed.iter().position(|byte| *byte == DETACH);
        let send = &typed[..end.unwrap_or(count)];
        if !send.is_empty() && sender.send(&Frame::bytes(Kind::Stdin, send)).is_err() {
            return Ok(());
        }
        if count == 0 || end.is_some() {
            return Ok(());
        }
    }
}
