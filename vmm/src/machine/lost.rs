//! Guest memory that was lost with the node that held it. The DSM poisons such a page; whoever touches it gets SIGBUS.
//! A vCPU that does gets a page fault instead of the page, with [`PF_LOST`] in its error code and the frame's address in CR2
//! (`docs/ssi-device.md`), and the guest's kernel sees to the rest; a guest that does not know of it ends with a reason. A
//! device cannot be stopped in the middle of a copy: then the process ends, after a line that says why.

use std::cell::Cell;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use kvm_ioctls::VcpuFd;
use libc::siginfo_t;
use ssi_proto::device::{PAGE_SIZE, PF_LOST};
use vmm_sys_util::signal::register_signal_handler;

use super::{MachineError, RamRegion};

const MESSAGE: &[u8] =
    b"ssivmm: a device touched guest memory that was lost with the node that held it; the node ends\n";

// Constant and without destructors: a signal handler may use them.
thread_local! {
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    static LOST: Cell<usize> = const { Cell::new(0) };
}

/// Exception vector of page faults.
const PAGE_FAULT: u8 = 14;

/// How to tell a guest that it has met lost memory.
#[derive(Debug)]
pub(super) struct LostMemory {
    /// The guest knows such page faults.
    known: Arc<AtomicBool>,
    /// Host address, length and guest-physical address of all guest memory.
    regions: Vec<(u64, u64, u64)>,
}

impl LostMemory {
    /// Of a guest with these `regions`, which knows of such page faults while `known` is set.
    pub fn new(known: Arc<AtomicBool>, regions: &[RamRegion]) -> Self {
        Self { known, regions: regions.iter().map(|r| (r.host(), r.len(), r.gpa())).collect() }
    }

    /// Has the vCPU take a page fault at the instruction that met the lost page at `host`, an address of this process.
    ///
    /// # Errors
    /// Why the guest cannot be told.
    pub fn tell(&self, vcpu: &VcpuFd, host: usize) -> Result<(), String> {
        let what = format!("memory at host address {host:#x} was lost with the node that held it");
        let failed = |error: kvm_ioctls::Error| format!("{what}, and the vCPU cannot be told: {error}");
        if !self.known.load(Ordering::Acquire) {
            return Err(what);
        }
        let offset = |start: u64, len: u64| (host as u64).checked_sub(start).filter(|at| *at < len);
        let mut places = self.regions.iter().filter_map(|&(start, len, gpa)| Some(gpa + offset(start, len)?));
        let Some(gpa) = places.next() else { return Err(format!("{what}, and is no memory of the guest")) };

        let mut events = vcpu.get_vcpu_events().map_err(failed)?;
        let (exception, interrupt, nmi) = (&mut events.exception, &events.interrupt, &events.nmi);
        if exception.injected != 0 || interrupt.injected != 0 || nmi.injected != 0 {
            // The page fault would take the place of what was being delivered.
            return Err(format!("{what}, and was met while an interrupt or exception was delivered"));
        }
        (exception.injected, exception.nr) = (1, PAGE_FAULT);
        (exception.has_error_code, exception.error_code) = (1, PF_LOST);
        let mut sregs = vcpu.get_sregs().map_err(failed)?;
        sregs.cr2 = gpa & !(PAGE_SIZE - 1);
        // Events last: this one would undo them.
        vcpu.set_sregs(&sregs).map_err(failed)?;
        vcpu.set_vcpu_events(&events).map_err(failed)
    }
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
