//! Native containers: their starts, their ends, and what is refused.

use std::time::Duration;

use model::wire::keeper::*;
use rustix::process::Signal;

use crate::harness::{Host, WitnessLines, boot_now, from_exec, id, is_root, send};

#[test]
fn a_program_runs_writes_and_ends_with_its_code() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let launch = host.native_launch(&one, "echo hello; echo $$; id -u; hostname; pwd; exit 7");
    let running = client.start(one.clone(), launch);
    assert_eq!(running.held.notes, Vec::<String>::new());
    assert_eq!(client.exit_of(&one), WireExit::Code { code: 7 });
    assert_eq!(host.log(&one), "hello\n2\n0\none\n/home/repl\n");
    host.end();
}

#[test]
fn a_program_ended_by_a_signal_says_which() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let launch = host.native_launch(&one, "kill -SEGV $$");
    client.start(one.clone(), launch);
    assert_eq!(client.exit_of(&one), WireExit::Signal { signal: 11 });
    host.end();
}

#[test]
fn many_start_at_once_are_listed_in_pages_and_killed_together() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let ids: Vec<_> = (0..LIST_PAGE + 6)
        .map(|number| id(&format!("r{number}"), 1))
        .collect();
    let mut asked = Vec::new();
    for id in &ids {
        let launch = Box::new(host.native_launch(id, "exec sleep 1000"));
        let container = id.clone();
        asked.push(client.ask(Request::Start { container, launch }));
    }
    let all: Vec<_> = asked
        .into_iter()
        .map(|asked| client.started(asked))
        .collect();
    let listed = client.list();
    assert_eq!(listed.len(), ids.len());
    assert!(
        listed
            .iter()
            .all(|(held, fds)| held.state == HeldState::Running && fds.len() == 2)
    );
    client.done(Request::Kill { ids: ids.clone() });
    for (id, running) in ids.iter().zip(&all) {
        assert_eq!(client.exit_of(id), WireExit::Signal { signal: 9 });
        assert!(running.is_dead());
    }
    let exited = HeldState::Exited {
        exit: WireExit::Signal { signal: 9 },
    };
    assert!(client.list().iter().all(|(held, _)| held.state == exited));
    client.done(Request::Forget { ids });
    assert!(client.list().is_empty());
    host.end();
}

#[test]
fn a_kill_of_all_is_one_write_and_a_kill_of_some_spares_the_others() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let Some(of_host) = host.make_host_cgroup() else {
        return;
    };
    // Nothing but containers belongs there. One that is no container shows which file was written.
    let outsiders = host.make_cgroup_below(&of_host, "outsiders");
    let mut outsider = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .expect("sleep");
    std::fs::write(outsiders.join("cgroup.procs"), outsider.id().to_string()).expect("join");
    let mut client = host.armed_client();
    let ids = [id("one", 1), id("two", 1), id("three", 1)];
    for id in &ids {
        let launch = host.launch_below(&of_host, id, "exec sleep 1000");
        client.start(id.clone(), launch);
    }
    let killed = WireExit::Signal { signal: 9 };
    client.done(Request::Kill {
        ids: ids[..1].to_vec(),
    });
    assert_eq!(client.exit_of(&ids[0]), killed);
    assert_eq!(outsider.try_wait().expect("wait"), None);
    // What has ended already needs no naming.
    client.done(Request::Kill {
        ids: ids[1..].to_vec(),
    });
    for id in &ids[1..] {
        assert_eq!(client.exit_of(id), killed);
    }
    let status = outsider.wait().expect("wait");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
    host.end();
}

#[test]
fn sigterm_reaches_the_program_which_may_end_in_peace() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let ready = host.signpost("one", "ready");
    let script =
        "trap 'echo bye; exit 3' TERM; echo ready > ready; while :; do read x < /dev/zero; done";
    let script = script.replace("read x < /dev/zero", "sleep 0.01");
    let launch = host.native_launch(&one, &script);
    client.start(one.clone(), launch);
    assert_eq!(ready.line(), "ready");
    client.done(Request::Terminate { id: one.clone() });
    assert_eq!(client.exit_of(&one), WireExit::Code { code: 3 });
    assert_eq!(host.log(&one), "bye\n");
    let refusal = client.refused(Request::Terminate { id: one });
    assert_eq!(refusal.code, KeeperRefusalCode::NotRunning);
    host.end();
}

#[test]
fn zombies_of_the_program_are_reaped() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let ready = host.signpost("one", "ready");
    // The middle shells end before their children: 50 orphans, of PID 1 from then on, end too.
    let script =
        "for i in $(seq 50); do (sh -c 'true' &) ; done; echo ready > ready; exec sleep 1000";
    let launch = host.native_launch(&one, script);
    let running = client.start(one.clone(), launch);
    assert_eq!(ready.line(), "ready");
    let wait = "while cat /proc/[0-9]*/stat 2>/dev/null | grep -q '^[0-9]* ([a-z]*) Z 1 '; do :; done; echo clean";
    assert_eq!(
        running.script(wait),
        (WireExit::Code { code: 0 }, "clean\n".into())
    );
    host.end();
}

#[test]
fn a_new_conman_adopts_what_runs_and_learns_what_ended() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut first = host.armed_client();
    let (one, two) = (id("one", 4), id("two", 7));
    let go = host.signpost("two", "go");
    host.idle(&mut first, &one);
    let launch = host.native_launch(&two, "read x < go; exit 5");
    let running = first.start(two.clone(), launch);
    let mut second = host.client();
    // The newest wins.
    assert!(crate::harness::receive(&first.socket).is_none());
    let listed = second.list();
    assert_eq!(listed.len(), 2);
    let (held, fds) = listed.into_iter().next().expect("the first");
    let adopted = crate::harness::running(held, fds);
    assert_eq!(adopted.held.id, one);
    assert_eq!(adopted.script("echo here").1, "here\n");
    // While nobody is connected, the other ends.
    drop(second);
    go.say("go");
    running.await_dead();
    let mut third = host.client();
    let listed = third.list();
    let ended = listed
        .iter()
        .find(|(held, _)| held.id == two)
        .expect("held");
    let exit = WireExit::Code { code: 5 };
    assert_eq!(ended.0.state, HeldState::Exited { exit });
    third.done(Request::Kill {
        ids: vec![one.clone()],
    });
    assert_eq!(third.exit_of(&one), WireExit::Signal { signal: 9 });
    host.end();
}

#[test]
fn older_epochs_are_refused_for_as_long_as_the_keeper_lives() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let five = id("one", 5);
    let launch = host.native_launch(&five, "exit 0");
    client.start(five.clone(), launch.clone());
    client.exit_of(&five);
    client.done(Request::Forget { ids: vec![five] });
    for epoch in [4, 5] {
        let refusal = client.refused(Request::Start {
            container: id("one", epoch),
            launch: Box::new(launch.clone()),
        });
        assert_eq!(refusal.code, KeeperRefusalCode::StaleEpoch);
    }
    host.end();
}

#[test]
fn nothing_starts_before_a_deadline_was_armed() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.client();
    let one = id("one", 1);
    let launch = host.native_launch(&one, "exit 0");
    let start = Request::Start {
        container: one.clone(),
        launch: Box::new(launch),
    };
    let refusal = client.refused(start.clone());
    assert_eq!(refusal.code, KeeperRefusalCode::NoDeadline);
    let far = boot_now().plus(ARM_AHEAD_MAX + Duration::from_secs(1));
    let refusal = client.refused(Request::Arm { deadline: far });
    assert_eq!(refusal.code, KeeperRefusalCode::DeadlineTooFar);
    let later = client.arm(Duration::from_secs(50));
    assert_eq!(client.arm(Duration::from_secs(1)), later);
    // It was not tried, so its epoch is still good.
    let asked = client.ask(start);
    client.started(asked);
    client.exit_of(&one);
    host.end();
}

/// Each wrong launch: what is changed, and what is said.
#[test]
fn a_start_that_cannot_work_says_precisely_why_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    fn root(launch: &mut Launch) -> &mut RootPlan {
        match &mut launch.kind {
            LaunchKind::Native(plan) => &mut plan.root,
            LaunchKind::Process => panic!("native"),
        }
    }
    type Change = fn(&mut Launch);
    let cases: [(&str, KeeperRefusalCode, Change); 9] = [
        (
            "execute command",
            KeeperRefusalCode::CommandNotFound,
            |launch| {
                launch.command = vec!["no-such-program".into()];
            },
        ),
        (
            "execute command",
            KeeperRefusalCode::CommandNotFound,
            |launch| {
                launch.command = vec!["/no/such/program".into()];
            },
        ),
        (
            "execute command",
            KeeperRefusalCode::CommandNotExecutable,
            |launch| {
                launch.command = vec!["/etc/passwd".into()];
            },
        ),
        (
            "execute command",
            KeeperRefusalCode::CommandNotExecutable,
            |launch| {
                launch.command = vec!["/etc".into()];
            },
        ),
        (
            "enter working directory",
            KeeperRefusalCode::Failed,
            |launch| {
                launch.cwd = "/no/such".into();
            },
        ),
        ("open image", KeeperRefusalCode::ImageMissing, |launch| {
            root(launch).lower = vec!["/no/such/image".into()];
        }),
        ("open image", KeeperRefusalCode::ImageMissing, |launch| {
            root(launch).lower = vec!["/etc/passwd".into()];
        }),
        ("open bind", KeeperRefusalCode::ImageMissing, |launch| {
            root(launch).binds[0].source = "/no/such/bind".into();
        }),
        (
            "make upper directory",
            KeeperRefusalCode::Failed,
            |launch| {
                root(launch).upper = "/no/such/parent/upper".into();
            },
        ),
    ];
    let mut host = Host::native();
    let mut client = host.armed_client();
    for (epoch, (step, code, change)) in cases.into_iter().enumerate() {
        let one = id("one", epoch as u64 + 1);
        let mut launch = host.native_launch(&one, "exit 0");
        change(&mut launch);
        let refusal = client.refused(Request::Start {
            container: one,
            launch: Box::new(launch),
        });
        assert_eq!(
            (refusal.step.as_str(), refusal.code),
            (step, code),
            "{refusal:?}"
        );
        assert!(refusal.code.was_tried());
    }
    assert!(client.list().is_empty());
    host.end();
}

#[test]
fn a_plan_that_makes_no_sense_is_refused_untried() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let good = host.native_launch(&one, "exit 0");
    type Change = fn(&mut Launch);
    let changes: [Change; 5] = [
        |launch| launch.command.clear(),
        |launch| launch.command.push("a\0b".into()),
        |launch| launch.cwd = "relative".into(),
        |launch| launch.log.bytes_max = 0,
        |launch| match &mut launch.kind {
            LaunchKind::Native(plan) => plan.root.lower.clear(),
            LaunchKind::Process => panic!("native"),
        },
    ];
    for change in changes {
        let mut launch = good.clone();
        change(&mut launch);
        let refusal = client.refused(Request::Start {
            container: one.clone(),
            launch: Box::new(launch),
        });
        assert_eq!(refusal.code, KeeperRefusalCode::BadMessage);
    }
    client.start(one.clone(), good);
    client.exit_of(&one);
    host.end();
}

#[test]
fn a_full_disk_is_a_full_disk() {
    if !is_root() {
        return;
    }
    // So few inodes that the overlay's directories do not fit.
    let mut host = Host::native_with_tmpfs("small", "size=1m,nr_inodes=3");
    let mut client = host.armed_client();
    let one = id("one", 1);
    let mut launch = host.native_launch(&one, "exit 0");
    let small = host.path("small");
    if let LaunchKind::Native(plan) = &mut launch.kind {
        plan.root.upper = small.join("upper");
        plan.root.work = small.join("work");
    }
    let refusal = client.refused(Request::Start {
        container: one,
        launch: Box::new(launch),
    });
    assert_eq!(refusal.code, KeeperRefusalCode::DiskFull, "{refusal:?}");
    assert_eq!(refusal.errno, Some(28));
    // The log of another on the same full disk.
    let two = id("two", 1);
    let mut launch = host.native_launch(&two, "exit 0");
    launch.log.files = [small.join("log.0"), small.join("log.1")];
    let refusal = client.refused(Request::Start {
        container: two,
        launch: Box::new(launch),
    });
    assert_eq!(
        (refusal.step.as_str(), refusal.code),
        ("open log", KeeperRefusalCode::DiskFull)
    );
    host.end();
}

#[test]
fn the_log_keeps_the_newest_output_in_two_files() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let mut launch = host.native_launch(&one, "printf '%02500d' 7; printf tail >&2");
    launch.log.bytes_max = 1_000;
    let files = launch.log.files.clone();
    client.start(one.clone(), launch);
    client.exit_of(&one);
    let [first, second] = files.map(|file| std::fs::read_to_string(file).expect("log"));
    // 2504 bytes: the second is full, the first grows for the second time.
    assert_eq!(second.len(), 1_000);
    assert_eq!(first.len(), 504);
    assert!(first.ends_with("00007tail"));
    host.end();
}

#[test]
fn a_start_whose_asker_is_gone_is_undone() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    for number in 0..10 {
        let mut client = host.armed_client();
        let one = id("one", number + 1);
        let launch = Box::new(host.native_launch(&one, "exec sleep 1000"));
        client.ask(Request::Start {
            container: one,
            launch,
        });
        drop(client);
    }
    let mut client = host.client();
    // Each was either started while its asker was there, and is listed, or is undone.
    let ids: Vec<_> = client.list().into_iter().map(|(held, _)| held.id).collect();
    client.done(Request::Kill { ids: ids.clone() });
    for id in &ids {
        client.exit_of(id);
    }
    host.end();
}

#[test]
fn nonsense_on_the_socket_is_answered_and_harms_nobody() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let running = host.idle(&mut client, &one);
    send(
        &client.socket,
        &serde_json::json!({"id": 77, "request": {"type": "explode"}}),
        &[],
    );
    let (answer, _) = client.answer(77);
    assert!(
        matches!(answer, Answer::Refused(refusal) if refusal.code == KeeperRefusalCode::BadMessage)
    );
    send(&client.socket, &"no request at all", &[]);
    let (answer, _) = client.answer(0);
    assert!(
        matches!(answer, Answer::Refused(refusal) if refusal.code == KeeperRefusalCode::BadMessage)
    );
    // And to the init.
    send(&running.control, &"no command", &[]);
    let (mine, theirs) = crate::harness::channel();
    let plan = ToInit::Exec(crate::harness::exec_plan(&["true"], None));
    // Without the fds that it needs: with a channel it is told so, without one it is nobody's.
    send(&running.control, &plan, &[]);
    send(
        &running.control,
        &plan,
        &[std::os::fd::AsFd::as_fd(&theirs)],
    );
    drop(theirs);
    assert!(matches!(
        from_exec(&mine),
        Some((FromExec::Failed(refusal), _)) if refusal.code == KeeperRefusalCode::BadMessage
    ));
    assert_eq!(running.script("echo fine").1, "fine\n");
    host.end();
}

#[test]
fn the_witness_tells_one_container_of_a_repl_from_two() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut other = Host::native();
    let witness = WitnessPlan {
        lock: host.path("one.lock"),
        record: host.path("record"),
    };
    let start = |host: &mut Host, epoch: u64| {
        let one = id("one", epoch);
        let mut launch = host.native_launch(&one, "exec sleep 1000");
        launch.witness = Some(witness.clone());
        let mut client = host.armed_client();
        (client.start(one.clone(), launch), client, one)
    };
    let (running, mut client, one) = start(&mut host, 1);
    // A second one, which no conman would start: another keeper knows nothing of the first.
    let _second = start(&mut other, 2);
    client.done(Request::Kill { ids: vec![one] });
    running.await_dead();
    other.end();
    let _third = start(&mut host, 3);
    let lines = WitnessLines::read(&witness.record);
    let seen: Vec<_> = lines
        .0
        .iter()
        .map(|line| (line.epoch.0, line.event))
        .collect();
    let expected = [
        (1, WitnessEvent::Start),
        (2, WitnessEvent::Overlap),
        (3, WitnessEvent::Start),
    ];
    assert_eq!(seen, expected);
    assert!(lines.0.is_sorted_by_key(|line| line.monotonic_raw_ns));
    host.end();
}

#[test]
fn a_second_keeper_does_not_take_a_living_ones_place_but_a_dead_ones() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let second = host.second_keeper().output().expect("run");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another keeper is alive"));
    // The first one noticed nothing.
    assert!(client.list().is_empty());
    host.signal_keeper(Signal::KILL);
    host.await_keepers_end();
    assert!(
        host.path("k.sock").exists(),
        "a killed keeper cleans nothing"
    );
    host.restart();
    let mut client = host.armed_client();
    let one = id("one", 1);
    host.idle(&mut client, &one);
    host.end();
}
