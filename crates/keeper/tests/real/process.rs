//! Plain processes: no walls, but the same life and death. These need no root.

use model::id::ContainerId;
use model::wire::keeper::*;
use rustix::process::Signal;

use crate::harness::{Host, PATIENCE, Signpost, id, is_readable_within};

/// A program with descendants that left its session and its process group, and one whose parent is dead.
/// It names their PIDs on the signpost.
fn family(host: &Host, one: &ContainerId) -> (Launch, Signpost) {
    let post = Signpost::new(&host.path(&format!("{}-pids", one.repl)));
    let script = "
        post=$1
        setsid sh -c 'echo $$ > '$post'; exec sleep 1000' &
        (setsid sh -c 'setsid sleep 1000 & echo $! > '$post'; echo $$ > '$post'; wait' &)
        echo $$ > $post
        wait; sleep 1000";
    let mut launch = host.plain_launch(one, script);
    launch.command.extend([
        "sh".into(),
        host.path(&format!("{}-pids", one.repl))
            .to_str()
            .expect("a path")
            .into(),
    ]);
    (launch, post)
}

fn pidfds(post: &Signpost) -> Vec<std::os::fd::OwnedFd> {
    (0..4)
        .map(|_| {
            let pid = post
                .line()
                .parse()
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            let flags = rustix::process::PidfdFlags::empty();
            rustix::process::pidfd_open(pid.expect("a pid"), flags).expect("pidfd")
        })
        .collect()
}

fn assert_all_dead(pidfds: &[std::os::fd::OwnedFd]) {
    for pidfd in pidfds {
        assert!(is_readable_within(pidfd, PATIENCE), "a descendant lives on");
    }
}

#[test]
fn a_program_ends_with_its_code_and_its_output_is_kept() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    client.start(one.clone(), host.plain_launch(&one, "echo hello; exit 7"));
    assert_eq!(client.exit_of(&one), WireExit::Code { code: 7 });
    assert_eq!(host.log(&one), "hello\n");
    let mut launch = host.plain_launch(&id("two", 1), "");
    launch.command = vec!["no-such-program".into()];
    let refusal = client.refused(Request::Start {
        container: id("two", 1),
        launch: Box::new(launch),
    });
    assert_eq!(refusal.code, KeeperRefusalCode::CommandNotFound);
    host.end();
}

#[test]
fn kill_gets_every_descendant() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let (launch, post) = family(&host, &one);
    client.start(one.clone(), launch);
    let all = pidfds(&post);
    client.done(Request::Kill {
        ids: vec![one.clone()],
    });
    assert_eq!(client.exit_of(&one), WireExit::Signal { signal: 9 });
    // At once: it was said when all were dead.
    for pidfd in &all {
        assert!(is_readable_within(pidfd, std::time::Duration::ZERO));
    }
    host.end();
}

#[test]
fn what_a_program_leaves_behind_ends_with_it() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let (launch, post) = family(&host, &one);
    let running = client.start(one.clone(), launch);
    let all = pidfds(&post);
    // The program itself: the only child of the init that is a session's leader by our start.
    running_program(running.held.pid, Signal::TERM);
    assert_eq!(client.exit_of(&one), WireExit::Signal { signal: 15 });
    assert_all_dead(&all);
    host.end();
}

fn running_program(init: u32, signal: Signal) {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
    let children = children.expect("children");
    let first = children.split_whitespace().next().expect("a child");
    let pid = first.parse().ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), signal).expect("signal");
}

#[test]
fn a_killed_init_leaves_no_orphans() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let (launch, post) = family(&host, &one);
    let running = client.start(one.clone(), launch);
    let all = pidfds(&post);
    rustix::process::pidfd_send_signal(&running.pidfd, Signal::KILL).expect("kill");
    assert_eq!(client.exit_of(&one), WireExit::Signal { signal: 9 });
    for pidfd in &all {
        assert!(is_readable_within(pidfd, std::time::Duration::ZERO));
    }
    host.end();
}

#[test]
fn a_killed_keepers_processes_die() {
    let mut host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let (launch, post) = family(&host, &one);
    let running = client.start(one.clone(), launch);
    let all = pidfds(&post);
    host.signal_keeper(Signal::KILL);
    host.await_keepers_end();
    assert_all_dead(&all);
    running.await_dead();
}

#[test]
fn sigterm_ends_a_keeper_and_all_its_processes() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let (launch, post) = family(&host, &one);
    client.start(one.clone(), launch);
    let all = pidfds(&post);
    host.end();
    for pidfd in &all {
        assert!(is_readable_within(pidfd, std::time::Duration::ZERO));
    }
}

#[test]
fn commands_run_beside_a_plain_process() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let running = client.start(one.clone(), host.plain_launch(&one, "exec sleep 1000"));
    assert_eq!(
        running.script("echo hello; exit 3"),
        (WireExit::Code { code: 3 }, "hello\n".into())
    );
    host.end();
}

#[test]
fn native_containers_are_refused_where_they_cannot_be_made() {
    let host = Host::plain();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let mut launch = host.plain_launch(&one, "exit 0");
    launch.kind = LaunchKind::Native(host.native_plan(&one));
    let refusal = client.refused(Request::Start {
        container: one.clone(),
        launch: Box::new(launch),
    });
    assert_eq!(refusal.code, KeeperRefusalCode::Unsupported);
    // It was not tried.
    let launch = host.plain_launch(&one, "exit 0");
    client.start(one, launch);
    host.end();
}
