//! What must hold for a tracker, whatever its sources bring and whenever its process ends: behind the watermark it
//! has counted exactly what `stuck report --until WATERMARK` says of the same lines; once every source has ended,
//! what the report says of all; and what it shows as open is what the report calls open.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::collections::BTreeMap;
use std::time::Duration;

use model::stuck::{Class, Ended, Ending, LogTime};
use proptest::prelude::*;
use stuck::live::{
    Attempted, Audience, BUCKETS_S, Change, Event, Failing, Kept, Lines, Live, Read, Rules,
    Standing,
};
use stuck::query::Query;
use stuck::run::{self, Report};
use stuck::stamp::rfc3339;
use stuck::tracker::{Failure, NoSink};

const LATENESS: Duration = Duration::from_secs(5);
const RULES: Rules = Rules {
    gap: Duration::from_secs(60),
    lateness: LATENESS,
    silence: Duration::from_secs(30),
    waiting_max: 1 << 20,
};
const NOW: Duration = Duration::ZERO;

fn at(ms: i64) -> LogTime {
    LogTime((1_767_225_600_000 + ms) * 1_000_000)
}

/// The lines of one source, each late by no more than the lateness.
fn source() -> impl Strategy<Value = Vec<String>> {
    let outcome = prop_oneof![
        5 => Just("platform_fail"), 2 => Just("ok"), 1 => Just("user_fail"), 1 => Just("client_abort")
    ];
    let lateness_ms = LATENESS.as_millis() as i64;
    let line = (0_i64..400, 0..=lateness_ms, 0_u8..4, outcome);
    prop::collection::vec(line, 0..60).prop_map(|mut lines| {
        lines.sort_by_key(|(second, late_ms, ..)| second * 1_000 + late_ms);
        let text = |(second, _, entity, outcome): (i64, i64, u8, &str)| {
            let time = rfc3339(at(second * 1_000));
            format!(r#"{{"time":"{time}","repl":"r{entity}","outcome":"{outcome}","reason":"x"}}"#)
        };
        lines.into_iter().map(text).collect()
    })
}

/// What a database would hold.
#[derive(Default)]
struct Shelf {
    kept: Kept,
    failing: BTreeMap<u64, Failing>,
    waiting: BTreeMap<(LogTime, usize, u64), Attempted>,
}

impl Shelf {
    fn store(&mut self, live: &mut Live) {
        let Change {
            failing,
            added,
            gone,
        } = live.take_change();
        for (hash, failing) in failing {
            match failing {
                Some(failing) => self.failing.insert(hash, failing),
                None => self.failing.remove(&hash),
            };
        }
        for (source, attempt) in added {
            self.waiting
                .insert((attempt.time, source, attempt.line), attempt);
        }
        self.waiting
            .retain(|key, _| gone.is_none_or(|gone| *key > gone));
        self.kept.watermark = live.watermark();
        self.kept.totals = Audience::ALL.map(|audience| live.totals(audience).clone());
        let sources = live.sources();
        self.kept.sources = sources
            .map(|source| (source.name, source.audience, source.counts))
            .collect();
    }

    fn resume(&self) -> Live {
        let kept = Kept {
            failing: self
                .failing
                .iter()
                .map(|(hash, failing)| (*hash, failing.clone()))
                .collect(),
            waiting: self
                .waiting
                .iter()
                .map(|(key, attempt)| (key.1, attempt.clone()))
                .collect(),
            ..self.kept.clone()
        };
        Live::resume(RULES, kept)
    }
}

fn report(sources: &[&[String]], until: Option<LogTime>) -> Option<Report> {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (index, lines) in sources.iter().enumerate() {
        let path = folder.path().join(format!("{index}.log"));
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        names.push(path);
    }
    let query = Query {
        gap: RULES.gap,
        lateness: RULES.lateness,
        buckets: BUCKETS_S.map(Duration::from_secs).to_vec(),
        threads: 1,
        until,
        ..Query::default()
    };
    let inputs = run::open_inputs(&names).unwrap();
    run::run(&query, &inputs, &mut NoSink, &|_| {}).ok()
}

/// Compares what is behind the watermark with a report up to there.
fn assert_agrees(live: &Live, open: &[Failing], report: &Report) {
    let totals = live.totals(Audience::User);
    let mut all = totals.clone();
    let (mut open_episodes, mut open_blips) = (0, 0);
    let mut classes: [u64; 3] = all.episodes.map(|class| class[0] + class[1]);
    for failing in open {
        let ended = Ended {
            run: failing.run,
            ending: Ending::Open,
        };
        if ended.is_blip() {
            open_blips += 1;
            continue;
        }
        open_episodes += 1;
        classes[ended.class() as usize] += 1;
        all.stuck += ended.stuck();
        let bound = BUCKETS_S.partition_point(|bound| Duration::from_secs(*bound) < ended.stuck());
        all.buckets[bound] += 1;
    }
    let summary = &report.summary;
    assert_eq!(all.failed_attempts(), report.counts.failed);
    assert_eq!(all.reached, report.counts.attempts - report.counts.failed);
    let [recovered, abandoned] = all.endings();
    assert_eq!([recovered, abandoned, open_episodes], summary.endings);
    assert_eq!(
        [all.blips[0], all.blips[1], open_blips],
        summary.blip_endings
    );
    assert_eq!(classes, summary.classes);
    assert_eq!(all.buckets.to_vec(), summary.buckets);
    assert_eq!(all.stuck, summary.totals.stuck);
    let sessions = report.sessions();
    let [at_once, delayed, failed] = all.sessions();
    assert_eq!(delayed, sessions.delayed);
    assert_eq!(failed + open_episodes + open_blips, sessions.failed);
    assert_eq!(at_once + delayed + sessions.failed, sessions.all);
}

fn bytes(lines: &[String]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| [line.as_bytes(), b"\n"].concat())
        .collect()
}

fn open_by_report(report: &Report) -> usize {
    (report.summary.endings[2] + report.summary.blip_endings[2]) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_the_report_at_any_time(
        sources in prop::collection::vec(source(), 1..4),
        turns in prop::collection::vec((0_usize..3, 1_usize..20, any::<bool>()), 0..12),
    ) {
        let names = (0..sources.len()).map(|index| (format!("s{index}"), Audience::User, Default::default()));
        let mut shelf = Shelf { kept: Kept { sources: names.collect(), ..Kept::default() }, ..Shelf::default() };
        let mut live = shelf.resume();
        let mut readers: Vec<Lines> = sources.iter().map(|_| Lines::resume(Query::default(), Default::default()).unwrap()).collect();
        let mut read = vec![0_usize; sources.len()];
        let rest = (0..sources.len()).map(|index| (index, usize::MAX, false));
        for (index, count, is_killed) in turns.into_iter().chain(rest) {
            let index = index % sources.len();
            let from = read[index];
            let to = from.saturating_add(count).min(sources[index].len());
            if is_killed {
                // What was not stored is lost, and read again.
                let text = bytes(&sources[index][from..to]);
                let lost = readers[index].read(text, LogTime(0)).unwrap();
                live.step(Event::Read(index, lost), NOW);
                live = shelf.resume();
                continue;
            }
            if to > from {
                let brought = readers[index].read(bytes(&sources[index][from..to]), LogTime(0)).unwrap();
                live.step(Event::Read(index, brought), NOW);
            }
            read[index] = to;
            live.step(Event::CaughtUp(index), NOW);
            shelf.store(&mut live);
            let so_far: Vec<&[String]> = sources.iter().zip(&read).map(|(lines, read)| &lines[..*read]).collect();
            let Some(watermark) = live.watermark() else { continue };
            if let Some(report) = report(&so_far, Some(watermark)) {
                let open: Vec<Failing> = shelf.failing.values().cloned().collect();
                assert_agrees(&live, &open, &report);
            }
            if let Some(report) = report(&so_far, None) {
                prop_assert_eq!(live.open().len(), open_by_report(&report));
            }
        }
        for index in 0..sources.len() {
            live.step(Event::Ended(index), NOW);
        }
        shelf.store(&mut live);
        let all: Vec<&[String]> = sources.iter().map(Vec::as_slice).collect();
        prop_assert!(live.sources().all(|source| source.counts.late == 0));
        if let Some(report) = report(&all, None) {
            let open: Vec<Failing> = shelf.failing.values().cloned().collect();
            assert_agrees(&live, &open, &report);
            prop_assert_eq!(shelf.waiting.len(), 0);
        }
    }
}

fn attempt(second: i64, line: u64, fails: bool) -> Attempted {
    Attempted {
        time: at(second * 1_000),
        line,
        hash: 7,
        failure: fails.then(|| Failure {
            entity: "ann".into(),
            reason: "owner_gone".into(),
        }),
    }
}

fn read(attempts: Vec<Attempted>) -> Read {
    Read {
        lines: attempts.len() as u64,
        attempts,
        ..Read::default()
    }
}

fn tracker(sources: &[(&str, Audience)]) -> Live {
    let sources = sources
        .iter()
        .map(|(name, audience)| ((*name).to_owned(), *audience, Default::default()));
    Live::resume(
        RULES,
        Kept {
            sources: sources.collect(),
            ..Kept::default()
        },
    )
}

#[test]
fn what_comes_within_the_lateness_is_put_in_place_and_what_comes_later_is_counted() {
    let mut live = tracker(&[("a", Audience::User)]);
    live.step(
        Event::Read(0, read(vec![attempt(0, 1, true), attempt(10, 2, true)])),
        NOW,
    );
    // Within the lateness: the episode ended before its second failure came.
    live.step(Event::Read(0, read(vec![attempt(6, 1, false)])), NOW);
    live.step(
        Event::Read(0, read(vec![attempt(20, 1, false), attempt(3, 2, false)])),
        NOW,
    );
    let totals = live.totals(Audience::User);
    assert_eq!((totals.blips, totals.endings()), ([1, 0], [0, 0]));
    assert_eq!(live.counts(0).late, 1);
    assert_eq!(live.counts(0).lines, 5);
    live.step(Event::Ended(0), NOW);
    assert_eq!(live.totals(Audience::User).blips, [2, 0]);
}

#[test]
fn the_source_that_is_furthest_behind_holds_the_watermark_until_it_falls_silent() {
    let mut live = tracker(&[("a", Audience::User), ("b", Audience::User)]);
    live.step(Event::Read(0, read(vec![attempt(100, 1, false)])), NOW);
    live.step(Event::CaughtUp(0), NOW);
    assert_eq!(live.watermark(), None);
    live.step(Event::Read(1, read(vec![attempt(50, 1, false)])), NOW);
    live.step(Event::CaughtUp(1), NOW);
    assert_eq!(live.watermark(), Some(at(45_000)));
    // One that cannot be read may still have older lines.
    live.step(Event::Lost(1), NOW);
    live.step(
        Event::Read(0, read(vec![attempt(200, 1, false)])),
        RULES.silence,
    );
    live.step(Event::Tick, RULES.silence * 2);
    assert_eq!(live.watermark(), Some(at(45_000)));
    live.step(Event::CaughtUp(1), RULES.silence * 2);
    live.step(
        Event::Read(0, read(vec![attempt(300, 1, false)])),
        RULES.silence * 3,
    );
    live.step(Event::Tick, RULES.silence * 4);
    assert_eq!(live.watermark(), Some(at(295_000)));
    let standings: Vec<Standing> = live.sources().map(|source| source.standing).collect();
    assert_eq!(
        standings,
        [
            Standing::Following {
                since: RULES.silence * 3
            },
            Standing::Silent
        ]
    );
}

#[test]
fn a_silent_source_is_unknown_and_nothing_in_it_recovers_or_ends() {
    let mut live = tracker(&[("a", Audience::User)]);
    live.step(
        Event::Read(0, read(vec![attempt(0, 1, true), attempt(8, 2, true)])),
        NOW,
    );
    live.step(Event::CaughtUp(0), NOW);
    assert!(live.open()[0].is_known);
    let day = Duration::from_secs(86_400);
    live.step(Event::Tick, day);
    let open = live.open();
    assert_eq!(
        (open.len(), open[0].is_known, open[0].stuck().as_secs()),
        (1, false, 8)
    );
    assert_eq!(live.totals(Audience::User).endings(), [0, 0]);
    assert_eq!(live.sources().next().unwrap().standing, Standing::Silent);
    // It speaks again: nobody had tried for longer than the gap.
    live.step(Event::Read(0, read(vec![attempt(500, 1, false)])), day);
    live.step(Event::CaughtUp(0), day);
    assert_eq!(live.open(), []);
    live.step(Event::Ended(0), day);
    assert_eq!(
        live.totals(Audience::User).episodes[Class::A as usize],
        [0, 1]
    );
}

#[test]
fn probes_are_counted_apart_and_do_not_end_what_users_began() {
    let mut live = tracker(&[("users", Audience::User), ("probes", Audience::Probe)]);
    live.step(
        Event::Read(0, read(vec![attempt(0, 1, true), attempt(8, 2, true)])),
        NOW,
    );
    live.step(
        Event::Read(1, read(vec![attempt(9, 1, true), attempt(500, 2, false)])),
        NOW,
    );
    for source in [0, 1] {
        live.step(Event::CaughtUp(source), NOW);
    }
    live.step(Event::Tick, RULES.silence + Duration::from_secs(1));
    assert_eq!(live.totals(Audience::Probe).blips, [0, 0]);
    live.step(
        Event::Read(1, read(vec![attempt(600, 1, false)])),
        RULES.silence * 2,
    );
    live.step(Event::CaughtUp(1), RULES.silence * 2);
    assert_eq!(live.totals(Audience::Probe).blips, [0, 1]);
    assert_eq!(live.totals(Audience::User).failed_attempts(), 2);
    let open = live.open();
    assert_eq!((open.len(), open[0].failing.audience), (1, Audience::User));
}

#[test]
fn what_waits_is_bounded() {
    let rules = Rules {
        waiting_max: 100,
        ..RULES
    };
    let sources = vec![("a".to_owned(), Audience::User, Default::default())];
    let mut live = Live::resume(
        rules,
        Kept {
            sources,
            ..Kept::default()
        },
    );
    for second in 0..1_000 {
        let mut attempt = attempt(0, 1, true);
        attempt.time = LogTime(at(0).0 + second);
        live.step(Event::Read(0, read(vec![attempt])), NOW);
    }
    assert_eq!(live.totals(Audience::User).failed_attempts(), 900);
}
