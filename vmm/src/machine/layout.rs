//! Guest-physical addresses of a cell (`docs/interfaces.md`).

/// Default end of the private low RAM: 128 MiB.
pub const LOW_END: u64 = 128 << 20;
/// First byte of the extended BIOS data area: here ends the RAM below 1 MiB, and the MP table begins.
pub const EBDA_START: u64 = 0x9_fc00;
/// Where RAM goes on.
pub const HIGH_START: u64 = 0x10_0000;
/// Window of virtio-mmio device 0.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of a window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Interrupt line of virtio-mmio device 0; device i has line `MMIO_IRQ + i`.
pub const MMIO_IRQ: u32 = 5;
/// Most virtio-mmio devices: lines 5 to 15 of the ISA bus.
pub const MMIO_DEVICES_MAX: usize = 11;
/// Port that a cell writes to when a vCPU has nothing to do: it sleeps until its next interrupt (`vcpu.rs`).
pub const IDLE_PORT: u16 = 0x5510;
/// Three pages that KVM needs on Intel.
pub const TSS_ADDRESS: usize = 0xfffb_d000;

/// Global descriptor table at boot.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table at boot (empty).
pub const IDT: u64 = 0x540;
/// `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables at boot: PML4, PDPT, PD.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of a command line, without its final 0 (COMMAND_LINE_SIZE of Linux).
pub const CMDLINE_MAX: usize = 2047;

/// Bytes from one slice to the next: `slice_size` rounded up to a power of two, at least 1 GiB.
pub fn slice_stride(slice_size: u64) -> u64 {
    slice_size.next_power_of_two().max(1 << 30)
}
