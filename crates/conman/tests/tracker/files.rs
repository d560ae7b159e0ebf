//! Files that grow, are rotated and truncated, while the tracker is killed in between.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::harness::{Serving, assert_agrees, get, line, report, serve};

/// What a log of some length says: entities fail and are reached, in an order that a seed decides.
struct Log {
    ms: u64,
    seed: u64,
}

impl Log {
    fn new(seed: u64) -> Self {
        Self { ms: 0, seed }
    }

    fn random(&mut self, below: u64) -> u64 {
        // Knuth's multiplier; its upper bits are random enough for a test.
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn next(&mut self) -> String {
        self.ms += self.random(3_000);
        let late = self.random(2_000).min(self.ms);
        let entity = self.random(40);
        let outcome = if self.random(3) == 0 {
            "ok"
        } else {
            "platform_fail"
        };
        line(self.ms - late, entity, outcome)
    }

    /// Successes of everybody, much later: nothing is open behind them, and the watermark passes all before them.
    fn last(&mut self) -> String {
        self.ms += 30_000;
        let all: String = (0..40).map(|entity| line(self.ms, entity, "ok")).collect();
        self.ms += 60_000;
        all + &line(self.ms, 99, "ok")
    }
}

fn appending(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

fn lines_of(known: &serde_json::Value) -> u64 {
    known["sources"][0]["lines"].as_u64().unwrap()
}

#[test]
fn whenever_it_is_killed_nothing_is_lost_or_counted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session.log");
    let text = path.display().to_string();
    let arguments = ["--stuck-files", &text];
    let (mut log, mut written) = (Log::new(7), 0_u64);
    let mut whole = String::new();
    for life in 0..6_u64 {
        let serving = Serving::start(folder.path(), &arguments);
        let mut file = appending(&path);
        let lines = 3_000 + log.random(3_000);
        for number in 0..lines {
            let line = log.next();
            // Now and then half a line first, and its other half with the next.
            let half = if number % 97 == 0 { line.len() / 2 } else { 0 };
            file.write_all(&line.as_bytes()[..half]).unwrap();
            file.write_all(&line.as_bytes()[half..]).unwrap();
            whole.push_str(&line);
            written += 1;
        }
        if life == 2 {
            // Rotated under its feet, with nobody there to see the second time.
            std::fs::rename(&path, folder.path().join("session.log.2")).unwrap();
        }
        // Killed anywhere: what it has not read is for the next.
        let enough = 1 + log.random(written);
        serving.until("it reads", |known| lines_of(known) >= enough);
        serving.kill();
        if life == 2 {
            let line = log.next();
            appending(&path).write_all(line.as_bytes()).unwrap();
            whole.push_str(&line);
            written += 1;
            std::fs::rename(&path, folder.path().join("session.log.1")).unwrap();
        }
    }
    let last = log.last();
    appending(&path).write_all(last.as_bytes()).unwrap();
    whole.push_str(&last);
    written += last.lines().count() as u64;
    let serving = Serving::start(folder.path(), &arguments);
    let known = serving.until("it has read all", |known| {
        lines_of(known) == written && known["waiting"] == 1
    });
    let copy = folder.path().join("copy.ndjson");
    std::fs::write(&copy, whole).unwrap();
    let watermark = known["watermark"].as_str().unwrap().to_owned();
    assert_eq!(known["sources"][0]["late"], 0);
    assert_agrees(&known, &report(&[&copy], &["--until", &watermark]));
    let found = report(&[&copy], &[]);
    assert!(found["episodes"].as_u64().unwrap() > 100, "{found:#}");
}

#[test]
fn rotation_and_truncation_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let text = path.display().to_string();
    let serving = Serving::start(
        folder.path(),
        &["--stuck-files", &text, "--stuck-lateness", "0s"],
    );
    let mut old = appending(&path);
    old.write_all(line(0, 1, "platform_fail").as_bytes())
        .unwrap();
    serving.until("the first line", |known| lines_of(known) == 1);
    // The writer goes on in the renamed file until it opens the new one, and ends with half a line.
    std::fs::rename(&path, folder.path().join("a.log.1")).unwrap();
    let mut new = appending(&path);
    let last = line(2_000, 1, "platform_fail");
    old.write_all(line(1_000, 1, "platform_fail").as_bytes())
        .unwrap();
    old.write_all(&last.as_bytes()[..last.len() - 1]).unwrap();
    serving.until("the line behind the name", |known| lines_of(known) == 2);
    new.write_all(line(3_000, 1, "ok").as_bytes()).unwrap();
    serving.until("both files", |known| lines_of(known) == 4);
    // Truncated, and written anew.
    new.set_len(0).unwrap();
    new.write_all(line(4_000, 2, "ok").as_bytes()).unwrap();
    let known = serving.until("the new start", |known| lines_of(known) == 5);
    assert_eq!(known["users"]["episodes"][0]["recovered"], 1);
    assert_eq!(known["sources"][0]["unparsed"], 0);
}

#[test]
fn standard_input_ends_with_what_a_report_says_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(3);
    let text: String = (0..2_000).map(|_| log.next()).collect();
    let copy = folder.path().join("copy.ndjson");
    std::fs::write(&copy, &text).unwrap();
    let mut command = serve(folder.path(), &["--stuck-stdin", "true"]);
    command.stdin(Stdio::piped());
    let mut serving = Serving::of(command);
    // The last line has no end.
    let text = text.trim_end();
    serving
        .child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let known = serving.until("its end", |known| {
        known["sources"][0]["standing"] == "ended"
    });
    let found = report(&[&copy], &[]);
    assert_eq!(known["waiting"], 0);
    assert_agrees(&known, &found);
    // The page tells the same.
    let page = serving.get("/metrics");
    let failed = found["failed_attempts"].as_u64().unwrap();
    let wanted = format!(
        "conman_stuck_attempts_total{{audience=\"user\",outcome=\"failed\",reason=\"owner_gone\"}} {failed}\n"
    );
    assert!(page.contains(&wanted), "{page}");
    assert!(!page.contains("r17"), "a repl's name is no label");
    // And so does the list of the worst.
    let top = crate::harness::conman()
        .args(["stuck", "top", "--worst", "2", "--url", &serving.url])
        .output()
        .unwrap();
    let top = String::from_utf8(top.stdout).unwrap();
    let worst = known["worst"][0]["entity"].as_str().unwrap();
    assert!(
        top.lines().any(|line| line.contains(&format!("{worst} "))),
        "{top}"
    );
    let json = crate::harness::conman()
        .args(["stuck", "top", "--json", "--url", &serving.url])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["worst"].as_array().unwrap().len(), 10);
    assert_eq!(json["users"], known["users"]);
    assert!(get(&serving.url, "/readyz").starts_with("ready"));
}
