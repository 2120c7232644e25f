//! What the guest tools share.
