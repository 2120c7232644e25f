//! Tests of the file service: hostile and ordinary messages by hand, and the kernel's own FUSE client on two mounts.

mod messages;
mod mounts;

use std::path::Path;
use std::time::Duration;

use super::{FsServer, Options};
use crate::worker::Exit;

/// A server on `root` with leases short enough to wait for.
pub(super) fn server(root: &Path) -> FsServer {
    let lease = Duration::from_millis(200);
    FsServer::new(root, Options { lease, ..Options::default() }, &Exit::new().unwrap()).unwrap()
}
