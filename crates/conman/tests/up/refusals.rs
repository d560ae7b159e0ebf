//! Starts that are refused: each with its exit code and a text that says what to do, and nothing started.

use std::net::TcpListener;

use crate::harness::{Up, conman, run, starting, stderr};

fn refused(state: &std::path::Path, more: &[&str], code: i32, expected: &str) {
    let output = conman()
        .args([
            "up",
            "--runtime",
            "process",
            "--listen",
            "127.0.0.1:0",
            "--state",
        ])
        .arg(state)
        .args(more)
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "{expected:?} is not in: {said}");
    assert!(output.stdout.is_empty(), "said it was ready");
}

#[test]
fn a_second_one_on_the_same_state() {
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let up = Up::start(&state, 1);
    let expected = format!("is in use by another `conman up` (process {})", up.pid());
    refused(&state, &[], 4, &expected);
    // The first is none the worse for it.
    assert!(up.ask(&["host", "ls"]).status.success());
}

#[test]
fn a_port_in_use() {
    let files = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let expected = format!("listen on {address}: Address already in use");
    let output = conman()
        .args([
            "up",
            "--runtime",
            "process",
            "--listen",
            &address,
            "--state",
        ])
        .arg(files.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn a_store_that_is_none() {
    let files = tempfile::tempdir().unwrap();
    let store = files.path().join("store.db");
    std::fs::write(&store, "a text file that is long enough to have a header").unwrap();
    refused(
        files.path(),
        &[],
        4,
        "store.db: the file is not an SQLite file",
    );
    let left = std::fs::read_to_string(&store).unwrap();
    assert!(left.starts_with("a text file"), "was overwritten");
}

#[test]
fn a_store_of_a_newer_version() {
    let files = tempfile::tempdir().unwrap();
    let store = files.path().join("store.db");
    drop(conman::store::sqlite::Sqlite::open(&store).unwrap());
    rusqlite::Connection::open(&store)
        .unwrap()
        .execute_batch("PRAGMA user_version = 7")
        .unwrap();
    refused(
        files.path(),
        &[],
        4,
        "is the store of a newer conman: its format is 7",
    );
}

#[test]
fn a_state_directory_that_cannot_be_made() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&file.join("state"), &[], 4, "Not a directory");
}

#[test]
fn configurations_that_cannot_work() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("conman.toml");
    let with_file = |text: &str, expected: &str| {
        std::fs::write(&file, text).unwrap();
        refused(
            files.path(),
            &["--config", file.to_str().unwrap()],
            2,
            expected,
        );
    };
    with_file(
        "hosts = 0",
        "hosts: must be 1 to 64, not 0 (set by --hosts, CONMAN_HOSTS",
    );
    with_file("hsots = 3", "unknown field `hsots`");
    with_file("hosts = [", "conman.toml: TOML parse error at line 1");
    refused(
        files.path(),
        &["--config", "/no/such/file"],
        2,
        "config: read /no/such/file: No such file",
    );
    refused(
        files.path(),
        &["--profile", "slow"],
        2,
        "invalid value 'slow' for '--profile",
    );
    let output = conman()
        .arg("up")
        .env("CONMAN_HOTSS", "3")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("CONMAN_HOTSS: there is no such key"));
    assert!(
        !files.path().join("store.db").exists(),
        "something was started"
    );
}

#[test]
fn an_end_before_it_is_ready() {
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let up = starting(&state, 1);
    // Once it has its lock it has its signal handlers too.
    up.until("the lock is taken", |_| {
        state.join("lock").exists().then_some(())
    });
    let (status, _) = up.end(rustix::process::Signal::TERM);
    assert_eq!(status.code(), Some(0));
    assert!(!state.join("sockets").join("host-1.node").exists());
}

#[test]
fn commands_without_an_api() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{nobody}");
    let output = run(&["repl", "ls", "--url", &url]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("is `conman up` running"),
        "{}",
        stderr(&output)
    );
    let output = run(&["repl", "ls", "--json", "--url", &url]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "api_unreachable");
    let output = run(&["debug", "operations", "--url", &url]);
    assert_eq!(output.status.code(), Some(3));
    let expected = format!(
        "conman: {url} cannot be reached: Connection refused (os error 111); is `conman up` running, and CONMAN_URL right?\n"
    );
    assert_eq!(stderr(&output), expected);
    let output = run(&["debug", "operations", "--json", "--url", &url]);
    assert_eq!(output.status.code(), Some(3));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "api_unreachable");
    let output = run(&["debug"]);
    assert_eq!(output.status.code(), Some(2));
    let output = run(&["repl", "exec", "x", "--url", &url, "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let output = run(&["repl", "ls", "--url", "ftp://x"]);
    assert_eq!(output.status.code(), Some(2));
    let output = run(&["repl", "show", "Not_A_Name"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("a name has only a-z, 0-9 and '-', not 'N'"));
}
