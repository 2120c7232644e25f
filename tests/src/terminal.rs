//! A program at a terminal, as a person has it: what it prints, line by line, and a keyboard.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

/// Milliseconds of silence after which a wait for output fails: a bound on a hang, not on speed.
const SILENCE_LIMIT_MS: u16 = 60_000;

/// A program that believes to be at a terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    master: File,
    unread: String,
}

impl Terminal {
    /// Starts `command` at a new terminal of 24 by 80 characters.
    ///
    /// # Errors
    /// If no terminal can be had or the program does not start.
    pub fn start(mut command: Command) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("opening a terminal")?;
        let copy = || pty.slave.try_clone().map(Stdio::from);
        command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        let child = command.spawn().context("starting a program at a terminal")?;
        Ok(Self { child, master: File::from(pty.master), unread: String::new() })
    }

    /// Types `text`.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("typing")
    }

    /// The next whole line, without its end; `None` when the program has closed the terminal.
    ///
    /// # Errors
    /// After a minute of silence.
    pub fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.find('\n') {
                let line: String = self.unread.drain(..=end).collect();
                return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
            }
            let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(SILENCE_LIMIT_MS))? == 0 {
                bail!("nothing was printed for {SILENCE_LIMIT_MS} ms; what is unread: {:?}", self.unread);
            }
            let mut chunk = [0; 4096];
            match self.master.read(&mut chunk) {
                Ok(count) if count > 0 => self.unread.push_str(&String::from_utf8_lossy(&chunk[..count])),
                // EIO: the last one that had the other side open is gone.
                Ok(_) | Err(_) => return Ok(None),
            }
        }
    }

    /// Reads lines until one satisfies `wanted`.
    ///
    /// # Errors
    /// If the program ends or falls silent before.
    pub fn line_where(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut seen = Vec::new();
        while let Some(line) = self.line()? {
            if wanted(&line) {
                return Ok(line);
            }
            seen.push(line);
        }
        bail!("the program ended before it printed what was waited for; it printed {seen:?}")
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn wait(mut self) -> Result<ExitStatus> {
        while self.line()?.is_some() {}
        self.child.wait().context("waiting for a program")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A scenario that failed in the middle leaves nothing running.
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
