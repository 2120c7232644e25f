//! A single-system-image hypervisor: one Linux guest over many machines, whose processes move while they run.

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("lab-init") => ssivmm::lab::init::pid1(),
        Some("lab-run") => ssivmm::lab::init::run(|_| anyhow::bail!("no launcher yet")),
        _ => Ok(()),
    }
}
