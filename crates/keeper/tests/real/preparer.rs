//! A disk that hangs must not hang the keeper: the process that touches disks is stopped here, as a dead disk
//! would hold it.

use std::time::Duration;

use model::wire::keeper::*;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::harness::{Host, await_readable, id, is_root};

/// The keeper's child that is no init: before anything is started, its only one.
fn preparer(host: &Host) -> Pid {
    let keeper = host.keeper.id();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    let children = children.expect("children");
    let [only] = children.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("not one child: {children}");
    };
    only.parse().ok().and_then(Pid::from_raw).expect("a pid")
}

#[test]
fn a_hanging_preparer_delays_only_starts_and_is_replaced() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let preparer = preparer(&host);
    let mut client = host.armed_client();
    let (one, two, three) = (id("one", 1), id("two", 1), id("three", 1));
    let running = host.idle(&mut client, &one);
    rustix::process::kill_process(preparer, Signal::STOP).expect("stop");
    let launch = Box::new(host.native_launch(&two, "exec sleep 1000"));
    let asked = client.ask(Request::Start {
        container: two,
        launch,
    });
    // Everything else goes on meanwhile.
    client.arm(Duration::from_secs(59));
    assert_eq!(running.script("echo fine").1, "fine\n");
    client.done(Request::Kill {
        ids: vec![one.clone()],
    });
    client.exit_of(&one);
    match client.answer(asked).0 {
        Answer::Refused(refusal) => assert_eq!(refusal.code, KeeperRefusalCode::TimedOut),
        other => panic!("not refused: {other:?}"),
    }
    host.idle(&mut client, &three);
    host.end();
}

#[test]
fn a_start_that_hangs_can_be_killed() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let preparer = preparer(&host);
    let mut client = host.armed_client();
    let one = id("one", 1);
    rustix::process::kill_process(preparer, Signal::STOP).expect("stop");
    let launch = Box::new(host.native_launch(&one, "exec sleep 1000"));
    let asked = client.ask(Request::Start {
        container: one.clone(),
        launch,
    });
    client.done(Request::Kill { ids: vec![one] });
    assert!(matches!(client.answer(asked).0, Answer::Refused(_)));
    // What it delivers late is nobody's.
    rustix::process::kill_process(preparer, Signal::CONT).expect("continue");
    host.idle(&mut client, &id("two", 1));
    assert_eq!(client.list().len(), 1);
    host.end();
}

#[test]
fn a_dead_preparer_is_replaced() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let preparer = preparer(&host);
    let pidfd = rustix::process::pidfd_open(preparer, PidfdFlags::empty()).expect("pidfd");
    let mut client = host.armed_client();
    // It has attached a layer; its successor attaches it again.
    host.idle(&mut client, &id("one", 1));
    rustix::process::kill_process(preparer, Signal::KILL).expect("kill");
    await_readable(&pidfd);
    let two = id("two", 1);
    let launch = Box::new(host.native_launch(&two, "exec sleep 1000"));
    let container = two.clone();
    // Whether the keeper has noticed already or not: at the latest the next one starts.
    client.request(Request::Start { container, launch });
    host.idle(&mut client, &id("three", 1));
    host.end();
}

#[test]
fn the_deadline_holds_while_a_preparer_hangs() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let preparer = preparer(&host);
    let pidfd = rustix::process::pidfd_open(preparer, PidfdFlags::empty()).expect("pidfd");
    let mut client = host.client();
    client.arm(Duration::from_millis(1_500));
    let running = host.idle(&mut client, &id("one", 1));
    rustix::process::kill_process(preparer, Signal::STOP).expect("stop");
    let two = id("two", 1);
    let launch = Box::new(host.native_launch(&two, "exec sleep 1000"));
    client.ask(Request::Start {
        container: two,
        launch,
    });
    running.await_dead();
    await_readable(&pidfd);
    host.await_keepers_end();
    host.prove_nothing_left();
}

/// The keeper's children.
fn children(host: &Host) -> usize {
    let keeper = host.keeper.id();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    children.expect("children").split_whitespace().count()
}

#[test]
fn a_start_of_an_earlier_connection_is_undone_and_not_answered_on_the_next() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    // Plays a control group that takes nothing in: a full pipe. The init waits there, begun and not started.
    let directory = host.path("full");
    std::fs::create_dir(&directory).expect("make");
    let (fifo, mode) = (
        directory.join("tasks"),
        rustix::fs::Mode::from_raw_mode(0o600),
    );
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("make");
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK;
    let pipe = rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).expect("open");
    while rustix::io::write(&pipe, &[0; 4096]).is_ok() {}

    let mut earlier = host.armed_client();
    let one = id("one", 1);
    let mut launch = host.native_launch(&one, "exec sleep 1000");
    if let LaunchKind::Native(plan) = &mut launch.kind {
        plan.cgroup_v1 = vec![directory];
    }
    let before = children(&host);
    let asked = earlier.ask(Request::Start {
        container: one,
        launch: Box::new(launch),
    });
    while children(&host) == before {
        std::thread::yield_now();
    }
    let mut next = host.client();
    while next.asked() < asked - 1 {
        assert_eq!(next.list().len(), 0, "what is not started is not held");
    }
    while children(&host) != before {
        std::thread::yield_now();
    }
    // This request has the number of the start that was asked for before.
    assert_eq!(next.list().len(), 0);
    assert_eq!(next.asked(), asked);
    host.end();
}
