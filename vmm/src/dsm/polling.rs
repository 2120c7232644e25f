//! When a slice's thread polls its connection rather than sleep: a thread that sleeps costs a wake-up, which takes longer than
//! the message it waits for. Without a clock; times are arguments.
//!
//! Only messages are polled for. Who faults has given its processor up, so the thread that serves the fault is woken where there
//! is room.

/// The longest time that a thread polls for one message, in microseconds, unless told otherwise: a few round trips of a page
/// within a machine or a rack.
pub const BUSY_POLL_US: u64 = 200;
/// The first window after polling has been given up, in microseconds.
const FIRST_US: u64 = 25;

/// How long to poll for the next message of one kind. It grows while messages come within the longest time, and is nothing after
/// one that did not, as KVM's `halt_poll_ns` does (Documentation/virt/kvm/halt-polling.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    now_us: u64,
    max_us: u64,
}

impl Window {
    /// Never longer than `max_us` microseconds; 0: never polls.
    pub fn new(max_us: u64) -> Self {
        Self { now_us: max_us.min(FIRST_US), max_us }
    }

    /// For so long, in microseconds.
    pub fn us(&self) -> u64 {
        self.now_us
    }

    /// The message came after `us` microseconds, polled for or not.
    pub fn came_after(&mut self, us: u64) {
        self.now_us = match us {
            us if us > self.max_us => 0,
            us if us > self.now_us => (self.now_us * 2).max(FIRST_US).max(us).min(self.max_us),
            _ => self.now_us,
        };
    }
}

/// What the next message will be, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The answer to a request that is under way.
    Answer,
    /// A peer was served, and may ask again.
    Request,
}

/// The windows of a thread, and since when it waits.
#[derive(Debug, Clone, Copy)]
pub struct BusyPoll {
    answer: Window,
    request: Window,
    waits: Option<(Next, u64)>,
}

impl BusyPoll {
    /// See [`Window::new`].
    pub fn new(max_us: u64) -> Self {
        Self { answer: Window::new(max_us), request: Window::new(max_us), waits: None }
    }

    /// What was there has been handled; `next` is waited for, if anything. Returns until when to poll.
    pub fn wait(&mut self, next: Option<Next>, now_us: u64) -> Option<u64> {
        let next = next?;
        let since = match self.waits {
            Some((same, since)) if same == next => since,
            _ => now_us,
        };
        self.waits = Some((next, since));
        Some(since + self.window(next).us()).filter(|end| *end > now_us)
    }

    /// A message is there.
    pub fn came(&mut self, now_us: u64) {
        if let Some((next, since)) = self.waits.take() {
            let mut window = self.window(next);
            window.came_after(now_us.saturating_sub(since));
            match next {
                Next::Answer => self.answer = window,
                Next::Request => self.request = window,
            }
        }
    }

    fn window(&self, next: Next) -> Window {
        match next {
            Next::Answer => self.answer,
            Next::Request => self.request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_while_messages_come_in_time_and_closes_after_one_that_does_not() {
        let mut window = Window::new(200);
        assert_eq!(window.us(), FIRST_US);
        let mut after = |us| {
            window.came_after(us);
            window.us()
        };
        assert_eq!([after(10), after(30), after(120), after(190)], [25, 50, 120, 200]);
        assert_eq!(after(201), 0, "polling did not pay");
        assert_eq!([after(5), after(3000), after(199)], [25, 0, 199]);
    }

    #[test]
    fn a_window_of_nothing_stays_nothing() {
        let mut window = Window::new(0);
        for us in [0, 1, 100] {
            window.came_after(us);
            assert_eq!(window.us(), 0);
        }
    }

    #[test]
    fn each_kind_of_message_has_its_own_window() {
        let mut poll = BusyPoll::new(200);
        assert_eq!(poll.wait(None, 0), None);
        assert_eq!(poll.wait(Some(Next::Answer), 1000), Some(1025));
        assert_eq!(poll.wait(Some(Next::Answer), 1010), Some(1025), "it has waited since 1000");
        assert_eq!(poll.wait(Some(Next::Answer), 1030), None, "long enough");
        poll.came(1100);
        assert_eq!(poll.wait(Some(Next::Answer), 1100), Some(1200));
        poll.came(5000);
        assert_eq!(poll.wait(Some(Next::Answer), 5000), None);
        assert_eq!(poll.wait(Some(Next::Request), 5000), Some(5025));
    }
}
