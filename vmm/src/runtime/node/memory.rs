//! Guest RAM of a node: private low RAM, the own slice, windows onto the others'.

use std::ops::Range;
use std::sync::Arc;

use ssi_proto::device::{PAGE_SIZE, PageStatus, SLICE0_BASE};

use super::fetch::PageSource;
use crate::launch::ClusterSpec;
use crate::launch::spec::LOW_RAM_BYTES;
use crate::machine::{Mapping, RamKind, RamRegion};

const PAGE: usize = PAGE_SIZE as usize;

/// Guest RAM without coherence: a window reads as zero.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<RamRegion>,
}

impl Memory {
    /// The memory of node `node`.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn new(spec: &ClusterSpec, node: u32) -> anyhow::Result<Arc<Self>> {
        let mut regions = vec![RamRegion::low(LOW_RAM_BYTES)?];
        let bytes = usize::try_from(spec.slice_bytes())?;
        for slice in 0..spec.nodes {
            let kind = if slice == node { RamKind::Own } else { RamKind::Window };
            let base = SLICE0_BASE + u64::from(slice) * spec.slice_stride();
            regions.push(RamRegion::new(base, kind, Arc::new(Mapping::anonymous(bytes)?)));
        }
        Ok(Arc::new(Self { regions }))
    }

    /// For the machine.
    pub fn regions(&self) -> Vec<RamRegion> {
        self.regions.clone()
    }

    /// Host addresses.
    pub fn host_ranges(&self) -> Vec<Range<u64>> {
        self.regions.iter().map(|region| region.host()..region.host() + region.len()).collect()
    }
}

impl PageSource for Memory {
    fn read(&self, gpa: u64, page: &mut [u8; PAGE]) -> PageStatus {
        let own = self.regions.iter().filter(|region| region.kind() != RamKind::Window).find(|region| {
            gpa.is_multiple_of(PAGE_SIZE)
                && gpa >= region.gpa()
                && gpa - region.gpa() <= region.len() - PAGE_SIZE
        });
        let Some(region) = own else { return PageStatus::Bad };
        let from = (region.host() + (gpa - region.gpa())) as *const u8;
        // SAFETY: the page lies in the region, which stays mapped as long as `self` keeps it. The two guest kernels see to
        // it that nobody writes the page meanwhile; if they fail to, the bytes are any bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE) };
        PageStatus::Done
    }

    fn prefetch(&self, _: u64) {}

    fn release(&self, _: u64) {}
}
