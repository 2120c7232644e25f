//! A guest of three instructions counts down in kernel mode (CPL 0, long mode). Where the processor runs it, an iteration
//! takes less than 5 ns; where the host kernel interprets guest kernel code, more than 500 ns, and no Linux guest boots in
//! reasonable time.

use std::io;
use std::time::Duration;

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Where the pieces of the guest are, in guest-physical bytes.
mod place {
    pub const PML4: u64 = 0x1000;
    pub const PDPT: u64 = 0x2000;
    pub const PD: u64 = 0x3000;
    pub const CODE: u64 = 0x4000;
    pub const SIZE: usize = 0x10000;
}
/// Iterations of the first measurement: 2 ms where code is interpreted.
const FEW: u32 = 2_000;
/// Iterations of the second one, done only if the first was quick.
const MANY: u32 = 2_000_000;
/// A first measurement below this is worth a second, longer one.
const QUICK: Duration = Duration::from_millis(1);
/// The guest is stopped after this.
const LIMIT: Duration = Duration::from_secs(2);

/// What was found of KVM.
#[derive(Debug, Clone, PartialEq)]
pub enum KvmFacts {
    /// There is no `/dev/kvm`.
    Absent,
    /// It cannot be opened.
    Denied(String),
    /// It is there, and does not run the guest: why.
    Broken(String),
    /// It runs.
    Runs {
        /// Nanoseconds of one iteration (two instructions) in kernel mode.
        kernel_ns: f64,
        /// Capabilities that nodes need and that it lacks.
        lacks: Vec<&'static str>,
    },
}

/// Measures. Takes a few milliseconds, at most [`LIMIT`].
pub fn probe() -> KvmFacts {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) if error.errno() == libc::ENOENT => return KvmFacts::Absent,
        Err(error) => return KvmFacts::Denied(error.to_string()),
    };
    let needed = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    let lacks = needed.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    match measure(&kvm) {
        Ok(kernel_ns) => KvmFacts::Runs { kernel_ns, lacks },
        Err(error) => KvmFacts::Broken(error.to_string()),
    }
}

fn measure(kvm: &Kvm) -> io::Result<f64> {
    let vm = kvm.create_vm()?;
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), place::SIZE)]).map_err(io::Error::other)?;
    let region = memory.find_region(GuestAddress(0)).ok_or_else(|| io::Error::other("no memory"))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: memory.get_host_address(GuestAddress(0)).map_err(io::Error::other)? as u64,
    };
    // SAFETY: the range is `memory`'s own mapping, which outlives the VM: it is declared before and dropped after the vCPU,
    // and nothing runs after the last KVM_RUN returned.
    unsafe { vm.set_user_memory_region(slot)? };
    write_guest(&memory).map_err(io::Error::other)?;
    let mut vcpu = vm.create_vcpu(0)?;
    long_mode(&vcpu)?;
    let _limit = Limit::start(LIMIT)?;
    // The first entry pays for what is set up lazily.
    count_down(&mut vcpu, &memory, 1)?;
    let few = count_down(&mut vcpu, &memory, FEW)?;
    let (took, iterations) =
        if few < QUICK { (count_down(&mut vcpu, &memory, MANY)?, MANY) } else { (few, FEW) };
    Ok(took.as_secs_f64() * 1e9 / f64::from(iterations))
}

/// Page tables that map the first 2 MiB to themselves, and the code.
fn write_guest(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(place::PDPT | PRESENT_WRITABLE, GuestAddress(place::PML4))?;
    memory.write_obj(place::PD | PRESENT_WRITABLE, GuestAddress(place::PDPT))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(place::PD))?;
    // dec ecx; jnz -4; hlt
    memory.write_slice(&[0xff, 0xc9, 0x75, 0xfc, 0xf4], GuestAddress(place::CODE))
}

/// Long mode at CPL 0 (AMD64 Architecture Programmer's Manual, volume 2, section 14.6).
fn long_mode(vcpu: &VcpuFd) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { type_: 3, selector: 16, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = place::PML4;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= 1 | 1 << 31; // PE, PG
    sregs.efer |= 1 << 8 | 1 << 10; // LME, LMA
    vcpu.set_sregs(&sregs)?;
    Ok(())
}

/// Runs `iterations` of the loop.
fn count_down(vcpu: &mut VcpuFd, _memory: &GuestMemoryMmap, iterations: u32) -> io::Result<Duration> {
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rcx, regs.rflags) = (place::CODE, u64::from(iterations), 2);
    vcpu.set_regs(&regs)?;
    let begun = processor_time()?;
    match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(processor_time()?.saturating_sub(begun)),
        Ok(exit) => Err(io::Error::other(format!("the guest ended with {exit:?}"))),
        Err(error) if error.errno() == libc::EINTR => Err(io::Error::other(format!(
            "{iterations} iterations were not done within {} s",
            LIMIT.as_secs()
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Processor time of this thread, guest time included: what other programs do meanwhile is not in it.
fn processor_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).map_err(io::Error::other)?))
}

/// Interrupts the thread that made it when the time is up, and again and again until it is dropped, so that a signal that
/// arrives just before KVM_RUN is not the only one.
struct Limit(libc::timer_t);

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Limit {
    fn start(limit: Duration) -> io::Result<Self> {
        let signal = SIGRTMIN() + 11;
        register_signal_handler(signal, ignore)?;
        // SAFETY: sigevent is plain data, for which zeros are valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: gettid has no arguments.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self(timer);
        let first =
            libc::timespec { tv_sec: i64::try_from(limit.as_secs()).map_err(io::Error::other)?, tv_nsec: 0 };
        let again = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let times = libc::itimerspec { it_interval: again, it_value: first };
        // SAFETY: the timer was just created; `times` is valid for the call.
        if unsafe { libc::timer_settime(timer.0, 0, &times, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(timer)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_kvm_the_loop_runs_to_its_end_or_to_its_limit() {
        match probe() {
            KvmFacts::Runs { kernel_ns, .. } => assert!(kernel_ns > 0.0),
            KvmFacts::Broken(why) => assert!(why.contains("not done within"), "{why}"),
            KvmFacts::Absent | KvmFacts::Denied(_) => {}
        }
    }
}
