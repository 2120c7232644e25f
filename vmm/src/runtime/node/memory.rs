//! Guest RAM of a node: private low RAM, the own slice and windows onto the others', which the DSM keeps coherent.

use std::ops::Range;
use std::sync::Arc;

use ssi_dsm::NodeId;
use ssi_dsm::protocol::{Config, SliceMap};
use ssi_proto::device::{PAGE_SIZE, PageStatus, SLICE0_BASE};

use super::fetch::PageSource;
use crate::dsm::{Dsm, HOLD_MAX_US, PREFETCH_PAGES, TWIN_PAGES, measured_hold_us};
use crate::launch::ClusterSpec;
use crate::launch::spec::LOW_RAM_BYTES;
use crate::machine::RamRegion;

const PAGE: usize = PAGE_SIZE as usize;

/// Guest RAM.
#[derive(Debug)]
pub struct Memory {
    low: RamRegion,
    dsm: Arc<Dsm>,
}

impl Memory {
    /// The memory of node `node`.
    ///
    /// # Errors
    /// If it cannot be mapped, or userfaultfd does not serve it.
    pub fn new(spec: &ClusterSpec, node: u32) -> anyhow::Result<Arc<Self>> {
        let slices = SliceMap {
            base: SLICE0_BASE,
            stride: spec.slice_stride(),
            size: spec.slice_bytes(),
            nodes: u16::try_from(spec.nodes)?,
        };
        let hold_us = measured_hold_us()?;
        log::info!("a page that was granted is held for {hold_us} us");
        let dsm = Dsm::new(Config {
            hold_us,
            hold_max_us: HOLD_MAX_US,
            prefetch_pages: PREFETCH_PAGES,
            window_pages: spec.window_pages(),
            twin_pages: TWIN_PAGES,
            ..Config::new(NodeId(u16::try_from(node)?), slices)
        })?;
        Ok(Arc::new(Self { low: RamRegion::low(LOW_RAM_BYTES)?, dsm }))
    }

    /// The DSM.
    pub fn dsm(&self) -> &Arc<Dsm> {
        &self.dsm
    }

    /// For the machine.
    pub fn regions(&self) -> Vec<RamRegion> {
        std::iter::once(self.low.clone()).chain(self.dsm.ram_regions()).collect()
    }

    /// Host addresses.
    pub fn host_ranges(&self) -> Vec<Range<u64>> {
        self.regions().iter().map(|region| region.host()..region.host() + region.len()).collect()
    }
}

impl PageSource for Memory {
    fn read(&self, gpa: u64, page: &mut [u8; PAGE]) -> PageStatus {
        if !gpa.is_multiple_of(PAGE_SIZE) {
            return PageStatus::Bad;
        }
        if gpa < self.low.len() {
            let from = (self.low.host() + gpa) as *const u8;
            // SAFETY: the page lies in the low RAM, whose length is whole pages, and which stays mapped as long as `self`
            // keeps it. The two guest kernels see to it that nobody writes the page meanwhile; if they fail to, the bytes
            // are any bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE) };
            return PageStatus::Done;
        }
        let slices = &self.dsm.config().slices;
        let own = slices.base + u64::from(self.dsm.config().me.0) * slices.stride;
        if gpa < own || gpa - own >= slices.size {
            return PageStatus::Bad;
        }
        match self.dsm.read_page_wait(gpa) {
            Ok(bytes) => {
                page.copy_from_slice(&bytes[..]);
                PageStatus::Done
            }
            Err(_) => PageStatus::Failed,
        }
    }

    fn prefetch(&self, gpa: u64) {
        self.dsm.prefetch(gpa);
    }

    fn release(&self, gpa: u64) {
        self.dsm.release(gpa);
    }

    fn lost_runs(&self, gpa: u64, most: usize) -> Vec<Range<u64>> {
        self.dsm.lost_runs(gpa, most)
    }

    fn bury(&self, gpa: u64) {
        self.dsm.bury(gpa);
    }
}
