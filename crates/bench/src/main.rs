//! `make bench`: what a user waits for, and what a repl costs. (With an argument, the benchmark of that name.)
//!
//! ```text
//! fleet: cold opens one by one ─► (docker run, beside it) ─► many at once ─► idle: memory ─► drain ─► stop
//! fleet: a host drained, each of its repls with a user
//! fleet that restarts nothing: keeper and conman of a host killed ─► every repl of it asked for
//! ```
//!
//! Prints a table and writes the same to `target/figures/bench.json`; fails when a target is missed. Peers run
//! in the same run on the same machine, for machines are noisy and ratios mean more than times.

mod destroy;
mod docker;
mod figures;
mod fleet;
mod gateway;
mod http;
mod preempt;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;

use crate::figures::{Figures, percentile};
use crate::fleet::{Fleet, Lost};

/// What serves in the containers.
const SERVER: &[&str] = &["/testserver"];

/// Enough that the 99th percentile is not the worst one.
const COLD_OPENS: usize = 200;
const AT_ONCE: usize = 100;
const DOCKER_RUNS: usize = 20;
/// On three hosts.
const FAILOVER_REPLS: usize = 150;
/// More users than this would measure the two cores that they share with what they ask.
const DRAIN_USERS: usize = 20;
/// Often enough to see a gap, and not so often that the users are what the machine is busy with.
const USERS_ASK_EVERY: Duration = Duration::from_millis(10);
/// How long after the last request a repl counts as idle: the gateway keeps connections for 2 s.
const UNTIL_IDLE: Duration = Duration::from_secs(3);

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Before there are threads: it enters a namespace, and becomes another program.
    if let Some(("behind", rest)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return ended(gateway::run_behind(rest));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(measure()),
        Err(error) => ended(Err(error.into())),
    }
}

async fn measure() -> ExitCode {
    let ran = match std::env::args().nth(1).as_deref() {
        None => run().await,
        Some("destroy") => destroy::run().await,
        Some("preempt") => preempt::run().await,
        Some("gateway") => gateway::run().await,
        Some(other) => Err(anyhow::anyhow!(
            "there is no benchmark {other:?}: destroy, preempt, gateway, or nothing"
        )),
    };
    ended(ran)
}

fn ended(ran: anyhow::Result<()>) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let mut figures = Figures::default();
    let fleet = Fleet::start(3, &[])?;
    opens(&fleet, &mut figures).await?;
    memory(&fleet, &mut figures).await?;
    full_drain(&fleet, &mut figures).await?;
    let mut two_alive = fleet.double_alive();
    let name = ("stop_ms", "ending a fleet of 300 containers", "ms");
    figures.at_most(name, ms(fleet.stop()?), 2_000.0);
    two_alive += drain(&mut figures).await?;
    two_alive += failover(&mut figures).await?;
    let name = ("two_alive", "two containers of one repl alive", "times");
    figures.at_most(name, two_alive as f64, 0.0);

    println!("{}", figures.table());
    let path = Path::new("target/figures/bench.json");
    figures.write(path)?;
    ensure!(figures.targets_met(), "a target was missed");
    Ok(())
}

/// From the request for a free repl to the first byte of its answer.
async fn opens(fleet: &Fleet, figures: &mut Figures) -> anyhow::Result<()> {
    say("cold opens, one at a time");
    let repls = names("cold", COLD_OPENS);
    fleet.create(&repls, SERVER).await?;
    let mut cold = vec![];
    for repl in &repls {
        cold.push(ms(fleet.get(repl).await?.first_byte));
    }
    let p50 = percentile(&mut cold, 0.50);
    figures.at_most(("cold_open_p50_ms", "cold open, p50", "ms"), p50, 15.0);
    let p99 = percentile(&mut cold, 0.99);
    figures.at_most(("cold_open_p99_ms", "cold open, p99", "ms"), p99, 60.0);

    say("docker run of the same server until it answers");
    let mut docker = docker::runs(DOCKER_RUNS).await?;
    let docker_p50 = percentile(&mut docker, 0.50);
    let name = (
        "docker_run_p50_ms",
        "docker run until it answers, p50",
        "ms",
    );
    figures.plain(name, docker_p50);
    let name = (
        "docker_run_over_cold_open",
        "docker run / cold open, p50",
        "times",
    );
    figures.at_least(name, docker_p50 / p50, 20.0);

    say("cold opens, all at once");
    let repls = names("burst", AT_ONCE);
    fleet.create(&repls, SERVER).await?;
    let began = Instant::now();
    let opens = repls.iter().map(|repl| fleet.get(repl));
    let opens: Result<Vec<_>, _> = join_all(opens).await.into_iter().collect();
    let last = ms(began.elapsed());
    let mut opens: Vec<f64> = opens?.iter().map(|open| ms(open.first_byte)).collect();
    let name = ("open_100_at_once_p50_ms", "100 opened at once, p50", "ms");
    figures.plain(name, percentile(&mut opens, 0.50));
    let name = (
        "open_100_at_once_last_ms",
        "100 opened at once, the last",
        "ms",
    );
    figures.at_most(name, last, 2_000.0);
    Ok(())
}

/// Everything but the users' programs, shared out over the repls that run and are idle.
async fn memory(fleet: &Fleet, figures: &mut Figures) -> anyhow::Result<()> {
    say("memory");
    tokio::time::sleep(UNTIL_IDLE).await;
    let repls = COLD_OPENS + AT_ONCE;
    let product = fleet.product()?;
    ensure!(
        product.inits == repls,
        "{} inits of {repls} repls were found",
        product.inits
    );
    let kib = |bytes: u64| bytes as f64 / repls as f64 / 1_024.0;
    let name = (
        "memory_of_an_init_kib",
        "memory of a repl's init (PSS)",
        "KiB",
    );
    figures.plain(name, kib(product.inits_bytes));
    let name = (
        "memory_per_idle_repl_kib",
        "memory per idle repl, all of it (PSS)",
        "KiB",
    );
    figures.at_most(
        name,
        kib(product.inits_bytes + product.others_bytes),
        1_024.0,
    );
    Ok(())
}

/// Asks a repl without a pause until another instance answers than `before`; gives the longest time without an
/// answer on the way.
async fn gap_until_moved(fleet: &Fleet, repl: &str, before: &str) -> anyhow::Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut last_answer = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let answer = fleet.try_get(repl).await?;
        if answer.status == 200 {
            longest = longest.max(last_answer.elapsed());
            last_answer = Instant::now();
            if answer.body != before {
                return Ok(ms(longest));
            }
        }
        ensure!(
            Instant::now() < deadline,
            "{repl} did not move: {}",
            answer.body
        );
        tokio::time::sleep(USERS_ASK_EVERY).await;
    }
}

/// Drains the busiest host while users ask its repls without a pause: the longest gap that each of them saw.
async fn drain_gaps(fleet: &Fleet, users_max: usize) -> anyhow::Result<Vec<f64>> {
    let Lost {
        host, mut repls, ..
    } = fleet.busiest().await?;
    let containers = repls.len();
    repls.truncate(users_max);
    let mut before = vec![];
    for repl in &repls {
        before.push(fleet.get(repl).await?.body);
    }
    let path = format!("/v1/hosts/{host}/drain?grace=0s");
    let users = repls
        .iter()
        .zip(&before)
        .map(|(repl, before)| gap_until_moved(fleet, repl, before));
    let (drained, gaps) = tokio::join!(fleet.api("POST", &path), join_all(users));
    say(&format!("{containers} containers: {}", drained?));
    gaps.into_iter().collect()
}

/// A host with twenty repls, each with a user.
async fn drain(figures: &mut Figures) -> anyhow::Result<usize> {
    say("a drain under its users");
    let fleet = Fleet::start(3, &[])?;
    let repls = names("drain", 3 * DRAIN_USERS);
    fleet.create(&repls, SERVER).await?;
    for repl in &repls {
        fleet.get(repl).await?;
    }
    let mut gaps = drain_gaps(&fleet, DRAIN_USERS).await?;
    let name = (
        "drain_gap_p50_ms",
        "gap of a repl after a drain of 20, p50",
        "ms",
    );
    figures.at_most(name, percentile(&mut gaps, 0.50), 100.0);
    let name = (
        "drain_gap_max_ms",
        "gap of a repl after a drain of 20, max",
        "ms",
    );
    figures.plain(name, percentile(&mut gaps, 1.0));
    let two_alive = fleet.double_alive();
    fleet.stop()?;
    Ok(two_alive)
}

/// A host with as many as fit, a few of them with users: what their start elsewhere costs is shared by two cores.
async fn full_drain(fleet: &Fleet, figures: &mut Figures) -> anyhow::Result<()> {
    say("a drain of a full host");
    let mut gaps = drain_gaps(fleet, DRAIN_USERS).await?;
    let name = (
        "drain_of_100_gap_p50_ms",
        "gap of a repl after a drain of 100, p50",
        "ms",
    );
    figures.plain(name, percentile(&mut gaps, 0.50));
    Ok(())
}

/// Kills keeper and conman of a host that nobody starts again, and waits for each of its repls from elsewhere.
/// Returns how often the witness saw two alive.
async fn failover(figures: &mut Figures) -> anyhow::Result<usize> {
    say("a host lost whole, without notice");
    let fleet = Fleet::start(3, &["--restart", "false"])?;
    let repls = names("lost", FAILOVER_REPLS);
    fleet.create(&repls, SERVER).await?;
    for repl in &repls {
        fleet.get(repl).await?;
    }
    let lost = fleet.busiest().await?;
    ensure!(!lost.repls.is_empty(), "the busiest host carries nothing");
    let mut before = vec![];
    for repl in &lost.repls {
        before.push(fleet.get(repl).await?.body);
    }
    let began = Instant::now();
    for process in lost.processes {
        fleet::kill(process, libc::SIGKILL)?;
    }
    let waits = lost.repls.iter().zip(&before).map(async |(repl, before)| {
        // One that answers in its container's last millisecond is asked again.
        while fleet.get(repl).await?.body == *before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(ms(began.elapsed()))
    });
    let waits = join_all(waits).await.into_iter();
    let mut waits = waits.collect::<anyhow::Result<Vec<f64>>>()?;
    say(&format!("{} repls were on {}", waits.len(), lost.host));
    let name = (
        "failover_p50_ms",
        "failover of a lost host's repls, p50",
        "ms",
    );
    figures.plain(name, percentile(&mut waits, 0.50));
    let name = (
        "failover_last_ms",
        "failover of a lost host's repls, the last",
        "ms",
    );
    figures.at_most(name, percentile(&mut waits, 1.0), 4_500.0);
    let two_alive = fleet.double_alive();
    fleet.stop()?;
    Ok(two_alive)
}
