//! Stuck episodes: when one entity cannot be reached, from the first failed attempt to the end.
//!
//! ```text
//!              Failed                     Failed within the gap
//!   Calm ────────────────► Failing ─────────────────┐
//!    ▲                      │  ▲  ▲                 │
//!    │  Reached             │  │  └─────────────────┘
//!    ├──────────────────────┤  │
//!    │  within the gap:     │  │ Failed after the gap: Abandoned, and a new run opens
//!    │  Recovered           │  └──────────
//!    │                      │
//!    │  Reached or newest   │
//!    └──────────────────────┘
//!       after the gap: Abandoned
//! ```
//!
//! The happy path is to stay in `Calm` for ever. An attempt that fails opens a run; the next attempt
//! that reaches the container closes it, and the time stuck is what lies between. A run that nobody
//! tries to end is abandoned once more than the gap has passed since its last failure, and counts
//! until that failure. A run of one failure is a *blip*, which no bucket and no percentile counts.
//!
//! One [`Tracker`] is one entity. It must be fed in the order of time, ties in the order of input:
//! putting events in that order is the caller's work, as is knowing how far the log has come.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an entity may be silent after a failure before its episode is over, unless told otherwise.
pub const GAP_DEFAULT: Duration = Duration::from_secs(600);

/// How late an event may come and still be put in its place, unless told otherwise.
pub const LATENESS_DEFAULT: Duration = Duration::from_secs(30);

/// Time stuck below this is class A.
pub const CLASS_A_BELOW: Duration = Duration::from_secs(120);

/// Time stuck from here on is class B.
pub const CLASS_B_FROM: Duration = Duration::from_secs(3_600);

/// Upper bounds of the buckets of a report, in seconds.
pub const BUCKETS_DEFAULT_S: [u64; 16] = [
    10, 15, 20, 25, 30, 40, 60, 90, 120, 180, 240, 360, 600, 1_200, 3_600, 10_000,
];

/// A point in a log: nanoseconds since 1970-01-01T00:00:00Z, as its lines say. No rule that keeps the
/// invariant uses it; it is what people wrote down, and only its differences matter here.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LogTime(pub i64);

impl LogTime {
    /// How long after `earlier` this point is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        let nanoseconds = i128::from(self.0) - i128::from(earlier.0);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
    }

    /// This point moved `by` into the past; stops at the start of the range.
    pub fn minus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)),
        )
    }
}

/// What an attempt proved. Neutral attempts (the client went away, health checks) prove nothing and
/// are never shown to a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The container was reached: `ok`, or `user_fail` when it refused by itself.
    Reached,
    /// It was not, and the platform is to blame: `platform_fail`.
    Failed,
}

/// A run of failed attempts on one entity with no success between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// When the first attempt failed.
    pub first_failure: LogTime,
    /// When the last one so far failed.
    pub last_failure: LogTime,
    /// How many failed.
    pub failures: u64,
}

/// How a run stands, or stood when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// An attempt within the gap reached the container, at this time.
    Recovered(LogTime),
    /// Nobody tried again within the gap.
    Abandoned,
    /// The log ends within the gap of the last failure, so nobody can say yet.
    Open,
}

/// The classes of the field: the short and frequent, the hours-long and rare, and what is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Stuck for less than [`CLASS_A_BELOW`].
    A,
    /// Neither A nor B.
    #[serde(rename = "middle")]
    Middle,
    /// Stuck for [`CLASS_B_FROM`] or longer.
    B,
}

impl Class {
    /// The class of a time stuck.
    pub fn of(stuck: Duration) -> Self {
        if stuck < CLASS_A_BELOW {
            Self::A
        } else if stuck < CLASS_B_FROM {
            Self::Middle
        } else {
            Self::B
        }
    }
}

/// A run together with how it ended: an episode, or a blip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// The run.
    pub run: Run,
    /// How it ended.
    pub ending: Ending,
}

impl Ended {
    /// Whether this is one failure alone, which is counted apart.
    pub fn is_blip(&self) -> bool {
        self.run.failures < 2
    }

    /// Time stuck: until the recovery, or else until the last failure.
    pub fn stuck(&self) -> Duration {
        let until = match self.ending {
            Ending::Recovered(at) => at,
            Ending::Abandoned | Ending::Open => self.run.last_failure,
        };
        until.since(self.run.first_failure)
    }

    /// The class of the time stuck.
    pub fn class(&self) -> Class {
        Class::of(self.stuck())
    }
}

/// The automaton of one entity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracker {
    /// The last that is known is that it was reached, or nothing is.
    #[default]
    Calm,
    /// Attempts fail.
    Failing(Run),
}

/// What happened in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An attempt on this entity at this time.
    Attempt(LogTime, Proof),
    /// The whole log has come as far as this, and nothing older can come.
    Newest(LogTime),
}

impl Tracker {
    /// Takes one event and gives the next state, and the run that it ended if it did. Events must not
    /// go back in time; one that does is taken as if it came at the time of the last failure.
    #[must_use]
    pub fn step(self, event: Event, gap: Duration) -> (Self, Option<Ended>) {
        let Self::Failing(run) = self else {
            return match event {
                Event::Attempt(at, Proof::Failed) => (Self::opened(at), None),
                Event::Attempt(_, Proof::Reached) | Event::Newest(_) => (Self::Calm, None),
            };
        };
        let (Event::Attempt(at, _) | Event::Newest(at)) = event;
        let is_over = at.since(run.last_failure) > gap;
        let abandoned = Some(Ended {
            run,
            ending: Ending::Abandoned,
        });
        match event {
            Event::Attempt(_, Proof::Failed) if is_over => (Self::opened(at), abandoned),
            Event::Attempt(_, Proof::Failed) => {
                let last_failure = at.max(run.last_failure);
                (
                    Self::Failing(Run {
                        last_failure,
                        failures: run.failures + 1,
                        ..run
                    }),
                    None,
                )
            }
            Event::Attempt(_, Proof::Reached) | Event::Newest(_) if is_over => {
                (Self::Calm, abandoned)
            }
            Event::Attempt(_, Proof::Reached) => {
                let at = at.max(run.last_failure);
                (
                    Self::Calm,
                    Some(Ended {
                        run,
                        ending: Ending::Recovered(at),
                    }),
                )
            }
            Event::Newest(_) => (self, None),
        }
    }

    /// How the entity stands when nothing newer than `newest` is known: what has not ended yet is open
    /// or, when the gap has passed, abandoned.
    pub fn at_end(self, newest: LogTime, gap: Duration) -> Option<Ended> {
        match self.step(Event::Newest(newest), gap) {
            (_, Some(ended)) => Some(ended),
            (Self::Failing(run), None) => Some(Ended {
                run,
                ending: Ending::Open,
            }),
            (Self::Calm, None) => None,
        }
    }

    fn opened(at: LogTime) -> Self {
        Self::Failing(Run {
            first_failure: at,
            last_failure: at,
            failures: 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GAP: Duration = Duration::from_secs(600);
    const SECOND: i64 = 1_000_000_000;

    fn at(seconds: i64) -> LogTime {
        LogTime(seconds * SECOND)
    }

    /// Plays `F` and `R` at their seconds and gives everything that ended, with what is left at `newest`.
    fn play(events: &[(i64, char)], newest: i64) -> Vec<(i64, i64, u64, &'static str, u64)> {
        let mut tracker = Tracker::Calm;
        let mut ended = Vec::new();
        for &(second, letter) in events {
            let proof = if letter == 'F' {
                Proof::Failed
            } else {
                Proof::Reached
            };
            let (next, end) = tracker.step(Event::Attempt(at(second), proof), GAP);
            tracker = next;
            ended.extend(end);
        }
        ended.extend(tracker.at_end(at(newest), GAP));
        ended
            .into_iter()
            .map(|end| {
                let name = match end.ending {
                    Ending::Recovered(_) => "recovered",
                    Ending::Abandoned => "abandoned",
                    Ending::Open => "open",
                };
                let run = end.run;
                let seconds = |time: LogTime| time.0 / SECOND;
                let stuck = end.stuck().as_secs();
                (
                    seconds(run.first_failure),
                    seconds(run.last_failure),
                    run.failures,
                    name,
                    stuck,
                )
            })
            .collect()
    }

    #[test]
    fn recovers_at_the_first_success() {
        let ended = play(&[(0, 'R'), (10, 'F'), (15, 'F'), (31, 'R'), (40, 'R')], 40);
        assert_eq!(ended, [(10, 15, 2, "recovered", 21)]);
    }

    #[test]
    fn the_gap_itself_still_continues_and_one_beyond_it_does_not() {
        assert_eq!(
            play(&[(0, 'F'), (600, 'F'), (1200, 'R')], 1200),
            [(0, 600, 2, "recovered", 1200)]
        );
        assert_eq!(
            play(&[(0, 'F'), (601, 'F'), (1202, 'R')], 1202),
            [(0, 0, 1, "abandoned", 0), (601, 601, 1, "abandoned", 0)]
        );
    }

    #[test]
    fn what_is_left_at_the_end_is_open_within_the_gap_only() {
        assert_eq!(play(&[(0, 'F'), (5, 'F')], 605), [(0, 5, 2, "open", 5)]);
        assert_eq!(
            play(&[(0, 'F'), (5, 'F')], 606),
            [(0, 5, 2, "abandoned", 5)]
        );
    }

    #[test]
    fn ties_go_by_the_order_of_input() {
        assert_eq!(
            play(&[(5, 'F'), (5, 'R'), (5, 'F')], 5),
            [(5, 5, 1, "recovered", 0), (5, 5, 1, "open", 0)]
        );
    }

    #[test]
    fn class_edges() {
        let class = |seconds| Class::of(Duration::from_secs(seconds));
        assert_eq!([class(0), class(119)], [Class::A; 2]);
        assert_eq!([class(120), class(3_599)], [Class::Middle; 2]);
        assert_eq!(class(3_600), Class::B);
        let just_below = CLASS_A_BELOW - Duration::from_nanos(1);
        assert_eq!(Class::of(just_below), Class::A);
    }

    proptest! {
        /// Every failure is in exactly one run, runs do not overlap, and no run has a hole above the gap.
        #[test]
        fn runs_hold_every_failure_once(steps in prop::collection::vec((0_i64..900, any::<bool>()), 0..60)) {
            let mut second = 0;
            let events: Vec<(i64, char)> = steps.iter().map(|&(delta, failed)| {
                second += delta;
                (second, if failed { 'F' } else { 'R' })
            }).collect();
            let ended = play(&events, second);
            let failures = events.iter().filter(|event| event.1 == 'F').count() as u64;
            prop_assert_eq!(ended.iter().map(|end| end.2).sum::<u64>(), failures);
            for pair in ended.windows(2) {
                prop_assert!(pair[0].0 + pair[0].4 as i64 <= pair[1].0);
            }
            for (first, last, count, _, _) in ended {
                let inside: Vec<i64> = events.iter()
                    .filter(|event| event.1 == 'F' && event.0 >= first && event.0 <= last)
                    .map(|event| event.0).collect();
                prop_assert!(inside.len() as u64 >= count);
                prop_assert!(inside.windows(2).all(|pair| pair[1] - pair[0] <= 600));
            }
        }

        /// A newest mark that has not passed the gap changes nothing, wherever it falls.
        #[test]
        fn a_mark_within_the_gap_changes_nothing(
            first in 0_i64..1_000, mark in 0_i64..=600, failed in any::<bool>(), then in 0_i64..2_000,
        ) {
            let proof = if failed { Proof::Failed } else { Proof::Reached };
            let (failing, _) = Tracker::Calm.step(Event::Attempt(at(first), Proof::Failed), GAP);
            let (marked, ended) = failing.step(Event::Newest(at(first + mark)), GAP);
            prop_assert_eq!(ended, None);
            let next = Event::Attempt(at(first + mark + then), proof);
            prop_assert_eq!(marked.step(next, GAP), failing.step(next, GAP));
        }
    }
}
