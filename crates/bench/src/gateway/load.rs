//! Requests, by `h2load` (Debian's package nghttp2-client), which knows HTTP/1.1 too.

use std::path::Path;

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::REPL;
use crate::figures::percentile;

/// How long each measurement takes, after its connections are there.
const SECONDS: u32 = 4;
const WARM_UP_SECONDS: u32 = 1;

/// Where the load goes.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: String,
    /// From within the network namespace of this process.
    pub(super) inside: Option<i32>,
}

/// How long an answer takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

fn h2load(target: &Target, connections: usize) -> Command {
    let mut command = match target.inside {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args([&format!("--net=/proc/{pid}/ns/net"), "h2load"]);
            command
        }
        None => Command::new("h2load"),
    };
    command
        .args(["--h1", "--threads=1"])
        .arg(format!("--clients={connections}"))
        .arg(format!("--duration={SECONDS}"))
        .arg(format!("--warm-up-time={WARM_UP_SECONDS}"))
        .arg(format!("--connect-to={}", target.address))
        .kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> anyhow::Result<String> {
    // Its connections have the repl's name, which the peers do not look at.
    command.arg(format!("http://{REPL}.localhost/"));
    let output = command.output().await.context("run h2load")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "h2load: {said}");
    let is_clean =
        said.contains(" 0 failed, 0 errored, 0 timeout") && said.contains(" 0 3xx, 0 4xx, 0 5xx");
    ensure!(is_clean, "h2load: {said}");
    Ok(said)
}

/// How many requests a second are answered, if each connection asks without a pause.
pub(super) async fn per_second(target: &Target, connections: usize) -> anyhow::Result<f64> {
    let said = run(h2load(target, connections)).await?;
    let rate = said.lines().find_map(|line| {
        let rest = line.strip_prefix("finished in ")?;
        rest.split(", ")
            .nth(1)?
            .strip_suffix(" req/s")?
            .parse()
            .ok()
    });
    let rate: f64 = rate.with_context(|| format!("find the rate in {said}"))?;
    ensure!(rate > 0.0, "nobody answers: {said}");
    Ok(rate)
}

/// How long an answer takes when so many requests a second come, whatever becomes of the ones before.
pub(super) async fn latency(
    target: &Target,
    connections: usize,
    rate: f64,
) -> anyhow::Result<Latency> {
    let work = tempfile::tempdir()?;
    let log = work.path().join("requests");
    let mut command = h2load(target, connections);
    command
        .arg(format!("--rps={:.2}", rate / connections as f64))
        .arg(format!("--log-file={}", log.display()));
    run(command).await?;
    read_log(&log)
}

fn read_log(log: &Path) -> anyhow::Result<Latency> {
    let text = std::fs::read_to_string(log).context("read h2load's log")?;
    let mut times_ms = vec![];
    for line in text.lines() {
        let microseconds = line.split('\t').nth(2).context("the time of a request")?;
        times_ms.push(microseconds.parse::<f64>()? / 1e3);
    }
    Ok(Latency {
        p50_ms: percentile(&mut times_ms, 0.50),
        p99_ms: percentile(&mut times_ms, 0.99),
    })
}
