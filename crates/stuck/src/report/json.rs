//! The report as one JSON object, and episodes as JSON: times in RFC 3339 UTC, durations in seconds.

use std::time::Duration;

use model::stuck::{Class, Ending};
use serde::Serialize;

use super::{PERCENT_NAMES, PERCENTS};
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

/// The report as one JSON object in one line.
pub fn report(report: &Report) -> serde_json::Value {
    use serde_json::json;
    let (counts, summary) = (&report.counts, &report.summary);
    let files: Vec<String> = report
        .inputs
        .iter()
        .map(|input| input.name.clone())
        .collect();
    let mut cumulative = 0;
    let buckets: Vec<Bucket> = summary
        .buckets
        .iter()
        .enumerate()
        .map(|(index, &count)| {
            cumulative += count;
            let le = summary.bounds.get(index).map(Duration::as_secs_f64);
            Bucket {
                le,
                count,
                cumulative,
            }
        })
        .collect();
    let [all, recovered, abandoned, open] = summary.durations.each_ref().map(percentiles);
    let mut all_percentiles = all;
    for (name, value) in [
        ("recovered", recovered),
        ("abandoned", abandoned),
        ("open", open),
    ] {
        all_percentiles.insert(name.to_owned(), value.into());
    }
    all_percentiles.insert("censored".to_owned(), summary.endings[2].into());
    all_percentiles.insert("exact".to_owned(), summary.durations[0].is_exact().into());
    let worst = summary.worst();
    let worst: Vec<EpisodeJson<'_>> = worst
        .iter()
        .map(|episode| EpisodeJson::new(episode, &files))
        .collect();
    let inputs: Vec<serde_json::Value> = report
        .inputs
        .iter()
        .map(|input| {
            json!({
                "file": input.name, "format": input.format, "chosen": input.description,
                "lines": input.lines, "unparsed": input.unparsed,
            })
        })
        .collect();
    let unrecovered =
        summary.endings[1] + summary.endings[2] + summary.blip_endings[1] + summary.blip_endings[2];
    let delayed = summary.endings[0] + summary.blip_endings[0];
    let sessions = counts.attempts - counts.failed + unrecovered;
    let gap = report.gap;
    json!({
        "lines": counts.lines,
        "parsed": counts.lines - counts.unparsed,
        "unparsed": counts.unparsed,
        "neutral": counts.neutral,
        "neutral_unknown_outcome": counts.unknown,
        "excluded_before_since": counts.excluded[0],
        "excluded_from_until": counts.excluded[1],
        "attempts": counts.attempts,
        "failed_attempts": counts.failed,
        "sessions": sessions,
        "failed_sessions": unrecovered,
        "delayed_sessions": delayed,
        "entities": report.entities,
        "entities_exact": report.is_entities_exact,
        "first_time": counts.first.map(rfc3339),
        "last_time": counts.last.map(rfc3339),
        "gap_seconds": gap.as_secs_f64(),
        "lateness_seconds": report.lateness.as_secs_f64(),
        "late_attempts": counts.late,
        "latest_by_seconds": counts.latest_by.as_secs_f64(),
        "passes": match report.passes {
            Passes::Streamed => "streamed",
            Passes::Twice => "two",
            Passes::Sorted => "sorted",
        },
        "episodes": summary.totals.episodes,
        "recovered": summary.endings[0],
        "abandoned": summary.endings[1],
        "open": summary.endings[2],
        "blips": summary.totals.blips,
        "stuck_seconds_total": summary.totals.stuck.as_secs_f64(),
        "buckets": buckets,
        "classes": {
            "A": summary.classes[0], "middle": summary.classes[1], "B": summary.classes[2],
        },
        "percentiles": all_percentiles,
        "gaps": {
            "half": GapTotals::new(gap / 2, &summary.half_and_double[0]),
            "double": GapTotals::new(gap.saturating_mul(2), &summary.half_and_double[1]),
        },
        "worst": worst,
        "inputs": inputs,
    })
}

fn percentiles(durations: &Durations) -> serde_json::Map<String, serde_json::Value> {
    let values = durations.percentiles(&PERCENTS);
    let named = PERCENT_NAMES.iter().zip(values).map(|(name, value)| {
        (
            (*name).to_owned(),
            value.map(|value| value.as_secs_f64()).into(),
        )
    });
    named.collect()
}
