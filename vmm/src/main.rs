//! A single-system-image hypervisor: one Linux guest over many machines, whose processes move while they run.

use std::process::ExitCode;

fn main() -> ExitCode {
    ssivmm::cli::main()
}
