//! Guest memory that was lost with the node that held it. The DSM poisons such a page; whoever touches it gets SIGBUS.
//! A vCPU that does ends its machine with a reason. A device cannot be stopped in the middle of a copy: then the process
//! ends, after a line that says why.

use std::cell::Cell;
use std::os::raw::{c_int, c_void};
use std::sync::Once;

use libc::siginfo_t;
use vmm_sys_util::signal::register_signal_handler;

use super::MachineError;

const MESSAGE: &[u8] =
    b"ssivmm: a device touched guest memory that was lost with the node that held it; the node ends\n";

// Constant and without destructors: a signal handler may use them.
thread_local! {
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    static LOST: Cell<usize> = const { Cell::new(0) };
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    if IN_GUEST.get() && !info.is_null() {
        // SAFETY: the kernel passes a siginfo_t to a handler with SA_SIGINFO; SIGBUS has an address.
        LOST.set(unsafe { (*info).si_addr() } as usize);
        return;
    }
    // SAFETY: both calls are async-signal-safe; the message is a static. The access that faulted is repeated when the
    // handler returns, and ends the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Handles SIGBUS from now on, in the whole process.
///
/// # Errors
/// If the handler cannot be set.
pub(super) fn handle() -> Result<(), MachineError> {
    static HANDLER: Once = Once::new();
    let mut set = Ok(());
    HANDLER.call_once(|| set = register_signal_handler(libc::SIGBUS, on_sigbus));
    set.map_err(|error| MachineError::Io { what: "handler of SIGBUS", source: error.into() })
}

/// Runs `guest`, which enters the guest on this thread; also says at which address of this process it met lost memory,
/// if it did.
pub(super) fn watch<T>(guest: impl FnOnce() -> T) -> (T, Option<usize>) {
    LOST.set(0);
    IN_GUEST.set(true);
    let result = guest();
    IN_GUEST.set(false);
    let lost = LOST.get();
    (result, (lost != 0).then_some(lost))
}
