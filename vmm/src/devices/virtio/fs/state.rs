use std::sync::Arc;

use super::{FsDeviceMetrics, FsLink};

/// What device and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub link: Arc<dyn FsLink>,
    pub metrics: FsDeviceMetrics,
}
