//! Words that core and back end share.

use std::fmt;

/// A node of the cluster, 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

/// A page of the cluster-wide guest: guest-physical address / 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub u64);

/// What an access needs, and what a copy allows. `Write` includes `Read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// To read.
    Read,
    /// To read and to write.
    Write,
}

impl PageNo {
    /// The page that holds a guest-physical address.
    pub fn of_gpa(gpa: u64) -> Self {
        Self(gpa >> 12)
    }

    /// Guest-physical address of its first byte.
    pub fn gpa(self) -> u64 {
        self.0 << 12
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.gpa())
    }
}
