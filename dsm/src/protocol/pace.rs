//! How long a page that was granted stays (Mirage's window), adapted per page.

use super::Config;

/// What one node remembers of its luck with one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Pace {
    /// The present hold, in microseconds; 0 before the first grant.
    hold_us: u64,
    /// When the page was taken away; 0 if it never was, or nobody wants to know.
    lost_at: u64,
    /// How often that was, up to [`OFTEN`].
    losses: u8,
}

/// A page that was taken away so often is likely to be taken away again.
const OFTEN: u8 = 2;

impl Pace {
    /// An access waits for the page. One that was wanted again within its hold after it was taken away plays ping-pong: its
    /// hold doubles, up to the bound. One that was not missed for eight holds is calm: its hold halves, down to the least.
    pub(super) fn missed(&mut self, config: &Config, now: u64) {
        let (least, most) = (config.hold_us, config.hold_max_us.max(config.hold_us));
        let hold = self.hold_us.max(least);
        self.hold_us = hold;
        if self.lost_at != 0 {
            let missed_for = now.saturating_sub(self.lost_at);
            if missed_for <= hold {
                self.hold_us = (hold * 2).min(most);
            } else if missed_for > hold * 8 {
                self.hold_us = (hold / 2).max(least);
            }
            self.lost_at = 0;
        }
    }

    /// The page was granted to an access: until when does it stay?
    pub(super) fn granted(&self, config: &Config, now: u64) -> u64 {
        now + self.hold_us.max(config.hold_us)
    }

    /// The page was taken away.
    pub(super) fn lost(&mut self, config: &Config, now: u64) {
        if config.hold_max_us > config.hold_us {
            self.lost_at = now.max(1);
        }
        if config.twin_pages > 0 {
            self.losses = (self.losses + 1).min(OFTEN);
        }
    }

    /// Was the page ever taken away, as far as anybody wants to know?
    pub(super) fn was_lost(&self) -> bool {
        self.losses > 0
    }

    /// Is the page taken away again and again?
    pub(super) fn is_contended(&self) -> bool {
        self.losses == OFTEN
    }
}
