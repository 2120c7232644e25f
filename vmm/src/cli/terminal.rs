use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use ssi_proto::request::WindowSize;

/// The size of a terminal that has none.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

/// Standard input as a raw terminal; restored when dropped.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Makes standard input raw if it is a terminal.
    pub fn enter() -> nix::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin().as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}

/// The size of the terminal.
pub fn size() -> WindowSize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is valid for the call, which writes one winsize.
    let done = unsafe { libc::ioctl(stdin().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if done == 0 && size.ws_row > 0 && size.ws_col > 0 {
        WindowSize { rows: size.ws_row, cols: size.ws_col }
    } else {
        DEFAULT_SIZE
    }
}
