//! The commands over the API, piped, as scripts use them.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Up, stderr, stdout};

#[test]
fn a_repl_from_create_to_rm() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let create = [
        "repl",
        "create",
        "web",
        "--env",
        "COLOUR=blue",
        "--idle-timeout",
        "10m",
    ];
    let output = up.ask(&[&create[..], &["--", "sh", "-c", "echo started; sleep 1000"]].concat());
    assert_eq!(stdout(&output), "web: created\n");
    let output = up.ask(&["repl", "ls"]);
    let table = stdout(&output);
    let columns: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!(columns[0][..3], ["REPL", "STATE", "HOST"]);
    assert_eq!(columns[1][..3], ["web", "free", "-"]);
    assert!(!table.contains('\u{1b}'), "colours in a pipe: {table:?}");

    // Exec starts it, has its environment and passes on both streams and the code.
    let output = up.ask(&[
        "repl",
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo $COLOUR; echo no >&2; exit 7",
    ]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(7), "blue\n")
    );
    assert_eq!(stderr(&output), "no\n");
    let answer = up.ask(&[
        "repl",
        "exec",
        "web",
        "--json",
        "--",
        "sh",
        "-c",
        "kill -9 $$",
    ]);
    assert_eq!(answer.status.code(), Some(137));
    let mut reader = up
        .command(&["repl", "exec", "web", "--stdin", "--", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    reader
        .stdin
        .take()
        .unwrap()
        .write_all(b"twelve bytes")
        .unwrap();
    assert_eq!(stdout(&reader.wait_with_output().unwrap()).trim(), "12");

    assert_eq!(stdout(&up.ask(&["repl", "logs", "web"])), "started\n");
    assert_eq!(
        up.json(&["repl", "show", "web", "--json"])["spec"]["idle_timeout_seconds"],
        600
    );
    assert_eq!(stdout(&up.ask(&["repl", "kill", "web"])), "web: killed\n");
    assert_eq!(up.json(&["repl", "show", "web", "--json"])["state"], "free");
    assert_eq!(stdout(&up.ask(&["repl", "start", "web"])), "web: started\n");
    assert_eq!(
        stdout(&up.ask(&["repl", "destroy", "web", "--grace", "100ms"])),
        "web: destroyed\n"
    );
    assert_eq!(stdout(&up.ask(&["repl", "rm", "web"])), "web: removed\n");
    assert_eq!(
        up.json(&["repl", "ls", "--json"])["repls"],
        serde_json::json!([])
    );
}

#[test]
fn refusals_have_the_apis_code_and_ours() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let output = up.ask(&["repl", "show", "nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("(unknown_repl)"),
        "{}",
        stderr(&output)
    );
    let output = up.ask(&["repl", "show", "nope", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unknown_repl");
    let output = up.ask(&["repl", "create", "bad", "--memory", "1K", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("limits.memory_bytes: 1024 is outside"),
        "{}",
        stderr(&output)
    );
    let output = up.ask(&["repl", "create", "bad"]);
    assert_eq!(output.status.code(), Some(2), "no command");
    up.ask(&["repl", "create", "missing", "--", "/no/such/program"]);
    let output = up.ask(&["repl", "start", "missing"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("(command_not_found)"),
        "{}",
        stderr(&output)
    );
    let output = up.ask(&["repl", "exec", "missing", "--", "true"]);
    assert_eq!(
        output.status.code(),
        Some(125),
        "nothing ran: {}",
        stderr(&output)
    );
    let output = up.ask(&["host", "drain", "host-9"]);
    assert!(
        stderr(&output).contains("(unknown_host)"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_host_is_drained_and_undrained() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 2);
    let output = up.ask(&["host", "drain", "host-1"]);
    assert!(
        stdout(&output).starts_with("host-1: drained; 0 of 0"),
        "{}",
        stdout(&output)
    );
    let state = |up: &Up| up.json(&["host", "ls", "--json"])["hosts"][0]["state"].clone();
    up.until("host-1 is draining", |up| {
        (state(up) == "draining").then_some(())
    });
    assert_eq!(
        stdout(&up.ask(&["host", "undrain", "host-1"])),
        "host-1: takes repls again\n"
    );
    up.until("host-1 is active", |up| {
        (state(up) == "active").then_some(())
    });
}

#[test]
fn logs_are_followed_until_the_reader_has_enough() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let program = "echo first; read line; echo second; sleep 1000";
    up.ask(&["repl", "create", "talker", "--", "sh", "-c", program]);
    up.ask(&["repl", "start", "talker"]);
    let mut follower = up
        .command(&["repl", "logs", "talker", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    // Its standard input is empty, so it goes on at once; the second line may be there or to come.
    assert_eq!(lines.next().unwrap().unwrap(), "second");
    crate::harness::send(follower.id(), rustix::process::Signal::INT);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}
