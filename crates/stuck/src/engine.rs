//! The part of a report that sees everything once and in the order of input.
//!
//! ```text
//!   batches ──► Engine ──┬─► counts, distinct entities, who ever failed
//!                        ├─► Order ──► Entries ──► Summary          while the log keeps its order
//!                        └─► Sorter, spilled                        for what can be read only once
//! ```
//!
//! If the log does not keep its order, what the entries found is thrown away. Files are then read a second
//! time, for the attempts of those alone who ever failed; of standard input everything was spilled. Both
//! go through the sorter into new entries, so that the answer is the same as if the log had been sorted.

use std::{io, sync::Arc, time::Duration};

use model::stuck::LogTime;

use crate::{
    batch::{Attempt, Batch, EverFailed, SHOWN_MAX, Unparsed},
    day::Day,
    entities::Entities,
    order::{Next, Order},
    plan::Plan,
    query::Query,
    sorter::{Item, Sorter},
    summary::Summary,
    tracker::{ByHash, Entries, EpisodeSink, Failure},
};

/// Reasons told apart in the sorter; further ones are told as one.
const REASONS_MAX: usize = 1 << 16;
/// Attempts sorted in memory at a time: 16 MiB.
const SORTED_MAX: usize = 1 << 19;

/// Counts of one input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputCounts {
    /// All lines.
    pub lines: u64,
    /// Lines that could not be read.
    pub unparsed: u64,
}

/// Everything that is counted as it comes, whatever the order.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// All lines.
    pub lines: u64,
    /// Lines that could not be read.
    pub unparsed: u64,
    /// Of these, attempts that lack a time or an entity.
    pub incomplete: u64,
    /// Lines that prove nothing.
    pub neutral: u64,
    /// Of these, lines whose outcome is a word that is not known.
    pub unknown: u64,
    /// Attempts before `--since` and from `--until` on.
    pub excluded: [u64; 2],
    /// Attempts.
    pub attempts: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// The oldest attempt.
    pub first: Option<LogTime>,
    /// The newest.
    pub last: Option<LogTime>,
    /// Attempts older than one that came before them.
    pub late: u64,
    /// By how much at most.
    pub latest_by: Duration,
    /// The first lines that could not be read, with their input.
    pub shown: Vec<(usize, Unparsed)>,
    /// Per input.
    pub inputs: Vec<InputCounts>,
}

/// Sorts attempts whose order the input does not keep.
#[derive(Debug)]
struct Unordered {
    sorter: Sorter,
    entities: ByHash<Box<str>>,
    reasons: Vec<Box<str>>,
    reason_numbers: std::collections::HashMap<Box<str>, u64>,
}

impl Unordered {
    fn new(spill_bytes_max: u64) -> Self {
        Self {
            sorter: Sorter::new(SORTED_MAX, spill_bytes_max),
            entities: ByHash::default(),
            reasons: Vec::new(),
            reason_numbers: std::collections::HashMap::new(),
        }
    }

    fn push(&mut self, attempt: Attempt<&Failure>, place: u64) -> io::Result<()> {
        let tag = match attempt.failure {
            Some(failure) => {
                self.entities
                    .entry(attempt.hash)
                    .or_insert_with(|| failure.entity.clone());
                self.number_of(&failure.reason)
            }
            None => 0,
        };
        self.sorter.push(Item {
            time: attempt.time.0,
            place,
            hash: attempt.hash,
            tag,
        })
    }

    fn number_of(&mut self, reason: &str) -> u64 {
        if let Some(number) = self.reason_numbers.get(reason) {
            return *number;
        }
        if self.reasons.len() >= REASONS_MAX {
            return REASONS_MAX as u64 + 1;
        }
        self.reasons.push(reason.into());
        let number = self.reasons.len() as u64;
        self.reason_numbers.insert(reason.into(), number);
        number
    }

    fn into_entries(self, entries: &mut Entries, sink: &mut dyn EpisodeSink) -> io::Result<()> {
        let Self {
            sorter,
            entities,
            reasons,
            ..
        } = self;
        sorter.drain(|item| {
            let time = LogTime(item.time);
            let Some(index) = item.tag.checked_sub(1) else {
                return entries.reached(time, item.hash, sink);
            };
            let entity = entities.get(&item.hash).cloned().unwrap_or_default();
            let reason = reasons.get(index as usize).cloned();
            let reason = reason.unwrap_or_else(|| "one of very many".into());
            entries.failed(
                time,
                item.place,
                item.hash,
                Failure { entity, reason },
                sink,
            )
        })
    }
}

/// What becomes of the attempts.
#[derive(Debug)]
enum Stage {
    /// They go to the entries as they come.
    Streaming { order: Order, entries: Box<Entries> },
    /// They came out of order: only counts go on.
    Surveying,
    /// A second pass: they are sorted, and nothing is counted again.
    Sorting(Box<Unordered>),
}

/// Takes the batches in order.
pub struct Engine<'a> {
    query: &'a Query,
    plans: &'a [Plan],
    sink: &'a mut (dyn EpisodeSink + Send),
    /// What has been counted.
    pub counts: Counts,
    /// Who was seen.
    pub entities: Entities,
    ever_failed: EverFailed,
    days: Vec<Option<Day>>,
    stage: Stage,
    spill: Option<Box<Unordered>>,
    lines_before: Vec<u64>,
}

/// How a first pass ended.
pub enum FirstPass {
    /// The log kept its order: the answer.
    Answered(Box<Summary>),
    /// It did not, and everything was spilled: the answer, after sorting.
    Sorted(Box<Summary>),
    /// It did not: the files must be read again, for those who are in the set.
    ReadAgain(Arc<EverFailed>),
    /// It did not, it can be read only once, and it is more than may be spilled.
    TooMuch,
}

impl<'a> Engine<'a> {
    /// An engine for the first pass. `is_replayable` says whether there can be a second.
    pub fn new(
        query: &'a Query,
        plans: &'a [Plan],
        is_replayable: bool,
        sink: &'a mut (dyn EpisodeSink + Send),
    ) -> Self {
        let summary = Summary::new(&query.buckets, query.worst);
        let entries = Box::new(Entries::new(query.gap, summary));
        let counts = Counts {
            inputs: vec![InputCounts::default(); plans.len()],
            ..Counts::default()
        };
        Self {
            query,
            plans,
            sink,
            counts,
            entities: Entities::default(),
            ever_failed: EverFailed::default(),
            days: vec![None; plans.len()],
            stage: Stage::Streaming {
                order: Order::new(query.lateness),
                entries,
            },
            spill: (!is_replayable).then(|| Box::new(Unordered::new(query.spill_bytes_max))),
            lines_before: vec![0; plans.len()],
        }
    }

    /// An engine for the second pass.
    pub fn again(
        query: &'a Query,
        plans: &'a [Plan],
        sink: &'a mut (dyn EpisodeSink + Send),
    ) -> Self {
        let mut engine = Self::new(query, plans, true, sink);
        engine.stage = Stage::Sorting(Box::new(Unordered::new(u64::MAX)));
        engine
    }

    /// Takes the next batch; batches that are no longer needed are put to `spare`.
    ///
    /// # Errors
    /// When the sink or the spill fails.
    pub fn take(&mut self, mut batch: Batch, spare: &mut Vec<Batch>) -> io::Result<()> {
        self.count_lines(&mut batch);
        let input = batch.input;
        let mut attempts = std::mem::take(&mut batch.attempts);
        attempts.complete(|of_day| self.completed(input, of_day));
        if self.query.since.is_some() || self.query.until.is_some() {
            attempts.take_out(|time, _| self.is_excluded(time), drop);
        }
        batch.attempts = attempts;
        let sorted = match &mut self.stage {
            Stage::Sorting(unordered) => Some(unordered),
            Stage::Streaming { .. } | Stage::Surveying => {
                self.survey(&batch);
                self.spill.as_mut()
            }
        };
        if let Some(sorted) = sorted {
            for attempt in batch.attempts.iter() {
                sorted.push(attempt, batch.place(attempt.line))?;
            }
        }
        let Stage::Streaming { order, entries } = &mut self.stage else {
            spare.push(batch);
            return Ok(());
        };
        if order.push(batch).is_err() {
            self.stage = Stage::Surveying;
            return Ok(());
        }
        order.give(&mut IntoEntries(entries, self.sink), spare)
    }

    fn count_lines(&mut self, batch: &mut Batch) {
        let input = batch.input;
        batch.lines_before = self.lines_before[input];
        self.lines_before[input] += batch.lines;
        let counts = &mut self.counts;
        counts.lines += batch.lines;
        counts.inputs[input].lines += batch.lines;
        counts.unparsed += batch.unparsed;
        counts.inputs[input].unparsed += batch.unparsed;
        counts.incomplete += batch.incomplete;
        counts.neutral += batch.neutral;
        counts.unknown += batch.unknown;
        let shown_max = SHOWN_MAX.saturating_sub(counts.shown.len());
        for unparsed in std::mem::take(&mut batch.shown).into_iter().take(shown_max) {
            let line = batch.number(unparsed.line);
            counts.shown.push((input, Unparsed { line, ..unparsed }));
        }
    }

    #[inline]
    fn is_excluded(&mut self, time: LogTime) -> bool {
        let is_before = self.query.since.is_some_and(|since| time < since);
        let is_after = self.query.until.is_some_and(|until| time >= until);
        self.counts.excluded[0] += u64::from(is_before);
        self.counts.excluded[1] += u64::from(is_after);
        is_before || is_after
    }

    /// Counts attempts and entities, whatever their order.
    fn survey(&mut self, batch: &Batch) {
        let (attempts, counts) = (&batch.attempts, &mut self.counts);
        self.entities.add_all(&attempts.hashes);
        for (index, _) in &attempts.failures {
            self.ever_failed.add(attempts.hashes[*index as usize]);
        }
        counts.attempts += attempts.len() as u64;
        counts.failed += attempts.failures.len() as u64;
        let mut first = counts.first.map_or(i64::MAX, |first| first.0);
        let mut last = counts.last.map_or(i64::MIN, |last| last.0);
        for &time in &attempts.times {
            first = first.min(time);
            if time < last {
                counts.late += 1;
                let by = LogTime(last).since(LogTime(time));
                counts.latest_by = counts.latest_by.max(by);
            } else {
                last = time;
            }
        }
        if !attempts.is_empty() {
            (counts.first, counts.last) = (Some(LogTime(first)), Some(LogTime(last)));
        }
    }

    /// Completes a stamp that has the time of day alone.
    fn completed(&mut self, input: usize, of_day: i64) -> LogTime {
        let first_midnight = self.plans[input].first_midnight;
        let day = self.days[input].get_or_insert_with(|| Day::new(first_midnight, of_day));
        day.completed(of_day)
    }

    fn newest(&self) -> LogTime {
        self.counts.last.unwrap_or_default()
    }

    /// Ends the first pass.
    ///
    /// # Errors
    /// When the sink or the spill fails.
    pub fn finish(&mut self) -> io::Result<FirstPass> {
        let newest = self.newest();
        let stage = std::mem::replace(&mut self.stage, Stage::Surveying);
        if let Stage::Streaming { order, mut entries } = stage {
            order.give_all(&mut IntoEntries(&mut entries, self.sink))?;
            return Ok(FirstPass::Answered(Box::new(
                entries.finish(newest, self.sink)?,
            )));
        }
        match self.spill.take() {
            None => Ok(FirstPass::ReadAgain(Arc::new(std::mem::take(
                &mut self.ever_failed,
            )))),
            Some(spill) if spill.sorter.is_over() => Ok(FirstPass::TooMuch),
            Some(spill) => {
                let summary = self.sorted(*spill, newest)?;
                Ok(FirstPass::Sorted(Box::new(summary)))
            }
        }
    }

    /// Ends the second pass, with the newest event that the first one found.
    ///
    /// # Errors
    /// When the sink or the spill fails.
    pub fn finish_again(&mut self, newest: LogTime) -> io::Result<Summary> {
        match std::mem::replace(&mut self.stage, Stage::Surveying) {
            Stage::Sorting(unordered) => self.sorted(*unordered, newest),
            _ => Ok(Summary::new(&self.query.buckets, self.query.worst)),
        }
    }

    fn sorted(&mut self, unordered: Unordered, newest: LogTime) -> io::Result<Summary> {
        self.sink.restart()?;
        let summary = Summary::new(&self.query.buckets, self.query.worst);
        let mut entries = Entries::new(self.query.gap, summary);
        unordered.into_entries(&mut entries, self.sink)?;
        entries.finish(newest, self.sink)
    }
}

/// Entries, with the sink for the episodes that end.
struct IntoEntries<'a>(&'a mut Entries, &'a mut (dyn EpisodeSink + Send));

impl Next for IntoEntries<'_> {
    #[inline]
    fn is_idle(&self, hash: u64) -> bool {
        !self.0.may_be_failing(hash)
    }

    fn reached(&mut self, time: LogTime, hash: u64) -> io::Result<()> {
        self.0.reached(time, hash, self.1)
    }

    fn failed(&mut self, time: LogTime, place: u64, hash: u64, failure: Failure) -> io::Result<()> {
        self.0.failed(time, place, hash, failure, self.1)
    }
}
