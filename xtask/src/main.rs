//! The developer's commands: cargo xtask test, build, fmt.

fn main() {}
