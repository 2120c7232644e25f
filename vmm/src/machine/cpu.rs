//! What a vCPU is and in which state it starts.

use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::MachineError;
use super::layout::{GDT, IDT, PAGE_TABLES, ZERO_PAGE};

const LEAF_BASIC: u32 = 1;
const LEAF_CACHE: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_EXTENDED: u32 = 0x8000_0001;
const LEAF_SIZES: u32 = 0x8000_0008;
const LEAF_CACHE_AMD: u32 = 0x8000_001d;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;
const LEAF_SVM: u32 = 0x8000_000a;
const LEAF_KVM: u32 = 0x4000_0001;

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Asynchronous page faults: their bit, and those of delivery by VM exit and by interrupt.
const EAX_ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;
const EDX_HTT: u32 = 1 << 28;
const ECX_SVM: u32 = 1 << 2;
const ECX_TOPOLOGY_EXT: u32 = 1 << 22;

/// What the leaves do not say by themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Features {
    /// The timer of the local APIC has a deadline mode.
    pub(super) tsc_deadline: bool,
    /// The cell is told of a page that it waits for, and may run another task meanwhile.
    pub(super) async_pf: bool,
}

/// Fits what the host's KVM supports to vCPU `id` of `vcpus`: one package of single-threaded cores whose APIC numbers
/// are their indices. Nested virtualisation is not offered.
pub(super) fn fit_cpuid(cpuid: &mut CpuId, id: u8, vcpus: u8, features: Features) {
    let apic = u32::from(id);
    let count = u32::from(vcpus);
    // Bits of an APIC number that tell the cores of a package apart.
    let bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_BASIC => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | apic << 24;
                entry.ecx = entry.ecx & !ECX_VMX | ECX_HYPERVISOR;
                set(&mut entry.ecx, ECX_TSC_DEADLINE, features.tsc_deadline);
                set(&mut entry.edx, EDX_HTT, count > 1);
            }
            LEAF_CACHE => {
                // Bits 31:26: cores of the package less one; 25:14: threads that share the cache less one.
                let level = entry.eax >> 5 & 7;
                let shared = if level >= 3 { count - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | (count - 1) << 26 | shared << 14;
            }
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (bits, count, 2 << 8 | 1),
                    index => (0, 0, index),
                };
                entry.edx = apic;
            }
            LEAF_EXTENDED => entry.ecx &= !(ECX_SVM | ECX_TOPOLOGY_EXT),
            // The host would fetch every page that is awaited so for writing (async_pf_execute of Linux asks for FOLL_WRITE):
            // a read of another node's page takes it away from its readers. So it is off unless asked for
            // (docs/decisions/0003-async-page-faults.md).
            LEAF_KVM if !features.async_pf => entry.eax &= !EAX_ASYNC_PF,
            LEAF_SIZES => entry.ecx = bits << 12 | (count - 1),
            LEAF_SVM | LEAF_CACHE_AMD | LEAF_TOPOLOGY_AMD => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

fn segment(index: u16, descriptor: u64) -> kvm_segment {
    let bits = |from: u32, count: u32| (descriptor >> from & ((1 << count) - 1)) as u8;
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        unusable: 0,
        padding: 0,
    }
}

/// Puts the first vCPU where the 64-bit boot protocol wants it: long mode, paging on, interrupts off, at `entry`, with the
/// address of `boot_params` in RSI.
pub(super) fn set_boot_state(vcpu: &VcpuFd, entry: u64) -> Result<(), MachineError> {
    const CR0_PE: u64 = 1;
    const CR0_ET: u64 = 1 << 4;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;

    let mut sregs = vcpu.get_sregs().map_err(MachineError::kvm("reading segment registers"))?;
    let table = super::boot::GDT_TABLE;
    sregs.cs = segment(2, table[2]);
    let data = segment(3, table[3]);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4, table[4]);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (table.len() * 8 - 1) as u16;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(MachineError::kvm("setting segment registers"))?;

    let regs = kvm_regs { rflags: 2, rip: entry, rsi: ZERO_PAGE, ..Default::default() };
    vcpu.set_regs(&regs).map_err(MachineError::kvm("setting registers"))
}

/// What every vCPU starts with: FPU, MSRs, local interrupts.
pub(super) fn set_common_state(vcpu: &VcpuFd) -> Result<(), MachineError> {
    const MSR_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1;
    const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
    const WRITE_BACK_ENABLED: u64 = 1 << 11 | 6;

    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(MachineError::kvm("setting the FPU"))?;

    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, WRITE_BACK_ENABLED),
    ])
    .map_err(|error| MachineError::Boot(format!("MSR list: {error}")))?;
    let set = vcpu.set_msrs(&msrs).map_err(MachineError::kvm("setting MSRs"))?;
    if set != msrs.as_slice().len() {
        return Err(MachineError::Boot(format!("KVM took {set} of {} MSRs", msrs.as_slice().len())));
    }

    let mut lapic = vcpu.get_lapic().map_err(MachineError::kvm("reading the local APIC"))?;
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4;
    const MODE_EXT_INT: u32 = 7;
    set_lvt_mode(&mut lapic, LVT_LINT0, MODE_EXT_INT);
    set_lvt_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(MachineError::kvm("setting the local APIC"))
}

/// Sets bits 10:8 (delivery mode) of the register at `at`.
fn set_lvt_mode(lapic: &mut kvm_lapic_state, at: usize, mode: u32) {
    let Some(field) = lapic.regs.get_mut(at + 1) else { return };
    *field = (*field as u8 & !7 | mode as u8) as _;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn fitted(function: u32, index: u32, id: u8, vcpus: u8) -> kvm_cpuid_entry2 {
        let all = u32::MAX;
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[entry]).unwrap();
        fit_cpuid(&mut cpuid, id, vcpus, Features { tsc_deadline: true, async_pf: false });
        cpuid.as_slice()[0]
    }

    #[test]
    fn every_vcpu_has_its_own_apic_number_in_one_package() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (8, 3)] {
            for id in 0..vcpus {
                let basic = fitted(LEAF_BASIC, 0, id, vcpus);
                assert_eq!(basic.ebx >> 24, u32::from(id));
                assert_eq!(basic.ebx >> 16 & 0xff, u32::from(vcpus));
                assert_eq!(basic.edx & EDX_HTT != 0, vcpus > 1);
                let cores = fitted(LEAF_TOPOLOGY, 1, id, vcpus);
                assert_eq!((cores.eax, cores.ebx, cores.edx), (bits, u32::from(vcpus), u32::from(id)));
                assert_eq!(fitted(LEAF_TOPOLOGY, 0, id, vcpus).ebx, 1, "one thread a core");
                assert_eq!(fitted(LEAF_SIZES, 0, id, vcpus).ecx, bits << 12 | u32::from(vcpus - 1));
            }
        }
    }

    #[test]
    fn the_guest_knows_its_hypervisor_and_gets_no_nested_one() {
        let basic = fitted(LEAF_BASIC, 0, 0, 1);
        assert_eq!(basic.ecx & (ECX_HYPERVISOR | ECX_VMX), ECX_HYPERVISOR);
        assert_eq!(fitted(LEAF_EXTENDED, 0, 0, 1).ecx & (ECX_SVM | ECX_TOPOLOGY_EXT), 0);
    }

    #[test]
    fn local_interrupts_get_their_delivery_mode_and_keep_the_rest() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[0x351] = 0x10;
        set_lvt_mode(&mut lapic, 0x350, 7);
        assert_eq!(lapic.regs[0x351], 0x17);
    }
}
