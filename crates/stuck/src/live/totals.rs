//! What is counted behind the watermark: nothing in it ever shrinks.

use std::collections::BTreeMap;
use std::time::Duration;

use model::stuck::{Class, Ended, Ending};
use serde::{Deserialize, Serialize};

/// Upper bounds of the histogram of time stuck, in seconds; the class edges are among them.
pub const BUCKETS_S: [u64; 11] = [1, 2, 5, 10, 30, 60, 120, 300, 900, 3_600, 14_400];

/// Reasons told apart; whatever a log may say, no more series than this come of it.
const REASONS_MAX: usize = 64;
/// What further reasons, and those that are no word, are told as.
pub const OTHER_REASON: &str = "other";

/// Totals of one audience.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Attempts that reached their entity.
    pub reached: u64,
    /// Attempts that failed, by their reason.
    pub failed: BTreeMap<String, u64>,
    /// Episodes of class A, between, B; of each those recovered and those abandoned.
    pub episodes: [[u64; 2]; 3],
    /// Blips recovered and abandoned.
    pub blips: [u64; 2],
    /// Episodes per bucket of [`BUCKETS_S`], and beyond the last.
    pub buckets: [u64; BUCKETS_S.len() + 1],
    /// The sum of their times stuck.
    pub stuck: Duration,
    /// The longest of them.
    pub longest: Duration,
}

impl Totals {
    /// Adds an attempt that failed.
    pub fn add_failed(&mut self, reason: &str) {
        let is_code = |reason: &str| {
            let is_part = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            !reason.is_empty() && reason.len() <= 32 && reason.bytes().all(is_part)
        };
        let is_told = is_code(reason)
            && (self.failed.contains_key(reason) || self.failed.len() < REASONS_MAX);
        let reason = if is_told { reason } else { OTHER_REASON };
        *self.failed.entry(reason.to_owned()).or_default() += 1;
    }

    /// Adds a run that ended. One that is open is none.
    pub fn add_ended(&mut self, ended: &Ended) {
        let ending = match ended.ending {
            Ending::Recovered(_) => 0,
            Ending::Abandoned => 1,
            Ending::Open => return,
        };
        if ended.is_blip() {
            self.blips[ending] += 1;
            return;
        }
        let stuck = ended.stuck();
        let class = match ended.class() {
            Class::A => 0,
            Class::Middle => 1,
            Class::B => 2,
        };
        self.episodes[class][ending] += 1;
        let beyond = BUCKETS_S.partition_point(|bound| Duration::from_secs(*bound) < stuck);
        self.buckets[beyond] += 1;
        self.stuck = self.stuck.saturating_add(stuck);
        self.longest = self.longest.max(stuck);
    }

    /// Episodes recovered and abandoned.
    pub fn endings(&self) -> [u64; 2] {
        let sum = |ending: usize| self.episodes.iter().map(|class| class[ending]).sum();
        [sum(0), sum(1)]
    }

    /// Attempts that failed.
    pub fn failed_attempts(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Sessions that got through at once, that got through after one failure or more, and that never did. What a
    /// session is, is said where a report says it: a run of failures with the success that ended it, or any other
    /// success. One whose run is still open has not ended.
    pub fn sessions(&self) -> [u64; 3] {
        let endings = self.endings();
        let delayed = endings[0] + self.blips[0];
        let failed = endings[1] + self.blips[1];
        [self.reached - delayed, delayed, failed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_become_labels_and_not_too_many() {
        let mut totals = Totals::default();
        for reason in ["owner_gone", "", "Repl ann is gone", "owner_gone"] {
            totals.add_failed(reason);
        }
        assert_eq!(totals.failed["owner_gone"], 2);
        assert_eq!(totals.failed[OTHER_REASON], 2);
        for index in 0..1_000_u32 {
            let word: String = index
                .to_string()
                .bytes()
                .map(|digit| char::from(digit - b'0' + b'a'))
                .collect();
            totals.add_failed(&word);
        }
        assert_eq!(totals.failed.len(), REASONS_MAX);
        assert_eq!(totals.failed_attempts(), 1_004);
    }
}
