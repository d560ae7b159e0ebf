//! The report as one JSON object, and episodes as JSON: times in RFC 3339 UTC, durations in seconds.

use std::time::Duration;

use model::stuck::{Class, Ending};
use serde::Serialize;

use super::PERCENTS;
use crate::{
    run::{Passes, Report},
    stamp::rfc3339,
    summary::{Durations, Episode, Totals},
};

/// One episode as `worst` and `--all-episodes` show it.
#[derive(Debug, Serialize)]
pub struct EpisodeJson<'a> {
    entity: &'a str,
    start: String,
    last_failure: String,
    recovered_at: Option<String>,
    stuck_seconds: f64,
    attempts: u64,
    end: &'static str,
    class: Class,
    reason: &'a str,
    file: &'a str,
    line: u64,
}

impl<'a> EpisodeJson<'a> {
    /// An episode of one of these files.
    pub fn new(episode: &'a Episode, files: &'a [String]) -> Self {
        let ended = &episode.ended;
        let recovered_at = match ended.ending {
            Ending::Recovered(at) => Some(rfc3339(at)),
            Ending::Abandoned | Ending::Open => None,
        };
        Self {
            entity: &episode.entity,
            start: rfc3339(ended.run.first_failure),
            last_failure: rfc3339(ended.run.last_failure),
            recovered_at,
            stuck_seconds: ended.stuck().as_secs_f64(),
            attempts: ended.run.failures,
            end: end_name(ended.ending),
            class: ended.class(),
            reason: &episode.reason,
            file: files.get(episode.file).map_or("-", String::as_str),
            line: episode.line,
        }
    }
}

/// An ending's word.
pub fn end_name(ending: Ending) -> &'static str {
    match ending {
        Ending::Recovered(_) => "recovered",
        Ending::Abandoned => "abandoned",
        Ending::Open => "open",
    }
}

#[derive(Debug, Serialize)]
struct Bucket {
    le: Option<f64>,
    count: u64,
    cumulative: u64,
}

#[derive(Debug, Serialize)]
struct GapTotals {
    gap_seconds: f64,
    episodes: u64,
    blips: u64,
    stuck_seconds_total: f64,
}

impl GapTotals {
    fn new(gap: Duration, totals: &Totals) -> Self {
        Self {
            gap_seconds: gap.as_secs_f64(),
            episodes: totals.episodes,
            blips: totals.blips,
            stuck_seconds_total: totals.stuck.as_secs_f64(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Classes {
    #[serde(rename = "A")]
    a: u64,
    middle: u64,
    #[serde(rename = "B")]
    b: u64,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: Option<f64>,
    p90: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

#[derive(Debug, Serialize)]
struct AllPercentiles {
    #[serde(flatten)]
    all: Percentiles,
    recovered: Percentiles,
    abandoned: Percentiles,
    open: Percentiles,
    /// How many are not over, so that their time is a lower bound.
    censored: u64,
    exact: bool,
}

#[derive(Debug, Serialize)]
struct Gaps {
    half: GapTotals,
    double: GapTotals,
}

#[derive(Debug, Serialize)]
struct InputJson<'a> {
    file: &'a str,
    format: &'a str,
    chosen: &'a str,
    lines: u64,
    unparsed: u64,
}

/// The report as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct ReportJson<'a> {
    lines: u64,
    parsed: u64,
    unparsed: u64,
    neutral: u64,
    neutral_unknown_outcome: u64,
    excluded_before_since: u64,
    excluded_from_until: u64,
    attempts: u64,
    failed_attempts: u64,
    sessions: u64,
    failed_sessions: u64,
    delayed_sessions: u64,
    entities: u64,
    entities_exact: bool,
    first_time: Option<String>,
    last_time: Option<String>,
    gap_seconds: f64,
    lateness_seconds: f64,
    late_attempts: u64,
    latest_by_seconds: f64,
    passes: &'static str,
    episodes: u64,
    recovered: u64,
    abandoned: u64,
    open: u64,
    blips: u64,
    stuck_seconds_total: f64,
    buckets: Vec<Bucket>,
    classes: Classes,
    percentiles: AllPercentiles,
    gaps: Gaps,
    worst: Vec<EpisodeJson<'a>>,
    inputs: Vec<InputJson<'a>>,
}

/// Calls `use_it` with the report in the shape of its JSON, which borrows from what is made on the way.
pub fn with_report<T>(report: &Report, use_it: impl FnOnce(&ReportJson<'_>) -> T) -> T {
    let (counts, summary) = (&report.counts, &report.summary);
    let files: Vec<String> = report
        .inputs
        .iter()
        .map(|input| input.name.clone())
        .collect();
    let worst = summary.worst();
    let sessions = report.sessions();
    let gap = report.gap;
    let json = ReportJson {
        lines: counts.lines,
        parsed: counts.lines - counts.unparsed,
        unparsed: counts.unparsed,
        neutral: counts.neutral,
        neutral_unknown_outcome: counts.unknown,
        excluded_before_since: counts.excluded[0],
        excluded_from_until: counts.excluded[1],
        attempts: counts.attempts,
        failed_attempts: counts.failed,
        sessions: sessions.all,
        failed_sessions: sessions.failed,
        delayed_sessions: sessions.delayed,
        entities: report.entities,
        entities_exact: report.is_entities_exact,
        first_time: counts.first.map(rfc3339),
        last_time: counts.last.map(rfc3339),
        gap_seconds: gap.as_secs_f64(),
        lateness_seconds: report.lateness.as_secs_f64(),
        late_attempts: counts.late,
        latest_by_seconds: counts.latest_by.as_secs_f64(),
        passes: match report.passes {
            Passes::Streamed => "streamed",
            Passes::Twice => "two",
            Passes::Sorted => "sorted",
        },
        episodes: summary.totals.episodes,
        recovered: summary.endings[0],
        abandoned: summary.endings[1],
        open: summary.endings[2],
        blips: summary.totals.blips,
        stuck_seconds_total: summary.totals.stuck.as_secs_f64(),
        buckets: buckets(report),
        classes: Classes {
            a: summary.classes[0],
            middle: summary.classes[1],
            b: summary.classes[2],
        },
        percentiles: AllPercentiles {
            all: percentiles(&summary.durations[0]),
            recovered: percentiles(&summary.durations[1]),
            abandoned: percentiles(&summary.durations[2]),
            open: percentiles(&summary.durations[3]),
            censored: summary.endings[2],
            exact: summary.durations[0].is_exact(),
        },
        gaps: Gaps {
            half: GapTotals::new(gap / 2, &summary.half_and_double[0]),
            double: GapTotals::new(gap.saturating_mul(2), &summary.half_and_double[1]),
        },
        worst: worst
            .iter()
            .map(|episode| EpisodeJson::new(episode, &files))
            .collect(),
        inputs: report
            .inputs
            .iter()
            .map(|input| InputJson {
                file: &input.name,
                format: &input.format,
                chosen: &input.description,
                lines: input.lines,
                unparsed: input.unparsed,
            })
            .collect(),
    };
    use_it(&json)
}

/// The report as one JSON object in one line.
///
/// # Errors
/// Never in practice: every part of it can be written as JSON.
pub fn report(report: &Report) -> serde_json::Result<String> {
    with_report(report, |json| serde_json::to_string(json))
}

fn buckets(report: &Report) -> Vec<Bucket> {
    let summary = &report.summary;
    let mut cumulative = 0;
    let buckets = summary.buckets.iter().enumerate().map(|(index, &count)| {
        cumulative += count;
        let le = summary.bounds.get(index).map(Duration::as_secs_f64);
        Bucket {
            le,
            count,
            cumulative,
        }
    });
    buckets.collect()
}

fn percentiles(durations: &Durations) -> Percentiles {
    let values = durations.percentiles(&PERCENTS);
    let value = |index: usize| values[index].map(|value| value.as_secs_f64());
    Percentiles {
        p50: value(0),
        p90: value(1),
        p95: value(2),
        p99: value(3),
        max: value(4),
    }
}
