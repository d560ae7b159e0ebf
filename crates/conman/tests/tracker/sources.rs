//! Sources that are no single file: a pattern, a real journal, and a server that speaks Loki's API as Grafana documents it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Serving, assert_agrees, line, report};

fn lines_of(known: &Value) -> u64 {
    let sources = known["sources"].as_array().unwrap();
    sources
        .iter()
        .map(|source| source["lines"].as_u64().unwrap())
        .sum()
}

fn standings(known: &Value) -> Vec<String> {
    let sources = known["sources"].as_array().unwrap();
    let mut standings: Vec<String> = sources
        .iter()
        .map(|source| {
            let name = source["name"].as_str().unwrap();
            let name = name.rsplit('/').next().unwrap();
            format!("{name} {}", source["standing"].as_str().unwrap())
        })
        .collect();
    standings.sort();
    standings
}

#[test]
fn files_by_a_pattern_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs");
    std::fs::create_dir_all(logs.join("a")).unwrap();
    let pattern = format!("{}/*/day-*.log", logs.display());
    // Another pattern that has the same files changes nothing.
    let patterns = format!("{pattern},{}/*/*.log", logs.display());
    let arguments = ["--stuck-files", &patterns, "--stuck-lateness", "0s"];
    let write = |path: &Path, text: String| {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let (first, second) = (logs.join("a/day-1.log"), logs.join("b/day-2.log"));
    write(&first, line(0, 1, "platform_fail"));
    let serving = Serving::start(folder.path(), &arguments);
    serving.until("the first file", |known| lines_of(known) == 1);
    // A file of a new day, in a directory that is new too.
    std::fs::create_dir(logs.join("b")).unwrap();
    write(&second, line(1_000, 1, "platform_fail"));
    serving.until("the second file", |known| lines_of(known) == 2);
    // What nobody told it of, and what was read before it was killed.
    serving.kill();
    write(&second, line(2_000, 1, "platform_fail"));
    let serving = Serving::start(folder.path(), &arguments);
    let known = serving.until("it goes on", |known| lines_of(known) == 3);
    assert_eq!(known["worst"][0]["attempts"], 3, "{known:#}");
    // A day that is over is removed, and is no source any more; what was counted stays.
    std::fs::remove_file(&first).unwrap();
    let known = serving.until("one file is left", |known| {
        known["sources"].as_array().unwrap().len() == 1
    });
    assert_eq!(known["worst"][0]["attempts"], 3, "{known:#}");
    assert_eq!(standings(&known), ["day-2.log following"]);
    // Its name comes back with another log: read from its start.
    write(&first, line(3_000, 1, "ok"));
    let known = serving.until("it is there again", |known| {
        known["sources"].as_array().unwrap().len() == 2 && known["worst"] == json!([])
    });
    assert_eq!(
        standings(&known),
        ["day-1.log following", "day-2.log following"]
    );
}

/// A real journald on a directory of its own, ended when it is dropped.
struct Journal {
    daemon: Child,
    run: PathBuf,
}

impl Journal {
    /// None where there is no right to mount, or no journald.
    fn start(folder: &Path) -> Option<Self> {
        const JOURNALD: &str = "/lib/systemd/systemd-journald";
        if !rustix::process::geteuid().is_root() || !Path::new(JOURNALD).exists() {
            eprintln!("skipped: this needs root and {JOURNALD}");
            return None;
        }
        let run = folder.join("run");
        std::fs::create_dir_all(run.join("systemd/journal")).unwrap();
        std::fs::create_dir_all(run.join("log/journal")).unwrap();
        let script = format!("mount --bind \"$0\" /run && exec {JOURNALD}");
        let daemon = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg(&run)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { daemon, run })
    }

    /// A program's way to it, as `systemd-cat` opens it.
    fn program(&self, identifier: &str) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(30);
        let socket = self.run.join("systemd/journal/stdout");
        let mut stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                // Of its sockets journald tells only the systemd that started it.
                Err(error) => assert!(Instant::now() < deadline, "no journald: {error}"),
            }
            std::thread::yield_now();
        };
        write!(stream, "{identifier}\n\n6\n0\n0\n0\n0\n").unwrap();
        stream
    }

    fn files(&self) -> PathBuf {
        self.run.join("log/journal")
    }

    /// What it holds of one program, as a file for a report.
    fn exported(&self, identifier: &str, to: &Path) {
        let status = Command::new("journalctl")
            .args(["-o", "json", "-q", "--no-pager", "-t", identifier, "-D"])
            .arg(self.files())
            .stdout(File::create(to).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn rotate(&self) {
        let pid = rustix::process::Pid::from_child(&self.daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::USR2).unwrap();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The processes whose command line has this text.
fn processes_with(text: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            String::from_utf8_lossy(line)
                .replace('\0', " ")
                .contains(text)
        })
        .count()
}

#[test]
fn a_journal_is_followed_through_rotation_and_death() {
    let folder = tempfile::tempdir().unwrap();
    let Some(journal) = Journal::start(folder.path()) else {
        return;
    };
    let mut gate = journal.program("gate");
    let mut other = journal.program("other");
    let files = journal.files().display().to_string();
    let arguments = [
        "--stuck-journal",
        "SYSLOG_IDENTIFIER=gate",
        "--stuck-journal-directory",
        &files,
        "--stuck-lateness",
        "0s",
    ];
    // The time of an attempt is the journal's own.
    let attempt = |number: u64| {
        line(
            number * 700,
            number % 7,
            ["ok", "platform_fail"][usize::from(!number.is_multiple_of(3))],
        )
    };
    let mut written = 0;
    for life in 0..3 {
        let serving = Serving::start(folder.path(), &arguments);
        for _ in 0..100 {
            gate.write_all(attempt(written).as_bytes()).unwrap();
            other.write_all(attempt(written).as_bytes()).unwrap();
            written += 1;
        }
        if life == 1 {
            journal.rotate();
        }
        serving.until("it reads", |known| lines_of(known) >= written - 30);
        serving.kill();
        // While nobody follows.
        gate.write_all(attempt(written).as_bytes()).unwrap();
        written += 1;
    }
    let serving = Serving::start(folder.path(), &arguments);
    for entity in 0..7 {
        gate.write_all(line(0, entity, "ok").as_bytes()).unwrap();
        written += 1;
    }
    serving.until("everybody is back", |known| lines_of(known) == written);
    // Of a later moment for certain: the others are behind the watermark then.
    gate.write_all(line(0, 9, "ok").as_bytes()).unwrap();
    written += 1;
    let known = serving.until("all is read", |known| {
        lines_of(known) == written && known["waiting"] == 1
    });
    assert_eq!(known["sources"][0]["unparsed"], 0, "{known:#}");
    let exported = folder.path().join("exported.json");
    journal.exported("gate", &exported);
    let watermark = known["watermark"].as_str().unwrap();
    let found = report(&[&exported], &["--until", watermark]);
    assert!(found["episodes"].as_u64().unwrap() > 5, "{found:#}");
    assert_agrees(&known, &found);
    serving.kill();
    // One that writes finds its reader gone, or is told when the pipe's other end is.
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes_with(&files) > 0 {
        assert!(Instant::now() < deadline, "a journalctl is left behind");
        gate.write_all(line(written * 700 + 300_000, 9, "ok").as_bytes())
            .unwrap();
        std::thread::yield_now();
    }
}

/// What a Loki holds and how it is disposed, with Grafana's documented `query_range`: `start` inclusive, `end` not,
/// `limit` over all streams in the order of `direction`.
#[derive(Default)]
struct Loki {
    entries: Vec<(i64, String, String)>,
    refusal: Option<(u16, &'static str)>,
    asked: Vec<String>,
}

impl Loki {
    fn start() -> (String, Arc<Mutex<Self>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/behind", listener.local_addr().unwrap());
        let loki = Arc::<Mutex<Self>>::default();
        let served = loki.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, served) = (stream.unwrap(), served.clone());
                std::thread::spawn(move || Self::answer(stream, &served));
            }
        });
        (url, loki)
    }

    fn answer(mut stream: TcpStream, loki: &Mutex<Self>) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let (status, body) = loki.lock().unwrap().say(&head);
            let answer = format!(
                "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn say(&mut self, head: &str) -> (u16, String) {
        let head = head.to_ascii_lowercase();
        self.asked.push(head.clone());
        if let Some((status, reason)) = self.refusal {
            return (status, reason.to_owned());
        }
        let has = |line: &str| head.lines().any(|found| found == line);
        if !has("authorization: bearer secret") || !has("x-scope-orgid: team") {
            return (401, "no org id".to_owned());
        }
        let target = head.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap();
        assert_eq!(path, "/behind/loki/api/v1/query_range");
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(found, _)| *found == name).unwrap().1
        };
        assert_eq!(value("query"), "%7bapp%3d%22gate%22%7d");
        assert_eq!(value("direction"), "forward");
        let range = value("start").parse().unwrap()..value("end").parse::<i64>().unwrap();
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| range.contains(&entry.0))
            .collect();
        entries.sort();
        entries.truncate(value("limit").parse().unwrap());
        let stream = |pod: &str| {
            let of_pod = entries.iter().filter(|entry| entry.1 == pod);
            let values: Vec<_> = of_pod
                .map(|entry| json!([entry.0.to_string(), entry.2]))
                .collect();
            json!({ "stream": { "app": "gate", "pod": pod }, "values": values })
        };
        let body = json!({ "status": "success", "data": { "resultType": "streams",
            "result": [stream("a"), stream("b")], "stats": {} } });
        (200, body.to_string())
    }
}

#[test]
fn loki_is_followed_through_pages_late_entries_refusals_and_death() {
    let folder = tempfile::tempdir().unwrap();
    let (url, loki) = Loki::start();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "Bearer secret\n").unwrap();
    let secret = secret.display().to_string();
    #[rustfmt::skip]
    let arguments = [
        "--stuck-loki", &url, "--stuck-loki-query", "{app=\"gate\"}", "--stuck-loki-tenant", "team",
        "--stuck-loki-authorization-file", &secret, "--stuck-lateness", "20s",
    ];
    let now = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let began = now - 600_000;
    let since_2026 = |ms: u64| ms - 1_767_225_600_000;
    let (mut whole, mut written) = (String::new(), 0_u64);
    let mut tell = |ms: u64, entity: u64, outcome: &str, pod: &str| {
        let text = line(since_2026(ms), entity, outcome);
        whole.push_str(&text);
        written += 1;
        let entry = (
            (ms * 1_000_000) as i64,
            pod.to_owned(),
            text.trim_end().to_owned(),
        );
        loki.lock().unwrap().entries.push(entry);
        written
    };
    // More than a page, and some hundreds of them at one moment; all of it older than what comes.
    let mut count = 0;
    for number in 0..5_000_u64 {
        let ms = began + number / 300 * 20_000;
        let outcome = ["ok", "platform_fail"][usize::from(!number.is_multiple_of(3))];
        count = tell(ms, number, outcome, ["a", "b"][number as usize % 2]);
    }
    let serving = Serving::start(folder.path(), &arguments);
    serving.until("all pages", |known| lines_of(known) == count);
    loki.lock().unwrap().refusal = Some((429, "too many outstanding requests"));
    serving.until("it is refused", |known| {
        standings(known) == ["loki {app=\"gate\"} unreachable"]
    });
    serving.kill();
    loki.lock().unwrap().refusal = None;
    let newest = began + 400_000;
    tell(newest, 1, "ok", "a");
    let serving = Serving::start(folder.path(), &arguments);
    count += 1;
    serving.until("what came meanwhile", |known| lines_of(known) == count);
    // By other shippers, later than what is newer: in its place by the next sweep; out of its place, counted so.
    tell(newest - 15_000, 2, "platform_fail", "b");
    tell(newest - 14_000, 2, "platform_fail", "b");
    let known = serving.until("the late ones", |known| lines_of(known) == count + 2);
    assert_eq!(known["sources"][0]["late"], 0, "{known:#}");
    assert_eq!(known["worst"][0]["entity"], "r2", "{known:#}");
    let far_behind = line(since_2026(newest - 35_000), 3, "platform_fail");
    let entry = (
        (newest - 35_000) as i64 * 1_000_000,
        "b".to_owned(),
        far_behind,
    );
    loki.lock().unwrap().entries.push(entry);
    let known = serving.until("the very late one", |known| lines_of(known) == count + 3);
    assert_eq!(known["sources"][0]["late"], 1, "{known:#}");
    tell(newest + 100_000, 9, "ok", "a");
    let known = serving.until("the end", |known| known["waiting"] == 1);
    assert_eq!(standings(&known), ["loki {app=\"gate\"} following"]);
    let copy = folder.path().join("copy.ndjson");
    std::fs::write(&copy, whole).unwrap();
    let watermark = known["watermark"].as_str().unwrap();
    let found = report(&[&copy], &["--until", watermark]);
    assert!(found["attempts"].as_u64().unwrap() > 5_000, "{found:#}");
    assert_agrees(&known, &found);
    let asked = loki.lock().unwrap().asked.len();
    assert!(asked < 120, "it asks about once a second: {asked}");
}
