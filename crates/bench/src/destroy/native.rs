//! The native runtime: a host that is alone is drained, as on notice of its preemption. Alone, so that what is measured
//! is destruction: nobody is there to start anything elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;

use super::Destroyed;
use super::deaths::Watch;
use crate::fleet::Fleet;

const HOST: &str = "host-1";
/// Enough to keep the machine busy while the containers start.
const STARTS_AT_ONCE: usize = 8;
const SETTLED_MAX: Duration = Duration::from_secs(60);

pub(super) async fn destroy(count: usize) -> anyhow::Result<Destroyed> {
    let capacity = count.to_string();
    let fleet = Fleet::start(1, &["--host-capacity", &capacity])?;
    let repls = crate::names("sleeper", count);
    fleet.create(&repls, &["/testserver", "sleep"]).await?;
    let starts = repls.iter().map(|repl| {
        let path = format!("/v1/repls/{repl}/start");
        let fleet = &fleet;
        async move { fleet.api("POST", &path).await.map(drop) }
    });
    let started: Vec<anyhow::Result<()>> = futures_util::stream::iter(starts)
        .buffer_unordered(STARTS_AT_ONCE)
        .collect()
        .await;
    started.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    let pids = fleet.pids().await?;
    ensure!(pids.len() == count, "{} of {count} run", pids.len());
    let watch = Watch::over(&pids)?;

    let began = Instant::now();
    let watch = watch.begin(began)?;
    let path = format!("/v1/hosts/{HOST}/drain?grace=0s");
    let report = fleet.api("POST", &path).await?;
    // The answer comes after the last release, so this is an upper bound, and not the product's own word.
    let released = began.elapsed();
    ensure!(
        report["unfinished"] == 0 && report["containers"] == count,
        "not drained: {report}"
    );
    let deaths = tokio::task::spawn_blocking(move || watch.deaths()).await??;
    settled(&fleet.state().join("overlay").join(HOST)).await?;
    let settled = began.elapsed();
    crate::say(&format!("drained: {report}"));
    ensure!(fleet.pids().await?.is_empty(), "a repl is not free");
    ensure!(fleet.double_alive() == 0, "two were alive");
    fleet.stop()?;
    Ok(Destroyed {
        sent: super::said(&report, "sent_ms"),
        released: Some(released),
        settled: Some(settled),
        ..Destroyed::of(deaths)
    })
}

/// Waits until the clean-up has removed everything below a directory.
async fn settled(directory: &Path) -> anyhow::Result<()> {
    let until = Instant::now() + SETTLED_MAX;
    loop {
        let mut left = std::fs::read_dir(directory).context("look at the overlays")?;
        if left.next().is_none() {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the clean-up does not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
