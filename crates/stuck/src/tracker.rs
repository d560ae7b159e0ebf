//! Drives the automaton of every entity that is failing, under the gap, its half and its double.
//!
//! Only entities with a run that may still go on are held; once per gap of log time those whose runs
//! are over are let go.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use model::stuck::{Ended, Event, LogTime, Proof, Tracker};

use crate::{
    sorter::file_and_line,
    summary::{Episode, Summary},
};

/// Takes episodes as they end; a report may have to begin anew when the input turns out not to be in
/// order.
pub trait EpisodeSink {
    /// Forgets everything taken so far.
    ///
    /// # Errors
    /// When what was written cannot be taken back.
    fn restart(&mut self) -> std::io::Result<()>;

    /// Takes one episode.
    ///
    /// # Errors
    /// When it cannot be written.
    fn episode(&mut self, episode: &Episode) -> std::io::Result<()>;
}

/// A sink for those who want the summary alone.
#[derive(Debug, Default)]
pub struct NoSink;

impl EpisodeSink for NoSink {
    fn restart(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn episode(&mut self, _: &Episode) -> std::io::Result<()> {
        Ok(())
    }
}

/// Hashes are their own hashes.
#[derive(Debug, Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A map by entity hash.
pub type ByHash<T> = HashMap<u64, T, BuildHasherDefault<Identity>>;

/// Who failed and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The entity's name.
    pub entity: Box<str>,
    /// The reason, as short as people can take.
    pub reason: Box<str>,
}

#[derive(Debug)]
struct Entry {
    /// Under the gap, half of it, twice it.
    trackers: [Tracker; 3],
    entity: Box<str>,
    reason: Box<str>,
    /// Of the first failure of the run under the gap.
    place: u64,
}

/// All entities that are failing.
#[derive(Debug)]
pub struct Entries {
    gaps: [Duration; 3],
    entries: ByHash<Entry>,
    /// Bits by hash: says for sure of an entity that it has no entry, for the price of one look.
    filter: Box<[u64; FILTER_WORDS]>,
    /// When to sweep next.
    sweep_after: Option<LogTime>,
    summary: Summary,
}

/// Fits a core's first cache.
const FILTER_WORDS: usize = 1 << 10;

/// The word and the bit of a hash.
#[inline]
fn filter_place(hash: u64) -> (usize, u64) {
    let bit = hash as usize % (FILTER_WORDS * 64);
    (bit / 64, 1 << (bit % 64))
}

impl Entries {
    /// None yet.
    pub fn new(gap: Duration, summary: Summary) -> Self {
        let gaps = [gap, gap / 2, gap.saturating_mul(2)];
        Self {
            gaps,
            entries: ByHash::default(),
            filter: Box::new([0; FILTER_WORDS]),
            sweep_after: None,
            summary,
        }
    }

    /// Whether an attempt that reached this entity may matter.
    #[inline]
    pub fn may_be_failing(&self, hash: u64) -> bool {
        let (word, bit) = filter_place(hash);
        self.filter[word] & bit != 0
    }

    /// An attempt that reached the entity. Attempts must come in the order of time and place.
    ///
    /// # Errors
    /// When the sink fails.
    #[inline]
    pub fn reached(
        &mut self,
        time: LogTime,
        hash: u64,
        sink: &mut dyn EpisodeSink,
    ) -> std::io::Result<()> {
        self.sweep(time, sink)?;
        match self.entries.remove(&hash) {
            Some(entry) => self.step(entry, Event::Attempt(time, Proof::Reached), sink),
            None => Ok(()),
        }
    }

    /// An attempt that failed.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn failed(
        &mut self,
        time: LogTime,
        place: u64,
        hash: u64,
        failure: Failure,
        sink: &mut dyn EpisodeSink,
    ) -> std::io::Result<()> {
        self.sweep(time, sink)?;
        let Failure { entity, reason } = failure;
        let (word, bit) = filter_place(hash);
        self.filter[word] |= bit;
        let entry = self.entries.entry(hash).or_insert_with(|| Entry {
            trackers: [Tracker::Calm; 3],
            entity,
            reason: Box::default(),
            place,
        });
        for (index, gap) in self.gaps.into_iter().enumerate() {
            let event = Event::Attempt(time, Proof::Failed);
            let (next, ended) = entry.trackers[index].step(event, gap);
            entry.trackers[index] = next;
            if let Some(ended) = ended {
                emit(&mut self.summary, index, ended, entry, sink)?;
            }
            if index == 0 && matches!(next, Tracker::Failing(run) if run.failures == 1) {
                entry.place = place;
            }
        }
        entry.reason = reason;
        Ok(())
    }

    /// Steps an entry that was taken out, which a success or the passing of all gaps has ended.
    fn step(
        &mut self,
        entry: Entry,
        event: Event,
        sink: &mut dyn EpisodeSink,
    ) -> std::io::Result<()> {
        for (index, gap) in self.gaps.into_iter().enumerate() {
            if let (_, Some(ended)) = entry.trackers[index].step(event, gap) {
                emit(&mut self.summary, index, ended, &entry, sink)?;
            }
        }
        Ok(())
    }

    /// Lets go of entities whose runs are over even under the double gap.
    #[inline]
    fn sweep(&mut self, now: LogTime, sink: &mut dyn EpisodeSink) -> std::io::Result<()> {
        match self.sweep_after {
            Some(after) if now <= after => Ok(()),
            _ => self.sweep_now(now, sink),
        }
    }

    #[cold]
    fn sweep_now(&mut self, now: LogTime, sink: &mut dyn EpisodeSink) -> std::io::Result<()> {
        let gap_ns = i64::try_from(self.gaps[0].as_nanos()).unwrap_or(i64::MAX);
        self.sweep_after = Some(LogTime(now.0.saturating_add(gap_ns)));
        let (gaps, summary) = (self.gaps, &mut self.summary);
        let mut over = Vec::new();
        self.entries.retain(|_, entry| {
            for (index, gap) in gaps.into_iter().enumerate() {
                let (next, ended) = entry.trackers[index].step(Event::Newest(now), gap);
                entry.trackers[index] = next;
                match ended {
                    Some(ended) if index == 0 => {
                        over.push((
                            ended,
                            entry.entity.clone(),
                            entry.reason.clone(),
                            entry.place,
                        ));
                    }
                    Some(ended) => summary.half_and_double[index - 1].add(&ended),
                    None => {}
                }
            }
            entry
                .trackers
                .iter()
                .any(|tracker| *tracker != Tracker::Calm)
        });
        self.filter.fill(0);
        for hash in self.entries.keys() {
            let (word, bit) = filter_place(*hash);
            self.filter[word] |= bit;
        }
        // The order of the map must not show.
        over.sort_by(|one, other| {
            (one.0.run.first_failure, one.3).cmp(&(other.0.run.first_failure, other.3))
        });
        for (ended, entity, reason, place) in over {
            let entry = Entry {
                trackers: [Tracker::Calm; 3],
                entity,
                reason,
                place,
            };
            emit(&mut self.summary, 0, ended, &entry, sink)?;
        }
        Ok(())
    }

    /// Ends everything at the newest event and gives the summary.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(
        mut self,
        newest: LogTime,
        sink: &mut dyn EpisodeSink,
    ) -> std::io::Result<Summary> {
        let mut rest: Vec<Entry> = std::mem::take(&mut self.entries).into_values().collect();
        rest.sort_by_key(|entry| entry.place);
        for entry in rest {
            for (index, gap) in self.gaps.into_iter().enumerate() {
                if let Some(ended) = entry.trackers[index].at_end(newest, gap) {
                    emit(&mut self.summary, index, ended, &entry, sink)?;
                }
            }
        }
        Ok(self.summary)
    }
}

fn emit(
    summary: &mut Summary,
    index: usize,
    ended: Ended,
    entry: &Entry,
    sink: &mut dyn EpisodeSink,
) -> std::io::Result<()> {
    if index > 0 {
        summary.half_and_double[index - 1].add(&ended);
    } else if ended.is_blip() {
        summary.add_blip(&ended);
    } else {
        let (file, line) = file_and_line(entry.place);
        let episode = Episode {
            entity: entry.entity.to_string(),
            ended,
            reason: entry.reason.to_string(),
            file,
            line,
        };
        sink.episode(&episode)?;
        summary.add(episode);
    }
    Ok(())
}
