//! A real `conman stuck serve` on a directory of its own, and a plain client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn conman() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONMAN_") {
            command.env_remove(name);
        }
    }
    command
}

/// A tracker, killed when it is dropped.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) url: String,
}

pub(crate) fn serve(state: &Path, arguments: &[&str]) -> Command {
    serve_on("127.0.0.1:0", state, arguments)
}

pub(crate) fn serve_on(address: &str, state: &Path, arguments: &[&str]) -> Command {
    let mut command = conman();
    command.args(["stuck", "serve", "--stuck-listen", address]);
    command
        .args(["--log", "warn", "--state"])
        .arg(state)
        .args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

impl Serving {
    pub(crate) fn start(state: &Path, arguments: &[&str]) -> Self {
        Self::of(serve(state, arguments))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let url = line
            .trim()
            .strip_prefix("ready ")
            .expect("it starts")
            .to_owned();
        Self { child, url }
    }

    pub(crate) fn get(&self, path: &str) -> String {
        get(&self.url, path)
    }

    pub(crate) fn known(&self) -> Value {
        serde_json::from_str(&self.get("/v1/stuck?worst=1000")).unwrap()
    }

    /// Asks again until what it knows fulfils the condition: it is another process's state, which has no event.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self.known();
            if is_so(&known) {
                return known;
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {known:#}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of an answer.
pub(crate) fn get(url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return body.to_owned();
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole.push_str(&after[..size]);
        rest = after.get(size + 2..).unwrap_or("");
    }
    whole
}

/// A line of a session log.
pub(crate) fn line(ms: u64, entity: u64, outcome: &str) -> String {
    let time = jiff::Timestamp::from_millisecond(1_767_225_600_000 + ms as i64).unwrap();
    let reason = if outcome == "ok" {
        "opened"
    } else {
        "owner_gone"
    };
    format!(
        "{{\"time\":\"{time:.6}\",\"repl\":\"r{entity}\",\"session\":\"s\",\"outcome\":\"{outcome}\",\
         \"reason\":\"{reason}\",\"attempt_ms\":1.0}}\n"
    )
}

/// What `stuck report` says of these files.
pub(crate) fn report(files: &[&Path], arguments: &[&str]) -> Value {
    let output = conman()
        .args(["stuck", "report", "--json", "--buckets"])
        .arg("1,2,5,10,30,60,120,300,900,3600,14400")
        .args(arguments)
        .args(files)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that what a tracker has counted is what a report says, when nothing waits any more and nothing is open.
pub(crate) fn assert_agrees(known: &Value, report: &Value) {
    let users = &known["users"];
    let sum = |key: &str| -> u64 {
        users["episodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|class| class[key].as_u64().unwrap())
            .sum()
    };
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(
        number(&users["attempts"]["reached"]),
        number(&report["attempts"]) - number(&report["failed_attempts"])
    );
    let failed: u64 = users["attempts"]["failed"]
        .as_object()
        .unwrap()
        .values()
        .map(number)
        .sum();
    assert_eq!(failed, number(&report["failed_attempts"]));
    assert_eq!(
        [sum("recovered"), sum("abandoned"), sum("open")],
        [&report["recovered"], &report["abandoned"], &report["open"]].map(number)
    );
    let open_blips = number(&users["blips"]["open"]);
    let blips =
        number(&users["blips"]["recovered"]) + number(&users["blips"]["abandoned"]) + open_blips;
    assert_eq!(blips, number(&report["blips"]));
    let sessions = &users["sessions"];
    assert_eq!(
        number(&sessions["failed"]) + sum("open") + open_blips,
        number(&report["failed_sessions"])
    );
    assert_eq!(sessions["delayed"], report["delayed_sessions"]);
    if sum("open") == 0 {
        let counts = |value: &Value| -> Vec<u64> {
            value
                .as_array()
                .unwrap()
                .iter()
                .map(|bucket| number(&bucket["count"]))
                .collect()
        };
        assert_eq!(counts(&users["buckets"]), counts(&report["buckets"]));
        let seconds = |value: &Value| value.as_f64().unwrap();
        let (ours, theirs) = (
            seconds(&users["stuck_seconds_total"]),
            seconds(&report["stuck_seconds_total"]),
        );
        assert!((ours - theirs).abs() < 1e-3, "{ours} {theirs}");
    }
}
