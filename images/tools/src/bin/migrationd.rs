//! migrationd(8): waits for processes that migrate to this cell; a child of it becomes each of them (MIG-2).

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ssi_tools::kernel::{self, Incoming};

/// EX_UNAVAILABLE of sysexits(3): this kernel has no ssi device.
const UNAVAILABLE: i32 = 69;

/// Accepts processes that migrate to this cell.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {}

fn main() -> Result<()> {
    Arguments::parse();
    let device = match kernel::open_device() {
        Ok(device) => device,
        Err(error) => {
            eprintln!("migrationd: {}: {error}", kernel::DEVICE);
            std::process::exit(if error.kind() == std::io::ErrorKind::NotFound { UNAVAILABLE } else { 1 });
        }
    };
    // Children end or become somebody else's: nobody waits for them.
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: no handler runs; the signal is ignored.
    unsafe { sigaction(Signal::SIGCHLD, &ignore) }.context("ignoring SIGCHLD")?;
    loop {
        match kernel::accept(&device) {
            Ok(incoming) => receive(&incoming),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // The device names what one offer met; the next may be sound.
            Err(error @ (Errno::ECONNABORTED | Errno::EMFILE | Errno::ENOMEM)) => {
                eprintln!("migrationd: accept: {error}")
            }
            Err(error) => bail!("{}: accept: {error}", kernel::DEVICE),
        }
    }
}

/// Makes the child that becomes the process. The connection, closed without a restart, tells the source that it failed.
fn receive(incoming: &Incoming) {
    let wanted = (!incoming.home).then_some(incoming.pid);
    match kernel::fork_as(wanted) {
        Ok(0) => become_process(incoming),
        Ok(_) => {}
        Err(error) => eprintln!(
            "migrationd: process {} ({}) from cell {}: no child with its PID: {error}",
            incoming.pid, incoming.comm, incoming.source
        ),
    }
}

/// In the child. Does not return.
fn become_process(incoming: &Incoming) -> ! {
    let status = match kernel::restart(&incoming.connection) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!(
                "migrationd: process {} ({}) from cell {}: restart: {error}",
                incoming.pid, incoming.comm, incoming.source
            );
            1
        }
    };
    // SAFETY: the child of a fork ends at once, without the parent's exit handlers.
    unsafe { libc::_exit(status) }
}
