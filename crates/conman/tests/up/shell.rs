//! `conman repl shell` on a real terminal: raw while it lasts, as it was afterwards, its size the other's.

use crate::harness::Up;
use crate::terminal::Terminal;

fn repl(up: &Up) {
    let output = up.ask(&["repl", "create", "home", "--", "sleep", "1000"]);
    assert!(output.status.success());
}

#[test]
fn it_is_the_repls_terminal_until_its_shell_ends() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    repl(&up);
    let mut terminal = Terminal::new();
    assert!(!terminal.is_raw());
    let mut shell = terminal.run(&up.command(&["repl", "shell", "home"]));
    terminal.see("connected to home");
    terminal.type_in("stty size\r");
    terminal.see("30 100");
    assert!(terminal.is_raw());
    terminal.resize(120, 40);
    // What is typed after the resize is behind it on the same connection.
    terminal.type_in("stty size\r");
    terminal.see("40 120");
    terminal.type_in("exit 5\r");
    assert_eq!(shell.wait().unwrap().code(), Some(5));
    assert!(!terminal.is_raw(), "the terminal was left raw");
}

#[test]
fn leaving_it_does_not_end_it() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    repl(&up);
    let mut terminal = Terminal::new();
    let mut shell = terminal.run(&up.command(&["repl", "shell", "home"]));
    terminal.see("connected to home");
    terminal.type_in("MARK=kept\r");
    terminal.type_in("~.");
    terminal.see("its shell goes on");
    assert_eq!(shell.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());

    let mut shell = terminal.run(&up.command(&["repl", "shell", "home"]));
    terminal.see("connected to home");
    terminal.type_in("echo \"<$MARK>\"\r");
    terminal.see("<kept>");
    // A signal ends it as well, and the terminal is put back all the same.
    let conman =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.id())).unwrap();
    let conman = conman.trim().parse().unwrap_or(shell.id());
    crate::harness::send(conman, rustix::process::Signal::TERM);
    assert_eq!(shell.wait().unwrap().code(), Some(143));
    assert!(!terminal.is_raw(), "the terminal was left raw");
}

/// The shell of the command while its repl is moved to another host.
fn stays_open_through_a_drain(up: &Up) {
    repl(up);
    let mut terminal = Terminal::new();
    let mut shell = terminal.run(&up.command(&["repl", "shell", "home"]));
    terminal.see("connected to home");
    terminal.resize(120, 40);
    terminal.type_in("stty size\r");
    terminal.see("40 120");
    let view = up.json(&["repl", "show", "home", "--json"]);
    let host = view["host"].as_str().unwrap();
    let drained = up.json(&["host", "drain", host, "--json"]);
    assert_eq!(drained["handed_off"], 1, "{drained}");
    terminal.see("[conman] moved to host-");
    assert!(terminal.is_raw(), "the move gave the terminal back");
    // Another shell, on a terminal of the same size.
    terminal.type_in("stty size\r");
    terminal.see("40 120");
    terminal.type_in("exit 7\r");
    assert_eq!(shell.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw(), "the terminal was left raw");
}

#[test]
fn it_stays_open_while_its_repl_moves() {
    let files = tempfile::tempdir().unwrap();
    stays_open_through_a_drain(&Up::start(&files.path().join("state"), 2));
}

#[test]
fn it_stays_open_while_its_repl_moves_between_real_containers() {
    let files = tempfile::tempdir().unwrap();
    let Some(up) = Up::start_native(&files.path().join("state"), 2) else {
        return;
    };
    stays_open_through_a_drain(&up);
    // Killed like the others it would leave cgroups behind.
    let (status, _) = up.end(rustix::process::Signal::TERM);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_refusal_leaves_the_terminal_alone() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let mut terminal = Terminal::new();
    let mut shell = terminal.run(&up.command(&["repl", "shell", "nope"]));
    terminal.see("(unknown_repl)");
    assert_eq!(shell.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
}
