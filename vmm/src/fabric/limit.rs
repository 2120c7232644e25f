//! Logs that a stranger can cause are rate limited.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a few events through per period and counts the rest.
#[derive(Debug)]
pub struct RateLimit {
    most: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    passed: u32,
    held: u64,
}

impl RateLimit {
    /// At most `most` events per `period`.
    pub fn new(most: u32, period: Duration) -> Self {
        Self { most, period, state: Mutex::new(State { since: None, passed: 0, held: 0 }) }
    }

    /// May an event at `now` be logged? `Some(n)`: yes, and `n` were held back since the last that was.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.duration_since(since) >= self.period) {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed >= self.most {
            state.held += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_a_few_times_a_period_and_the_rest_is_counted() {
        let limit = RateLimit::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let passed = (0..100).filter(|_| limit.pass(start).is_some()).count();
        assert_eq!(passed, 2);
        assert_eq!(limit.pass(start + Duration::from_secs(10)), Some(98));
    }
}
