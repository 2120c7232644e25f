//! A single-system-image hypervisor: one Linux guest over many machines, whose processes move while they run.

fn main() {}
