//! Puts attempts in order while they stream: those that come late by no more than the lateness wait for
//! each other in a short queue. What comes later still is disorder, which a stream cannot mend.

use std::{collections::VecDeque, time::Duration};

use model::stuck::LogTime;

use crate::tracker::Failure;

/// No more wait than this, however dense the log: the lateness is then shorter than asked for.
const WAITING_MAX: usize = 1 << 16;

/// An attempt that waits for those before it.
#[derive(Debug)]
pub struct Waiting {
    /// Its time.
    pub time: LogTime,
    /// Its place in the input.
    pub place: u64,
    /// The entity's hash.
    pub hash: u64,
    /// Who failed, if it failed.
    pub failure: Option<Box<Failure>>,
}

impl Waiting {
    #[inline]
    fn key(&self) -> (LogTime, u64) {
        (self.time, self.place)
    }
}

/// The attempt came after others, later than it, had already gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLate;

/// The queue.
#[derive(Debug)]
pub struct Order {
    waiting: VecDeque<Waiting>,
    lateness_ns: i64,
    gone: Option<(LogTime, u64)>,
}

impl Order {
    /// A queue in which attempts wait for this long, in the log's own time.
    pub fn new(lateness: Duration) -> Self {
        Self {
            waiting: VecDeque::new(),
            lateness_ns: i64::try_from(lateness.as_nanos()).unwrap_or(i64::MAX),
            gone: None,
        }
    }

    /// Takes one attempt.
    ///
    /// # Errors
    /// When its place in the order has already gone.
    #[inline]
    pub fn push(&mut self, attempt: Waiting) -> Result<(), TooLate> {
        let key = attempt.key();
        if self.waiting.back().is_none_or(|last| last.key() <= key) {
            if self.gone.is_some_and(|gone| key < gone) {
                return Err(TooLate);
            }
            self.waiting.push_back(attempt);
            return Ok(());
        }
        self.insert(attempt)
    }

    fn insert(&mut self, attempt: Waiting) -> Result<(), TooLate> {
        let key = attempt.key();
        if self.gone.is_some_and(|gone| key < gone) {
            return Err(TooLate);
        }
        let at = self.waiting.partition_point(|other| other.key() <= key);
        self.waiting.insert(at, attempt);
        Ok(())
    }

    /// The next attempt that nothing can come before any more.
    #[inline]
    pub fn pop(&mut self) -> Option<Waiting> {
        let newest = self.waiting.back()?.time;
        let first = self.waiting.front()?;
        // Once per attempt: whole nanoseconds, not a Duration, which would cost a division.
        let waited_ns = newest.0.saturating_sub(first.time.0);
        if waited_ns <= self.lateness_ns && self.waiting.len() <= WAITING_MAX {
            return None;
        }
        self.gone = Some(first.key());
        self.waiting.pop_front()
    }

    /// The next attempt, when no more will come.
    pub fn pop_last(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Either all comes out in order, or something was refused that came later than the lateness.
        #[test]
        fn in_order_or_refused(times in prop::collection::vec(0_i64..100, 1..60), lateness in 0_u64..60) {
            let mut order = Order::new(Duration::from_nanos(lateness));
            let mut out = Vec::new();
            let mut newest = i64::MIN;
            for (index, &time) in times.iter().enumerate() {
                newest = newest.max(time);
                let attempt = Waiting { time: LogTime(time), place: index as u64, hash: 0, failure: None };
                if order.push(attempt).is_err() {
                    prop_assert!(newest - time > lateness as i64);
                    return Ok(());
                }
                while let Some(attempt) = order.pop() {
                    out.push(attempt.key());
                }
            }
            while let Some(attempt) = order.pop_last() {
                out.push(attempt.key());
            }
            prop_assert_eq!(out.len(), times.len());
            prop_assert!(out.is_sorted());
        }
    }
}
