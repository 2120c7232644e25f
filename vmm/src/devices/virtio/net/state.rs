use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{FrameInput, FrameLink, NetMetrics};

/// What device and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub link: Arc<dyn FrameLink>,
    pub input: FrameInput,
    /// Readable when the link may have room again.
    pub room: Arc<EventFd>,
    pub metrics: Arc<NetMetrics>,
}
