use std::io;
use std::path::PathBuf;

/// A machine cannot be made or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration is not one of a machine.
    #[error("{0}")]
    Config(String),
    /// `/dev/kvm` cannot be used.
    #[error(
        "/dev/kvm cannot be used: {0}; is KVM there, and may this user open it? `ssivmm doctor` says more"
    )]
    NoKvm(#[source] kvm_ioctls::Error),
    /// KVM refused.
    #[error("KVM: {what}: {source}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// Guest memory cannot be had.
    #[error("guest memory: {what}: {source}")]
    Memory {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be loaded into the guest.
    #[error("{path}: {why}", path = path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Boot data cannot be placed in guest memory.
    #[error("boot data: {0}")]
    Boot(String),
    /// A thread, an event or a device cannot be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl MachineError {
    pub(super) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
