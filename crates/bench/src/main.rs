//! `make bench`: what a user waits for, and what a repl costs.
//!
//! Prints a table and writes the same to `target/figures/bench.json`. Peers run in the same run on the same
//! machine, for machines are noisy and only ratios mean something.

mod docker;
mod fleet;
mod http;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::Table;
use serde_json::{Value, json};

use crate::fleet::Fleet;

const COLD_OPENS: usize = 100;
const AT_ONCE: usize = 100;
const DOCKER_RUNS: usize = 20;
const FAILOVER_REPLS: usize = 60;

/// One figure beside what is to be reached.
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl Figure {
    fn is_met(&self) -> Option<bool> {
        match (self.at_most, self.at_least) {
            (Some(bound), _) => Some(self.value <= bound),
            (_, Some(bound)) => Some(self.value >= bound),
            (None, None) => None,
        }
    }
}

fn at_most(name: &'static str, value: f64, unit: &'static str, bound: f64) -> Figure {
    Figure {
        name,
        value,
        unit,
        at_most: Some(bound),
        at_least: None,
    }
}

fn at_least(name: &'static str, value: f64, unit: &'static str, bound: f64) -> Figure {
    Figure {
        name,
        value,
        unit,
        at_most: None,
        at_least: Some(bound),
    }
}

fn plain(name: &'static str, value: f64, unit: &'static str) -> Figure {
    Figure {
        name,
        value,
        unit,
        at_most: None,
        at_least: None,
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which `share` of all values are (nearest rank).
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut figures = vec![];
    say("cold opens, one at a time");
    let fleet = Fleet::start(&[])?;
    let repls = names("cold", COLD_OPENS);
    fleet.create(&repls).await?;
    let mut cold = vec![];
    for repl in &repls {
        cold.push(ms(fleet.get(repl).await?.first_byte));
    }
    let cold_p50 = percentile(&mut cold, 0.50);
    figures.push(at_most("cold open p50", cold_p50, "ms", 15.0));
    figures.push(at_most(
        "cold open p99",
        percentile(&mut cold, 0.99),
        "ms",
        60.0,
    ));

    say("docker run of the same server until it answers");
    let mut docker = docker_runs().await?;
    let docker_p50 = percentile(&mut docker, 0.50);
    figures.push(plain("docker run until it answers p50", docker_p50, "ms"));
    figures.push(at_least(
        "docker run / cold open, p50",
        docker_p50 / cold_p50,
        "times",
        20.0,
    ));

    say("cold opens, all at once");
    let repls = names("burst", AT_ONCE);
    fleet.create(&repls).await?;
    let began = Instant::now();
    let opens = repls.iter().map(|repl| fleet.get(repl));
    for open in futures_util::future::join_all(opens).await {
        open?;
    }
    figures.push(at_most(
        "100 opened at once, the last",
        ms(began.elapsed()),
        "ms",
        2_000.0,
    ));

    say("memory");
    let repls = (COLD_OPENS + AT_ONCE) as f64;
    let pss = fleet.product_pss_bytes()? as f64;
    figures.push(at_most(
        "memory per idle repl (PSS)",
        pss / repls / 1024.0,
        "KiB",
        1_024.0,
    ));

    say("a drain under its users");
    figures.push(at_most(
        "gap after a drain p50",
        drain_gap(&fleet).await?,
        "ms",
        100.0,
    ));
    figures.push(at_most(
        "two alive",
        fleet.double_alive() as f64,
        "times",
        0.0,
    ));
    figures.push(plain("stop with 200 containers", ms(fleet.stop()?), "ms"));

    say("a host lost whole");
    let (p50, max, double_alive) = failover().await?;
    figures.push(plain("failover of a lost host p50", p50, "ms"));
    figures.push(at_most("failover of a lost host max", max, "ms", 4_500.0));
    figures.push(at_most(
        "two alive, lost host",
        double_alive as f64,
        "times",
        0.0,
    ));
    report("bench", &figures)
}

async fn docker_runs() -> anyhow::Result<Vec<f64>> {
    let directory = tempfile::tempdir()?;
    docker::import(&fleet::make_image(directory.path())?)?;
    let mut spent = vec![];
    for number in 0..DOCKER_RUNS {
        let port = 21_000 + u16::try_from(number)?;
        spent.push(ms(docker::run_until_answer(port).await?));
    }
    docker::remove_image()?;
    Ok(spent)
}

/// Asks a repl without a pause until another instance answers than `before`; gives the longest time without an
/// answer on the way.
async fn gap_until_moved(fleet: &Fleet, repl: &str, before: &str) -> anyhow::Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut last_answer = Instant::now();
    loop {
        let answer = fleet.try_get(repl).await?;
        let gap = last_answer.elapsed();
        if answer.status == 200 {
            if answer.body != before {
                return Ok(ms(gap));
            }
            last_answer = Instant::now();
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{repl} did not move: {}",
            answer.body
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn drain_gap(fleet: &Fleet) -> anyhow::Result<f64> {
    let (host, mut repls) = fleet.busiest().await?;
    // More users than a few would measure the two cores that they share with what they ask.
    repls.truncate(20);
    let mut before = vec![];
    for repl in &repls {
        before.push(fleet.get(repl).await?.body);
    }
    let path = format!(
        "/v1/hosts/{}/drain?grace=0s",
        host["id"].as_str().context("its name")?
    );
    let users = repls
        .iter()
        .zip(&before)
        .map(|(repl, before)| gap_until_moved(fleet, repl, before));
    let users = futures_util::future::join_all(users);
    let (drained, gaps) = tokio::join!(fleet.api("POST", &path), users);
    say(&format!("drained: {}", drained?));
    let mut gaps = gaps.into_iter().collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(percentile(&mut gaps, 0.50))
}

/// Kills keeper and conman of a host, and waits for each of its repls from elsewhere.
async fn failover() -> anyhow::Result<(f64, f64, usize)> {
    let fleet = Fleet::start(&["--restart", "false"])?;
    let repls = names("lost", FAILOVER_REPLS);
    fleet.create(&repls).await?;
    for repl in &repls {
        fleet.get(repl).await?;
    }
    let (host, carried) = fleet.busiest().await?;
    for process in ["keeper_pid", "conman_pid"] {
        fleet::kill(host[process].as_u64().context(process)?, libc::SIGKILL)?;
    }
    let began = Instant::now();
    let waits = carried.iter().map(|repl| async {
        fleet.get(repl).await?;
        Ok::<_, anyhow::Error>(ms(began.elapsed()))
    });
    let waits = futures_util::future::join_all(waits).await;
    let mut waits = waits.into_iter().collect::<anyhow::Result<Vec<f64>>>()?;
    let double_alive = fleet.double_alive();
    fleet.stop()?;
    Ok((
        percentile(&mut waits, 0.50),
        percentile(&mut waits, 1.0),
        double_alive,
    ))
}

fn report(name: &str, figures: &[Figure]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.set_header(["figure", "measured", "to reach", ""]);
    let mut document = serde_json::Map::new();
    for figure in figures {
        let bound = match (figure.at_most, figure.at_least) {
            (Some(bound), _) => format!("≤ {bound} {}", figure.unit),
            (_, Some(bound)) => format!("≥ {bound} {}", figure.unit),
            (None, None) => String::new(),
        };
        let verdict = match figure.is_met() {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        let measured = format!("{:.1} {}", figure.value, figure.unit);
        table.add_row([figure.name, &measured, &bound, verdict]);
        let entry: Value = json!({
            "value": figure.value, "unit": figure.unit, "at_most": figure.at_most,
            "at_least": figure.at_least, "met": figure.is_met(),
        });
        document.insert(figure.name.to_owned(), entry);
    }
    println!("{table}");
    let all_met = figures.iter().all(|figure| figure.is_met() != Some(false));
    document.insert("targets_met".to_owned(), json!(all_met));
    let directory = Path::new("target/figures");
    std::fs::create_dir_all(directory)?;
    let path = directory.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
    say(&format!("written to {}", path.display()));
    anyhow::ensure!(all_met, "a target was missed");
    Ok(())
}
