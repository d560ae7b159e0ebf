//! The model checker in its short form; `make prove` runs the long one.

#![allow(missing_docs, clippy::unwrap_used)]

use model::timing::FAST;
use sim::checker::{Exploration, Start};
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
