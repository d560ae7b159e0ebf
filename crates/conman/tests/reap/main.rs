//! `conman reap` as its users meet it: the real command, a real engine, real containers.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../docker_engine/mod.rs"]
mod docker_engine;
mod engine;
mod kills;
mod refusals;
mod silent;

#[path = "../terminal/mod.rs"]
mod terminal;

use std::process::Output;

use docker_engine::TestEngine;

/// A command that runs until it is killed: as PID 1 it does not heed SIGTERM.
const SLEEPER: &[&str] = &["sleep", "1000"];

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON document that a command printed.
fn document(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// `conman reap` of this test's containers alone, as JSON, which must go well.
fn reap_own(engine: &TestEngine, more: &[&str]) -> serde_json::Value {
    let filter = format!("label={}", engine.label);
    let mut arguments = vec!["--json", "--filter", &filter];
    arguments.extend(more);
    let output = engine.reap(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    document(&output)
}
