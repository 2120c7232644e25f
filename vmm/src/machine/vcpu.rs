//! A vCPU and its thread: it runs until the machine ends, and can be kicked out of the guest at any time.

use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once};

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_mp_state};
use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{EAGAIN, EINTR, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::MachineError;
use super::bus::{Asked, Bus};
use super::lost::{self, LostMemory};
use super::vm::{End, Ending};
use crate::devices::lock;
use crate::worker::{Stop, Worker};

/// Offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit);

/// How to get at a vCPU that is in the guest: its thread, and its `immediate_exit`, which also holds for the entry that
/// comes next, so that no kick falls between the check and the entry.
#[derive(Debug)]
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is used only under the lock of its `Kicker`, and taken out there before what it points to goes.
unsafe impl Send for Target {}

/// Kicks one vCPU out of the guest. Nothing happens when its thread is not running.
#[derive(Debug, Clone, Default)]
pub(super) struct Kicker(Arc<Mutex<Option<Target>>>);

fn kick_signal() -> c_int {
    SIGRTMIN() + 1
}

extern "C" fn ignore(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

impl Kicker {
    pub fn kick(&self) {
        let target = lock(&self.0);
        let Some(target) = target.as_ref() else { return };
        // SAFETY: the mapping of `kvm_run` outlives the target (see `Occupied`).
        unsafe { &*target.immediate_exit }.store(1, Ordering::SeqCst);
        // SAFETY: the thread removes its target, under the lock that we hold, before it ends.
        let error = unsafe { libc::pthread_kill(target.thread, kick_signal()) };
        if error != 0 {
            log::error!("vCPU thread could not be signalled: {}", std::io::Error::from_raw_os_error(error));
        }
    }
}

/// While it lives, the kicker has a target.
struct Occupied<'a> {
    kicker: &'a Kicker,
    immediate_exit: *const AtomicU8,
}

impl<'a> Occupied<'a> {
    /// Registers the calling thread, which owns `fd` and drops it after the result.
    fn new(kicker: &'a Kicker, fd: &mut VcpuFd) -> Self {
        let run: *mut kvm_bindings::kvm_run = fd.get_kvm_run();
        let immediate_exit = run.cast::<u8>().wrapping_add(IMMEDIATE_EXIT).cast::<AtomicU8>().cast_const();
        // SAFETY: no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *lock(&kicker.0) = Some(Target { thread, immediate_exit });
        Self { kicker, immediate_exit }
    }

    /// A kick has arrived: the next one sets the flag again.
    fn acknowledge(&self) {
        // SAFETY: the mapping of `kvm_run` outlives `self`.
        unsafe { &*self.immediate_exit }.store(0, Ordering::SeqCst);
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        *lock(&self.kicker.0) = None;
    }
}

/// A vCPU that is not running yet.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub id: u8,
    pub fd: VcpuFd,
}

/// A running vCPU. Dropping it kicks it out of the guest and joins its thread.
#[derive(Debug)]
pub(super) struct VcpuThread {
    worker: Worker,
    kicker: Kicker,
}

impl VcpuThread {
    /// Asks the thread to end; it does so soon.
    pub fn stop(&self) {
        self.worker.stop().trigger();
        self.kicker.kick();
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Says at the end of a vCPU thread, however it comes, how the machine ended.
struct LastWord {
    ending: Arc<Ending>,
    // None: the thread was told to stop.
    end: Option<End>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.ending.set(end);
        }
    }
}

/// What one run of the guest came to.
enum Turn {
    GoOn,
    Kicked,
    End(End),
}

impl Vcpu {
    /// Starts the thread of this vCPU.
    pub fn start(
        self,
        name: &str,
        bus: Arc<Bus>,
        memory: Arc<LostMemory>,
        ending: Arc<Ending>,
    ) -> Result<VcpuThread, MachineError> {
        static HANDLER: Once = Once::new();
        let mut registered = Ok(());
        HANDLER.call_once(|| registered = register_signal_handler(kick_signal(), ignore));
        registered.map_err(|error| MachineError::Io {
            what: "signal handler of the vCPUs",
            source: error.into(),
        })?;

        lost::handle()?;
        let kicker = Kicker::default();
        let inner = kicker.clone();
        let exit = ending.exit.clone();
        let worker = Worker::spawn(name, &exit, move |stop| {
            let Self { id, mut fd } = self;
            let mut last_word =
                LastWord { ending, end: Some(End::Failed(format!("the thread of vCPU {id} panicked"))) };
            last_word.end = run(id, &mut fd, &inner, &bus, &memory, stop);
            Ok(())
        })
        .map_err(MachineError::io("vCPU thread"))?;
        Ok(VcpuThread { worker, kicker })
    }
}

/// Runs the guest until it ends, or `stop`; says how it ended, if it did.
fn run(id: u8, fd: &mut VcpuFd, kicker: &Kicker, bus: &Bus, memory: &LostMemory, stop: &Stop) -> Option<End> {
    let occupied = Occupied::new(kicker, fd);
    while !stop.is_triggered() {
        match turn(id, fd, bus, memory) {
            Turn::GoOn => {}
            Turn::Kicked => occupied.acknowledge(),
            Turn::End(end) => return Some(end),
        }
    }
    None
}

fn turn(id: u8, fd: &mut VcpuFd, bus: &Bus, memory: &LostMemory) -> Turn {
    let (exit, lost) = lost::watch(|| fd.run());
    if let Some(address) = lost {
        return match memory.tell(fd, address) {
            Ok(()) => Turn::GoOn,
            Err(why) => Turn::End(End::Failed(format!("vCPU {id}: {why}{}", describe(fd)))),
        };
    }
    let failure = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            bus.port_read(port, data);
            return Turn::GoOn;
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            return match bus.port_write(port, data) {
                Asked::Nothing => Turn::GoOn,
                Asked::Reset => Turn::End(End::Reset),
                Asked::Idle => match idle(fd) {
                    Ok(()) => Turn::GoOn,
                    Err(error) => Turn::End(End::Failed(format!("vCPU {id}: going to sleep: {error}"))),
                },
            };
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            bus.mmio_read(address, data);
            return Turn::GoOn;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            bus.mmio_write(address, data);
            return Turn::GoOn;
        }
        Ok(VcpuExit::SystemEvent(..)) => return Turn::End(End::Reset),
        // A guest that means to reset asks the keyboard controller (`reboot=k`). On AMD, KVM has put the registers back to
        // their reset values by now, and only the host's kernel knew better (APM volume 2, 15.14.3).
        Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Turn::GoOn,
        Err(error) if matches!(error.errno(), EINTR | EAGAIN) => {
            return Turn::Kicked;
        }
        Ok(VcpuExit::InternalError) => "KVM_EXIT_INTERNAL_ERROR".to_owned(),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("entry failed, hardware reason {reason:#x}, host CPU {cpu}")
        }
        Ok(exit) => format!("unexpected exit {exit:?}"),
        Err(error) => format!("KVM_RUN: {error}"),
    };
    Turn::End(End::Failed(format!("vCPU {id}: {failure}{}", describe(fd))))
}

/// The next `KVM_RUN` sleeps in the host's kernel until the vCPU has an interrupt, as after HLT: that itself does not leave
/// the guest (`vm.rs`, `idle_by_port`). An interrupt that is there already ends the sleep at once, so none is missed.
fn idle(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })
}

/// What helps to understand a fatal exit: the internal error, and where the guest was.
fn describe(fd: &mut VcpuFd) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let run = fd.get_kvm_run();
    if run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let data = &internal.data[..internal.data.len().min(internal.ndata as usize)];
        let _ = write!(text, "; suberror {} {data:x?}", internal.suberror);
    }
    if let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) {
        let _ = write!(
            text,
            "; rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cs.selector,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer
        );
    }
    text
}
