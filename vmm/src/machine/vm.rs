use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KVM_X86_DISABLE_EXITS_HLT,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::Bus;
use super::layout::{EBDA_START, IDLE_PORT, MMIO_BASE, MMIO_DEVICES_MAX, MMIO_IRQ, MMIO_WINDOW, TSS_ADDRESS};
use super::lost::LostMemory;
use super::memory::guest_ram;
use super::vcpu::{Vcpu, VcpuThread};
use super::{MachineError, RamKind, RamRegion, boot, cpu, mptable};
use crate::devices::lock;
use crate::devices::serial::{COM1_IRQ, Com1};
use crate::devices::terminal::Terminal;
use crate::devices::virtio::mmio::{MmioTransport, registers::QUEUE_NOTIFY};
use crate::devices::virtio::{GuestRam, VirtioDevice};
use crate::worker::Exit;

/// Most vCPUs of a machine.
const VCPUS_MAX: u8 = 8;

/// What a machine is made of, besides memory and devices.
#[derive(Debug, Clone)]
pub struct Config {
    /// Short name, for its threads: `NAME-cpu0`, ...
    pub name: String,
    /// vCPUs, 1 to 8.
    pub vcpus: u8,
    /// KVM's asynchronous page faults.
    pub async_pf: bool,
    /// While it is set, the guest's kernel knows what a page fault with [`ssi_proto::device::PF_LOST`] says. Without it a vCPU that
    /// meets lost memory ends the machine.
    pub lost_faults: Arc<AtomicBool>,
    /// Kernel: an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; the machine adds `virtio_mmio.device=...` for each device.
    pub cmdline: String,
    /// COM1.
    pub serial: Terminal,
    /// Triggered when the guest ends or a thread of the machine fails; [`Machine::end`] says which.
    pub exit: Exit,
}

/// How a machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest reset itself: reboot, or panic with `panic=-1`.
    Reset,
    /// [`Machine::stop`].
    Stopped,
    /// The guest cannot go on: an exit that no guest should cause.
    Failed(String),
}

/// Where the first end that happens is written down.
#[derive(Debug)]
pub(super) struct Ending {
    end: Mutex<Option<End>>,
    pub exit: Exit,
}

impl Ending {
    pub fn set(&self, end: End) {
        let mut first = lock(&self.end);
        if first.is_none() {
            match &end {
                End::Failed(why) => log::error!("the guest cannot go on: {why}"),
                end => log::info!("the machine ends: {end:?}"),
            }
            *first = Some(end);
        }
        drop(first);
        self.exit.trigger();
    }
}

/// A virtual machine: one cell. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    name: String,
    // In the order in which they must go.
    running: Vec<VcpuThread>,
    waiting: Vec<Vcpu>,
    bus: Arc<Bus>,
    lost: Arc<LostMemory>,
    ending: Arc<Ending>,
    vm: VmFd,
    ram: Option<GuestRam>,
    regions: Vec<RamRegion>,
}

impl Machine {
    /// A machine with `regions` as guest memory and `devices` in its virtio-mmio windows (in that order, at most 11),
    /// its kernel loaded, not running yet.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn new(
        config: &Config,
        regions: Vec<RamRegion>,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Self, MachineError> {
        check(config, &regions, devices.len())?;
        // SAFETY: the machine keeps the regions until after its devices and vCPUs are gone, and for ever if anybody else
        // still holds the memory then (`drop`).
        let ram = unsafe { guest_ram(&regions) }?;
        let devices_count = devices.len();
        Self::assemble(config, regions, ram, devices, |vcpu, ram, regions, idle| {
            let cmdline = full_cmdline(&config.cmdline, devices_count, idle);
            let entry = load(config, ram, regions, &cmdline)?;
            cpu::set_boot_state(vcpu, entry)
        })
    }

    fn assemble(
        config: &Config,
        regions: Vec<RamRegion>,
        ram: GuestRam,
        devices: Vec<Box<dyn VirtioDevice>>,
        boot: impl FnOnce(&VcpuFd, &GuestRam, &[RamRegion], Idle) -> Result<(), MachineError>,
    ) -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(MachineError::NoKvm)?;
        let vm = create_vm(&kvm)?;
        let idle = if config.async_pf { Idle::Halt } else { idle_by_port(&kvm, &vm)? };
        add_memory(&vm, &regions)?;
        let com1 = wire_serial(&vm, &config.serial)?;
        let windows = wire_devices(&vm, devices, &ram)?;
        let waiting = create_vcpus(&kvm, &vm, config)?;
        if let Some(first) = waiting.first() {
            boot(&first.fd, &ram, &regions, idle)?;
        }
        Ok(Self {
            name: config.name.clone(),
            running: Vec::new(),
            waiting,
            bus: Arc::new(Bus::new(com1, windows)),
            lost: Arc::new(LostMemory::new(config.lost_faults.clone(), &regions)),
            ending: Arc::new(Ending { end: Mutex::new(None), exit: config.exit.clone() }),
            vm,
            ram: Some(ram),
            regions,
        })
    }

    /// Starts the vCPUs.
    ///
    /// # Errors
    /// If a thread cannot be had; the machine is stopped then. A machine that has run does not run again.
    pub fn run(&mut self) -> Result<(), MachineError> {
        if self.waiting.is_empty() {
            return Err(MachineError::Config(format!("machine {} has been started before", self.name)));
        }
        for vcpu in std::mem::take(&mut self.waiting) {
            let name = format!("{}-cpu{}", self.name, vcpu.id);
            match vcpu.start(&name, self.bus.clone(), self.lost.clone(), self.ending.clone()) {
                Ok(thread) => self.running.push(thread),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Stops vCPUs and devices: their threads have ended on return. Idempotent. Whoever brings pages of a slice to this
    /// machine must still do so: a device that waits for one ends when it is there.
    pub fn stop(&mut self) {
        self.ending.set(End::Stopped);
        // All are told before the first is waited for.
        self.running.iter().for_each(VcpuThread::stop);
        self.running.clear();
        self.waiting.clear();
        self.bus.reset();
    }

    /// How it ended, once it has. `None` although [`Config::exit`] is triggered: a worker of a device failed, and said
    /// why in the log.
    pub fn end(&self) -> Option<End> {
        lock(&self.ending.end).clone()
    }

    /// Guest memory.
    pub fn ram(&self) -> Option<&GuestRam> {
        self.ram.as_ref()
    }

    /// Its guest memory, region by region.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The KVM virtual machine.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        // The devices' threads are gone. Whoever else still has guest memory would be left with dangling pointers:
        // then the mappings stay.
        if let Some(ram) = self.ram.take() {
            // Each window holds it once.
            if Arc::strong_count(&ram) > 1 + self.bus.windows_count() {
                log::error!("machine {}: guest memory is still in use and stays mapped", self.name);
                std::mem::forget(std::mem::take(&mut self.regions));
            }
        }
    }
}

fn check(config: &Config, regions: &[RamRegion], devices: usize) -> Result<(), MachineError> {
    let refuse = |why: String| Err(MachineError::Config(why));
    if config.vcpus == 0 || config.vcpus > VCPUS_MAX {
        return refuse(format!("{} vCPUs: a cell has 1 to {VCPUS_MAX}", config.vcpus));
    }
    if devices > MMIO_DEVICES_MAX {
        return refuse(format!("{devices} virtio devices: a cell has at most {MMIO_DEVICES_MAX}"));
    }
    let low: Vec<_> = regions.iter().filter(|region| region.kind() == RamKind::Low).collect();
    match low[..] {
        [low] if low.gpa() == 0 && low.len() >= 16 << 20 && low.len() <= MMIO_BASE => Ok(()),
        _ => refuse("a cell has one region of low RAM, from address 0, of 16 MiB to 3328 MiB".to_owned()),
    }
}

fn full_cmdline(given: &str, devices: usize, idle: Idle) -> String {
    use std::fmt::Write;
    let mut line = given.trim().to_owned();
    if idle == Idle::Port {
        let _ = write!(line, " ssi.idle_port={IDLE_PORT:#x}");
    }
    for index in 0..devices {
        let base = MMIO_BASE + index as u64 * MMIO_WINDOW;
        let _ = write!(line, " virtio_mmio.device=4K@{base:#x}:{}", MMIO_IRQ as usize + index);
    }
    line.trim_start().to_owned()
}

fn load(config: &Config, ram: &GuestRam, regions: &[RamRegion], cmdline: &str) -> Result<u64, MachineError> {
    let low_end = regions.iter().find(|region| region.kind() == RamKind::Low).map_or(0, RamRegion::len);
    let (entry, kernel_end) = boot::load_kernel(ram, &config.kernel)?;
    let initrd =
        config.initrd.as_ref().map(|path| boot::load_initrd(ram, path, kernel_end, low_end)).transpose()?;
    boot::write_params(ram, cmdline, initrd, &boot::e820(regions))?;
    boot::write_tables(ram)?;
    mptable::write(ram, EBDA_START, config.vcpus).map_err(MachineError::Boot)?;
    Ok(entry)
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    for (cap, what) in [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(MachineError::Config(format!(
                "this host's KVM lacks {what}; a Linux of 4.12 or later has it"
            )));
        }
    }
    let vm = kvm.create_vm().map_err(MachineError::kvm("creating the VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(MachineError::kvm("placing the TSS"))?;
    vm.create_irq_chip().map_err(MachineError::kvm("creating the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(MachineError::kvm("creating the timer"))?;
    Ok(vm)
}

/// How a vCPU with nothing to do sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// By HLT, which leaves the guest.
    Halt,
    /// By a write to [`IDLE_PORT`]; HLT does not leave the guest.
    Port,
}

/// Lets HLT stay in the guest. KVM then asks for a page that a vCPU lacks as the vCPU does, to read or to write, and not by a
/// worker that always wants to write (`docs/decisions/0003-async-page-faults.md`).
fn idle_by_port(kvm: &Kvm, vm: &VmFd) -> Result<Idle, MachineError> {
    let can = kvm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
    if can.cast_unsigned() & KVM_X86_DISABLE_EXITS_HLT == 0 {
        log::warn!(
            "this host's KVM cannot leave HLT to the guest: reads of other nodes' memory will take it for writing"
        );
        return Ok(Idle::Halt);
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..Default::default() };
    cap.args[0] = KVM_X86_DISABLE_EXITS_HLT.into();
    vm.enable_cap(&cap).map_err(MachineError::kvm("leaving HLT to the guest"))?;
    Ok(Idle::Port)
}

fn add_memory(vm: &VmFd, regions: &[RamRegion]) -> Result<(), MachineError> {
    for (slot, region) in (0_u32..).zip(regions) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.gpa(),
            memory_size: region.len(),
            userspace_addr: region.host(),
        };
        // SAFETY: the range is mapped as long as `regions` are kept, which is longer than the VM (drop order of
        // `Machine`), and `guest_ram` has checked that no two overlap.
        unsafe { vm.set_user_memory_region(slot) }.map_err(MachineError::kvm("adding guest memory"))?;
    }
    Ok(())
}

fn wire_serial(vm: &VmFd, terminal: &Terminal) -> Result<Arc<Com1>, MachineError> {
    let line = EventFd::new(EFD_NONBLOCK).map_err(MachineError::io("event of COM1"))?;
    vm.register_irqfd(&line, COM1_IRQ).map_err(MachineError::kvm("wiring the interrupt of COM1"))?;
    Ok(Com1::new(line, terminal))
}

fn wire_devices(
    vm: &VmFd,
    devices: Vec<Box<dyn VirtioDevice>>,
    ram: &GuestRam,
) -> Result<Vec<MmioTransport>, MachineError> {
    let mut windows = Vec::with_capacity(devices.len());
    for (index, device) in (0_u32..).zip(devices) {
        let window =
            MmioTransport::new(device, ram.clone()).map_err(MachineError::io("virtio-mmio window"))?;
        vm.register_irqfd(window.line(), MMIO_IRQ + index)
            .map_err(MachineError::kvm("wiring a device's interrupt"))?;
        let notify = IoEventAddress::Mmio(MMIO_BASE + u64::from(index) * MMIO_WINDOW + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(window.kicks()) {
            vm.register_ioevent(kick, &notify, queue)
                .map_err(MachineError::kvm("wiring a queue's notification"))?;
        }
        windows.push(window);
    }
    Ok(windows)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, config: &Config) -> Result<Vec<Vcpu>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("reading the supported CPUID"))?;
    let features =
        cpu::Features { tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer), async_pf: config.async_pf };
    let count = config.vcpus;
    (0..count)
        .map(|id| {
            let fd = vm.create_vcpu(u64::from(id)).map_err(MachineError::kvm("creating a vCPU"))?;
            let mut cpuid = supported.clone();
            cpu::fit_cpuid(&mut cpuid, id, count, features);
            fd.set_cpuid2(&cpuid).map_err(MachineError::kvm("setting CPUID"))?;
            cpu::set_common_state(&fd)?;
            Ok(Vcpu { id, fd })
        })
        .collect()
}

/// A machine without a kernel, whose first vCPU `boot` prepares.
#[cfg(test)]
pub(super) fn assemble_for_test(
    config: &Config,
    regions: Vec<RamRegion>,
    devices: Vec<Box<dyn VirtioDevice>>,
    boot: impl FnOnce(&VcpuFd, &GuestRam),
) -> Result<Machine, MachineError> {
    // SAFETY: as in `Machine::new`.
    let ram = unsafe { guest_ram(&regions) }?;
    Machine::assemble(config, regions, ram, devices, |vcpu, ram, _, _| {
        boot(vcpu, ram);
        Ok(())
    })
}
