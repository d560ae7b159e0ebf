//! What hangs in a real fleet: found, explained by name, and its repl of use again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Up, stderr};

/// What an operation that a fault strikes may take: see `faults`.
const DEADLINE: Duration = Duration::from_secs(2);
/// From its deadline until its dump is in the log.
const FOUND_MAX: Duration = Duration::from_secs(5);
/// From there until its repl is of use again.
const OF_USE_MAX: Duration = Duration::from_secs(10);

struct Struck {
    _files: tempfile::TempDir,
    state: PathBuf,
    up: Up,
}

impl Struck {
    /// A fleet of one host, which has nobody to take over from it.
    fn begin() -> Self {
        let files = tempfile::tempdir().unwrap();
        let state = files.path().join("state");
        let up = Up::start(&state, 1);
        std::fs::create_dir(state.join("faults")).unwrap();
        Self {
            _files: files,
            state,
            up,
        }
    }

    fn create(&self, repl: &str, fault: &str) {
        let created = self
            .up
            .ask(&["repl", "create", repl, "--", "sleep", "1000"]);
        assert!(created.status.success(), "{}", stderr(&created));
        std::fs::write(
            self.state.join("faults").join(format!("{fault}@{repl}")),
            "",
        )
        .unwrap();
    }

    /// Has repls started that each meet a fault, and waits for the dump, which must have all of these words, and for
    /// every repl to be of use.
    fn strike(&self, faults: &[(&str, &str)], words: &[&str]) {
        for (fault, repl) in faults {
            self.create(repl, fault);
        }
        let began = Instant::now();
        let mut starts: Vec<_> = faults
            .iter()
            .map(|(_, repl)| self.up.command(&["repl", "start", repl]).spawn().unwrap())
            .collect();
        let dump = self.up.until("a dump", |up| dump(&up.log()));
        let found = began.elapsed();
        for word in words {
            assert!(dump.contains(word), "no {word:?} in:\n{dump}");
        }
        for (_, repl) in faults {
            self.up.until("the repl starts", |up| {
                up.ask(&["repl", "start", repl])
                    .status
                    .success()
                    .then_some(())
            });
        }
        let of_use = began.elapsed().saturating_sub(found);
        eprintln!("{faults:?}: found after {found:?}, of use {of_use:?} later");
        assert!(found < DEADLINE + FOUND_MAX, "found after {found:?}");
        assert!(of_use < OF_USE_MAX, "of use again after {of_use:?}");
        for start in &mut starts {
            start.wait().unwrap();
        }
    }
}

/// The first dump of a log, which is one write.
fn dump(log: &str) -> Option<String> {
    let from = log.find("what hangs, and who holds what")?;
    Some(log[from..].to_owned())
}

fn assert_restarted(struck: &Struck, is_restarted: bool) {
    let log = struck.up.log();
    let said = log.contains("says that it hangs");
    assert_eq!(said, is_restarted, "{log}");
}

#[test]
fn two_locks_taken_in_opposite_order() {
    let struck = Struck::begin();
    struck.strike(
        &[("locks-one-way", "one"), ("locks-other-way", "other")],
        &[
            "circle: start o",
            "lock of the ledger",
            "lock of the shelf",
            "thread ",
        ],
    );
    // Threads that are blocked can be ended with their process alone.
    assert_restarted(&struck, true);
}

#[test]
fn a_lost_wakeup() {
    let struck = Struck::begin();
    struck.strike(
        &[("lost-wakeup", "a")],
        &["start a@", "word that nobody gives"],
    );
    assert_restarted(&struck, false);
}

#[test]
fn a_blocked_worker_thread() {
    let struck = Struck::begin();
    struck.strike(&[("blocked-worker", "a")], &["start a@", "tokio-"]);
    assert_restarted(&struck, true);
    let fenced = "stuck: its repl is given up";
    assert!(struck.up.log().contains(fenced), "{}", struck.up.log());
}

#[test]
fn a_store_that_never_answers() {
    let struck = Struck::begin();
    struck.strike(&[("silent-store", "a")], &["claim a is at store"]);
    assert_restarted(&struck, false);
}

#[test]
fn a_runtime_call_that_never_returns() {
    let struck = Struck::begin();
    struck.strike(&[("silent-runtime", "a")], &["start a@", "is at runtime"]);
    assert_restarted(&struck, false);
}
