//! Fleets in a world that goes wrong by chance; `make prove` runs more of them, and longer.

#![allow(missing_docs, clippy::unwrap_used)]

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

/// Run by `scripts/prove`: one seed after another until the time is over, and what all of them showed in one line.
#[test]
#[ignore = "as long as CONMAN_PROVE_SECONDS says"]
fn the_long_run() {
    let seconds = std::env::var("CONMAN_PROVE_SECONDS").map_or(10.0, |text| text.parse().unwrap());
    let began = Instant::now();
    let (mut whole, mut seeds) = (Report::default(), 0_u64);
    while began.elapsed().as_secs_f64() < seconds {
        seeds += 1;
        // Small fleets in a storm, and a large one on a usual day, in turn.
        let plan = if seeds.is_multiple_of(2) {
            stormy(40, 400, seeds)
        } else {
            Plan {
                length: Duration::from_secs(86_400),
                rates: Rates::everything(1.0 / 24.0),
                ..Plan::new(500, 5_000, seeds)
            }
        };
        whole.merge(simulate(&plan, |_| {}));
    }
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
