//! An engine that hangs: the kernel knows what is alive, and the shims whose it is.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::docker_engine::{TestEngine, is_dead, shared};
use crate::{SLEEPER, document, stderr};

/// Stops the engine's process, and lets it go on when dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(engine: &TestEngine) -> Self {
        let pid = Pid::from_raw(engine.pid()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn an_engine_that_hangs_saves_nobody_and_costs_nobody_elses() {
    let (Some(bystander), Some(engine)) = (shared(), TestEngine::own()) else {
        return;
    };
    let others = bystander.run(&[], SLEEPER);
    let own: Vec<_> = (0..8).map(|_| engine.run(&[], SLEEPER)).collect();
    engine.docker(&["pause", &own[0]]);
    let pids: Vec<_> = own.iter().map(|id| engine.field(id, "State.Pid")).collect();
    let stopped = Stopped::stop(&engine);

    // Which ones have the label only the engine knows.
    let filter = format!("label={}", engine.label);
    let output = engine.reap(&["--filter", &filter]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("a filter only the engine knows: nothing was killed"),
        "{}",
        stderr(&output)
    );
    assert!(pids.iter().all(|pid| !is_dead(pid)));

    let listed = engine.reap(&["--dry-run", "--json"]);
    let listed = document(&listed);
    assert_eq!(listed["engine"], "silent");
    assert_eq!(listed["containers"].as_array().unwrap().len(), 8);

    let output = engine.reap(&["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report = document(&output);
    assert_eq!(report["engine"], "silent");
    assert_eq!(
        (&report["count"], &report["proven"]),
        (&8.into(), &8.into())
    );
    assert_eq!(report["settled_ms"], serde_json::Value::Null);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("by a restart policy come back"), "{note}");
    for pid in &pids {
        assert!(is_dead(pid), "{pid} lives");
    }
    assert_eq!(bystander.alive(), [others], "another engine's");
    drop(stopped);
    // It goes on, and finds them dead.
    let mut wait = Command::new("docker");
    wait.env("DOCKER_HOST", &engine.host).arg("wait").args(&own);
    let codes = String::from_utf8(wait.output().unwrap().stdout).unwrap();
    assert_eq!(codes.lines().collect::<Vec<_>>(), vec!["137"; 8]);
}
