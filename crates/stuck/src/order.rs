//! Puts attempts in order while they stream: those that come late by no more than the lateness wait for
//! each other. What comes later still is disorder, which a stream cannot mend.
//!
//! Nearly all attempts of nearly all logs keep the order, so that whole batches wait as they are, one
//! after the other. The few that came late, the *strays*, wait beside them, and the two are merged on
//! the way out.

use std::{collections::VecDeque, io, time::Duration};

use model::stuck::LogTime;

use crate::{
    batch::{Attempt, Batch},
    tracker::Failure,
};

/// No more wait than this, however dense the log: the lateness is then shorter than asked for.
const WAITING_MAX: usize = 1 << 16;
/// No more batches wait than this, however few attempts they hold.
const BATCHES_MAX: usize = 1 << 9;

/// Where an attempt stands: its time, then its place in the input.
type Key = (LogTime, u64);

/// Takes what comes out, in order.
pub trait Next {
    /// Whether an attempt that reached this entity would be of no use, so that it need not be given.
    fn is_idle(&self, hash: u64) -> bool;

    /// Takes an attempt that reached its entity.
    ///
    /// # Errors
    /// When what it leads to cannot be written.
    fn reached(&mut self, time: LogTime, hash: u64) -> io::Result<()>;

    /// Takes an attempt that failed, with its place.
    ///
    /// # Errors
    /// When what it leads to cannot be written.
    fn failed(&mut self, time: LogTime, place: u64, hash: u64, failure: Failure) -> io::Result<()>;
}

/// An attempt that came late.
#[derive(Debug)]
struct Stray {
    key: Key,
    hash: u64,
    failure: Option<Failure>,
}

/// A batch of which every attempt stands after all that came before it.
#[derive(Debug)]
struct Run {
    batch: Batch,
    /// How many attempts have gone, and how many failures of these.
    gone: usize,
    failures_gone: usize,
}

impl Run {
    fn key(&self, index: usize) -> Key {
        let attempts = &self.batch.attempts;
        let place = self.batch.place(attempts.line(index));
        (LogTime(attempts.times[index]), place)
    }

    /// Lets go of the attempts before `to`.
    fn give(&mut self, to: usize, next: &mut impl Next) -> io::Result<()> {
        while self.gone < to {
            let attempts = &mut self.batch.attempts;
            let failure = attempts.failures.get_mut(self.failures_gone);
            let failure = failure.filter(|(at, _)| (*at as usize) < to);
            let failed_at = failure.as_ref().map_or(to, |(at, _)| *at as usize);
            let failure = failure.map(|(_, failure)| std::mem::take(failure));
            for index in self.gone..failed_at {
                let hash = attempts.hashes[index];
                if !next.is_idle(hash) {
                    next.reached(LogTime(attempts.times[index]), hash)?;
                }
            }
            self.gone = failed_at;
            if let Some(failure) = failure {
                let (time, place) = self.key(failed_at);
                let hash = self.batch.attempts.hashes[failed_at];
                next.failed(time, place, hash, failure)?;
                self.gone += 1;
                self.failures_gone += 1;
            }
        }
        Ok(())
    }
}

/// The attempt came after others, later than it, had already gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLate;

/// The queue.
#[derive(Debug)]
pub struct Order {
    runs: VecDeque<Run>,
    strays: VecDeque<Stray>,
    waiting: usize,
    lateness_ns: i64,
    newest: Option<Key>,
    gone: Option<Key>,
}

impl Order {
    /// A queue in which attempts wait for this long, in the log's own time.
    pub fn new(lateness: Duration) -> Self {
        Self {
            runs: VecDeque::new(),
            strays: VecDeque::new(),
            waiting: 0,
            lateness_ns: i64::try_from(lateness.as_nanos()).unwrap_or(i64::MAX),
            newest: None,
            gone: None,
        }
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When the place in the order of one of its attempts has already gone.
    pub fn push(&mut self, batch: Batch) -> Result<(), TooLate> {
        let mut run = Run {
            batch,
            gone: 0,
            failures_gone: 0,
        };
        let is_after =
            run.batch.attempts.is_empty() || self.newest.is_none_or(|newest| newest <= run.key(0));
        if !is_after || !run.batch.attempts.times.is_sorted() {
            self.take_strays(&mut run.batch)?;
        }
        let length = run.batch.attempts.len();
        if length > 0 {
            self.newest = Some(run.key(length - 1));
            self.waiting += length;
        }
        self.runs.push_back(run);
        Ok(())
    }

    #[cold]
    fn take_strays(&mut self, batch: &mut Batch) -> Result<(), TooLate> {
        let mut attempts = std::mem::take(&mut batch.attempts);
        let (mut newest, mut result) = (self.newest, Ok(()));
        let key = |time, line| (time, batch.place(line));
        attempts.take_out(
            |time, line| {
                let is_late = newest.is_some_and(|newest| key(time, line) < newest);
                if !is_late {
                    newest = Some(key(time, line));
                }
                is_late
            },
            |stray| {
                let key = key(stray.time, stray.line);
                result = result.and_then(|()| self.insert(key, stray));
            },
        );
        batch.attempts = attempts;
        result
    }

    fn insert(&mut self, key: Key, stray: Attempt<Failure>) -> Result<(), TooLate> {
        if self.gone.is_some_and(|gone| key < gone) {
            return Err(TooLate);
        }
        let at = self.strays.partition_point(|other| other.key <= key);
        let (hash, failure) = (stray.hash, stray.failure);
        self.strays.insert(at, Stray { key, hash, failure });
        self.waiting += 1;
        Ok(())
    }

    /// Lets go of what nothing can come before any more; batches that are empty then are put to `spare`.
    ///
    /// # Errors
    /// When `next` fails.
    pub fn give(&mut self, next: &mut impl Next, spare: &mut Vec<Batch>) -> io::Result<()> {
        let Some((newest, _)) = self.newest else {
            return Ok(());
        };
        let horizon = newest.0.saturating_sub(self.lateness_ns);
        self.give_before(Some(horizon), next, spare)?;
        while self.waiting > WAITING_MAX || self.runs.len() > BATCHES_MAX {
            let Some(first) = self.runs.front() else {
                return Ok(());
            };
            let last = first.batch.attempts.times.last();
            // One beyond, so that the whole of the first batch goes.
            let horizon = last.and_then(|last| last.checked_add(1));
            self.give_before(horizon, next, spare)?;
        }
        Ok(())
    }

    /// Lets go of everything.
    ///
    /// # Errors
    /// When `next` fails.
    pub fn give_all(mut self, next: &mut impl Next) -> io::Result<()> {
        self.give_before(None, next, &mut Vec::new())
    }

    /// Lets go of what is before the horizon, or of everything when there is none.
    fn give_before(
        &mut self,
        horizon: Option<i64>,
        next: &mut impl Next,
        spare: &mut Vec<Batch>,
    ) -> io::Result<()> {
        let is_out = |time: i64| horizon.is_none_or(|horizon| time < horizon);
        loop {
            let stray = self.strays.front().map(|stray| stray.key);
            let stray = stray.filter(|(time, _)| is_out(time.0));
            if let Some(run) = self.runs.front_mut() {
                let times = &run.batch.attempts.times;
                let from = run.gone;
                let to = match stray {
                    // Those before the stray, and no more.
                    Some(stray) => {
                        let mut to = from + times[from..].partition_point(|time| *time < stray.0.0);
                        while to < times.len() && run.key(to) <= stray {
                            to += 1;
                        }
                        to
                    }
                    None => from + times[from..].partition_point(|time| is_out(*time)),
                };
                let is_whole = to == times.len();
                if to > from {
                    self.gone = Some(run.key(to - 1));
                    self.waiting -= to - from;
                    run.give(to, next)?;
                }
                if is_whole {
                    spare.extend(self.runs.pop_front().map(|run| run.batch));
                    continue;
                }
            }
            let Some(key) = stray else {
                return Ok(());
            };
            if let Some(stray) = self.strays.pop_front() {
                self.waiting -= 1;
                self.gone = Some(key);
                match stray.failure {
                    None => next.reached(key.0, stray.hash)?,
                    Some(failure) => next.failed(key.0, key.1, stray.hash, failure)?,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Stamp;
    use proptest::prelude::*;

    /// Collects keys; the place tells the line.
    #[derive(Default)]
    struct Collect(Vec<(LogTime, Option<u64>)>);

    impl Next for Collect {
        fn is_idle(&self, _: u64) -> bool {
            false
        }
        fn reached(&mut self, time: LogTime, _: u64) -> io::Result<()> {
            self.0.push((time, None));
            Ok(())
        }
        fn failed(&mut self, time: LogTime, place: u64, _: u64, _: Failure) -> io::Result<()> {
            self.0.push((time, Some(place)));
            Ok(())
        }
    }

    fn batches(times: &[(i64, bool)], length: usize) -> Vec<Batch> {
        let batch = |(index, times): (usize, &[(i64, bool)])| {
            let mut batch = Batch {
                lines_before: (index * length) as u64,
                ..Batch::default()
            };
            for (line, (time, is_failure)) in times.iter().enumerate() {
                let failure = is_failure.then(Failure::default);
                let stamp = Stamp::At(LogTime(*time));
                batch.attempts.push(stamp, 0, line as u32, failure);
            }
            batch
        };
        times.chunks(length).enumerate().map(batch).collect()
    }

    proptest! {
        /// Either all comes out in order, or something was refused that came later than the lateness.
        #[test]
        fn in_order_or_refused(
            times in prop::collection::vec((0_i64..100, any::<bool>()), 1..60),
            length in 1_usize..20,
            lateness in 0_u64..60,
        ) {
            let mut order = Order::new(Duration::from_nanos(lateness));
            let (mut out, mut spare) = (Collect::default(), Vec::new());
            for batch in batches(&times, length) {
                if order.push(batch).is_err() {
                    let mut newest = i64::MIN;
                    let latest_by = times.iter().map(|(time, _)| {
                        newest = newest.max(*time);
                        newest - time
                    });
                    prop_assert!(latest_by.max() > Some(lateness as i64));
                    return Ok(());
                }
                order.give(&mut out, &mut spare).unwrap();
            }
            order.give_all(&mut out).unwrap();
            let mut expected: Vec<(i64, usize, bool)> =
                times.iter().enumerate().map(|(line, (time, is_failure))| (*time, line, *is_failure)).collect();
            expected.sort_unstable();
            let expected: Vec<(LogTime, Option<u64>)> = expected
                .into_iter()
                .map(|(time, line, is_failure)| (LogTime(time), is_failure.then_some(line as u64 + 1)))
                .collect();
            prop_assert_eq!(out.0, expected);
        }
    }

    /// However little the log moves on, what waits is bounded.
    #[test]
    fn batches_without_end_do_not_wait() {
        let mut order = Order::new(Duration::from_secs(30));
        let (mut out, mut spare) = (Collect::default(), Vec::new());
        let times = vec![(7, true); 4 * BATCHES_MAX];
        for batch in batches(&times, 1) {
            order.push(batch).unwrap();
            order.give(&mut out, &mut spare).unwrap();
            assert!(order.runs.len() <= BATCHES_MAX);
        }
        order.give_all(&mut out).unwrap();
        assert_eq!(out.0.len(), times.len());
        assert!(spare.len() >= 3 * BATCHES_MAX);
    }
}
