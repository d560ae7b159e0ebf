//! `conman stuck top` on a real terminal: live, as large as the terminal, there while its tracker is not, and gone without a trace.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::harness::{Serving, conman, line, serve_on};
use crate::terminal::Terminal;

/// What a terminal is told to do by a program that takes its whole screen, and that gives it back.
const ENTERS: &str = "\u{1B}[?1049h";
const LEAVES: &str = "\u{1B}[?1049l";

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn top(url: &str) -> Command {
    let mut command = conman();
    command.args(["stuck", "top", "--url", url]);
    command
}

/// Entities 1 to 9 have failed twice, 9 s apart, the later ones earlier.
fn nine_are_stuck() -> String {
    let failed = |ms| (1..10).map(move |entity| line(ms - entity * 100, entity, "platform_fail"));
    let mut lines: Vec<String> = failed(1_000).chain(failed(10_000)).collect();
    lines.push(line(10_000, 99, "ok"));
    lines.concat()
}

#[test]
fn it_shows_who_is_stuck_while_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("session.log");
    append(&log, &nine_are_stuck());
    let name = log.display().to_string();
    let arguments = ["--stuck-files", &name, "--stuck-lateness", "0s"];
    let serving = Serving::start(folder.path(), &arguments);
    serving.until("all is read", |known| {
        known["worst"].as_array().unwrap().len() == 9
    });
    let mut terminal = Terminal::new();
    let mut looking = terminal.run(&top(&serving.url));
    terminal.see(ENTERS);
    terminal.see("q leaves");
    terminal.see("users: 9 open");
    terminal.see("r9 ");
    terminal.see("r1 ");
    assert!(terminal.is_raw());

    // Six lines: two of counts, one of the address, a header, and one of those who are stuck.
    terminal.resize(100, 6);
    terminal.see("users: 9 open");
    terminal.see("r9 ");
    terminal.see("... and 8 more");

    append(&log, &line(11_000, 9, "ok"));
    append(&log, &line(30_000, 99, "ok"));
    terminal.see("users: 8 open, 1 recovered");
    terminal.see("r8 ");
    terminal.see("... and 7 more");

    // Its tracker is killed, and another takes its place.
    let address = serving.url.strip_prefix("http://").unwrap().to_owned();
    serving.kill();
    terminal.see("no answer for 2 s: ");
    terminal.see("cannot be reached");
    terminal.see("users: 8 open, 1 recovered");
    let serving = Serving::of(serve_on(&address, folder.path(), &arguments));
    append(&log, &line(31_000, 8, "ok"));
    append(&log, &line(60_000, 99, "ok"));
    terminal.see("q leaves");
    terminal.see("users: 7 open, 2 recovered");

    terminal.type_in("q");
    terminal.see(LEAVES);
    assert_eq!(looking.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal was left raw");
    drop(serving);
}

#[test]
fn a_tracker_that_hangs_is_told_and_control_c_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("session.log");
    append(&log, &nine_are_stuck());
    let name = log.display().to_string();
    let serving = Serving::start(folder.path(), &["--stuck-files", &name]);
    serving.until("all is read", |known| known["sources"][0]["lines"] == 19);
    let mut terminal = Terminal::new();
    let mut looking = terminal.run(&top(&serving.url));
    terminal.see("users: ");
    let pid = rustix::process::Pid::from_child(&serving.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    terminal.see("is silent");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    terminal.see("q leaves");
    terminal.type_in("\u{3}");
    terminal.see(LEAVES);
    assert_eq!(looking.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal was left raw");
}

#[test]
fn a_name_from_a_log_cannot_write_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("session.log");
    let attack = nine_are_stuck().replace("\"r9\"", r#""r9\u001b[2Jgone""#);
    append(&log, &attack);
    let name = log.display().to_string();
    let arguments = ["--stuck-files", &name, "--stuck-lateness", "0s"];
    let serving = Serving::start(folder.path(), &arguments);
    serving.until("all is read", |known| {
        known["worst"].as_array().unwrap().len() == 9
    });
    let mut terminal = Terminal::new();
    let mut once = terminal.run(top(&serving.url).arg("--once"));
    terminal.see("r9 [2Jgone");
    assert_eq!(once.wait().unwrap().code(), Some(0));
}
