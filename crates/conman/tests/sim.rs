//! `conman sim` as an operator runs it: what it prints, what it refuses, and that a seed is a run.

#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
    command.arg("sim").args(arguments).output().unwrap()
}

fn refused(arguments: &[&str], expected: &str) {
    let output = sim(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(expected), "{expected:?} is not in: {said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_simulated() {
    refused(&["--hosts", "0"], "0 is not in 1..=100000");
    refused(&["--repls", "many"], "invalid digit");
    refused(&["--preempt-per-hour", "-1"], "unexpected argument");
    refused(
        &["--crash-per-hour", "often"],
        "\"often\" is not a rate per hour from 0 to 60",
    );
    refused(
        &["--crash-per-hour", "61"],
        "\"61\" is not a rate per hour from 0 to 60",
    );
    refused(&["--for", "1"], "\"1\" is not a time");
    refused(&["--for", "5s"], "--for 5s is too short: at least 1m");
    refused(
        &["--hosts", "3", "--zones", "4"],
        "--zones 4 is more than there are machines in a cell (3)",
    );
    refused(
        &["--zones", "1", "--lose-zone"],
        "--lose-zone needs at least 2 zones",
    );
}

#[test]
fn a_refusal_as_json() {
    let output = sim(&["--for", "5s", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("too short"), "{message}");
}

const SMALL: &[&str] = &[
    "--hosts",
    "30",
    "--repls",
    "300",
    "--preempt-per-hour",
    "2",
    "--crash-per-hour",
    "2",
    "--for",
    "10m",
    "--lose-zone",
];

#[test]
fn figures_for_a_program() {
    let arguments = [SMALL, &["--json"]].concat();
    let (first, second) = (sim(&arguments), sim(&arguments));
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(first.stdout, second.stdout, "one seed, two runs");
    let said: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(said["violations"], 0);
    assert_eq!(said["false_fences"], 0);
    assert!(said["failover_p50_ms"].as_f64().unwrap() > 0.0);
    assert!(said["failover_p99_ms"].as_f64() >= said["failover_p50_ms"].as_f64());
    // Two beats a second of each host, at the least while there were thirty.
    assert!(said["store_writes_per_second"].as_f64().unwrap() > 30.0);
    assert!(said["simulated_seconds"].as_f64().unwrap() >= 600.0);
    for class in ["A", "middle", "B"] {
        assert!(said["stuck"][class].is_u64(), "{class}");
    }
    assert!(said["zone"]["count"].as_u64().unwrap() > 0);
    assert!(!said["assumptions"].as_array().unwrap().is_empty());
}

#[test]
fn figures_for_people() {
    let output = sim(SMALL);
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "Assumed:",
        "CONTAINERS LOST TO",
        "machine lost",
        "zone lost: ",
        "store: ",
        "stuck: A ",
        "violations: 0",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in: {said}");
    }
    assert!(output.stderr.is_empty(), "progress is for terminals");
}
