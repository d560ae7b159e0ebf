//! Figures of the native runtime, for people: `cargo nextest run -p conman --test runtime --run-ignored only
//! --no-capture measure`. Nothing is asserted but that it works.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use conman::runtime::RuntimeEvent;
use model::id::ContainerId;

use crate::world::{Kind, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, asserts nothing"]
async fn measure() {
    for kind in [Kind::Native, Kind::NativeV1, Kind::NativeV2, Kind::Process] {
        crate::run(kind, figures).await;
    }
}

async fn figures(world: &mut World) {
    let mut took = Vec::new();
    let mut ids = Vec::new();
    for number in 0..100 {
        let request = world.request(&format!("one{number}"), &["sleep", "1000"]);
        let start = Instant::now();
        ids.push(world.runtime.start(request).await.unwrap().id);
        took.push(start.elapsed());
    }
    say(world, "100 starts, one at a time", &mut took);

    let mut took = Vec::new();
    for id in &ids {
        let start = Instant::now();
        let refused = world.runtime.dial(id, 8080).await.unwrap_err();
        took.push(start.elapsed());
        drop(refused);
    }
    say(world, "100 dials to nobody", &mut took);

    let mut took = Vec::new();
    for id in &ids {
        let start = Instant::now();
        world.exec(id, &["true"]).await.unwrap();
        took.push(start.elapsed());
    }
    say(world, "100 execs of true", &mut took);

    let pss = memory_kib(world);
    eprintln!(
        "{:?}: keeper and inits: {} KiB PSS, {} KiB for each of 100",
        world.kind,
        pss,
        pss / 100
    );

    let start = Instant::now();
    let requests: Vec<_> = (0..100)
        .map(|number| world.request(&format!("all{number}"), &["sleep", "1000"]))
        .collect();
    let starts = requests.into_iter().map(|request| {
        let runtime = world.runtime.clone();
        tokio::spawn(async move {
            let id = runtime.start(request).await.unwrap().id;
            (id, start.elapsed())
        })
    });
    let mut took = Vec::new();
    for started in futures_util::future::join_all(starts).await {
        let (id, elapsed) = started.unwrap();
        ids.push(id);
        took.push(elapsed);
    }
    say(
        world,
        "100 starts at once, each from the first request",
        &mut took,
    );

    kill_all(world, &ids).await;
    let start = Instant::now();
    let cleanups = ids.iter().map(|id| world.runtime.cleanup(id));
    for cleaned in futures_util::future::join_all(cleanups).await {
        cleaned.unwrap();
    }
    eprintln!(
        "{:?}: cleanup of 200 at once: {:?}",
        world.kind,
        start.elapsed()
    );
}

async fn kill_all(world: &mut World, ids: &[ContainerId]) {
    let start = Instant::now();
    world.runtime.kill(ids).await.unwrap();
    let sent = start.elapsed();
    let mut left: BTreeSet<_> = ids.iter().cloned().collect();
    let mut took = Vec::new();
    while !left.is_empty() {
        if let RuntimeEvent::Dead { id, .. } = world.event().await {
            assert!(left.remove(&id));
            took.push(start.elapsed());
        }
    }
    eprintln!(
        "{:?}: kill of {}: sent after {sent:?}",
        world.kind,
        ids.len()
    );
    say(world, "  from the call to each Dead", &mut took);
}

fn say(world: &World, what: &str, took: &mut [Duration]) {
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    eprintln!(
        "{:?}: {what}: p50 {:?}, p99 {:?}, last {:?}",
        world.kind,
        at(50),
        at(99),
        at(100)
    );
}

/// PSS of the keeper and its children.
fn memory_kib(world: &World) -> u64 {
    let keeper = world.keeper().pid();
    let task = format!("/proc/{keeper}/task/{keeper}/children");
    let children = std::fs::read_to_string(task).unwrap();
    let pids = children.split_whitespace().map(str::to_owned);
    pids.chain([keeper.to_string()])
        .map(|pid| {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = rollup
                .lines()
                .find(|line| line.starts_with("Pss:"))
                .unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}
