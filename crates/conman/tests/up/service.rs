//! A node and its keeper under a service manager, which this test plays: one configuration file for both, the words
//! of `sd_notify`, and the difference between a stop and a restart.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;

use crate::harness::{PATIENCE, Watched, conman, run, send, stderr, stdout};

/// What a service manager hears of one service.
pub(crate) struct Heard(UnixDatagram);

impl Heard {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(crate) fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer).expect("a word in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// Listens until this is said.
    pub(crate) fn until(&self, wanted: &str) {
        while !self.next().starts_with(wanted) {}
    }
}

/// A service, killed if it is not ended.
pub(crate) struct Service {
    child: Child,
    pub(crate) heard: Heard,
}

impl Service {
    pub(crate) fn start(directory: &Path, command: &str, watchdog: Option<&str>) -> Self {
        Self::start_with(directory, command, &[], watchdog)
    }

    pub(crate) fn start_with(
        directory: &Path,
        command: &str,
        more: &[&str],
        watchdog: Option<&str>,
    ) -> Self {
        // Two processes of one command may be there at once.
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let socket = directory.join(format!("{command}.{number}.notify"));
        let heard = Heard::at(&socket);
        let mut started = conman();
        started.arg(command).args(more);
        started.env("NOTIFY_SOCKET", &socket);
        started.env("CONMAN_CONFIG", directory.join("conman.toml"));
        started
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID");
        if let Some(usec) = watchdog {
            started.env("WATCHDOG_USEC", usec);
        }
        Self {
            child: log_to(&mut started, &directory.join(format!("{command}.log"))),
            heard,
        }
    }

    /// Ends it, and returns its exit code.
    pub(crate) fn end(self, signal: Signal) -> Option<i32> {
        send(self.child.id(), signal);
        self.ended()
    }

    /// Its exit code, when it ends by itself.
    pub(crate) fn ended(mut self) -> Option<i32> {
        let watched = Watched::new(self.child.id());
        assert!(watched.has_ended_within(PATIENCE), "it does not end");
        self.heard.until("STOPPING=1");
        self.child.wait().unwrap().code()
    }
}

fn log_to(command: &mut Command, log: &Path) -> Child {
    let file = std::fs::File::options().create(true).append(true).open(log);
    command.stderr(file.unwrap()).spawn().unwrap()
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One host and a gateway, as the packaged file has them.
pub(crate) fn configure(directory: &Path) -> String {
    configure_at(directory, &format!("unix:{}/node", directory.display()), "")
}

fn free_address() -> std::net::SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

fn configure_at(directory: &Path, host_address: &str, more: &str) -> String {
    let listen = free_address();
    let config = format!(
        "state = '{0}/state'\nruntime = 'process'\nhost = 'h1'\nlisten = '{listen}'\n\
         host_address = '{host_address}'\nkeeper_socket = '{0}/keeper'\n{more}",
        directory.display()
    );
    std::fs::write(directory.join("conman.toml"), config).unwrap();
    format!("http://{listen}")
}

pub(crate) fn ask(url: &str, arguments: &[&str]) -> String {
    let output = conman().env("CONMAN_URL", url).args(arguments).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_restart_leaves_containers_alive_and_a_stop_drains_them() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let url = configure(directory);
    let keeper = Service::start(directory, "keeper", Some("200000"));
    assert_eq!(keeper.heard.next(), "READY=1");
    assert_eq!(keeper.heard.next(), "WATCHDOG=1");
    let node = Service::start(directory, "serve", Some("2000000"));
    assert_eq!(node.heard.next(), "READY=1");
    assert_eq!(node.heard.next(), "WATCHDOG=1");
    let status = node.heard.next();
    assert!(status.starts_with("STATUS=h1 registered"), "{status}");
    ask(&url, &["repl", "create", "a", "--", "sleep", "1000"]);
    ask(&url, &["repl", "start", "a"]);
    let pid = ask(&url, &["repl", "exec", "a", "--", "sh", "-c", "echo $PPID"]);
    let container = Watched::new(pid.trim().parse().unwrap());

    assert_eq!(node.end(Signal::HUP), Some(0));
    let node = Service::start(directory, "serve", None);
    node.heard.until("READY=1");
    node.heard.until("STATUS=h1 registered");
    let again = ask(&url, &["repl", "exec", "a", "--", "sh", "-c", "echo $PPID"]);
    assert_eq!(again, pid, "it is the same container");

    assert_eq!(node.end(Signal::TERM), Some(0));
    assert!(container.has_ended_within(PATIENCE), "it was drained");
    let log = std::fs::read_to_string(directory.join("serve.log")).unwrap();
    assert!(log.contains("unfinished=0"), "{log}");
    assert_eq!(keeper.end(Signal::TERM), Some(0));
}

#[test]
fn a_node_that_hangs_gives_no_sign_of_life() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    configure(directory);
    let _keeper = Service::start(directory, "keeper", None);
    let node = Service::start(directory, "serve", Some("400000"));
    node.heard.until("READY=1");
    node.heard.until("WATCHDOG=1");
    send(node.child.id(), Signal::STOP);
    // What it had said before the signal took effect is read first.
    let silence = std::time::Duration::from_secs(1);
    node.heard.0.set_read_timeout(Some(silence)).unwrap();
    let mut buffer = [0; 1024];
    while node.heard.0.recv(&mut buffer).is_ok() {}
    send(node.child.id(), Signal::CONT);
    node.heard.0.set_read_timeout(Some(PATIENCE)).unwrap();
    node.heard.until("WATCHDOG=1");
}

/// A drain is busy and its sockets are closed, for longer than the watchdog's patience: a manager that heard nothing
/// would cut it short.
#[test]
fn a_node_gives_signs_of_life_while_it_drains() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let url = configure(directory);
    let mut file = std::fs::File::options()
        .append(true)
        .open(directory.join("conman.toml"))
        .unwrap();
    writeln!(file, "preemption_grace = '3s'").unwrap();
    let _keeper = Service::start(directory, "keeper", None);
    let mut node = Service::start(directory, "serve", Some("400000"));
    node.heard.until("READY=1");
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 1000; done";
    ask(&url, &["repl", "create", "a", "--", "sh", "-c", deaf]);
    ask(&url, &["repl", "start", "a"]);
    let mut follower = conman()
        .env("CONMAN_URL", &url)
        .args(["repl", "logs", "a", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(follower.stdout.take().unwrap());
    lines.read_line(&mut said).unwrap();
    assert_eq!(said, "deaf\n", "from here on it hears no SIGTERM");

    send(node.child.id(), Signal::TERM);
    node.heard.until("STOPPING=1");
    // One may have been due just then; the next ones are given by what drains.
    for _ in 0..4 {
        node.heard.until("WATCHDOG=1");
    }
    assert_eq!(node.child.try_wait().unwrap(), None, "it still drains");
    let watched = Watched::new(node.child.id());
    assert!(watched.has_ended_within(PATIENCE), "it does not end");
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
    follower.wait().unwrap();
    let log = std::fs::read_to_string(directory.join("serve.log")).unwrap();
    assert!(log.contains("unfinished=0"), "{log}");
}

#[test]
fn a_keeper_that_is_not_told_whose_it_is_says_so() {
    let output = run(&["keeper"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "conman: host: a keeper must be told whose it is (set by --host, CONMAN_HOST, or host in the file)\n"
    );
}

/// The gateway reaches the host, and the watchdog the node, by showing a certificate; who shows none gets nothing. All of it
/// goes on with another certificate.
#[test]
fn nodes_show_each_other_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let place = directory.to_str().unwrap();
    let sign = || {
        let node = ["certs", "node", "h1", "--address", "127.0.0.1"];
        let there = ["--ca-directory", place, "--directory", place];
        let signed = run(&[&node[..], &there].concat());
        assert!(signed.status.success(), "{}", stderr(&signed));
    };
    assert!(run(&["certs", "ca", "--directory", place]).status.success());
    sign();
    let address = free_address();
    let keys = format!(
        "node_ca = '{place}/ca.pem'\nnode_certificate = '{place}/h1.pem'\nnode_key = '{place}/h1-key.pem'\n"
    );
    let url = configure_at(directory, &format!("tls:{address}"), &keys);
    let keeper = Service::start(directory, "keeper", None);
    assert_eq!(keeper.heard.next(), "READY=1");
    let node = Service::start(directory, "serve", Some("500000"));
    node.heard.until("READY=1");
    ask(&url, &["repl", "create", "web", "--", "sleep", "1000"]);
    let here = ["repl", "exec", "web", "--", "echo", "here"];
    assert_eq!(ask(&url, &here), "here\n");

    let plain = format!("http://{address}");
    let refused = run(&["repl", "ls", "--url", &plain]);
    assert_ne!(refused.status.code(), Some(0), "{}", stdout(&refused));

    sign();
    let log = directory.join("serve.log");
    // The pulse of the watchdog dials anew, and by that sees the new files.
    loop {
        node.heard.until("WATCHDOG=1");
        let log = std::fs::read_to_string(&log).unwrap();
        if log.contains("the node's certificate was changed") {
            break;
        }
    }
    assert_eq!(ask(&url, &here), "here\n");
    node.end(Signal::TERM);
    keeper.end(Signal::TERM);
}
