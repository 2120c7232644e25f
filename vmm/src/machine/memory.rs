use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use ssi_dsm::memory::{SliceKind, SliceMemory};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::MachineError;
use crate::devices::virtio::GuestRam;

/// Mappings begin at a multiple of this, so that huge pages of the host can back huge pages of the guest.
const ALIGN: usize = 2 << 20;

/// What a region of guest memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamKind {
    /// Private low RAM, from address 0: in the e820 map.
    Low,
    /// The cell's own slice: in the e820 map.
    Own,
    /// A window onto another cell's slice: memory for KVM and the devices, not in the e820 map.
    Window,
}

/// Pages of this process, 2 MiB aligned, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is owned memory; what is in it is only reached through raw pointers and volatile accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out no reference to the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private memory that reads as zero, with huge pages asked for; nothing is allocated before it is touched.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// The bytes of `file` from `offset`, shared, with huge pages asked for.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn shared(file: &File, offset: i64, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    fn map(len: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
        if len == 0 {
            return Err(too_long());
        }
        let span = len.checked_add(ALIGN).ok_or_else(too_long)?;
        // SAFETY: a new mapping at an address of the kernel's choice; touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                span,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = (base as usize).next_multiple_of(ALIGN) - base as usize;
        // SAFETY: `head` is below ALIGN, so that `head + len` lies inside the reservation of `len + ALIGN` bytes.
        let target = unsafe { base.byte_add(head) };
        // SAFETY: MAP_FIXED replaces a part of the reservation just made, which nobody else knows of.
        let start = unsafe {
            libc::mmap(
                target,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED | libc::MAP_NORESERVE,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the reservation is ours, and given up as a whole.
            unsafe { libc::munmap(base, span) };
            return Err(error);
        }
        let end = len.next_multiple_of(4096);
        // SAFETY: both ranges are what is left of the reservation before and behind the mapping.
        unsafe {
            if head > 0 {
                libc::munmap(base, head);
            }
            libc::munmap(target.byte_add(end), span - head - end);
            // Advice only: without huge pages everything works, slower.
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
        }
        let start = NonNull::new(start.cast()).ok_or_else(too_long)?;
        Ok(Self { start, len })
    }

    /// Its first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and is unmapped once; who uses it holds an `Arc` of this owner.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) } != 0 {
            log::error!("guest memory could not be unmapped: {}", io::Error::last_os_error());
        }
    }
}

/// A region of guest memory, mapped in this process.
#[derive(Debug, Clone)]
pub struct RamRegion {
    gpa: u64,
    len: u64,
    kind: RamKind,
    host: usize,
    // Owner of the mapping; only its drop matters.
    _keep: Arc<dyn Keep>,
}

trait Keep: Any + Send + Sync + std::fmt::Debug {}
impl<T: Any + Send + Sync + std::fmt::Debug> Keep for T {}

impl RamRegion {
    /// `mapping` as guest memory at `gpa`. Several machines of one process may share a mapping.
    pub fn new(gpa: u64, kind: RamKind, mapping: Arc<Mapping>) -> Self {
        Self { gpa, len: mapping.len() as u64, kind, host: mapping.as_ptr() as usize, _keep: mapping }
    }

    /// Private low RAM of `len` bytes at address 0.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn low(len: u64) -> Result<Self, MachineError> {
        let failed = |source| MachineError::Memory { what: "mapping the low RAM", source };
        let len = usize::try_from(len).map_err(|_| failed(io::Error::from_raw_os_error(libc::EINVAL)))?;
        Ok(Self::new(0, RamKind::Low, Arc::new(Mapping::anonymous(len).map_err(failed)?)))
    }

    /// A slice that the DSM keeps coherent, as guest memory at `gpa`. Whoever serves its faults goes on doing so until the
    /// machine has stopped: a vCPU or a device may be waiting for a page.
    pub fn slice(gpa: u64, slice: Arc<SliceMemory>) -> Self {
        let kind = match slice.kind() {
            SliceKind::Own => RamKind::Own,
            SliceKind::Window => RamKind::Window,
        };
        Self { gpa, len: slice.size() as u64, kind, host: slice.guest_addr() as usize, _keep: slice }
    }

    /// `len` bytes at `host` as guest memory at `gpa`: for memory that another part of the process maps.
    ///
    /// # Safety
    /// The range is mapped readable and writable, and stays so, unmoved, until `keep` is dropped. It is used as
    /// guest memory only: through raw pointers and volatile accesses.
    pub unsafe fn from_raw(
        gpa: u64,
        kind: RamKind,
        host: NonNull<u8>,
        len: u64,
        keep: Arc<impl Any + Send + Sync + std::fmt::Debug>,
    ) -> Self {
        Self { gpa, len, kind, host: host.as_ptr() as usize, _keep: keep }
    }

    /// Guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Has it no bytes?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it is for.
    pub fn kind(&self) -> RamKind {
        self.kind
    }

    /// Address in this process.
    pub fn host(&self) -> u64 {
        self.host as u64
    }
}

/// Guest memory over `regions`.
///
/// # Errors
/// If there is no region, one is not page-aligned, or two overlap.
///
/// # Safety
/// The regions (or clones of them) are kept until the last clone of the result is gone.
pub(super) unsafe fn guest_ram(regions: &[RamRegion]) -> Result<GuestRam, MachineError> {
    let bad =
        |why: &dyn std::fmt::Display| MachineError::Config(format!("guest memory cannot be laid out: {why}"));
    let mut sorted: Vec<&RamRegion> = regions.iter().collect();
    sorted.sort_by_key(|region| region.gpa);
    let mut mapped = Vec::with_capacity(sorted.len());
    for region in sorted {
        if !region.gpa.is_multiple_of(4096) || !region.len.is_multiple_of(4096) || region.len == 0 {
            return Err(bad(&format_args!(
                "{:#x} bytes at {:#x} are not whole pages",
                region.len, region.gpa
            )));
        }
        let len = usize::try_from(region.len).map_err(|error| bad(&error))?;
        let mapping: Result<_, MmapRegionError> =
            // SAFETY: the region's owner keeps the range mapped, and the caller the region.
            unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(region.host as *mut u8) }
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .build();
        let mapping = mapping.map_err(|error| bad(&error))?;
        let guest = GuestRegionMmap::new(mapping, GuestAddress(region.gpa));
        mapped.push(guest.ok_or_else(|| bad(&"a region ends beyond the last address"))?);
    }
    let ram = GuestMemoryMmap::from_regions(mapped).map_err(|error| bad(&error))?;
    Ok(Arc::new(ram))
}

/// Bytes of this process's memory that are resident and not in one of `regions`: what the VMM itself costs.
///
/// # Errors
/// If `/proc/self/smaps` cannot be read.
pub fn resident_beyond(regions: &[RamRegion]) -> io::Result<u64> {
    Ok(sum_resident(&std::fs::read_to_string("/proc/self/smaps")?, regions))
}

/// Sums `Rss` over the mappings of an smaps text that do not begin in one of `regions`.
fn sum_resident(smaps: &str, regions: &[RamRegion]) -> u64 {
    let (mut total, mut counts) = (0, true);
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            total += if counts { kib << 10 } else { 0 };
        } else if let Some(start) =
            line.split_once('-').and_then(|(start, _)| u64::from_str_radix(start, 16).ok())
        {
            let inside = |region: &RamRegion| (region.host()..region.host() + region.len()).contains(&start);
            counts = !regions.iter().any(inside);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn a_mapping_is_aligned_zero_and_writable_to_its_end() {
        let mapping = Mapping::anonymous(ALIGN + 4096).unwrap();
        assert!((mapping.as_ptr() as usize).is_multiple_of(ALIGN));
        let region = RamRegion::new(0, RamKind::Low, Arc::new(mapping));
        // SAFETY: the region is declared before the memory, and dropped after it.
        let ram = unsafe { guest_ram(std::slice::from_ref(&region)) }.unwrap();
        let last = GuestAddress(region.len() - 8);
        assert_eq!(ram.read_obj::<u64>(last).unwrap(), 0);
        ram.write_obj(7_u64, last).unwrap();
        assert_eq!(ram.read_obj::<u64>(last).unwrap(), 7);
    }

    #[test]
    fn resident_memory_of_the_guest_is_not_the_vmms() {
        let mapping = Arc::new(Mapping::anonymous(4096).unwrap());
        let region = RamRegion::new(0, RamKind::Low, mapping);
        let (start, end) = (region.host(), region.host() + region.len());
        let text = format!(
            "{start:x}-{end:x} rw-p 00000000 00:00 0\nSize: 4 kB\nRss:  4 kB\n\
             {end:x}-{:x} rw-p 00000000 00:00 0 [heap]\nRss:     8 kB\nPss: 8 kB\n",
            end + 8192
        );
        assert_eq!(sum_resident(&text, &[region]), 8192);
        assert_eq!(sum_resident(&text, &[]), 12288);
    }

    #[test]
    fn regions_that_overlap_or_are_not_whole_pages_are_refused() {
        let mapping = Arc::new(Mapping::anonymous(8192).unwrap());
        let at = |gpa| RamRegion::new(gpa, RamKind::Low, mapping.clone());
        // SAFETY: the mapping outlives the result.
        let laid_out = |regions: &[RamRegion]| unsafe { guest_ram(regions) }.is_ok();
        assert!(laid_out(&[at(0), at(8192)]));
        assert!(laid_out(&[at(8192), at(0)]), "in any order");
        for bad in [vec![], vec![at(0), at(4096)], vec![at(2048)]] {
            assert!(!laid_out(&bad), "{bad:?}");
        }
    }

    #[test]
    fn machines_that_share_a_mapping_see_each_others_writes() {
        let mapping = Arc::new(Mapping::anonymous(4096).unwrap());
        // SAFETY: the mapping is declared first, and dropped last.
        let at = |kind| unsafe { guest_ram(&[RamRegion::new(0x1000, kind, mapping.clone())]) }.unwrap();
        let (one, other) = (at(RamKind::Own), at(RamKind::Window));
        one.write_obj(9_u8, GuestAddress(0x1fff)).unwrap();
        assert_eq!(other.read_obj::<u8>(GuestAddress(0x1fff)).unwrap(), 9);
    }
}
