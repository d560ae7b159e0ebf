//! Sums up episodes as they end: totals, buckets, percentiles, the worst, how many were open when.
//!
//! All of it in memory that does not grow with the number of episodes.

use std::{collections::BinaryHeap, time::Duration};

use model::stuck::{Class, Ended, Ending, LogTime};

/// A finished episode with where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// Whom it befell.
    pub entity: String,
    /// The run and its ending.
    pub ended: Ended,
    /// What the last failed attempt gave as its reason.
    pub reason: String,
    /// The file of the first failure, by its place among the inputs.
    pub file: usize,
    /// The line of the first failure, from 1.
    pub line: u64,
}

impl Episode {
    /// The order of the list of the worst: longest first, then by start, entity and place.
    fn rank(&self) -> impl Ord + use<> {
        let ended = &self.ended;
        let stuck = std::cmp::Reverse(ended.stuck());
        (
            stuck,
            ended.run.first_failure,
            self.entity.clone(),
            self.file,
            self.line,
        )
    }
}

impl Ord for Episode {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Episode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Times stuck, for percentiles: exact up to a quarter of a million, then rounded to 0.1 %.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    exact_ns: Vec<u64>,
    rounded: std::collections::BTreeMap<u64, u64>,
    count: u64,
}

const EXACT_DURATIONS_MAX: usize = 1 << 18;

impl Durations {
    fn add(&mut self, duration: Duration) {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.count += 1;
        if !self.rounded.is_empty() {
            *self.rounded.entry(round(duration_ns)).or_default() += 1;
            return;
        }
        self.exact_ns.push(duration_ns);
        if self.exact_ns.len() > EXACT_DURATIONS_MAX {
            for duration_ns in std::mem::take(&mut self.exact_ns) {
                *self.rounded.entry(round(duration_ns)).or_default() += 1;
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether percentiles are exact.
    pub fn is_exact(&self) -> bool {
        self.rounded.is_empty()
    }

    /// Percentiles by nearest rank, in the order asked for; `None` of nothing.
    pub fn percentiles(&self, percents: &[f64]) -> Vec<Option<Duration>> {
        let mut sorted = self.exact_ns.clone();
        sorted.sort_unstable();
        let at_rank = |rank: u64| {
            if self.rounded.is_empty() {
                return sorted.get(rank as usize).copied();
            }
            let mut below = 0;
            self.rounded.iter().find_map(|(duration_ns, count)| {
                below += count;
                (below > rank).then_some(*duration_ns)
            })
        };
        percents
            .iter()
            .map(|percent| {
                let rank = (percent / 100.0 * self.count as f64).ceil().max(1.0) as u64 - 1;
                at_rank(rank).map(Duration::from_nanos)
            })
            .collect()
    }
}

/// Keeps the first ten bits.
fn round(value: u64) -> u64 {
    let shift = (64 - value.leading_zeros()).saturating_sub(11);
    value >> shift << shift
}

/// How many episodes were open when, over a range that is not known in advance.
#[derive(Debug, Clone)]
pub struct OpenOverTime {
    origin: Option<i64>,
    bin_ns: i64,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

const BINS: usize = 1_024;

impl Default for OpenOverTime {
    fn default() -> Self {
        let empty = vec![0; BINS];
        Self {
            origin: None,
            bin_ns: 1_000_000_000,
            starts: empty.clone(),
            ends: empty,
        }
    }
}

impl OpenOverTime {
    fn add(&mut self, from: LogTime, to: LogTime) {
        let bin_ns = self.bin_ns;
        // Episodes come as they end, so that one may begin before the first that came.
        let origin = *self
            .origin
            .get_or_insert(from.0 - from.0.rem_euclid(bin_ns));
        while from.0 < self.origin.unwrap_or(origin) {
            self.coarsen_towards_the_past();
        }
        let origin = self.origin.unwrap_or(origin);
        while (to.0 - origin) / self.bin_ns >= BINS as i64 {
            self.coarsen(0);
        }
        let bin = |time: LogTime| ((time.0 - origin) / self.bin_ns) as usize;
        let (first, last) = (bin(from), bin(to));
        self.starts[first] += 1;
        self.ends[last] += 1;
    }

    /// Doubles the width of the bins; the old ones fill the new from `offset` on.
    fn coarsen(&mut self, offset: usize) {
        for bins in [&mut self.starts, &mut self.ends] {
            let old = std::mem::replace(bins, vec![0; BINS]);
            for (index, count) in old.into_iter().enumerate() {
                bins[offset + index / 2] += count;
            }
        }
        self.bin_ns *= 2;
    }

    fn coarsen_towards_the_past(&mut self) {
        let span_ns = self.bin_ns.saturating_mul(BINS as i64);
        self.origin = self.origin.map(|origin| origin.saturating_sub(span_ns));
        self.coarsen(BINS / 2);
    }

    /// Time and number of episodes that were open at some time in the bin, bin by bin, up to the last
    /// that holds an end.
    pub fn points(&self) -> Vec<(LogTime, u32)> {
        let Some(origin) = self.origin else {
            return Vec::new();
        };
        let mut open = 0;
        let mut points: Vec<(LogTime, u32)> = (0..BINS)
            .map(|bin| {
                open += self.starts[bin];
                let seen = open;
                open -= self.ends[bin];
                (LogTime(origin + self.bin_ns * bin as i64), seen)
            })
            .collect();
        let last = points
            .iter()
            .rposition(|point| point.1 > 0)
            .map_or(0, |last| last + 1);
        points.truncate(last);
        let first = points.iter().position(|point| point.1 > 0).unwrap_or(0);
        points.split_off(first)
    }

    /// The width of a bin.
    pub fn bin(&self) -> Duration {
        Duration::from_nanos(self.bin_ns.unsigned_abs())
    }
}

/// Totals under one gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Episodes of two failures or more.
    pub episodes: u64,
    /// Failures that stand alone.
    pub blips: u64,
    /// The sum of all times stuck.
    pub stuck: Duration,
}

impl Totals {
    /// Adds one run.
    pub fn add(&mut self, ended: &Ended) {
        if ended.is_blip() {
            self.blips += 1;
        } else {
            self.episodes += 1;
            self.stuck = self.stuck.saturating_add(ended.stuck());
        }
    }
}

/// Everything about the episodes of a report.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Totals under the gap itself.
    pub totals: Totals,
    /// Totals under half the gap, and under twice the gap.
    pub half_and_double: [Totals; 2],
    /// Episodes recovered, abandoned, open.
    pub endings: [u64; 3],
    /// Blips recovered, abandoned, open.
    pub blip_endings: [u64; 3],
    /// Episodes of class A, between, B.
    pub classes: [u64; 3],
    /// Upper bounds of the buckets.
    pub bounds: Vec<Duration>,
    /// Episodes per bucket, and beyond the last.
    pub buckets: Vec<u64>,
    /// Times stuck of all, recovered, abandoned and open episodes.
    pub durations: [Durations; 4],
    /// How many were open when.
    pub open_over_time: OpenOverTime,
    worst: BinaryHeap<Episode>,
    worst_max: usize,
}

impl Summary {
    /// A summary of nothing.
    pub fn new(bounds: &[Duration], worst_max: usize) -> Self {
        Self {
            totals: Totals::default(),
            half_and_double: [Totals::default(); 2],
            endings: [0; 3],
            blip_endings: [0; 3],
            classes: [0; 3],
            bounds: bounds.to_vec(),
            buckets: vec![0; bounds.len() + 1],
            durations: std::array::from_fn(|_| Durations::default()),
            open_over_time: OpenOverTime::default(),
            worst: BinaryHeap::new(),
            worst_max,
        }
    }

    /// Adds a blip.
    pub fn add_blip(&mut self, ended: &Ended) {
        self.totals.add(ended);
        self.blip_endings[ending_index(ended.ending)] += 1;
    }

    /// Adds an episode.
    pub fn add(&mut self, episode: Episode) {
        let ended = &episode.ended;
        let stuck = ended.stuck();
        self.totals.add(ended);
        let ending = ending_index(ended.ending);
        self.endings[ending] += 1;
        let class = match ended.class() {
            Class::A => 0,
            Class::Middle => 1,
            Class::B => 2,
        };
        self.classes[class] += 1;
        self.buckets[self.bounds.partition_point(|bound| *bound < stuck)] += 1;
        self.durations[0].add(stuck);
        self.durations[1 + ending].add(stuck);
        let to = match ended.ending {
            Ending::Recovered(at) => at,
            Ending::Abandoned | Ending::Open => ended.run.last_failure,
        };
        self.open_over_time.add(ended.run.first_failure, to);
        self.worst.push(episode);
        if self.worst.len() > self.worst_max {
            self.worst.pop();
        }
    }

    /// The worst episodes, longest first.
    pub fn worst(&self) -> Vec<Episode> {
        self.worst.clone().into_sorted_vec()
    }
}

fn ending_index(ending: Ending) -> usize {
    match ending {
        Ending::Recovered(_) => 0,
        Ending::Abandoned => 1,
        Ending::Open => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut durations = Durations::default();
        assert_eq!(durations.percentiles(&[50.0]), [None]);
        for second in (1..=100).rev() {
            durations.add(Duration::from_secs(second));
        }
        let seconds = |percent| durations.percentiles(&[percent])[0].map(|found| found.as_secs());
        assert_eq!(
            [1.0, 50.0, 99.0, 99.5, 100.0].map(seconds),
            [Some(1), Some(50), Some(99), Some(100), Some(100)]
        );
    }

    #[test]
    fn many_durations_are_rounded_by_less_than_a_thousandth() {
        let mut durations = Durations::default();
        for index in 0..=EXACT_DURATIONS_MAX as u64 {
            durations.add(Duration::from_millis(index * 10));
        }
        assert!(!durations.is_exact());
        let median = durations.percentiles(&[50.0])[0].unwrap().as_secs_f64();
        let exact = EXACT_DURATIONS_MAX as f64 * 10.0 / 2_000.0;
        assert!((median - exact).abs() / exact < 0.001, "{median} {exact}");
    }

    proptest! {
        /// Whatever the order in which they come, the number open in a bin is that of the episodes that
        /// touch it.
        #[test]
        fn open_over_time_counts(spans in prop::collection::vec((0_i64..100_000, 0_i64..9_000), 1..40)) {
            let mut open = OpenOverTime::default();
            let second = 1_000_000_000;
            for (from, length) in &spans {
                open.add(LogTime(from * second), LogTime((from + length) * second));
            }
            let width = open.bin().as_nanos() as i64;
            for (time, count) in open.points() {
                let touching = spans.iter().filter(|(from, length)| {
                    from * second < time.0 + width && (from + length) * second >= time.0
                }).count();
                prop_assert_eq!(count as usize, touching);
            }
        }
    }
}
