//! What must hold for any log: a plain reference finds the same episodes, the order of the input does not
//! matter, nor how it is cut into files, nor what neutral lines stand between.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use model::stuck::{Ended, Event, LogTime, Proof, Tracker};
use proptest::prelude::*;
use stuck::{
    query::Query,
    run::{self, Passes, Report},
    stamp::rfc3339,
    summary::Episode,
    tracker::EpisodeSink,
};

const GAP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Line {
    second: i64,
    entity: u8,
    outcome: &'static str,
}

impl Line {
    fn text(&self) -> String {
        let time = rfc3339(LogTime((1_767_225_600 + self.second) * 1_000_000_000));
        let (entity, outcome) = (self.entity, self.outcome);
        format!(r#"{{"time":"{time}","repl":"r{entity}","outcome":"{outcome}","reason":"x"}}"#)
    }
}

/// Lines with times of their own, so that no tie makes the order of input matter.
fn lines() -> impl Strategy<Value = Vec<Line>> {
    let outcome = prop_oneof![
        4 => Just("platform_fail"), 2 => Just("ok"), 1 => Just("user_fail"), 1 => Just("client_abort")
    ];
    prop::collection::btree_map(0_i64..2_000, (0_u8..5, outcome), 1..80).prop_map(|map| {
        map.into_iter()
            .map(|(second, (entity, outcome))| Line {
                second,
                entity,
                outcome,
            })
            .collect()
    })
}

#[derive(Default)]
struct Collect(Vec<Episode>);

impl EpisodeSink for Collect {
    fn restart(&mut self) -> std::io::Result<()> {
        self.0.clear();
        Ok(())
    }
    fn episode(&mut self, episode: &Episode) -> std::io::Result<()> {
        self.0.push(episode.clone());
        Ok(())
    }
}

type Found = Vec<(String, Ended)>;

/// Runs the report over files with these lines.
fn report(files: &[Vec<String>], is_stream: bool) -> Option<(Found, Report)> {
    let folder = tempfile::tempdir().unwrap();
    let query = Query {
        gap: GAP,
        lateness: Duration::from_secs(5),
        threads: 2,
        ..Query::default()
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for (index, lines) in files.iter().enumerate() {
        let path = folder.path().join(format!("{index}.log"));
        let mut file = std::fs::File::create(&path).unwrap();
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
        paths.push(path);
    }
    let inputs = if is_stream {
        let bytes: Vec<u8> = paths
            .iter()
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect();
        let input =
            stuck::source::Input::of_reader("-".to_owned(), Box::new(std::io::Cursor::new(bytes)));
        vec![input.unwrap()]
    } else {
        run::open_inputs(&paths).unwrap()
    };
    let mut collect = Collect::default();
    let report = run::run(&query, &inputs, &mut collect, &|_| {}).ok()?;
    let mut found: Found = collect
        .0
        .into_iter()
        .map(|episode| (episode.entity, episode.ended))
        .collect();
    sort(&mut found);
    Some((found, report))
}

fn sort(found: &mut Found) {
    found.sort_by(|one, other| {
        (one.1.run.first_failure, &one.0).cmp(&(other.1.run.first_failure, &other.0))
    });
}

/// The same by the automaton alone, entity by entity.
fn reference(lines: &[Line]) -> (Found, u64) {
    let mut sorted = lines.to_vec();
    sorted.sort_by_key(|line| line.second);
    let mut trackers: BTreeMap<u8, Tracker> = BTreeMap::new();
    let (mut found, mut blips) = (Vec::new(), 0);
    let mut newest = None;
    let at = |second: i64| LogTime((1_767_225_600 + second) * 1_000_000_000);
    let mut end = |entity: u8, ended: Option<Ended>| match ended {
        Some(ended) if ended.is_blip() => blips += 1,
        Some(ended) => found.push((format!("r{entity}"), ended)),
        None => {}
    };
    for line in sorted.iter().filter(|line| line.outcome != "client_abort") {
        let proof = if line.outcome == "platform_fail" {
            Proof::Failed
        } else {
            Proof::Reached
        };
        let tracker = trackers.entry(line.entity).or_default();
        let (next, ended) = tracker.step(Event::Attempt(at(line.second), proof), GAP);
        *tracker = next;
        newest = Some(at(line.second));
        end(line.entity, ended);
    }
    for (entity, tracker) in trackers {
        end(
            entity,
            newest.and_then(|newest| tracker.at_end(newest, GAP)),
        );
    }
    sort(&mut found);
    (found, blips)
}

fn texts(lines: &[Line]) -> Vec<String> {
    lines.iter().map(Line::text).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn finds_what_the_reference_finds(lines in lines()) {
        let (found, report) = report(&[texts(&lines)], false).unwrap();
        let (expected, blips) = reference(&lines);
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.summary.totals.blips, blips);
        prop_assert_eq!(report.passes, Passes::Streamed);
    }

    #[test]
    fn the_order_of_input_does_not_matter(
        (lines, shuffled) in lines().prop_flat_map(|lines| (Just(lines.clone()), Just(lines).prop_shuffle())),
        is_stream in any::<bool>(),
    ) {
        let (expected, blips) = reference(&lines);
        let (found, report) = report(&[texts(&shuffled)], is_stream).unwrap();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.summary.totals.blips, blips);
    }

    #[test]
    fn how_it_is_cut_into_files_does_not_matter(lines in lines(), cuts in prop::collection::vec(0_usize..4, 80)) {
        let mut files = vec![Vec::new(); 4];
        for (line, file) in lines.iter().zip(cuts) {
            files[file].push(line.text());
        }
        let (expected, _) = reference(&lines);
        let (found, report) = report(&files, false).unwrap();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.counts.lines, lines.len() as u64);
    }

    #[test]
    fn neutral_lines_change_counts_alone(lines in lines(), seconds in prop::collection::vec(-500_i64..9_000, 0..20)) {
        let without: Vec<Line> =
            lines.iter().filter(|line| line.outcome != "client_abort").cloned().collect();
        prop_assume!(!without.is_empty());
        let mut with = without.clone();
        with.extend(seconds.iter().map(|&second| Line { second, entity: 1, outcome: "client_abort" }));
        let (found, one) = report(&[texts(&without)], false).unwrap();
        let (found_with, other) = report(&[texts(&with)], false).unwrap();
        prop_assert_eq!(found, found_with);
        prop_assert_eq!(one.counts.first, other.counts.first);
        prop_assert_eq!(one.counts.last, other.counts.last);
        prop_assert_eq!(one.entities, other.entities);
        prop_assert_eq!(one.summary.half_and_double, other.summary.half_and_double);
        prop_assert_eq!(other.counts.neutral, seconds.len() as u64);
    }
}

/// A log longer than a chunk, whose lines are cut at every place where a chunk can end.
#[test]
fn lines_across_chunks_are_whole() {
    let mut lines = Vec::new();
    let mut bytes = 0;
    while bytes < 3 << 20 {
        let index = lines.len();
        let padding = "x".repeat(index * 7_919 % 5_000);
        let time = rfc3339(LogTime((1_767_225_600 + index as i64) * 1_000_000_000));
        let line = format!(
            r#"{{"time":"{time}","repl":"r{}","outcome":"ok","pad":"{padding}"}}"#,
            index % 10
        );
        bytes += line.len() + 1;
        lines.push(line);
    }
    // One line that goes through two chunks and more, and one that is too long to be a line.
    lines.push(format!(
        r#"{{"time":"2027-01-01T00:00:00Z","repl":"big","outcome":"ok","pad":"{}"}}"#,
        "y".repeat(5 << 20)
    ));
    lines.push(format!(
        r#"{{"time":"2027-01-01T00:00:00Z","repl":"huge","outcome":"ok","pad":"{}"}}"#,
        "z".repeat(17 << 20)
    ));
    lines.push(r#"{"time":"2027-01-01T00:00:01Z","repl":"last","outcome":"ok"}"#.to_owned());
    for is_stream in [false, true] {
        let (_, report) = report(&[lines.clone()], is_stream).unwrap();
        assert_eq!(report.counts.lines, lines.len() as u64, "{is_stream}");
        assert_eq!(report.counts.unparsed, 1, "{is_stream}");
        assert_eq!(report.counts.shown[0].1.line, lines.len() as u64 - 1);
        assert_eq!(report.entities, 12);
    }
}
