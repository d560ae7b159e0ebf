//! Chance, drawn from the seed: by what it is for and not by when it is asked, so that skipping what is quiet draws the
//! same as not skipping it.

use std::time::Duration;

/// Draws for one seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    /// A number for this purpose, always the same.
    pub(super) fn draw(self, purpose: &[u64]) -> u64 {
        let fold = |hash: u64, word: &u64| mix(hash ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        purpose.iter().fold(mix(self.0), fold)
    }

    /// Evenly between two durations.
    pub(super) fn between(self, least: Duration, most: Duration, purpose: &[u64]) -> u64 {
        let (least, most) = (nanoseconds(least), nanoseconds(most));
        least + self.draw(purpose) % (most - least).max(1)
    }

    /// The time to the next of events that come at a mean rate.
    pub(super) fn next(self, per_hour: f64, purpose: &[u64]) -> u64 {
        // Of 53 bits, never zero.
        let unit = ((self.draw(purpose) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        let hours = -unit.ln() / per_hour;
        (hours * 3.6e12).min(1e18) as u64
    }
}

/// splitmix64's finalizer.
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
