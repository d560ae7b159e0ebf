//! What is killed, and that it is.

use std::time::{Duration, Instant};

use crate::docker_engine::{TestEngine, is_dead, shared};
use crate::terminal::Terminal;
use crate::{SLEEPER, document, reap_own, stderr};

/// Many `docker run` at a time, as many as the machine has processors for.
fn run_many(engine: &TestEngine, count: usize, options: &[&str]) {
    let mut left = count;
    while left > 0 {
        let batch: Vec<_> = (0..left.min(6))
            .map(|_| engine.begin_run(options, SLEEPER))
            .collect();
        left -= batch.len();
        for child in batch {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        }
    }
}

#[test]
fn sixty_of_all_kinds_are_killed_and_none_comes_back() {
    let Some(engine) = shared() else {
        return;
    };
    run_many(&engine, 40, &[]);
    run_many(&engine, 10, &["--restart", "always"]);
    run_many(&engine, 2, &["--rm"]);
    let paused: Vec<_> = (0..6).map(|_| engine.run(&[], SLEEPER)).collect();
    for id in &paused {
        engine.docker(&["pause", id]);
    }
    // Two that the engine starts again and again.
    let looping = ["sh", "-c", "exit 1"];
    let loops = [(); 2].map(|()| engine.run(&["--restart", "always"], &looping));
    // These begin while the reaping does.
    let starting: Vec<_> = (0..6).map(|_| engine.begin_run(&[], SLEEPER)).collect();
    let report = reap_own(&engine, &[]);
    assert_eq!(report["ok"], true);
    assert_eq!(report["count"], report["proven"]);
    let count = report["count"].as_u64().unwrap();
    assert!((60..=66).contains(&count), "{count} were found");
    for container in report["containers"].as_array().unwrap() {
        if let Some(pid) = container["pid"].as_u64() {
            assert!(is_dead(&pid.to_string()), "{container}");
        }
    }
    let times = ["sent_ms", "first_ms", "median_ms", "last_ms", "settled_ms"];
    let times = times.map(|name| report[name].as_f64().unwrap());
    assert!(times[1..].is_sorted() && times[0] <= times[3], "{times:?}");
    // What was begun later than the last look is found by another one.
    for child in starting {
        child.wait_with_output().unwrap();
    }
    reap_own(&engine, &[]);
    assert_eq!(engine.alive(), Vec::<String>::new());
    for id in &loops {
        assert_eq!(engine.field(id, "State.Status"), "exited");
    }
    for id in &paused {
        assert_eq!(engine.field(id, "State.ExitCode"), "137");
    }
    let filter = format!("label={}", engine.label);
    let all = engine.docker(&["ps", "-aq", "--filter", &filter]);
    let always = all
        .lines()
        .filter(|id| engine.field(id, "HostConfig.RestartPolicy.Name") == "always");
    assert_eq!(always.count(), 12, "the policies are as they were");
}

#[test]
fn restart_policies_stay_off_where_that_is_asked_for() {
    let Some(engine) = shared() else {
        return;
    };
    let options = ["--restart", "unless-stopped"];
    let id = engine.run(&options, SLEEPER);
    reap_own(&engine, &["--leave-restart-off"]);
    assert_eq!(engine.field(&id, "HostConfig.RestartPolicy.Name"), "no");
    assert_eq!(engine.field(&id, "State.Status"), "exited");
}

#[test]
fn only_what_matches_is_killed() {
    let Some(engine) = shared() else {
        return;
    };
    let own = engine.label.rsplit_once('=').unwrap().1.to_owned();
    let named = |name: &str| format!("{name}-{own}");
    let (web, worker) = (named("web"), named("worker"));
    engine.run(&["--name", &web, "--label", "tier=front"], SLEEPER);
    engine.run(&["--name", &worker, "--label", "tier=back"], SLEEPER);
    let both = [web.as_str(), worker.as_str()];
    let running = || both.map(|name| engine.field(name, "State.Running") == "true");
    // Two labels must both be there.
    reap_own(&engine, &["--filter", "label=tier=none"]);
    assert_eq!(running(), [true, true]);
    reap_own(&engine, &["--filter", "label=tier=back"]);
    assert_eq!(running(), [true, false]);
    // Of two names one is enough.
    let filters = ["--filter", "name=nothing-of-that-name", "--filter"];
    let name = format!("name=^/{web}$");
    let report = reap_own(&engine, &[&filters[..], &[name.as_str()]].concat());
    assert_eq!(report["count"], 1);
    assert_eq!(report["containers"][0]["name"], web);
    assert_eq!(running(), [false, false]);
}

#[test]
fn a_dry_run_lists_and_kills_nothing() {
    let Some(engine) = shared() else {
        return;
    };
    let id = engine.run(&[], SLEEPER);
    engine.docker(&["pause", &id]);
    let filter = format!("label={}", engine.label);
    let output = engine.reap(&["--dry-run", "--filter", &filter]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["CONTAINER", "NAME", "IMAGE", "STATE"]);
    assert_eq!((lines[1][0], lines[1][3]), (&id[..12], "paused"));
    assert_eq!(lines.len(), 2);
    let report = reap_own(&engine, &["--dry-run"]);
    assert_eq!(report["containers"][0]["id"], id);
    assert_eq!(engine.alive(), [id]);
}

/// The PIDs of a container, below a heading, as soon as it has so many.
fn until_processes(engine: &TestEngine, id: &str, count: usize) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let pids = engine.docker(&["top", id, "-o", "pid"]);
        if pids.lines().count() > count {
            return pids;
        }
        assert!(Instant::now() < deadline, "its processes run: {pids}");
    }
}

/// A container whose init passes signals on. It does so from when it has a child: earlier it is an init like others,
/// which the kernel spares a SIGTERM.
fn with_init(engine: &TestEngine) -> String {
    let id = engine.run(&["--init"], SLEEPER);
    until_processes(engine, &id, 2);
    id
}

#[test]
fn sigterm_comes_first_where_there_is_a_grace() {
    let Some(engine) = shared() else {
        return;
    };
    let heeds = with_init(&engine);
    let began = Instant::now();
    reap_own(&engine, &["--grace", "20s"]);
    assert!(began.elapsed() < Duration::from_secs(15), "not waited for");
    assert_eq!(engine.field(&heeds, "State.ExitCode"), "143");
    // A paused one is let go on to take its SIGTERM.
    let paused = with_init(&engine);
    engine.docker(&["pause", &paused]);
    reap_own(&engine, &["--grace", "20s"]);
    assert_eq!(engine.field(&paused, "State.ExitCode"), "143");
    let heeds_not = engine.run(&[], SLEEPER);
    let report = reap_own(&engine, &["--grace", "500ms"]);
    assert!(report["first_ms"].as_f64().unwrap() >= 500.0, "{report}");
    assert_eq!(engine.field(&heeds_not, "State.ExitCode"), "137");
}

#[test]
fn a_container_without_a_pid_namespace_dies_whole() {
    let Some(engine) = shared() else {
        return;
    };
    let script = "sleep 1001 & sleep 1002 & wait";
    let id = engine.run(&["--pid", "host"], &["sh", "-c", script]);
    let pids = until_processes(&engine, &id, 3);
    let report = reap_own(&engine, &[]);
    assert_eq!(report["proven"], 1);
    for pid in pids.lines().skip(1) {
        assert!(is_dead(pid.trim()), "{pid} lives");
    }
}

#[test]
fn the_table_says_what_was_done() {
    let Some(engine) = shared() else {
        return;
    };
    engine.run(&[], SLEEPER);
    let filter = format!("label={}", engine.label);
    let output = engine.reap(&["--filter", &filter]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let (header, row) = text.split_once('\n').unwrap();
    let names = header.split("  ").map(str::trim);
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    assert_eq!(
        names,
        [
            "CONTAINERS",
            "PROVEN DEAD",
            "SIGNALS SENT",
            "FIRST DEATH",
            "MEDIAN",
            "LAST",
            "ENGINE SETTLED"
        ]
    );
    assert!(row.starts_with("1           1            "), "{row:?}");
    assert_eq!(row.matches(" ms").count(), 5, "{row:?}");
    // No terminal, no progress.
    assert_eq!(stderr(&output), "");
    let nothing = engine.reap(&["--filter", &filter, "--json"]);
    assert_eq!(nothing.status.code(), Some(0));
    let nothing = document(&nothing);
    assert_eq!(
        (&nothing["count"], &nothing["ok"]),
        (&0.into(), &true.into())
    );
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    let Some(engine) = shared() else {
        return;
    };
    // One that does not heed SIGTERM: there is something to wait for.
    engine.run(&[], SLEEPER);
    let filter = format!("label={}", engine.label);
    let command = engine.reap_command(&["--filter", &filter, "--grace", "1s"]);
    let mut terminal = Terminal::new();
    let mut reap = terminal.run(&command);
    terminal.see("0 of 1 proven dead");
    terminal.see("PROVEN DEAD");
    assert_eq!(reap.wait().unwrap().code(), Some(0));
}
