//! The lives of a fleet's processes: they end together, and come back alone.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{PATIENCE, Up, Watched, read_all, send, sleeper};

/// What an `up` leaves in its state directory: what is to be kept, and nothing that lives.
fn assert_clean(state: &Path) {
    assert!(!state.join("sockets").exists(), "sockets are left");
    for directory in ["run", "overlay"] {
        let left = std::fs::read_dir(state.join(directory))
            .into_iter()
            .flatten();
        assert_eq!(left.count(), 0, "{directory} is not empty");
    }
    // Nothing that belonged to it is alive: the last of its members has let go of this.
    let members = std::fs::File::open(state.join("members")).unwrap();
    rustix::fs::flock(
        &members,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .expect("a member is alive");
}

#[test]
fn it_ends_with_all_that_it_has_started() {
    for signal in [Signal::TERM, Signal::INT] {
        let files = tempfile::tempdir().unwrap();
        let state = files.path().join("state");
        let up = Up::start(&state, 2);
        let mut watched: Vec<_> = (1..=8)
            .map(|number| Watched::new(sleeper(&up, &format!("repl-{number}"))))
            .collect();
        let children = up.children();
        let names: Vec<_> = children.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "keeper host-1",
                "keeper host-2",
                "serve host-1",
                "serve host-2"
            ]
        );
        watched.extend(children.values().map(|pid| Watched::new(*pid)));
        let (status, took) = up.end(signal);
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(2), "took {took:?}");
        assert!(
            watched
                .iter()
                .all(|process| process.has_ended_within(Duration::ZERO))
        );
        assert_clean(&state);
    }
}

#[test]
fn what_it_leaves_when_it_is_killed_dies_and_is_cleaned_up() {
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let up = Up::start(&state, 2);
    let mut watched = vec![Watched::new(sleeper(&up, "kept"))];
    watched.extend(up.children().values().map(|pid| Watched::new(*pid)));
    let (status, _) = up.end(Signal::KILL);
    assert!(!status.success());
    // The kernel's work, with nobody's help.
    assert!(
        watched
            .iter()
            .all(|process| process.has_ended_within(PATIENCE))
    );
    assert!(state.join("sockets").exists());

    let up = Up::start(&state, 1);
    let view = up.json(&["repl", "show", "kept", "--json"]);
    assert_eq!(view["state"], "free", "{view}");
    assert_eq!(view["spec"]["command"][0], "sleep");
    sleeper(&up, "kept");
    let (status, _) = up.end(Signal::TERM);
    assert_eq!(status.code(), Some(0));
    assert_clean(&state);
}

#[test]
fn a_conman_that_is_killed_comes_back_to_its_containers() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let container = Watched::new(sleeper(&up, "mine"));
    let before = up.json(&["repl", "show", "mine", "--json"]);
    let conman = up.children()["serve host-1"];
    send(conman, Signal::KILL);
    let epoch = up.until("conman serves again", |up| {
        let view = up.ask(&["repl", "exec", "mine", "--json", "--", "true"]);
        let came_back = up
            .children()
            .get("serve host-1")
            .is_some_and(|pid| *pid != conman);
        (view.status.success() && came_back)
            .then(|| up.json(&["repl", "show", "mine", "--json"])["epoch"].clone())
    });
    assert_eq!(
        epoch, before["epoch"],
        "it was started again instead of adopted"
    );
    assert!(!container.has_ended_within(Duration::ZERO));
    assert!(up.log().contains("ended by itself: starting it again"));
}

#[test]
fn a_keeper_that_is_killed_is_replaced_and_the_repl_starts_again() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 1);
    let container = Watched::new(sleeper(&up, "mine"));
    send(up.children()["keeper host-1"], Signal::KILL);
    assert!(
        container.has_ended_within(PATIENCE),
        "a container outlived its keeper"
    );
    up.until("the repl starts again", |up| {
        up.ask(&["repl", "start", "mine"])
            .status
            .success()
            .then_some(())
    });
}

#[test]
fn a_preempted_host_is_drained_then_gone_then_replaced() {
    let files = tempfile::tempdir().unwrap();
    let up = Up::start(&files.path().join("state"), 2);
    sleeper(&up, "moving");
    let view = up.json(&["repl", "show", "moving", "--json"]);
    let host = view["host"].as_str().unwrap().to_owned();
    let taken: Vec<_> = up
        .children()
        .iter()
        .filter(|(name, _)| name.ends_with(&host))
        .map(|(_, pid)| Watched::new(*pid))
        .collect();
    assert_eq!(taken.len(), 2);
    let noticed = Instant::now();
    let report = up.json(&["host", "preempt", &host, "--json"]);
    assert_eq!(report["handed_off"], 1, "{report}");
    let view = up.json(&["repl", "show", "moving", "--json"]);
    assert_ne!(view["host"], host.as_str());
    // Its processes are there for as long as the notice says, and not longer.
    for process in &taken {
        assert!(process.has_ended_within(PATIENCE + Duration::from_secs(5)));
    }
    let notice = noticed.elapsed();
    assert!(notice >= Duration::from_secs(29), "gone after {notice:?}");
    up.until(
        "another takes its place and its own registration ends",
        |up| {
            let hosts = up.json(&["host", "ls", "--json"]);
            let names: Vec<_> = hosts["hosts"]
                .as_array()?
                .iter()
                .map(|host| host["id"].clone())
                .collect();
            (names.len() == 2
                && names.contains(&"host-3".into())
                && !names.contains(&host.as_str().into()))
            .then_some(())
        },
    );
}

#[test]
fn one_line_on_standard_output_and_no_more() {
    let files = tempfile::tempdir().unwrap();
    let mut up = Up::start(&files.path().join("state"), 1);
    send(up.pid(), Signal::TERM);
    assert!(up.ended().success());
    assert!(up.last_words().is_empty());
    let log = read_all(std::fs::File::open(files.path().join("state.log")).unwrap());
    assert!(!log.contains("ERROR"), "{log}");
}
