//! A guest must not fill the host's log: lines that it can cause pass through a [`RateLimit`].

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// Lets `burst` lines through, then one for each `every`; counts what it holds back.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: u32,
    refilled: Option<Instant>,
    held_back: u64,
}

impl RateLimit {
    /// A limit of `burst` lines at once and one line each `every` in the long run.
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, state: Mutex::new(State { tokens: burst, refilled: None, held_back: 0 }) }
    }

    /// The limit that device logs use: ten lines, then one in ten seconds.
    pub const fn guest_log() -> Self {
        Self::new(10, Duration::from_secs(10))
    }

    /// May a line be written at `now`? If so, how many were held back since the last one.
    pub fn check(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let since = *state.refilled.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_millis() / self.every.as_millis().max(1);
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            state.tokens = state.tokens.saturating_add(earned).min(self.burst);
            state.refilled = Some(now);
        }
        if state.tokens == 0 {
            state.held_back += 1;
            return None;
        }
        state.tokens -= 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

/// `log::warn!` through a [`RateLimit`] of its own: for what a guest can cause.
#[macro_export]
macro_rules! guest_warn {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::devices::ratelimit::RateLimit = $crate::devices::ratelimit::RateLimit::guest_log();
        match LIMIT.check(::std::time::Instant::now()) {
            Some(0) => ::log::warn!($($arg)*),
            Some(held_back) => ::log::warn!("{} ({held_back} such lines held back)", format_args!($($arg)*)),
            None => {}
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_line_per_period() {
        let limit = RateLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(limit.check(start), Some(0));
        assert_eq!(limit.check(start), Some(0));
        assert_eq!(limit.check(start), None);
        assert_eq!(limit.check(start + Duration::from_millis(900)), None);
        assert_eq!(limit.check(start + Duration::from_secs(1)), Some(2));
        assert_eq!(limit.check(start + Duration::from_secs(1)), None);
    }
}
