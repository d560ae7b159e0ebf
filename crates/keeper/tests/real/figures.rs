//! What a container costs: time to start and to kill, and memory. The figures are printed; what is asserted are
//! wide bounds that a regression in kind would break: on an emulated machine, in terms of what else it takes there.

use std::time::{Duration, Instant};

use model::wire::keeper::*;

use crate::harness::{ARMED, Client, Host, Running, id, is_root};

const COUNT: usize = 200;

/// Kibibytes by name, from a process' `smaps_rollup`.
fn kibibytes(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .expect("a line");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

fn print_memory(host: &Host, all: &[Running]) -> u64 {
    let sum = |name: &str| -> u64 {
        all.iter()
            .map(|running| kibibytes(running.held.pid, name))
            .sum()
    };
    let count = all.len() as u64;
    let private = (sum("Private_Dirty:") + sum("Private_Clean:")) / count;
    let keeper = host.keeper.id();
    eprintln!(
        "memory of {count} inits: each PSS {} KiB, private {private} KiB, RSS {} KiB; keeper PSS {} KiB",
        sum("Pss:") / count,
        sum("Rss:") / count,
        kibibytes(keeper, "Pss:"),
    );
    private
}

/// Starts so many, and says how long all of them took.
fn start_one_by_one(
    host: &mut Host,
    client: &mut Client,
    count: usize,
) -> (Vec<Running>, Duration) {
    let mut times = Vec::new();
    let mut all = Vec::new();
    for number in 0..count {
        let id = id(&format!("s{number}"), 1);
        let launch = host.native_launch(&id, "exec sleep 1000");
        let from = Instant::now();
        all.push(client.start(id, launch));
        times.push(from.elapsed());
    }
    times.sort();
    eprintln!(
        "start one by one, {count}: p50 {:?}, p99 {:?}, largest {:?}",
        times[count / 2],
        times[count * 99 / 100],
        times[count - 1]
    );
    (all, times.iter().sum())
}

#[test]
fn two_hundred_containers() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let (one_by_one, took) = start_one_by_one(&mut host, &mut client, COUNT / 2);
    client.arm(ARMED);
    let launches: Vec<_> = (0..COUNT / 2)
        .map(|number| {
            let id = id(&format!("p{number}"), 1);
            (id.clone(), host.native_launch(&id, "exec sleep 1000"))
        })
        .collect();
    // All of them at once, where the last one is not given up before its turn: not on an emulated machine.
    let at_once = START_MAX.as_nanos() / 2 * one_by_one.len() as u128 / took.as_nanos();
    let at_once = usize::try_from(at_once).expect("a count").max(1);
    let from = Instant::now();
    let mut all = Vec::new();
    let mut launches = launches.into_iter().peekable();
    while launches.peek().is_some() {
        let ask = |(container, launch)| {
            let launch = Box::new(launch);
            client.ask(Request::Start { container, launch })
        };
        let asked: Vec<_> = launches.by_ref().take(at_once).map(ask).collect();
        all.extend(asked.into_iter().map(|asked| client.started(asked)));
    }
    let elapsed = from.elapsed();
    eprintln!(
        "start {} at once: {elapsed:?}, {:?} each",
        all.len(),
        elapsed / all.len() as u32
    );
    assert!(elapsed < Duration::from_secs(10).max(2 * took));
    client.arm(ARMED);
    all.extend(one_by_one);

    let private = print_memory(&host, &all);
    assert!(private < 300, "{private} KiB private per init");

    let ids: Vec<_> = all.iter().map(|running| running.held.id.clone()).collect();
    let from = Instant::now();
    client.done(Request::Kill { ids: ids.clone() });
    let sent = from.elapsed();
    for running in &all {
        running.await_dead();
    }
    let dead = from.elapsed();
    for id in &ids {
        client.exit_of(id);
    }
    eprintln!(
        "kill {}: sent {sent:?}, last dead {dead:?}, last told {:?}",
        all.len(),
        from.elapsed()
    );
    assert!(dead < Duration::from_secs(5).max(took));
    host.end();
}

#[test]
fn an_exec_is_quick() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let mut times = Vec::new();
    for _ in 0..50 {
        let from = Instant::now();
        running.script("true");
        times.push(from.elapsed());
    }
    times.sort();
    eprintln!(
        "exec of sh -c true until its exit: p50 {:?}, largest {:?}",
        times[25], times[49]
    );
    host.end();
}
