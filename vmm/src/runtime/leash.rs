//! Ending with the launcher, and on signals.

use std::io::{self, Read};
use std::os::fd::AsRawFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::fabric::stream::wait_readable;
use crate::worker::{Exit, Stop, Worker};

/// What the launcher writes to let a process go.
pub const LET_GO: u8 = b'd';

/// Watches standard input, a pipe whose other end the launcher holds: when it closes without [`LET_GO`], the launcher is dead,
/// and `exit` is triggered.
///
/// # Errors
/// If no thread can be had.
pub fn leash(exit: &Exit) -> io::Result<Worker> {
    let end = exit.clone();
    Worker::spawn("leash", exit, move |stop| {
        wait_readable(0, stop)?;
        if stop.is_triggered() {
            return Ok(());
        }
        let mut byte = [0];
        match io::stdin().read(&mut byte) {
            Ok(1) if byte[0] == LET_GO => {}
            _ => {
                log::warn!("the launcher is gone; ending");
                end.trigger();
            }
        }
        Ok(())
    })
}

/// Triggers `on` at the first SIGINT, SIGTERM or SIGHUP. Call it before any other thread starts: the signals are blocked in this
/// thread and in those that it starts. (A program that is run has them unblocked: the standard library sees to it.)
///
/// # Errors
/// If no descriptor or thread can be had.
pub fn on_signals(on: &Stop) -> io::Result<Worker> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let end = on.clone();
    Worker::spawn("signals", on, move |stop| {
        wait_readable(signals.as_raw_fd(), stop)?;
        if !stop.is_triggered() {
            log::info!("a signal asks to end");
            end.trigger();
        }
        Ok(())
    })
}
