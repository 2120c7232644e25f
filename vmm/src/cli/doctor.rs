use super::{Outcome, exit};

/// `doctor`.
pub fn run(json: bool) -> Outcome {
    Ok(if crate::doctor::command(json)? == 0 { 0 } else { exit::MACHINE })
}
