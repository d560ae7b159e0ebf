//! `conman reap` of all.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Destroyed;
use crate::deaths::Watch;
use crate::engine::{Engine, LABEL};

pub(crate) fn destroy(engine: &Engine, count: usize) -> anyhow::Result<Destroyed> {
    let containers = engine.run(count)?;
    let pids: Vec<_> = containers.iter().map(|(_, pid)| *pid).collect();
    let program = std::env::current_exe()?.with_file_name("conman");
    let mut reap = Command::new(program);
    // An engine that ran already may have other people's containers.
    reap.args(["reap", "--json", "--filter", &format!("label={LABEL}")]);
    let watch = Watch::over(&pids)?;
    let began = Instant::now();
    let watch = watch.begin(began);
    let output = reap.output().context("run conman reap")?;
    let deaths = crate::deaths::joined(watch)?;
    ensure!(
        output.status.success(),
        "conman reap: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).context("read its report")?;
    ensure!(report["proven"] == count, "it killed something else");
    engine.remove(&containers)?;
    let said = |name: &str| {
        report[name]
            .as_f64()
            .map(|ms| Duration::from_secs_f64(ms / 1e3))
    };
    Ok(Destroyed {
        sent: said("sent_ms"),
        settled: said("settled_ms"),
        ..Destroyed::of(deaths)
    })
}
