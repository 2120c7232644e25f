//! The 64-bit boot protocol of Linux (`Documentation/arch/x86/boot.rst`): what lies where in guest memory when the
//! first vCPU enters the kernel.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{CMDLINE, CMDLINE_MAX, EBDA_START, GDT, HIGH_START, IDT, PAGE_TABLES, ZERO_PAGE};
use super::{MachineError, RamKind, RamRegion};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const MIN_ALIGNMENT: u32 = 0x100_0000;

/// Segment descriptors at boot: two unused, code, data, task. The protocol wants code at selector 0x10, data at 0x18.
pub(super) const GDT_TABLE: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

fn boot_error(what: &str) -> impl FnOnce(vm_memory::GuestMemoryError) -> MachineError + '_ {
    move |error| MachineError::Boot(format!("{what}: {error}"))
}

/// Loads the ELF kernel at `path`; returns its entry and the end of its image.
pub(super) fn load_kernel(ram: &GuestMemoryMmap<()>, path: &Path) -> Result<(u64, u64), MachineError> {
    let fail = |why: String| MachineError::Load { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(|error| fail(format!("the kernel cannot be opened: {error}")))?;
    let loaded = Elf::load(ram, None, &mut file, Some(GuestAddress(HIGH_START))).map_err(|error| {
        fail(format!("not an uncompressed ELF kernel (vmlinux) that fits the low RAM: {error}"))
    })?;
    Ok((loaded.kernel_load.0, loaded.kernel_end))
}

/// Loads the initial RAM disk at `path` as high in the low RAM as it fits; returns its address and size.
pub(super) fn load_initrd(
    ram: &GuestMemoryMmap<()>,
    path: &Path,
    kernel_end: u64,
    low_end: u64,
) -> Result<(u32, u32), MachineError> {
    let fail = |why: String| MachineError::Load { path: path.to_owned(), why };
    let unreadable = |error: std::io::Error| fail(format!("the initial RAM disk cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    // Seeking also tells the size of a block device.
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    let start = low_end.checked_sub(size).map(|start| start & !4095).filter(|start| *start >= kernel_end);
    let (Some(start), Ok(len)) = (start, u32::try_from(size)) else {
        let room = low_end.saturating_sub(kernel_end);
        return Err(fail(format!(
            "an initial RAM disk of {size} bytes does not fit the {room} bytes behind the kernel"
        )));
    };
    let mut bytes = vec![0; 1 << 20];
    let mut at = start;
    loop {
        let got = file.read(&mut bytes).map_err(unreadable)?;
        if got == 0 || at + got as u64 > low_end {
            break;
        }
        ram.write_slice(&bytes[..got], GuestAddress(at)).map_err(boot_error("initial RAM disk"))?;
        at += got as u64;
    }
    let start = u32::try_from(start).map_err(|_| fail("the low RAM ends beyond 4 GiB".to_owned()))?;
    Ok((start, len))
}

/// The memory map: low RAM without the BIOS hole, and the own slice.
pub(super) fn e820(regions: &[RamRegion]) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, type_| boot_e820_entry { addr, size: end - addr, type_ };
    let mut map = Vec::new();
    for region in regions {
        let end = region.gpa() + region.len();
        match region.kind() {
            RamKind::Low => {
                map.push(entry(0, EBDA_START, E820_RAM));
                map.push(entry(EBDA_START, HIGH_START, E820_RESERVED));
                map.push(entry(HIGH_START, end, E820_RAM));
            }
            RamKind::Own => map.push(entry(region.gpa(), end, E820_RAM)),
            RamKind::Window => {}
        }
    }
    map.sort_by_key(|entry| entry.addr);
    map
}

/// Writes `boot_params` and the command line.
pub(super) fn write_params(
    ram: &GuestMemoryMmap<()>,
    cmdline: &str,
    initrd: Option<(u32, u32)>,
    map: &[boot_e820_entry],
) -> Result<(), MachineError> {
    if cmdline.len() > CMDLINE_MAX || cmdline.contains('\0') {
        return Err(MachineError::Config(format!(
            "a kernel command line of {} bytes: it has at most {CMDLINE_MAX}, none of them 0",
            cmdline.len()
        )));
    }
    let line = [cmdline.as_bytes(), &[0]].concat();
    ram.write_slice(&line, GuestAddress(CMDLINE)).map_err(boot_error("command line"))?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = MIN_ALIGNMENT;
    // Both are below 4 GiB and fit their fields by construction.
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some((start, len)) = initrd {
        params.hdr.ramdisk_image = start;
        params.hdr.ramdisk_size = len;
    }
    if map.len() > params.e820_table.len() {
        return Err(MachineError::Boot(format!("{} entries do not fit the memory map", map.len())));
    }
    params.e820_table[..map.len()].copy_from_slice(map);
    params.e820_entries = map.len() as u8;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), ram)
        .map_err(|error| MachineError::Boot(format!("boot parameters: {error}")))
}

/// Writes descriptor tables, and page tables that map the first GiB to itself in 2 MiB pages.
pub(super) fn write_tables(ram: &GuestMemoryMmap<()>) -> Result<(), MachineError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const HUGE: u64 = 1 << 7;
    for (index, descriptor) in GDT_TABLE.iter().enumerate() {
        ram.write_obj(*descriptor, GuestAddress(GDT + 8 * index as u64)).map_err(boot_error("GDT"))?;
    }
    ram.write_obj(0_u64, GuestAddress(IDT)).map_err(boot_error("IDT"))?;
    let (pml4, pdpt, pd) = (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    ram.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4)).map_err(boot_error("page tables"))?;
    ram.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt)).map_err(boot_error("page tables"))?;
    for index in 0..512_u64 {
        let entry = index << 21 | PRESENT_WRITABLE | HUGE;
        ram.write_obj(entry, GuestAddress(pd + 8 * index)).map_err(boot_error("page tables"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::GuestRam;
    use crate::machine::Mapping;
    use crate::machine::memory::guest_ram;
    use std::io::Write;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn regions() -> Vec<RamRegion> {
        let slice = Arc::new(Mapping::anonymous(4096).unwrap());
        vec![
            RamRegion::new(4 << 30, RamKind::Window, slice.clone()),
            RamRegion::new(5 << 30, RamKind::Own, slice),
            RamRegion::low(32 * MIB).unwrap(),
        ]
    }

    fn memory() -> (Vec<RamRegion>, GuestRam) {
        let regions = regions();
        // SAFETY: the test keeps the regions, and drops the memory, declared after them, first.
        let ram = unsafe { guest_ram(&regions) }.unwrap();
        (regions, ram)
    }

    #[test]
    fn the_memory_map_has_low_ram_and_own_slice_but_no_window() {
        let map = e820(&regions());
        let map: Vec<_> = map.iter().map(|entry| (entry.addr, entry.size, entry.type_)).collect();
        assert_eq!(
            map,
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x6_0400, E820_RESERVED),
                (0x10_0000, 31 * MIB, E820_RAM),
                (5 << 30, 4096, E820_RAM)
            ]
        );
    }

    #[test]
    fn parameters_name_command_line_and_initrd() {
        let (_regions, ram) = memory();
        write_params(&ram, "quiet", Some((0x20_0000, 77)), &e820(&regions())).unwrap();
        // Offsets of boot.rst: cmd_line_ptr 0x228, ramdisk_image 0x218, ramdisk_size 0x21c.
        let word = |at: u64| ram.read_obj::<u32>(GuestAddress(ZERO_PAGE + at)).unwrap();
        assert_eq!((word(0x228), word(0x218), word(0x21c)), (CMDLINE as u32, 0x20_0000, 77));
        assert_eq!(word(0x202), HEADER_MAGIC);
        let mut line = [0xff; 6];
        ram.read_slice(&mut line, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&line, b"quiet\0");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let (_regions, ram) = memory();
        let error = write_params(&ram, &"x".repeat(CMDLINE_MAX + 1), None, &[]).unwrap_err();
        assert!(error.to_string().contains("2048 bytes"), "{error}");
    }

    #[test]
    fn an_initrd_lies_at_the_end_of_low_ram_or_is_refused() {
        let (_regions, ram) = memory();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let (start, len) = load_initrd(&ram, file.path(), 2 * MIB, 32 * MIB).unwrap();
        assert_eq!((u64::from(start), len), (32 * MIB - 8192, 5000));
        assert_eq!(ram.read_obj::<u8>(GuestAddress(u64::from(start) + 4999)).unwrap(), 7);
        let error = load_initrd(&ram, file.path(), 32 * MIB - 4096, 32 * MIB).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
    }

    #[test]
    fn a_kernel_that_is_no_elf_file_is_refused_by_name() {
        let (_regions, ram) = memory();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 512]).unwrap();
        let error = load_kernel(&ram, file.path()).unwrap_err().to_string();
        assert!(error.contains("not an uncompressed ELF kernel"), "{error}");
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
