//! A real `conman up` on a directory of its own, with the process runtime, which needs no root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test, with none of this process's own configuration.
pub(crate) fn conman() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONMAN_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    conman().args(arguments).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process that can be waited for though it is not ours.
pub(crate) struct Watched(OwnedFd);

impl Watched {
    pub(crate) fn new(pid: u32) -> Self {
        Self(pidfd_open(to_pid(pid), PidfdFlags::empty()).unwrap())
    }

    pub(crate) fn has_ended_within(&self, patience: Duration) -> bool {
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(patience).unwrap();
        poll(&mut ended, Some(&patience)).unwrap() == 1
    }
}

pub(crate) fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

pub(crate) fn send(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).unwrap();
}

/// A fleet, killed if it is not ended.
pub(crate) struct Up {
    child: Child,
    pub(crate) url: String,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

/// `conman up` on this state directory, not waited for.
pub(crate) fn starting(state: &Path, hosts: u16) -> Up {
    starting_with(state, hosts, &["--runtime", "process"])
}

fn starting_with(state: &Path, hosts: u16, runtime: &[&str]) -> Up {
    let log = state.with_extension("log");
    let mut child = conman()
        .args(["up", "--listen", "127.0.0.1:0"])
        .args(runtime)
        .args(["--hosts", &hosts.to_string()])
        // These tests count containers.
        .env("CONMAN_PROBE_HOSTS", "0")
        .arg("--state")
        .arg(state)
        .stdout(Stdio::piped())
        .stderr(
            File::options()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap(),
        )
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Up {
        child,
        url: String::new(),
        lines,
        log,
    }
}

impl Up {
    pub(crate) fn start(state: &Path, hosts: u16) -> Self {
        starting(state, hosts).ready()
    }

    /// The same with real containers; `None`, said so, where that needs a root that the test is not.
    pub(crate) fn start_native(state: &Path, hosts: u16) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: the native runtime needs root");
            return None;
        }
        Some(starting_with(state, hosts, &["--runtime", "native"]).ready())
    }

    /// With another runtime than `process`.
    pub(crate) fn start_with(state: &Path, hosts: u16, runtime: &[&str]) -> Self {
        starting_with(state, hosts, runtime).ready()
    }

    fn ready(mut self) -> Self {
        let up = &mut self;
        match up.lines.recv_timeout(PATIENCE) {
            Ok(line) => up.url = line.strip_prefix("ready ").unwrap().to_owned(),
            Err(error) => panic!("not ready: {error}\n{}", up.log()),
        }
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// `conman ARGUMENTS` against this fleet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = conman();
        command.env("CONMAN_URL", &self.url).args(arguments);
        command
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, which must be one JSON document.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ask(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The processes that it has started, `keeper host-1` and so on, by what their command lines say.
    pub(crate) fn children(&self) -> BTreeMap<String, u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(path).unwrap();
        let mut named = BTreeMap::new();
        for pid in children.split_whitespace() {
            let Ok(arguments) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) else {
                continue;
            };
            let arguments: Vec<_> = arguments.split('\0').collect();
            let host = arguments
                .iter()
                .skip_while(|argument| **argument != "--host")
                .nth(1);
            if let (Some(role), Some(host)) = (arguments.get(1), host) {
                named.insert(format!("{role} {host}"), pid.parse().unwrap());
            }
        }
        named
    }

    /// Asks again until there is an answer. What is asked is another process's state, which has no event.
    pub(crate) fn until<T>(&self, what: &str, mut ask: impl FnMut(&Up) -> Option<T>) -> T {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "not in time: {what}\n{}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// Asks it to end, and returns how it did and after how long.
    pub(crate) fn end(mut self, signal: Signal) -> (ExitStatus, Duration) {
        let began = Instant::now();
        send(self.pid(), signal);
        let watched = Watched::new(self.pid());
        assert!(
            watched.has_ended_within(PATIENCE),
            "did not end\n{}",
            self.log()
        );
        let took = began.elapsed();
        (self.child.wait().unwrap(), took)
    }

    /// All that it still has to say on its standard output.
    pub(crate) fn last_words(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    /// Waits for an end that comes by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let watched = Watched::new(self.pid());
        assert!(
            watched.has_ended_within(PATIENCE),
            "did not end\n{}",
            self.log()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // A test that fails in between; everything else dies with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything of a file that is there.
pub(crate) fn read_all(mut file: impl Read) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// A repl that runs until it is killed; the PID of its container's PID 1.
pub(crate) fn sleeper(up: &Up, repl: &str) -> u32 {
    let created = up.ask(&["repl", "create", repl, "--", "sleep", "1000"]);
    assert!(created.status.success(), "{created:?}");
    let started = up.ask(&["repl", "start", repl]);
    assert!(started.status.success(), "{started:?}");
    let pid = up.ask(&["repl", "exec", repl, "--", "sh", "-c", "echo $PPID"]);
    stdout(&pid).trim().parse().unwrap()
}
