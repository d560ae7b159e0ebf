//! The model checker in its short form; `make prove` runs the long one.

#![allow(missing_docs, clippy::unwrap_used)]

mod exploration;

use std::time::Duration;

use exploration::{Exploration, Start};
use model::timing::FAST;
use stateright::{Checker, Model};

fn explore(start: Start, faults: u8, length_ms: u64) {
    let exploration = Exploration {
        timing: FAST,
        machines: 3,
        repls: 2,
        faults,
        length_ms,
        start,
    };
    let checker = exploration.checker().threads(2).spawn_dfs().join();
    println!(
        "{start:?}: {} states, at most {} steps",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

#[test]
fn one_fault_anywhere_while_all_run() {
    explore(Start::Running, 1, 5_000);
}

#[test]
fn one_fault_anywhere_while_none_runs() {
    explore(Start::Free, 1, 5_000);
}

#[test]
fn one_fault_anywhere_after_a_drain() {
    explore(Start::AfterDrain, 1, 5_000);
}

#[test]
fn one_fault_anywhere_after_a_theft() {
    explore(Start::AfterTheft, 1, 5_000);
}

/// As far as `CONMAN_PROVE_SECONDS` allow: what was gone through is printed, whether or not that was all.
#[test]
#[ignore = "hours until all is gone through"]
fn two_faults_anywhere() {
    let seconds = std::env::var("CONMAN_PROVE_SECONDS").map_or(10.0, |text| text.parse().unwrap());
    for start in Start::ALL {
        let exploration = Exploration {
            timing: FAST,
            machines: 3,
            repls: 2,
            faults: 2,
            length_ms: 4_000,
            start,
        };
        let checker = exploration.checker().threads(2);
        let checker = checker.timeout(Duration::from_secs_f64(seconds / 4.0));
        let checker = checker.spawn_bfs().join();
        let states = checker.unique_state_count();
        let reached = if checker.is_done() {
            "all of them"
        } else {
            "out of time"
        };
        println!("{start:?}, two faults: {states} states, {reached}");
        assert!(checker.discoveries().is_empty(), "{start:?}");
    }
}
