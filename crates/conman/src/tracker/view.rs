//! What a tracker knows at one moment, for metrics and for people.

use model::stuck::{Class, LogTime};
use serde_json::{Value, json};
use stuck::live::{Audience, BUCKETS_S, Live, Open, SourceView, Standing, Totals};
use stuck::stamp::rfc3339;

/// What is known at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// What was counted behind the watermark, by audience.
    pub(super) totals: [Totals; 2],
    /// What attempts older than this can no longer change.
    pub(super) watermark: Option<LogTime>,
    /// How many attempts wait for it.
    pub(super) waiting: usize,
    /// The sources that are followed.
    pub(super) sources: Vec<SourceView>,
    /// All runs that are open, the longest first.
    pub(super) open: Vec<Open>,
}

/// A class's name in metrics and JSON.
pub(super) fn class_name(class: Class) -> &'static str {
    match class {
        Class::A => "A",
        Class::Middle => "middle",
        Class::B => "B",
    }
}

/// All classes, in the order of [`Totals::episodes`].
pub(super) const CLASSES: [Class; 3] = [Class::A, Class::Middle, Class::B];
/// How what was counted ended, in the order of [`Totals::episodes`].
pub(super) const ENDINGS: [&str; 2] = ["recovered", "abandoned"];

impl View {
    /// Nothing is known.
    pub(super) fn empty() -> Self {
        Self {
            totals: Audience::ALL.map(|_| Totals::default()),
            watermark: None,
            waiting: 0,
            sources: vec![],
            open: vec![],
        }
    }

    pub(super) fn of(live: &Live, numbers: &[usize]) -> Self {
        let all: Vec<SourceView> = live.sources().collect();
        Self {
            totals: Audience::ALL.map(|audience| live.totals(audience).clone()),
            watermark: live.watermark(),
            waiting: live.waiting_count(),
            sources: numbers
                .iter()
                .filter_map(|&number| all.get(number).cloned())
                .collect(),
            open: live.open(),
        }
    }

    /// Episodes that are open, of one audience.
    pub(super) fn open_episodes(&self, audience: Audience) -> impl Iterator<Item = &Open> {
        let of_audience = move |open: &&Open| open.failing.audience == audience;
        self.open
            .iter()
            .filter(of_audience)
            .filter(|open| !open.is_blip())
    }

    /// The names of the sources that have not been read to their end.
    pub(super) fn behind(&self) -> Vec<String> {
        let is_behind = |source: &&SourceView| {
            matches!(source.standing, Standing::Behind | Standing::Unreachable)
        };
        let behind = self.sources.iter().filter(is_behind);
        behind.map(|source| source.name.clone()).collect()
    }

    /// The worst that are open, and all the rest, as JSON.
    pub fn json(&self, worst_max: usize) -> Value {
        let audience = |audience: Audience| {
            let totals = &self.totals[audience as usize];
            let [at_once, delayed, failed] = totals.sessions();
            let open = |class| {
                let mut of_class = self.open_episodes(audience);
                of_class
                    .by_ref()
                    .filter(|open| Class::of(open.stuck()) == class)
                    .count()
            };
            let open_blips = self
                .open
                .iter()
                .filter(|open| open.failing.audience == audience && open.is_blip());
            json!({
                "attempts": { "reached": totals.reached, "failed": totals.failed },
                "sessions": { "at_once": at_once, "delayed": delayed, "failed": failed },
                "episodes": CLASSES.map(|class| {
                    let [recovered, abandoned] = totals.episodes[class as usize];
                    json!({ "class": class_name(class), "recovered": recovered, "abandoned": abandoned, "open": open(class) })
                }),
                "blips": { "recovered": totals.blips[0], "abandoned": totals.blips[1], "open": open_blips.count() },
                "buckets": BUCKETS_S.iter().map(Some).chain([None]).zip(totals.buckets)
                    .map(|(le, count)| json!({ "le": le, "count": count })).collect::<Vec<_>>(),
                "stuck_seconds_total": totals.stuck.as_secs_f64(),
                "longest_seconds": totals.longest.as_secs_f64(),
            })
        };
        let worst = Audience::ALL
            .iter()
            .flat_map(|audience| self.open_episodes(*audience));
        let mut worst: Vec<&Open> = worst.collect();
        worst.sort_by_key(|open| std::cmp::Reverse(open.stuck()));
        json!({
            "watermark": self.watermark.map(rfc3339),
            "waiting": self.waiting,
            "users": audience(Audience::User),
            "probes": audience(Audience::Probe),
            "sources": self.sources.iter().map(|source| json!({
                "name": source.name,
                "audience": source.audience.as_str(),
                "standing": source.standing.as_str(),
                "lines": source.counts.lines,
                "unparsed": source.counts.unparsed,
                "neutral": source.counts.neutral,
                "late": source.counts.late,
                "newest": source.counts.newest.map(rfc3339),
            })).collect::<Vec<_>>(),
            "worst": worst.into_iter().take(worst_max).map(|open| json!({
                "entity": open.failing.entity,
                "audience": open.failing.audience.as_str(),
                "class": class_name(Class::of(open.stuck())),
                "start": rfc3339(open.failing.run.first_failure),
                "last_failure": rfc3339(open.failing.run.last_failure),
                "stuck_seconds": open.stuck().as_secs_f64(),
                "attempts": open.failing.run.failures,
                "reason": open.failing.reason,
                "known": open.is_known,
            })).collect::<Vec<_>>(),
        })
    }
}
