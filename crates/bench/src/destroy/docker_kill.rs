//! What is done in the field: `docker kill` of all.

use std::time::Instant;

use super::Destroyed;
use super::deaths::Watch;
use super::engine::{Engine, docker};

pub(super) fn destroy(engine: &Engine, count: usize) -> anyhow::Result<Destroyed> {
    let containers = engine.run(count)?;
    let (ids, pids): (Vec<_>, Vec<_>) = containers.iter().cloned().unzip();
    let watch = Watch::over(&pids)?;
    let began = Instant::now();
    let watch = watch.begin(began)?;
    docker(&["kill"], &ids)?;
    docker(&["wait"], &ids)?;
    let settled = began.elapsed();
    let deaths = watch.deaths()?;
    engine.remove(&containers)?;
    Ok(Destroyed {
        settled: Some(settled),
        ..Destroyed::of(deaths)
    })
}
