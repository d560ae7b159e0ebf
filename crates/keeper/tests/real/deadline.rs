//! The keeper's own death, however it comes, is the death of everything in it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::wire::keeper::*;
use rustix::process::{PidfdFlags, Signal};

use crate::harness::{
    Client, Host, PATIENCE, Running, await_guard, await_readable, boot_now, id, is_root,
    processes_of,
};

/// The containers do what they can to live on.
const STUBBORN: &str = "trap '' TERM INT HUP; (setsid sleep 1000 &); sleep 1000; sleep 1000";

fn start_some(host: &mut Host) -> (Client, Vec<Running>) {
    let mut client = host.armed_client();
    let all = start_ten(host, &mut client);
    (client, all)
}

fn start_ten(host: &mut Host, client: &mut Client) -> Vec<Running> {
    (0..10)
        .map(|number| {
            let id = id(&format!("r{number}"), 1);
            let launch = host.native_launch(&id, STUBBORN);
            client.start(id, launch)
        })
        .collect()
}

#[test]
fn a_killed_keeper_takes_every_container_with_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let (_client, all) = start_some(&mut host);
    assert!(processes_of(host.uid_base).len() >= 20);
    host.signal_keeper(Signal::KILL);
    for running in &all {
        running.await_dead();
    }
    host.await_keepers_end();
    host.prove_nothing_left();
}

#[test]
fn a_stopped_keeper_and_its_containers_die_at_the_deadline() {
    if !is_root() {
        return;
    }
    // How long it takes on this machine to start them, and to kill them by hand.
    let mut host = Host::native();
    let from = Instant::now();
    let (_client, all) = start_some(&mut host);
    let start = from.elapsed();
    let from = Instant::now();
    host.signal_keeper(Signal::KILL);
    for running in &all {
        running.await_dead();
    }
    let by_hand = from.elapsed();
    host.await_keepers_end();

    let mut host = Host::native();
    // Without the long deadline of the other tests, which could not be taken back.
    let mut client = host.client();
    let ahead = Duration::from_millis(1_500).max(3 * start);
    let armed = client.arm(ahead);
    let all = start_ten(&mut host, &mut client);
    let deadline = client.arm(ahead);
    assert!(deadline > armed);
    host.signal_keeper(Signal::STOP);
    for running in &all {
        running.await_dead();
    }
    let last = boot_now();
    assert!(last >= deadline, "dead before the deadline");
    let late = last.since(deadline);
    eprintln!(
        "all of 10 containers dead {late:?} after the deadline, {by_hand:?} after a kill by hand"
    );
    // The protocol's bound, on a machine that runs other tests; on one that is too slow for it, as an emulated one, what it
    // takes there by hand.
    let bound = model::timing::KILL_BOUND.max(2 * by_hand);
    assert!(late < bound, "{late:?} late, {by_hand:?} by hand");
    host.await_keepers_end();
    host.prove_nothing_left();
}

#[test]
fn limits_of_processor_time_are_lifted_for_what_dies() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let mut files = Vec::new();
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        // A file that only remembers what was written plays the control file.
        let file = host.path(&format!("quota-{name}"));
        std::fs::write(&file, "").expect("write");
        let id = id(name, 1);
        let mut launch = host.native_launch(&id, STUBBORN);
        if let LaunchKind::Native(plan) = &mut launch.kind {
            plan.cpu_quota = Some(Box::new(CpuQuota {
                file: file.clone(),
                unlimited: "max".to_owned(),
            }));
        }
        files.push(file);
        all.push(client.start(id, launch));
    }
    let read = |file: &PathBuf| std::fs::read_to_string(file).expect("read");
    client.done(Request::Kill {
        ids: vec![id("one", 1)],
    });
    assert_eq!(read(&files[0]), "max", "by the keeper, before it answers");
    assert_eq!(read(&files[1]), "");
    client.exit_of(&id("one", 1));

    // A guard that is killed is replaced by one that knows the same.
    let guard = await_guard(&host, None);
    rustix::process::kill_process(guard, Signal::KILL).expect("kill");
    let guard = await_guard(&host, Some(guard));
    let guards_end = rustix::process::pidfd_open(guard, PidfdFlags::empty()).expect("alive");
    host.signal_keeper(Signal::KILL);
    await_readable(&guards_end);
    assert_eq!(read(&files[0]), "max", "not again: it has ended");
    assert_eq!(
        (read(&files[1]), read(&files[2])),
        ("max".into(), "max".into())
    );
    for running in &all {
        running.await_dead();
    }
    host.await_keepers_end();
    host.prove_nothing_left();
}

#[test]
fn a_limit_that_cannot_be_lifted_refuses_the_start() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let id = id("one", 1);
    let mut launch = host.native_launch(&id, STUBBORN);
    if let LaunchKind::Native(plan) = &mut launch.kind {
        plan.cpu_quota = Some(Box::new(CpuQuota {
            file: host.path("not-there"),
            unlimited: "max".to_owned(),
        }));
    }
    let refusal = client.refused(Request::Start {
        container: id,
        launch: Box::new(launch),
    });
    assert_eq!(refusal.step, "open cpu quota");
    host.end();
}

#[test]
fn a_keeper_killed_in_the_middle_of_starts_leaves_none() {
    if !is_root() {
        return;
    }
    for round in 0..12_u64 {
        let mut host = Host::native();
        let mut client = host.armed_client();
        let mut asked = Vec::new();
        for number in 0..4 {
            let id = id(&format!("r{number}"), 1);
            let launch = Box::new(host.native_launch(&id, STUBBORN));
            asked.push(client.ask(Request::Start {
                container: id,
                launch,
            }));
        }
        // At another moment each time, from the first clone to after the last start.
        let until = Instant::now() + Duration::from_micros(400 * round);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        host.signal_keeper(Signal::KILL);
        host.await_keepers_end();
        // There is no fd of those that were not answered: their ids are looked for.
        let until = Instant::now() + PATIENCE;
        while !host.is_empty() && Instant::now() < until {
            std::thread::yield_now();
        }
        host.prove_nothing_left();
    }
}

#[test]
fn sigterm_kills_all_and_ends_well() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let (_client, all) = start_some(&mut host);
    let directory_gone = host.path("k.sock.keeper");
    host.end();
    assert!(all.iter().all(Running::is_dead));
    assert!(!directory_gone.exists());
}

#[test]
fn a_program_cannot_end_stop_or_trace_its_init() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let script = "kill -9 1; kill -STOP 1; kill -SEGV 1; cat /proc/1/environ; ls /proc/1/fd; readlink /proc/1/exe; echo end";
    let (_, text) = running.script(script);
    assert!(text.contains("Permission denied"), "{text}");
    assert!(text.ends_with("end\n"), "{text}");
    assert_eq!(running.script("echo lives").1, "lives\n");
    host.end();
}
