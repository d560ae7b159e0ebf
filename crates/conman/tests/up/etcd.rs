//! A fleet over an etcd of its own: what a lost leader costs (no container), and that nothing of it is left.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Up, Watched, conman, send, sleeper, stderr, stdout};

const ETCD: [&str; 4] = ["--runtime", "process", "--store", "etcd"];

/// `None`, said so, where there is no etcd: `make test` installs one.
fn start(state: &Path, hosts: u16) -> Option<Up> {
    if std::env::var_os("CONMAN_TEST_ETCD").is_none() {
        eprintln!("NOT RUN: no etcd; `make test` brings one");
        return None;
    }
    Some(Up::start_with(state, hosts, &ETCD))
}

/// A member as its command line has it.
#[derive(Debug, Clone)]
struct Member {
    pid: u32,
    address: String,
}

impl Member {
    /// `None` where it does not answer.
    fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn is_leader(&self) -> bool {
        let page = self.page("/metrics").unwrap_or_default();
        page.lines().any(|line| line == "etcd_server_is_leader 1")
    }

    fn is_healthy(&self) -> bool {
        let page = self.page("/health").unwrap_or_default();
        page.contains(r#"{"health":"true"}"#)
    }
}

fn members(up: &Up) -> BTreeMap<String, Member> {
    let path = format!("/proc/{0}/task/{0}/children", up.pid());
    let children = std::fs::read_to_string(path).unwrap();
    let mut members = BTreeMap::new();
    for pid in children.split_whitespace() {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        let arguments = arguments.unwrap_or_default();
        let arguments: Vec<_> = arguments.split('\0').collect();
        let value = |flag: &str| {
            let at = arguments.iter().position(|argument| *argument == flag)?;
            Some((*arguments.get(at + 1)?).to_owned())
        };
        if let (Some(name), Some(url)) = (value("--name"), value("--listen-client-urls")) {
            let address = url.strip_prefix("http://").unwrap().to_owned();
            let pid = pid.parse().unwrap();
            members.insert(name, Member { pid, address });
        }
    }
    members
}

#[test]
fn a_lost_leader_costs_no_container() {
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let Some(up) = start(&state, 3) else {
        return;
    };
    let repls = ["a", "b", "c", "d"];
    let containers: Vec<_> = repls
        .iter()
        .map(|repl| Watched::new(sleeper(&up, repl)))
        .collect();
    let before = up.json(&["repl", "ls", "--json"]);
    let (name, leader) = members(&up)
        .into_iter()
        .find(|(_, member)| member.is_leader())
        .unwrap();
    let mut watched = vec![Watched::new(leader.pid)];
    send(leader.pid, Signal::KILL);

    // The member is back, as another process, in a cluster that has a leader.
    up.until("the member is back", |up| {
        let member = members(up).remove(&name)?;
        (member.pid != leader.pid && member.is_healthy()).then_some(())
    });
    // Longer than any lease from before the loss could have lasted.
    let lasted = Duration::from_secs(4);
    assert!(!containers[0].has_ended_within(lasted), "{}", up.log());
    for (repl, container) in repls.iter().zip(&containers) {
        assert!(!container.has_ended_within(Duration::ZERO), "{}", up.log());
        let answer = up.ask(&["repl", "exec", repl, "--", "echo", "here"]);
        assert_eq!(stdout(&answer), "here\n", "{}", stderr(&answer));
    }
    let after = up.json(&["repl", "ls", "--json"]);
    let epochs = |list: &serde_json::Value| {
        let repls = list.as_array().or_else(|| list["repls"].as_array());
        let repls = repls.unwrap().iter();
        repls
            .map(|repl| (repl["id"].clone(), repl["epoch"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(epochs(&after), epochs(&before));

    watched.extend(containers);
    watched.extend(up.children().values().map(|pid| Watched::new(*pid)));
    watched.extend(members(&up).values().map(|member| Watched::new(member.pid)));
    let (status, _) = up.end(Signal::INT);
    assert_eq!(status.code(), Some(0));
    let ended = |process: &Watched| process.has_ended_within(Duration::ZERO);
    assert!(watched.iter().all(ended), "something of it lives");
    assert!(!state.join("sockets").exists(), "sockets are left");

    // What was created is still there at the next start, and nothing is owned.
    let up = Up::start_with(&state, 1, &ETCD);
    let view = up.json(&["repl", "show", "a", "--json"]);
    assert_eq!(view["state"], "free", "{view}");
}

#[test]
fn members_die_with_a_supervisor_that_is_killed() {
    let files = tempfile::tempdir().unwrap();
    let Some(up) = start(&files.path().join("state"), 1) else {
        return;
    };
    let members: Vec<_> = members(&up)
        .values()
        .map(|member| Watched::new(member.pid))
        .collect();
    assert_eq!(members.len(), 3);
    up.end(Signal::KILL);
    let ended = |process: &Watched| process.has_ended_within(crate::harness::PATIENCE);
    assert!(members.iter().all(ended));
}

/// A gateway whose etcd is not there yet, then there, then killed: it serves, says so once each time, and shows it.
#[test]
fn an_etcd_that_is_away_is_said_once() {
    if std::env::var_os("CONMAN_TEST_ETCD").is_none() {
        eprintln!("NOT RUN: no etcd; `make test` brings one");
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let [gateway, client, peer] = [free_port(), free_port(), free_port()];
    let log = files.path().join("log");
    let url = format!("http://127.0.0.1:{client}");
    let mut node = Killed(
        conman()
            .args(["serve", "--store", "etcd", "--store-endpoints", &url])
            .args(["--listen", &format!("127.0.0.1:{gateway}"), "--state"])
            .arg(files.path().join("state"))
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let own = Member {
        pid: node.0.id(),
        address: format!("127.0.0.1:{gateway}"),
    };
    let said = |what: &str| {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().filter(|line| line.contains(what)).count()
    };
    let mut shows = |gauge: &str| {
        let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
        while !own.page("/metrics").unwrap_or_default().contains(gauge) {
            assert!(std::time::Instant::now() < deadline, "never {gauge}");
            assert!(node.0.try_wait().unwrap().is_none(), "it ended");
            std::thread::yield_now();
        }
    };
    shows("conman_store_unreachable 1");
    let start = || {
        Killed(
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "etcd", "--name", "m1", "--data-dir"])
                .arg(files.path().join("etcd"))
                .args([
                    "--listen-client-urls",
                    &url,
                    "--advertise-client-urls",
                    &url,
                ])
                .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
                .arg(format!(
                    "--initial-advertise-peer-urls=http://127.0.0.1:{peer}"
                ))
                .arg(format!("--initial-cluster=m1=http://127.0.0.1:{peer}"))
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    };
    let etcd = start();
    shows("conman_store_unreachable 0");
    drop(etcd);
    shows("conman_store_unreachable 1");
    shows("conman_store_outages_total 2");
    let _etcd = start();
    shows("conman_store_unreachable 0");
    assert_eq!(said("the store cannot be reached"), 2);
    assert_eq!(said("the store can be reached again"), 2);
    let log = std::fs::read_to_string(&log).unwrap();
    let lines = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    assert_eq!(lines.count(), 4, "{log}");
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Outside the range that the kernel gives to outgoing connections, and of each process its own.
fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let from = 20_000 + (std::process::id() % 1_400) as u16 * 8;
    loop {
        let port = from + TRIED.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn an_etcd_that_is_not_installed_is_named_with_its_package() {
    let files = tempfile::tempdir().unwrap();
    let output = conman()
        .args(["up", "--listen", "127.0.0.1:0", "--state"])
        .arg(files.path().join("state"))
        .args(ETCD)
        .env("PATH", files.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let said = stderr(&output);
    assert!(
        said.contains(
            "conman: --store etcd starts the program etcd, which is not in PATH: install it, as by Debian's \
             package etcd-server, or leave the store to SQLite"
        ),
        "{said}"
    );
}

#[test]
fn a_store_that_cannot_be_configured_is_named_by_its_key() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("conman.toml");
    let refused = |command: &[&str], text: &str, expected: &str| {
        std::fs::write(&file, text).unwrap();
        let output = conman()
            .args(command)
            .arg("--config")
            .arg(&file)
            .arg("--state")
            .arg(files.path())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{expected:?} is not in: {said}");
    };
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    refused(
        &serve,
        "[store]\nkind = 'etcd'",
        "conman: store_endpoints: must be given where the store is etcd, as in https://10.0.0.1:2379 (set by \
         --store-endpoints, CONMAN_STORE_ENDPOINTS, or store_endpoints in the file)",
    );
    refused(
        &serve,
        "[store]\nkind = 'etcd'\nendpoints = ['http://10.0.0.1:2379']",
        "conman: store_endpoints: \"http://10.0.0.1:2379\" is beyond this machine and without TLS",
    );
    refused(
        &serve,
        "[store]\nkind = 'etcd'\nendpoint = 'x'",
        "unknown field `endpoint`",
    );
    refused(
        &["up"],
        "[store]\nkind = 'etcd'\nendpoints = ['http://127.0.0.1:2379']",
        "conman: store_endpoints: `conman up` has an etcd of its own",
    );
    refused(
        &["up", "--store", "postgres"],
        "",
        "conman: store: \"postgres\" is not sqlite, etcd, or the path of a file",
    );
}
