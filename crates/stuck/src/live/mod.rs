//! The live half: the same episodes as a report's, found while the logs are still being written.
//!
//! ```text
//!   source ──lines──► Lines ──Read──► Live ──┬─► what ended, behind the watermark: counters
//!   source ──lines──► Lines ──Read──►        ├─► what is open, as far as it was read: gauges
//!                                            └─► what changed: rows of a database
//! ```
//!
//! A report may read everything twice; a counter that was scraped cannot be taken back. So attempts wait until
//! nothing older is to be expected: until the *watermark*, the newest attempt less the lateness, of the source
//! that is furthest behind, has passed them. What is behind the watermark is exactly what `stuck report --until
//! WATERMARK` says of the same logs.
//!
//! [`Live`] is a plain value: no clock, no file, no thread. `now` is an argument, and reading and keeping are
//! others' work.

mod core;
mod lines;
mod totals;

use std::time::Duration;

use model::stuck::{GAP_DEFAULT, LATENESS_DEFAULT, LogTime, Run};
use serde::{Deserialize, Serialize};

pub use self::core::{Change, Kept, Live};
pub use self::lines::{Bookmark, Lines};
pub use self::totals::{BUCKETS_S, OTHER_REASON, Totals};
use crate::tracker::Failure;

/// How long a source that has been read to its end may bring nothing before it counts as silent, unless told
/// otherwise.
pub const SILENCE_DEFAULT: Duration = Duration::from_secs(60);

/// Whose attempts a source tells of: they are counted apart.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// People and their programs.
    #[default]
    User,
    /// The prober.
    Probe,
}

impl Audience {
    /// All.
    pub const ALL: [Self; 2] = [Self::User, Self::Probe];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Probe => "probe",
        }
    }
}

/// The rules of one tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long an entity may be silent before its episode is over.
    pub gap: Duration,
    /// How late an attempt may come and still be put in its place.
    pub lateness: Duration,
    /// How long a source may bring nothing before it counts as silent.
    pub silence: Duration,
    /// How many attempts may wait: with more the lateness is shorter than asked for.
    pub waiting_max: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            gap: GAP_DEFAULT,
            lateness: LATENESS_DEFAULT,
            silence: SILENCE_DEFAULT,
            waiting_max: 1 << 20,
        }
    }
}

/// How a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is more to read than was read.
    Behind,
    /// It was read to its end, and brought something not long ago. The time is when it did.
    Following {
        /// When it last brought something, on the driver's clock.
        since: Duration,
    },
    /// It was read to its end and has brought nothing for long: how its entities are, nobody knows.
    Silent,
    /// It cannot be read.
    Unreachable,
    /// It was read to its end, and there will be no more.
    Ended,
}

impl Standing {
    /// All names, for metrics that show each.
    pub const NAMES: [&'static str; 5] = ["behind", "following", "silent", "unreachable", "ended"];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::Following { .. } => "following",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::Ended => "ended",
        }
    }

    /// Whether the newest of the source is all that there is to know about its entities.
    fn is_known(self) -> bool {
        matches!(self, Self::Following { .. } | Self::Ended)
    }
}

/// What is counted of a source as it is read, and must outlive the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Lines read.
    pub lines: u64,
    /// Lines that could not be read.
    pub unparsed: u64,
    /// Lines that prove nothing.
    pub neutral: u64,
    /// Attempts that came after the watermark had passed them, and count nowhere else.
    pub late: u64,
    /// The newest attempt.
    pub newest: Option<LogTime>,
}

/// One source, as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    /// Its name.
    pub name: String,
    /// Whose attempts it tells of.
    pub audience: Audience,
    /// How it stands.
    pub standing: Standing,
    /// What was counted.
    pub counts: SourceCounts,
}

/// One attempt as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// When.
    pub time: LogTime,
    /// Its line, from 1 and counted over all that was read of the source.
    pub line: u64,
    /// Whom, by hash.
    pub hash: u64,
    /// Who failed and why, if it failed.
    pub failure: Option<Failure>,
}

/// Some lines of a source, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// How many lines.
    pub lines: u64,
    /// Of these, how many could not be read.
    pub unparsed: u64,
    /// Of these, how many prove nothing.
    pub neutral: u64,
    /// The attempts, in the order of lines; numbered from the first line of these.
    pub attempts: Vec<Attempted>,
}

/// What happens to a tracker. Sources are known by their place in the list that it was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Lines came.
    Read(usize, Read),
    /// There is no more to read for now.
    CaughtUp(usize),
    /// The source cannot be read.
    Lost(usize),
    /// There will never be more.
    Ended(usize),
    /// Time has passed.
    Tick,
}

/// An entity with a run of failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// Whose attempts failed.
    pub audience: Audience,
    /// The entity.
    pub entity: Box<str>,
    /// What the last attempt gave as its reason.
    pub reason: Box<str>,
    /// The source of the last failed attempt.
    pub source: usize,
    /// The run.
    pub run: Run,
}

/// A run that is open as far as the sources were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The entity and its run.
    pub failing: Failing,
    /// Whether its source is there to tell of its end.
    pub is_known: bool,
}

impl Open {
    /// Whether it is one failure alone.
    pub fn is_blip(&self) -> bool {
        self.failing.run.failures < 2
    }

    /// Time stuck so far: until the last failure.
    pub fn stuck(&self) -> Duration {
        let run = &self.failing.run;
        run.last_failure.since(run.first_failure)
    }
}
