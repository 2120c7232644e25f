use super::RngMetrics;

/// What device and worker share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub metrics: RngMetrics,
}
