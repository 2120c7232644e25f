use super::{Fail, Outcome, UpArgs, exit};

/// `up`.
pub fn run(_args: UpArgs, _cluster: Option<&str>) -> Outcome {
    Err(Fail::new(exit::FAILED, "not yet"))
}
