//! The tracker's metrics: written from the view whenever a page is asked for, since what they count outlives the
//! process. No entity is ever a label.

use std::fmt::Error;

use model::stuck::{Class, LogTime};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use stuck::live::{Audience, BUCKETS_S, Standing};

use super::owner::Tracker;
use super::view::{CLASSES, ENDINGS, View, class_name};

/// No exemplar has any.
type NoLabels = Labels<0>;
type Labels<const N: usize> = [(&'static str, String); N];

/// Writes what the tracker knows.
#[derive(Debug)]
pub(super) struct Metrics(pub(super) Tracker);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let view = self.0.view();
        let mut page = Page(&mut encoder);
        attempts(&view, &mut page)?;
        episodes(&view, &mut page)?;
        open(&view, &mut page)?;
        sources(&view, &mut page)
    }
}

/// One family after the other.
struct Page<'p, 'e>(&'p mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, u64)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            let mut sample = family.encode_family(&labels)?;
            sample.encode_counter::<NoLabels, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, f64)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            gauge(&mut family, &labels, value)?;
        }
        Ok(())
    }
}

fn gauge<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &Labels<N>,
    value: f64,
) -> Result<(), Error> {
    if N == 0 {
        return family.encode_gauge(&value);
    }
    family.encode_family(labels)?.encode_gauge(&value)
}

fn of(audience: Audience) -> (&'static str, String) {
    ("audience", audience.as_str().to_owned())
}

/// Seconds since 1970, as Prometheus has them.
fn timestamp(time: LogTime) -> f64 {
    time.0 as f64 / 1e9
}

fn attempts(view: &View, page: &mut Page<'_, '_>) -> Result<(), Error> {
    let both = || {
        Audience::ALL
            .iter()
            .map(|audience| (*audience, &view.totals[*audience as usize]))
    };
    let all = both().flat_map(|(audience, totals)| {
        let labels = |outcome: &str, reason: &str| {
            [
                of(audience),
                ("outcome", outcome.to_owned()),
                ("reason", reason.to_owned()),
            ]
        };
        let failed = totals.failed.iter();
        let failed: Vec<_> = failed
            .map(|(reason, count)| (labels("failed", reason), *count))
            .collect();
        std::iter::once((labels("reached", "none"), totals.reached)).chain(failed)
    });
    page.counters(
        "conman_stuck_attempts",
        "Attempts behind the watermark, by what they proved and why they failed",
        all,
    )?;
    let sessions = both().flat_map(|(audience, totals)| {
        let [at_once, delayed, failed] = totals.sessions();
        [
            ("at_once", at_once),
            ("delayed", delayed),
            ("failed", failed),
        ]
        .map(|(outcome, count)| ([of(audience), ("outcome", outcome.to_owned())], count))
    });
    page.counters(
        "conman_stuck_sessions",
        "New sessions behind the watermark, an attempt with its retries being one: through at once, after failures, never",
        sessions,
    )
}

fn episodes(view: &View, page: &mut Page<'_, '_>) -> Result<(), Error> {
    let both = || {
        Audience::ALL
            .iter()
            .map(|audience| (*audience, &view.totals[*audience as usize]))
    };
    let ended = both().flat_map(|(audience, totals)| {
        CLASSES.iter().flat_map(move |class| {
            ENDINGS
                .iter()
                .zip(totals.episodes[*class as usize])
                .map(move |(ending, count)| {
                    let class = ("class", class_name(*class).to_owned());
                    (
                        [of(audience), class, ("ending", (*ending).to_owned())],
                        count,
                    )
                })
        })
    });
    page.counters(
        "conman_stuck_episodes",
        "Stuck episodes that have ended, by class (A below 2 min, B from 1 h) and ending",
        ended,
    )?;
    let blips = both().flat_map(|(audience, totals)| {
        ENDINGS
            .iter()
            .zip(totals.blips)
            .map(move |(ending, count)| ([of(audience), ("ending", (*ending).to_owned())], count))
    });
    page.counters(
        "conman_stuck_blips",
        "Failures that stood alone, which are no episodes, by ending",
        blips,
    )?;
    let mut family = page.0.encode_descriptor(
        "conman_stuck_episode_seconds",
        "Time stuck of episodes that have ended",
        None,
        MetricType::Histogram,
    )?;
    for (audience, totals) in both() {
        let bounds = BUCKETS_S
            .iter()
            .map(|bound| *bound as f64)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(totals.buckets).collect();
        let count = totals.buckets.iter().sum();
        let labels = [of(audience)];
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabels>(totals.stuck.as_secs_f64(), count, &buckets, None)?;
    }
    page.gauges(
        "conman_stuck_longest_seconds",
        "The longest time stuck of all episodes that have ended",
        both().map(|(audience, totals)| ([of(audience)], totals.longest.as_secs_f64())),
    )
}

fn open(view: &View, page: &mut Page<'_, '_>) -> Result<(), Error> {
    let mut counts = Vec::new();
    let mut oldest = Vec::new();
    let mut blips = Vec::new();
    for audience in Audience::ALL {
        for class in CLASSES {
            for is_known in [true, false] {
                let is_counted = |open: &&stuck::live::Open| {
                    Class::of(open.stuck()) == class && open.is_known == is_known
                };
                let count = view.open_episodes(audience).filter(is_counted).count();
                let known = if is_known { "yes" } else { "no" };
                let class = ("class", class_name(class).to_owned());
                let labels = [of(audience), class, ("known", known.to_owned())];
                counts.push((labels, count as f64));
            }
        }
        let starts = view
            .open_episodes(audience)
            .map(|open| open.failing.run.first_failure);
        oldest.extend(starts.min().map(|start| ([of(audience)], timestamp(start))));
        let is_blip =
            |open: &&stuck::live::Open| open.failing.audience == audience && open.is_blip();
        let count = view.open.iter().filter(is_blip).count();
        blips.push(([of(audience)], count as f64));
    }
    page.gauges(
        "conman_stuck_open_episodes",
        "Stuck episodes that are open, by the class of the time stuck so far; not known where their log is silent",
        counts,
    )?;
    page.gauges(
        "conman_stuck_open_blips",
        "Failures that stand alone so far, with no attempt after them",
        blips,
    )?;
    page.gauges(
        "conman_stuck_oldest_start_timestamp_seconds",
        "When the oldest open episode began; absent while none is open",
        oldest,
    )
}

fn sources(view: &View, page: &mut Page<'_, '_>) -> Result<(), Error> {
    let name = |source: &stuck::live::SourceView| [("source", source.name.clone())];
    let all = || view.sources.iter();
    page.counters(
        "conman_stuck_lines",
        "Lines read of a log",
        all().map(|source| (name(source), source.counts.lines)),
    )?;
    page.counters(
        "conman_stuck_unparsed_lines",
        "Lines of a log that could not be read",
        all().map(|source| (name(source), source.counts.unparsed)),
    )?;
    page.counters(
        "conman_stuck_neutral_lines",
        "Lines of a log that prove nothing, as when the client went away",
        all().map(|source| (name(source), source.counts.neutral)),
    )?;
    page.counters(
        "conman_stuck_late_attempts",
        "Attempts that came later than the lateness, and count nowhere else",
        all().map(|source| (name(source), source.counts.late)),
    )?;
    page.gauges(
        "conman_stuck_source_standing",
        "How a log stands: 1 for what it does",
        all().flat_map(|source| {
            Standing::NAMES.map(|standing| {
                let [name] = name(source);
                let is_so = source.standing.as_str() == standing;
                ([name, ("standing", standing.to_owned())], f64::from(is_so))
            })
        }),
    )?;
    page.gauges(
        "conman_stuck_source_newest_timestamp_seconds",
        "The time of the newest attempt in a log",
        all().filter_map(|source| Some((name(source), timestamp(source.counts.newest?)))),
    )?;
    page.gauges(
        "conman_stuck_watermark_timestamp_seconds",
        "Up to when everything is counted, and can no longer change",
        view.watermark.map(|watermark| ([], timestamp(watermark))),
    )?;
    page.gauges(
        "conman_stuck_waiting_attempts",
        "Attempts that wait for the watermark",
        [([], view.waiting as f64)],
    )
}
