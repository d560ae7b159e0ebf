//! Fleets in a world that goes wrong by chance; `make prove` runs more of them, and longer.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::fleet::plan::{Beats, Fault, Plan, Rates};
use sim::fleet::report::Report;
use sim::fleet::simulate;

fn stormy(hosts: u32, repls: u32, seed: u64) -> Plan {
    Plan {
        length: Duration::from_secs(1_800),
        rates: Rates::everything(1.0),
        ..Plan::new(hosts, repls, seed)
    }
}

fn run(plan: &Plan) -> Report {
    let began = Instant::now();
    let report = simulate(plan, |_| {});
    let speed = report.host_seconds / 86_400.0 / began.elapsed().as_secs_f64();
    let (events, trace) = (report.events, report.trace);
    println!("{events} events, {speed:.1} host-days a second, trace {trace:016x}");
    report
}

#[test]
fn a_seed_reproduces_a_run_exactly() {
    let plan = stormy(12, 60, 7);
    let first = run(&plan);
    assert_eq!(run(&plan), first);
    let other = run(&Plan { seed: 8, ..plan });
    assert_ne!(other.trace, first.trace);
}

/// Beats that nothing depends on are skipped: everything else must be as if they were not.
#[test]
fn what_is_skipped_changes_nothing() {
    let skipped = run(&stormy(12, 60, 3));
    let every = run(&Plan {
        beats: Beats::Every,
        ..stormy(12, 60, 3)
    });
    assert!(skipped.events < every.events / 2, "nothing was skipped");
    assert_eq!(skipped.trace, every.trace);
    assert_eq!(skipped.failover, every.failover);
    assert_eq!(skipped.store_writes, every.store_writes);
}

#[test]
fn nothing_is_ever_alive_twice_whatever_goes_wrong() {
    let report = run(&stormy(40, 400, 1));
    assert_eq!(report.violations, []);
    assert_eq!(report.never_came(), [""; 0]);
    println!("{:?}", report.faults);
}

/// Its join has written a beat: whoever begins to look at it then has not seen it silent for longer.
#[test]
fn a_host_that_crashes_right_after_its_join_is_not_robbed_early() {
    let report = run(&stormy(40, 400, 68));
    assert_eq!(report.violations, []);
}

#[test]
fn a_silent_machine_and_a_planned_end_take_as_long_as_they_may() {
    let rates = Rates::none()
        .with(Fault::MachineCrash, 2.0)
        .with(Fault::Preemption, 2.0);
    let report = run(&Plan {
        rates,
        ..Plan::new(40, 400, 5)
    });
    assert_eq!(report.violations, []);
    assert_eq!(report.false_fences, 0);
    for (cause, durations) in &report.failover {
        let of = |share| durations.quantile_ms(share);
        println!(
            "{cause}: {} {:?} {:?}",
            durations.count(),
            of(0.5),
            of(0.99)
        );
    }
    let p99 = |cause| report.failover[cause].quantile_ms(0.99).unwrap();
    assert!(p99("machine lost") <= 4_500.0);
    assert!(p99("preemption") <= 1_000.0);
}

/// What the long run goes through, in turn.
fn world(seed: u64) -> Plan {
    let lasting = |hours: u64, rates| Plan {
        length: Duration::from_secs(hours * 3_600),
        rates,
        ..Plan::new(500, 5_000, seed)
    };
    match seed % 4 {
        // Small fleets in a storm: faults upon faults.
        0 => stormy(40, 400, seed),
        // A bad day of a large one.
        1 => lasting(24, Rates::everything(1.0 / 24.0)),
        // Months as they are: each machine is hit once by each fault, and its store ten times by each of its own.
        _ => lasting(24 * 30, Rates::everything(1.0 / (24.0 * 30.0))),
    }
}

/// Run by `scripts/prove`: one seed after another on every processor until the time is over, and what all of them showed in
/// one line.
#[test]
#[ignore = "as long as CONMAN_PROVE_SECONDS says"]
fn the_long_run() {
    let seconds = std::env::var("CONMAN_PROVE_SECONDS").map_or(10.0, |text| text.parse().unwrap());
    let began = Instant::now();
    let next = AtomicU64::new(1);
    let work = || {
        let mut part = Report::default();
        while began.elapsed().as_secs_f64() < seconds {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let report = simulate(&world(seed), |_| {});
            if !report.violations.is_empty() {
                println!("seed {seed}: {:?}", report.violations);
            }
            part.merge(report);
        }
        part
    };
    let mut whole = Report::default();
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().unwrap().get();
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            whole.merge(worker.join().unwrap());
        }
    });
    let seeds = next.into_inner() - 1;
    let host_years = whole.host_seconds / (365.0 * 86_400.0);
    let failover = whole.failover.iter().map(|(cause, durations)| {
        let of = |share| durations.quantile_ms(share);
        let figures = serde_json::json!({
            "count": durations.count(), "p50_ms": of(0.5), "p99_ms": of(0.99), "max_ms": of(1.0),
        });
        ((*cause).to_owned(), figures)
    });
    let figures = serde_json::json!({
        "seeds": seeds,
        "host_years": host_years,
        "host_years_per_hour": host_years * 3_600.0 / began.elapsed().as_secs_f64(),
        "violations": whole.violations.len(),
        "faults": whole.faults,
        "starts": whole.starts,
        "failover": failover.collect::<serde_json::Map<_, _>>(),
        "false_fences": whole.false_fences,
        "outage_survived_ms": whole.outage_survived_ms,
        "pause_windows": whole.pause_windows,
    });
    println!("PROVED {figures}");
    assert_eq!(whole.violations, []);
    assert_eq!(whole.never_came(), [""; 0]);
}
