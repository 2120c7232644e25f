//! What this machine can do.
use super::Outcome;

/// `doctor`.
///
/// # Errors
/// none
pub fn run(_json: bool) -> Outcome {
    Ok(0)
}
