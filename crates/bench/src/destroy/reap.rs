//! `conman reap` of all.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Destroyed;
use super::deaths::Watch;
use super::engine::{Engine, LABEL};

pub(super) fn destroy(engine: &Engine, count: usize) -> anyhow::Result<Destroyed> {
    let containers = engine.run(count)?;
    let pids: Vec<_> = containers.iter().map(|(_, pid)| *pid).collect();
    let program = std::env::current_exe()?.with_file_name("conman");
    let mut reap = Command::new(program);
    // An engine that ran already may have other people's containers.
    reap.args(["reap", "--json", "--filter", &format!("label={LABEL}")]);
    let watch = Watch::over(&pids)?;
    let began = Instant::now();
    let watch = watch.begin(began)?;
    let output = reap.output().context("run conman reap")?;
    let deaths = watch.deaths()?;
    ensure!(
        output.status.success(),
        "conman reap: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).context("read its report")?;
    ensure!(report["proven"] == count, "it killed something else");
    engine.remove(&containers)?;
    Ok(Destroyed {
        sent: super::said(&report, "sent_ms"),
        settled: super::said(&report, "settled_ms"),
        ..Destroyed::of(deaths)
    })
}
