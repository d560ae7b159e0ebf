//! `conman stuck report` as a program: what it draws on a terminal, what it reads from a pipe, and how it ends.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::terminal::Terminal;

/// A log, newest first, of an entity that fails twice and is reached, again and again.
fn log(lines: usize) -> String {
    let mut text = String::new();
    for index in (0..lines).rev() {
        let outcome = if index % 3 == 2 { "ok" } else { "fail" };
        let time = 1_767_225_600 + index;
        writeln!(
            text,
            r#"{{"time":{time},"repl":"ann","outcome":"{outcome}"}}"#
        )
        .unwrap();
    }
    text
}

fn report(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
    command.args(["stuck", "report"]).args(arguments);
    command
}

/// The report of what comes through a pipe.
fn report_of(text: &str, arguments: &[&str]) -> Output {
    let mut command = report(arguments);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn written(folder: &Path, name: &str, text: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_terminal_shows_bytes_and_rate_and_the_time_left() {
    let folder = tempfile::tempdir().unwrap();
    let text = log(40_000);
    let file = written(folder.path(), "a.log", text.as_bytes());
    let mut terminal = Terminal::new();
    let mut child = terminal.run(&report(&[&file]));
    let whole = format!("iB of {:.2} MiB, ", text.len() as f64 / f64::from(1 << 20));
    for wanted in [&whole, "/s, ", " left", "stuck episodes"] {
        terminal.see(wanted);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_pipe_shows_no_progress() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "a.log", log(20_000).as_bytes());
    let output = report(&[&file]).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
    assert!(!output.stdout.contains(&b'\x1B'));
}

#[test]
fn disorder_from_a_pipe_is_spilled_as_far_as_it_may_be() {
    // Somewhat more than is sorted in memory.
    let text = log((1 << 19) + 9);
    let output = report_of(&text, &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let episodes = text.lines().count() as u64 / 3 + 1;
    assert_eq!(
        (&found["passes"], &found["episodes"]),
        (&"sorted".into(), &episodes.into())
    );
    let output = report_of(&text, &["--json", "--spill-max", "0"]);
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"error: standard input is not in the order of time, and sorting it needs more than the 0 bytes that may be spilled: give it as a file, which is read twice, or raise --spill-max");
}

#[test]
fn what_cannot_be_unpacked_or_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().display().to_string();
    let half = written(folder.path(), "half.gz", b"\x1F\x8B\x08\0\0\0\0\0\0\x03");
    let log = written(folder.path(), "a.log", log(9).as_bytes());
    let picture = folder.path().join("none/a.svg").display().to_string();
    let refused = |arguments: &[&str]| {
        let output = report(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr)
            .unwrap()
            .replace(&name, "DIR");
        format!("{:?} {text}", output.status.code())
    };
    insta::assert_snapshot!(refused(&[&half]), @"Some(1) error: cannot read DIR/half.gz: incomplete deflate stream");
    insta::assert_snapshot!(refused(&[&log, "--svg", &picture]), @"Some(1) conman: write DIR/none/a.svg: No such file or directory (os error 2)");
}
