//! `make bench-preempt`: what users see of a machine that goes, with notice and without.
//!
//! ```text
//! three hosts ─► two are closed ─► 200 repls start on the third ─► the two are opened
//!      ─► a WebSocket on each repl, and a new session every 250 ms ─► notice, or SIGKILL
//!      ─► every WebSocket has the first byte of a new container ─► figures
//! ```
//!
//! Prints the figures, writes them with their time line to `target/figures/bench-preempt.json`, and draws the time line
//! into `target/figures/bench-preempt.svg`; fails when a target is missed.

mod timeline;
mod users;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use self::timeline::Timeline;
use self::users::{Seen, Users};
use crate::figures::{Figures, percentile};
use crate::fleet::{self, Fleet};
use crate::{SERVER, ms, names, say};

const REPLS: usize = 200;
const HOST: &str = "host-1";
const OTHERS: [&str; 2] = ["host-2", "host-3"];
/// How long users are watched before anything happens.
const BEFORE: Duration = Duration::from_secs(2);
/// And after the last of them is back.
const AFTER: Duration = Duration::from_secs(2);
/// No user is away for longer, or the run has failed: the gateway holds a session for 15 s.
const BACK_MAX: Duration = Duration::from_secs(25);
/// Enough to keep the machine busy while the containers start.
const STARTS_AT_ONCE: usize = 8;

/// How the machine goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// With half a minute's notice.
    Preempt,
    /// Whole, at once, with nobody told.
    SilentLoss,
}

impl Scenario {
    const fn key(self) -> &'static str {
        match self {
            Scenario::Preempt => "preempt",
            Scenario::SilentLoss => "silent_loss",
        }
    }
}

/// What came of one scenario.
struct Outcome {
    scenario: Scenario,
    seen: Seen,
    /// From the notice to the first byte of a new container, per repl.
    gaps_ms: Vec<f64>,
    double_alive: usize,
    /// The drain's own report, where there was a notice.
    drain: Option<Value>,
}

/// Runs both scenarios.
pub(crate) async fn run() -> anyhow::Result<()> {
    fleet::raise_open_files()?;
    let mut figures = Figures::default();
    let mut document = Map::new();
    let mut timelines = vec![];
    for scenario in [Scenario::Preempt, Scenario::SilentLoss] {
        say(&format!("{REPLS} repls with users: {}", scenario.key()));
        let mut outcome = play(scenario).await?;
        for (text, count) in outcome.seen.failures() {
            say(&format!("{count} sessions failed: {text}"));
        }
        let timeline = Timeline::of(&outcome.seen, outcome.drain.as_ref());
        document.insert(scenario.key().to_owned(), outcome.document(&timeline));
        outcome.judge(&mut figures);
        timelines.push((scenario.key(), timeline));
    }
    println!("{}", figures.table());
    document.insert("targets_met".to_owned(), json!(figures.targets_met()));
    let directory = Path::new("target/figures");
    let text = serde_json::to_string(&Value::Object(document))? + "\n";
    crate::figures::write(&directory.join("bench-preempt.json"), &text)?;
    let picture = timeline::draw(&timelines);
    crate::figures::write(&directory.join("bench-preempt.svg"), &picture)?;
    ensure!(figures.targets_met(), "a target was missed");
    Ok(())
}

async fn play(scenario: Scenario) -> anyhow::Result<Outcome> {
    let capacity = (REPLS + REPLS / 4).to_string();
    let fleet = Fleet::start(3, &["--restart", "false", "--host-capacity", &capacity])?;
    let repls = names("user", REPLS);
    fleet.create(&repls, SERVER).await?;
    gather(&fleet, &repls).await?;
    let lost = fleet.busiest().await?;
    ensure!(
        lost.host == HOST && lost.repls.len() == REPLS,
        "{} carries {}",
        lost.host,
        lost.repls.len()
    );
    let mut users = Users::begin(fleet.address(), &repls);
    users.all_connected(BACK_MAX).await?;
    tokio::time::sleep(BEFORE).await;

    let notice = Instant::now();
    users.notice(notice);
    let drain = match scenario {
        Scenario::Preempt => Some(
            fleet
                .api("POST", &format!("/v1/hosts/{HOST}/preempt"))
                .await?,
        ),
        Scenario::SilentLoss => {
            for process in lost.processes {
                fleet::kill(process, libc::SIGKILL)?;
            }
            None
        }
    };
    if let Some(report) = &drain {
        say(&format!("drained: {report}"));
    }
    let back = users.all_back(BACK_MAX).await;
    tokio::time::sleep(AFTER).await;
    let seen = users.end().await?;
    back?;
    let double_alive = fleet.double_alive();
    fleet.stop()?;
    Ok(Outcome {
        scenario,
        gaps_ms: seen.gaps_ms(),
        seen,
        double_alive,
        drain,
    })
}

/// Starts all repls on one host: while they start, the others take nothing.
async fn gather(fleet: &Fleet, repls: &[String]) -> anyhow::Result<()> {
    for other in OTHERS {
        let path = format!("/v1/hosts/{other}/drain?grace=0s");
        fleet.api("POST", &path).await?;
    }
    let starts = repls.iter().map(|repl| {
        let path = format!("/v1/repls/{repl}/start");
        async move { fleet.api("POST", &path).await.map(drop) }
    });
    let started: Vec<anyhow::Result<()>> = futures_util::stream::iter(starts)
        .buffer_unordered(STARTS_AT_ONCE)
        .collect()
        .await;
    started.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    for other in OTHERS {
        fleet
            .api("POST", &format!("/v1/hosts/{other}/undrain"))
            .await?;
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let hosts = fleet.api("GET", "/v1/hosts").await?;
        let hosts = hosts["hosts"].as_array().context("the hosts")?;
        if hosts.iter().all(|host| host["state"] == "active") {
            return Ok(());
        }
        ensure!(Instant::now() < until, "a host takes nothing: {hosts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Outcome {
    fn document(&mut self, timeline: &Timeline) -> Value {
        let gap = |share: f64, gaps: &mut Vec<f64>| round(percentile(gaps, share));
        let mut waits = self.seen.waits_after_notice_ms();
        json!({
            "repls": self.gaps_ms.len(),
            "gap_p50_ms": gap(0.50, &mut self.gaps_ms),
            "gap_p99_ms": gap(0.99, &mut self.gaps_ms),
            "gap_max_ms": gap(1.0, &mut self.gaps_ms),
            "sessions_tried": self.seen.tried(),
            "sessions_failed": self.seen.failed(),
            "double_alive": self.double_alive,
            "session_wait_p50_ms": gap(0.50, &mut waits),
            "session_wait_p99_ms": gap(0.99, &mut waits),
            "session_wait_max_ms": gap(1.0, &mut waits),
            "drain": self.drain,
            "timeline": timeline.document(),
        })
    }

    fn judge(&mut self, figures: &mut Figures) {
        let gaps = &mut self.gaps_ms;
        let (p50, p99) = (percentile(gaps, 0.50), percentile(gaps, 0.99));
        let tried = self.seen.tried() as f64;
        let failed = self.seen.failed() as f64;
        let alive = self.double_alive as f64;
        match self.scenario {
            Scenario::Preempt => {
                let name = ("preempt_gap_p50_ms", "notice to first byte, p50", "ms");
                figures.at_most(name, p50, 500.0);
                let name = ("preempt_gap_p99_ms", "notice to first byte, p99", "ms");
                figures.at_most(name, p99, 2_000.0);
                let name = ("preempt_sessions", "new sessions around it", "sessions");
                figures.plain(name, tried);
                let name = ("preempt_sessions_failed", "of them failed", "sessions");
                figures.at_most(name, failed, 0.0);
                let name = ("preempt_double_alive", "two of one repl alive", "times");
                figures.at_most(name, alive, 0.0);
            }
            Scenario::SilentLoss => {
                let name = ("silent_loss_gap_p50_ms", "loss to first byte, p50", "ms");
                figures.plain(name, p50);
                let name = ("silent_loss_gap_p99_ms", "loss to first byte, p99", "ms");
                figures.at_most(name, p99, 6_000.0);
                let name = ("silent_loss_sessions", "new sessions around it", "sessions");
                figures.plain(name, tried);
                let name = ("silent_loss_sessions_failed", "of them failed", "sessions");
                figures.at_most(name, failed, 0.0);
                let name = ("silent_loss_double_alive", "two of one repl alive", "times");
                figures.at_most(name, alive, 0.0);
            }
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// A point in time from the notice, in milliseconds; negative before it.
fn after(notice: Instant, at: Instant) -> f64 {
    if at >= notice {
        ms(at - notice)
    } else {
        -ms(notice - at)
    }
}
