//! The state of a tracker: what waits for the watermark, who is failing, and what has been counted.
//!
//! ```text
//!             Read                                    watermark passes
//!   source ─────────► waiting, by (time, source, line) ──────────► automaton of the entity ──► totals
//!             └► before the watermark: late, counted and no more
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::stuck::{Event as Step, LogTime, Proof, Tracker};

use super::{
    Attempted, Audience, Event, Failing, Open, Read, Rules, SourceCounts, SourceView, Standing,
    Totals,
};
use crate::tracker::{ByHash, Failure};

/// The order of attempts: by time, ties by source and line.
type Key = (LogTime, usize, u64);

/// Everything of a tracker that must outlive its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The sources, whose places are their numbers.
    pub sources: Vec<(String, Audience, SourceCounts)>,
    /// Totals by audience.
    pub totals: [Totals; 2],
    /// What attempts older than this can no longer change.
    pub watermark: Option<LogTime>,
    /// Who is failing, by hash.
    pub failing: Vec<(u64, Failing)>,
    /// What waits, with its source.
    pub waiting: Vec<(usize, Attempted)>,
}

/// What has changed since it was last asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Who began to fail, failed again, or does no longer.
    pub failing: Vec<(u64, Option<Failing>)>,
    /// What came and still waits, with its source.
    pub added: Vec<(usize, Attempted)>,
    /// Up to which (time, source, line) nothing waits any more.
    pub gone: Option<Key>,
}

#[derive(Debug)]
struct Waiting {
    hash: u64,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Source {
    name: String,
    audience: Audience,
    standing: Standing,
    counts: SourceCounts,
}

/// A tracker.
#[derive(Debug)]
pub struct Live {
    rules: Rules,
    sources: Vec<Source>,
    waiting: BTreeMap<Key, Waiting>,
    failing: ByHash<Failing>,
    /// When each run is over: its last failure, by audience.
    last_failures: [BTreeSet<(LogTime, u64)>; 2],
    watermark: Option<LogTime>,
    totals: [Totals; 2],
    fresh: Vec<Key>,
    touched: BTreeSet<u64>,
    gone: Option<Key>,
}

impl Live {
    /// A tracker that goes on from what was kept. All of its sources are behind until they are read.
    pub fn resume(rules: Rules, kept: Kept) -> Self {
        let sources = kept.sources.into_iter();
        let mut live = Self {
            rules,
            sources: sources
                .map(|(name, audience, counts)| Source {
                    name,
                    audience,
                    standing: Standing::Behind,
                    counts,
                })
                .collect(),
            waiting: BTreeMap::new(),
            failing: ByHash::default(),
            last_failures: [BTreeSet::new(), BTreeSet::new()],
            watermark: kept.watermark,
            totals: kept.totals,
            fresh: Vec::new(),
            touched: BTreeSet::new(),
            gone: None,
        };
        for (hash, failing) in kept.failing {
            live.hold(hash, failing);
        }
        for (source, attempt) in kept.waiting {
            let Attempted {
                time,
                line,
                hash,
                failure,
            } = attempt;
            live.waiting
                .insert((time, source, line), Waiting { hash, failure });
        }
        live.touched.clear();
        live
    }

    /// Makes a source known while others are followed already, and gives its number. One of this name that was known
    /// before goes on.
    pub fn join(&mut self, name: &str, audience: Audience) -> usize {
        let known = self.sources.iter().position(|source| source.name == name);
        let number = known.unwrap_or(self.sources.len());
        if known.is_none() {
            self.sources.push(Source {
                name: name.to_owned(),
                audience,
                standing: Standing::Behind,
                counts: SourceCounts::default(),
            });
        }
        let source = &mut self.sources[number];
        (source.audience, source.standing) = (audience, Standing::Behind);
        number
    }

    /// Takes an event. `now` is any clock that does not go back.
    pub fn step(&mut self, event: Event, now: Duration) {
        match event {
            Event::Read(index, read) => self.read(index, read, now),
            Event::CaughtUp(index) => {
                let source = &mut self.sources[index];
                if let Standing::Behind | Standing::Unreachable = source.standing {
                    source.standing = Standing::Following { since: now };
                }
            }
            Event::Lost(index) => self.sources[index].standing = Standing::Unreachable,
            Event::Ended(index) => self.sources[index].standing = Standing::Ended,
            Event::Tick => {
                for source in &mut self.sources {
                    if let Standing::Following { since } = source.standing
                        && now.saturating_sub(since) > self.rules.silence
                    {
                        source.standing = Standing::Silent;
                    }
                }
            }
        }
        self.advance();
    }

    fn read(&mut self, index: usize, read: Read, now: Duration) {
        let source = &mut self.sources[index];
        let counts = &mut source.counts;
        let lines_before = counts.lines;
        counts.lines += read.lines;
        counts.unparsed += read.unparsed;
        counts.neutral += read.neutral;
        if read.lines > 0 {
            source.standing = match source.standing {
                Standing::Following { .. } => Standing::Following { since: now },
                _ => Standing::Behind,
            };
        }
        for attempt in read.attempts {
            let counts = &mut source.counts;
            if self
                .watermark
                .is_some_and(|watermark| attempt.time < watermark)
            {
                counts.late += 1;
                continue;
            }
            counts.newest = counts.newest.max(Some(attempt.time));
            let key = (attempt.time, index, lines_before + attempt.line);
            let waiting = Waiting {
                // The same name is another entity to another audience.
                hash: attempt.hash ^ source.audience as u64,
                failure: attempt.failure,
            };
            self.waiting.insert(key, waiting);
            self.fresh.push(key);
        }
    }

    /// Moves the watermark as far as the sources allow, and counts what it passes.
    fn advance(&mut self) {
        let is_ended = |source: &Source| source.standing == Standing::Ended;
        let wanted = if self.sources.iter().all(is_ended) {
            let newest = self
                .sources
                .iter()
                .filter_map(|source| source.counts.newest);
            newest
                .max()
                .map(|newest| LogTime(newest.0.saturating_add(1)))
        } else {
            let holds =
                |source: &&Source| !matches!(source.standing, Standing::Silent | Standing::Ended);
            let held = self.sources.iter().filter(holds);
            // Without anybody that could say how far the log has come, it has come no further.
            let oldest = held.map(|source| source.counts.newest).min().flatten();
            oldest.map(|oldest| oldest.minus(self.rules.lateness))
        };
        self.watermark = self.watermark.max(wanted);
        while let Some(entry) = self.waiting.first_entry() {
            let (time, _, _) = *entry.key();
            let is_passed = self.watermark.is_some_and(|watermark| time < watermark);
            if !is_passed {
                if self.waiting.len() <= self.rules.waiting_max {
                    return;
                }
                self.watermark = Some(LogTime(time.0.saturating_add(1)));
                continue;
            }
            let (key, waiting) = entry.remove_entry();
            self.gone = Some(key);
            self.count(key, waiting);
        }
    }

    fn count(&mut self, (time, source, _): Key, waiting: Waiting) {
        let audience = self.sources[source].audience;
        self.expire(audience, time);
        let Waiting { hash, failure } = waiting;
        let before = self.release(hash);
        let totals = &mut self.totals[audience as usize];
        let proof = if failure.is_some() {
            Proof::Failed
        } else {
            Proof::Reached
        };
        let tracker = before.map_or(Tracker::Calm, |failing| Tracker::Failing(failing.run));
        let (next, ended) = tracker.step(Step::Attempt(time, proof), self.rules.gap);
        if let Some(ended) = ended {
            totals.add_ended(&ended);
        }
        let Some(Failure { entity, reason }) = failure else {
            totals.reached += 1;
            return;
        };
        totals.add_failed(&reason);
        if let Tracker::Failing(run) = next {
            let failing = Failing {
                audience,
                entity,
                reason,
                source,
                run,
            };
            self.hold(hash, failing);
        }
    }

    /// Ends the runs that are over when the audience's log has come as far as this.
    fn expire(&mut self, audience: Audience, newest: LogTime) {
        while let Some(&(last, hash)) = self.last_failures[audience as usize].first()
            && newest.since(last) > self.rules.gap
        {
            let Some(failing) = self.release(hash) else {
                return;
            };
            let tracker = Tracker::Failing(failing.run);
            if let (_, Some(ended)) = tracker.step(Step::Newest(newest), self.rules.gap) {
                self.totals[audience as usize].add_ended(&ended);
            }
        }
    }

    fn hold(&mut self, hash: u64, failing: Failing) {
        self.last_failures[failing.audience as usize].insert((failing.run.last_failure, hash));
        self.failing.insert(hash, failing);
        self.touched.insert(hash);
    }

    fn release(&mut self, hash: u64) -> Option<Failing> {
        let failing = self.failing.remove(&hash)?;
        self.last_failures[failing.audience as usize].remove(&(failing.run.last_failure, hash));
        self.touched.insert(hash);
        Some(failing)
    }

    /// What has changed since this was last called.
    pub fn take_change(&mut self) -> Change {
        let failing = std::mem::take(&mut self.touched).into_iter();
        let fresh = std::mem::take(&mut self.fresh).into_iter();
        Change {
            failing: failing
                .map(|hash| (hash, self.failing.get(&hash).cloned()))
                .collect(),
            added: fresh
                .filter_map(|key| {
                    let waiting = self.waiting.get(&key)?;
                    let attempt = Attempted {
                        time: key.0,
                        line: key.2,
                        hash: waiting.hash,
                        failure: waiting.failure.clone(),
                    };
                    Some((key.1, attempt))
                })
                .collect(),
            gone: self.gone.take(),
        }
    }

    /// What was counted behind the watermark, of one audience.
    pub fn totals(&self, audience: Audience) -> &Totals {
        &self.totals[audience as usize]
    }

    /// What attempts older than this can no longer change.
    pub fn watermark(&self) -> Option<LogTime> {
        self.watermark
    }

    /// How many attempts wait for the watermark.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// The counts of a source.
    pub fn counts(&self, source: usize) -> SourceCounts {
        self.sources[source].counts
    }

    /// The sources, in their order.
    pub fn sources(&self) -> impl Iterator<Item = SourceView> {
        self.sources.iter().map(|source| SourceView {
            name: source.name.clone(),
            audience: source.audience,
            standing: source.standing,
            counts: source.counts,
        })
    }

    /// The runs that are open when everything that was read is taken into account, also what the watermark has
    /// not passed: this can be taken back. The longest first.
    pub fn open(&self) -> Vec<Open> {
        let mut ahead: ByHash<Option<Failing>> = ByHash::default();
        let mut newest = [None; 2];
        for source in &self.sources {
            let newest = &mut newest[source.audience as usize];
            *newest = source.counts.newest.max(*newest);
        }
        for (&(time, source, _), waiting) in &self.waiting {
            let audience = self.sources[source].audience;
            let before = match ahead.get(&waiting.hash) {
                Some(known) => known.as_ref(),
                None => self.failing.get(&waiting.hash),
            };
            let after = waiting.failure.as_ref().and_then(|failure| {
                let tracker = before.map_or(Tracker::Calm, |failing| Tracker::Failing(failing.run));
                let step = Step::Attempt(time, Proof::Failed);
                let Tracker::Failing(run) = tracker.step(step, self.rules.gap).0 else {
                    return None;
                };
                Some(Failing {
                    audience,
                    entity: failure.entity.clone(),
                    reason: failure.reason.clone(),
                    source,
                    run,
                })
            });
            if before.is_some() || after.is_some() {
                ahead.insert(waiting.hash, after);
            }
        }
        let untouched = self
            .failing
            .iter()
            .filter(|(hash, _)| !ahead.contains_key(hash))
            .map(|(_, failing)| failing.clone());
        let untouched: Vec<Failing> = untouched.collect();
        let all = untouched.into_iter().chain(ahead.into_values().flatten());
        let is_open = |failing: &Failing| {
            newest[failing.audience as usize].is_some_and(|newest: LogTime| {
                newest.since(failing.run.last_failure) <= self.rules.gap
            })
        };
        let mut open: Vec<Open> = all
            .filter(is_open)
            .map(|failing| Open {
                is_known: self.sources[failing.source].standing.is_known(),
                failing,
            })
            .collect();
        open.sort_by_cached_key(|open| {
            let first = open.failing.run.first_failure;
            (
                std::cmp::Reverse(open.stuck()),
                first,
                open.failing.entity.clone(),
            )
        });
        open
    }
}
