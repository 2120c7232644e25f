use std::fs;
use std::path::Path;

use super::Outcome;

/// `man`: writes `ssivmm.1` and a page for each command into `dir`.
pub fn run(command: clap::Command, dir: &Path) -> Outcome {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)?;
    Ok(0)
}
