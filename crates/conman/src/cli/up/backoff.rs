//! When a process that has ended is started again: at once, unless it keeps ending.

use std::time::Duration;

/// A process that lived this long has not failed at its start.
const STEADY: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);

/// How often in a row a process has ended soon after its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    short_lives: u32,
}

impl Backoff {
    /// The process has ended after `lived`: how long until it is started again.
    pub(super) fn ended(&mut self, lived: Duration) -> Duration {
        if lived >= STEADY {
            self.short_lives = 0;
            return Duration::ZERO;
        }
        let delay = match self.short_lives {
            // One crash may happen to anybody, and a host's containers have a deadline.
            0 => Duration::ZERO,
            lives => (FIRST * 2_u32.saturating_pow(lives - 1)).min(LAST),
        };
        self.short_lives = self.short_lives.saturating_add(1).min(16);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_and_then_ever_later_until_it_lives() {
        let mut backoff = Backoff::default();
        let soon = Duration::from_millis(3);
        let delays: Vec<_> = (0..9).map(|_| backoff.ended(soon).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.ended(STEADY), Duration::ZERO);
        assert_eq!(backoff.ended(soon), Duration::ZERO);
        assert_eq!(backoff.ended(soon), FIRST);
    }
}
