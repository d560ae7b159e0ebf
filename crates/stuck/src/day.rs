//! Days of stamps that have the time of day alone: each is on the day that puts it nearest to the line before.

use model::stuck::LogTime;
use serde::{Deserialize, Serialize};

const DAY_NS: i64 = 86_400 * 1_000_000_000;

/// Where the days of one input stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    midnight: i64,
    last: i64,
}

impl Day {
    /// The day of the first line, which begins here, and the time of day in it.
    pub fn new(first_midnight: LogTime, of_day: i64) -> Self {
        Self {
            midnight: first_midnight.0,
            last: first_midnight.0 + of_day,
        }
    }

    /// Completes the next stamp.
    pub fn completed(&mut self, of_day: i64) -> LogTime {
        let mut time = self.midnight + of_day;
        if time < self.last - DAY_NS / 2 {
            time += DAY_NS;
        } else if time > self.last + DAY_NS / 2 {
            time -= DAY_NS;
        }
        *self = Self {
            midnight: time - of_day,
            last: time,
        };
        LogTime(time)
    }
}
