//! `conman repl shell` on a real terminal: raw while it lasts, as it was afterwards, its size the other's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::{PATIENCE, Up};

/// Our end of a terminal that a command runs on.
struct Terminal {
    master: File,
    slave: File,
    screen: String,
    pieces: mpsc::Receiver<Vec<u8>>,
}

impl Terminal {
    fn new() -> Self {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let master = File::from(master);
        let (sender, pieces) = mpsc::channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self {
            master,
            slave,
            screen: String::new(),
            pieces,
        };
        terminal.resize(100, 30);
        terminal
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// The command with this as its controlling terminal.
    fn run(&self, command: &Command) -> Child {
        let slave = || Stdio::from(self.slave.try_clone().unwrap());
        let mut session = Command::new("setsid");
        session
            .arg("--ctty")
            .arg("--wait")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        session
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap()
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until the screen has shown this since the last time.
    fn see(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.screen.find(wanted) {
                self.screen.drain(..at + wanted.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.screen += &String::from_utf8_lossy(&piece),
                Err(_) => panic!("{wanted:?} was not seen in {:?}", self.screen),
            }
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ECHO)
    }
}

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
