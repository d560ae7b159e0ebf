//! Reads the lines of one source, by the plan that a report would make of its first lines.
//!
//! The plan is made once, of the first lines that come, and these are kept with the place where reading stopped:
//! after a restart, and when the file with those lines has long been rotated away, the source is read as before.

use model::stuck::LogTime;
use serde::{Deserialize, Serialize};

use super::{Attempted, Read};
use crate::{
    batch::{Batch, Parser},
    day::Day,
    plan::{Plan, PlanError},
    query::Query,
    source::Chunk,
};

/// Lines looked at to recognise a format.
const SAMPLE_LINES: usize = 400;
/// No more of them is kept than this.
const SAMPLE_BYTES_MAX: usize = 64 << 10;

/// What must be known to go on reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The lines that the plan was made of; none, as long as there is no plan.
    pub sample: Vec<String>,
    /// When the first of them were written, for completing their stamps.
    pub modified: LogTime,
    /// Where the days of stamps without a date stand.
    pub day: Option<Day>,
}

/// Reads lines of one source.
#[derive(Debug)]
pub struct Lines {
    query: Query,
    bookmark: Bookmark,
    parser: Option<Parser<Vec<Plan>>>,
    first_midnight: LogTime,
    description: String,
}

impl Lines {
    /// A reader that goes on at a bookmark.
    ///
    /// # Errors
    /// When no plan can be made for what it was reading: the options have changed.
    pub fn resume(query: Query, bookmark: Bookmark) -> Result<Self, PlanError> {
        let mut lines = Self {
            query,
            bookmark,
            parser: None,
            first_midnight: LogTime(0),
            description: String::new(),
        };
        if !lines.bookmark.sample.is_empty() {
            lines.plan()?;
        }
        Ok(lines)
    }

    fn plan(&mut self) -> Result<(), PlanError> {
        let sample: Vec<&[u8]> = self
            .bookmark
            .sample
            .iter()
            .map(|line| line.as_bytes())
            .collect();
        let plan = Plan::new(&self.query, &sample, self.bookmark.modified)?;
        self.first_midnight = plan.first_midnight;
        self.description = plan.description.clone();
        self.parser = Some(Parser::new(vec![plan], None));
        Ok(())
    }

    /// Where reading stands.
    pub fn bookmark(&self) -> &Bookmark {
        &self.bookmark
    }

    /// What was chosen, for people; empty as long as there is no plan.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Reads lines that are whole but perhaps for the line break of the last. `modified` is when they were written.
    ///
    /// # Errors
    /// When they are the first, and no plan can be made of them. Nothing was read then.
    pub fn read(&mut self, bytes: Vec<u8>, modified: LogTime) -> Result<Read, PlanError> {
        if self.parser.is_none() {
            self.take_sample(&bytes, modified);
            if !self.bookmark.sample.is_empty()
                && let Err(error) = self.plan()
            {
                self.bookmark.sample.clear();
                return Err(error);
            }
        }
        let Some(parser) = &mut self.parser else {
            // Empty lines alone.
            let lines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
            return Ok(Read {
                lines,
                unparsed: lines,
                ..Read::default()
            });
        };
        let mut chunk = Chunk {
            end: bytes.len(),
            bytes,
            ..Chunk::default()
        };
        let mut batch = Batch::default();
        parser.parse(&mut chunk, &mut batch);
        let (first_midnight, day) = (self.first_midnight, &mut self.bookmark.day);
        batch.attempts.complete(|of_day| {
            let day = day.get_or_insert_with(|| Day::new(first_midnight, of_day));
            day.completed(of_day)
        });
        let attempts = batch.attempts.iter().map(|attempt| Attempted {
            time: attempt.time,
            line: attempt.line + 1,
            hash: attempt.hash,
            failure: attempt.failure.cloned(),
        });
        Ok(Read {
            lines: batch.lines,
            unparsed: batch.unparsed,
            neutral: batch.neutral,
            attempts: attempts.collect(),
        })
    }

    fn take_sample(&mut self, bytes: &[u8], modified: LogTime) {
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.trim_ascii_end());
        let mut room = SAMPLE_BYTES_MAX;
        self.bookmark.sample = lines
            .filter(|line| !line.is_empty())
            .take(SAMPLE_LINES)
            .map_while(|line| {
                let text = String::from_utf8_lossy(line).into_owned();
                room = room.checked_sub(text.len())?;
                Some(text)
            })
            .collect();
        self.bookmark.modified = modified;
    }
}
