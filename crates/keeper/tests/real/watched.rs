//! Containers that others have started: held by a handle, and dead before or with the keeper. A plain process plays
//! the container.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

use model::wire::keeper::*;
use rustix::process::Signal;

use crate::harness::{Client, Host, await_guard, boot_now, id};

/// A process that somebody else has started, and reaps.
struct Foreign(Child);

impl Foreign {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().expect("sleep"))
    }

    /// As `/proc/PID/stat` has it.
    fn start_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("stat");
        let fields: Vec<&str> = stat.split_whitespace().collect();
        fields[21].parse().expect("a number")
    }

    fn hold(&self, repl: &str) -> Request {
        Request::Hold {
            container: id(repl, 1),
            pid: self.0.id(),
            start_ticks: self.start_ticks(),
        }
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_none()
    }

    /// Waits for its end, which must be by this signal.
    fn ended_by(mut self, signal: i32) {
        let status = self.0.wait().expect("wait");
        assert_eq!(status.signal(), Some(signal));
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn admit(client: &mut Client, repl: &str) {
    client.done(Request::Admit {
        container: id(repl, 1),
    });
}

fn held(client: &mut Client, foreign: &Foreign, repl: &str) {
    admit(client, repl);
    match client.request(foreign.hold(repl)) {
        (Answer::Started(held), fds) => {
            assert_eq!(held.pid, foreign.0.id());
            assert_eq!(held.state, HeldState::Watched);
            assert_eq!(fds.len(), 1, "its handle, and no init");
        }
        (other, _) => panic!("not held: {other:?}"),
    }
}

#[test]
fn is_listed_terminated_killed_and_gone_from_the_list() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let (one, other) = (Foreign::start(), Foreign::start());
    held(&mut client, &one, "one");
    held(&mut client, &other, "other");
    let mut client = host.client();
    let listed = client.list();
    assert_eq!(listed.len(), 2, "a new conman finds them");
    assert!(listed.iter().all(|(_, fds)| fds.len() == 1));
    client.done(Request::Terminate { id: id("one", 1) });
    one.ended_by(libc::SIGTERM);
    client.done(Request::Kill {
        ids: vec![id("other", 1), id("one", 1)],
    });
    other.ended_by(libc::SIGKILL);
    // The keeper sees it by the same handle, a moment later.
    while !client.list().is_empty() {
        std::thread::yield_now();
    }
    let refusal = client.refused(Request::Terminate { id: id("one", 1) });
    assert_eq!(refusal.code, KeeperRefusalCode::NotRunning);
    host.end();
}

#[test]
fn only_what_was_admitted_and_is_the_very_process_is_held() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let mut foreign = Foreign::start();
    let refusal = client.refused(foreign.hold("one"));
    assert_eq!(refusal.code, KeeperRefusalCode::NotRunning, "not admitted");
    admit(&mut client, "one");
    let again = Request::Admit {
        container: id("one", 1),
    };
    assert_eq!(client.refused(again).code, KeeperRefusalCode::StaleEpoch);
    // Its number was used again: the process behind it was started at another time.
    let refusal = client.refused(Request::Hold {
        container: id("one", 1),
        pid: foreign.0.id(),
        start_ticks: foreign.start_ticks() + 1,
    });
    assert_eq!(refusal.code, KeeperRefusalCode::NotRunning);
    assert!(refusal.message.contains("was started then"), "{refusal}");
    // Killed between its admission and its hold.
    admit(&mut client, "two");
    client.done(Request::Kill {
        ids: vec![id("two", 1)],
    });
    let refusal = client.refused(foreign.hold("two"));
    assert!(refusal.message.contains("was killed since"), "{refusal}");
    // The connection of its start is closed.
    admit(&mut client, "three");
    let mut client = host.client();
    let refusal = client.refused(foreign.hold("three"));
    assert_eq!(refusal.code, KeeperRefusalCode::NotRunning);
    assert!(foreign.is_alive(), "nobody touched it");
    host.end();
}

#[test]
fn nothing_is_admitted_before_the_first_deadline() {
    let host = Host::plain();
    let mut client = host.client();
    let admit = Request::Admit {
        container: id("one", 1),
    };
    assert_eq!(client.refused(admit).code, KeeperRefusalCode::NoDeadline);
    host.end();
}

#[test]
fn dies_before_the_deadline_of_a_keeper_that_is_well() {
    let mut host = Host::plain();
    let mut client = host.client();
    let deadline = client.arm(Duration::from_millis(700));
    let foreign = Foreign::start();
    held(&mut client, &foreign, "one");
    foreign.ended_by(libc::SIGKILL);
    assert!(boot_now() < deadline.plus(model::timing::KILL_BOUND));
    host.await_keepers_end();
}

#[test]
fn dies_with_a_keeper_that_is_stopped_until_its_deadline() {
    let mut host = Host::plain();
    let mut client = host.client();
    let deadline = client.arm(Duration::from_millis(700));
    let foreign = Foreign::start();
    held(&mut client, &foreign, "one");
    host.signal_keeper(Signal::STOP);
    foreign.ended_by(libc::SIGKILL);
    let late = boot_now().since(deadline);
    assert!(late < model::timing::KILL_BOUND, "{late:?}");
    host.await_keepers_end();
}

#[test]
fn dies_with_a_keeper_that_is_killed_or_ends() {
    for signal in [Signal::KILL, Signal::TERM] {
        let mut host = Host::plain();
        let mut client = host.armed_client();
        let (one, other) = (Foreign::start(), Foreign::start());
        held(&mut client, &one, "one");
        held(&mut client, &other, "other");
        host.signal_keeper(signal);
        one.ended_by(libc::SIGKILL);
        other.ended_by(libc::SIGKILL);
        host.await_keepers_end();
    }
}

#[test]
fn a_guard_that_is_killed_is_replaced() {
    let mut host = Host::plain();
    let mut client = host.armed_client();
    let foreign = Foreign::start();
    held(&mut client, &foreign, "one");
    let guard = await_guard(&host, None);
    rustix::process::kill_process(guard, Signal::KILL).expect("kill");
    await_guard(&host, Some(guard));
    host.signal_keeper(Signal::KILL);
    foreign.ended_by(libc::SIGKILL);
    host.await_keepers_end();
}
