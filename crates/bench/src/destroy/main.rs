//! `make bench-destroy`: two hundred containers that sleep, destroyed at once by each contender, in one run.
//!
//! Every contender is a module with one function that makes its containers, destroys them, and gives a [`Destroyed`].
//! Deaths are seen by this program itself (module `deaths`), whatever a contender says. Prints a table and
//! writes the same to `target/figures/bench-destroy.json`.

mod deaths;
mod docker_kill;
mod engine;
mod reap;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use comfy_table::Table;
use serde_json::{Value, json};

/// How many containers each contender destroys.
const COUNT: usize = 200;

/// When what happened, from the notice: the moment in which the contender is told to destroy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Destroyed {
    /// How many containers.
    pub(crate) count: usize,
    /// The last SIGKILL was sent, as the contender says it.
    pub(crate) sent: Option<Duration>,
    /// The first death.
    pub(crate) first: Option<Duration>,
    /// Half of them are dead.
    pub(crate) median: Option<Duration>,
    /// The last death.
    pub(crate) last: Option<Duration>,
    /// Every repl is free in the store.
    pub(crate) released: Option<Duration>,
    /// The engine has recorded every end and cleaned up.
    pub(crate) settled: Option<Duration>,
}

impl Destroyed {
    /// What the watch over the deaths has seen; the rest is for the contender to say.
    pub(crate) fn of(mut deaths: Vec<Duration>) -> Self {
        deaths.sort_unstable();
        Self {
            count: deaths.len(),
            first: deaths.first().copied(),
            median: deaths.get(deaths.len().saturating_sub(1) / 2).copied(),
            last: deaths.last().copied(),
            ..Self::default()
        }
    }

    fn times(&self) -> [(&'static str, Option<Duration>); 6] {
        [
            ("sent_ms", self.sent),
            ("first_ms", self.first),
            ("median_ms", self.median),
            ("last_ms", self.last),
            ("released_ms", self.released),
            ("settled_ms", self.settled),
        ]
    }

    fn document(&self) -> Value {
        let mut document = json!({ "count": self.count });
        for (name, time) in self.times() {
            document[name] = json!(time.map(ms));
        }
        document
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// One bound of the issue, and what was measured.
struct Target {
    what: &'static str,
    measured: f64,
    at_most: f64,
}

fn main() -> anyhow::Result<()> {
    let engine = engine::Engine::prepare()?;
    let mut results = Vec::new();
    say("docker kill");
    results.push(("docker_kill", docker_kill::destroy(&engine, COUNT)?));
    say("conman reap");
    results.push(("reap", reap::destroy(&engine, COUNT)?));
    drop(engine);

    let mut table = Table::new();
    let header = [
        "contender",
        "count",
        "sent",
        "first",
        "median",
        "last",
        "released",
        "settled",
    ];
    table.set_header(header.map(str::to_owned));
    let mut document = serde_json::Map::new();
    for (name, destroyed) in &results {
        let times = destroyed.times().map(|(_, time)| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.1} ms", ms(time)))
        });
        let mut row = vec![(*name).to_owned(), destroyed.count.to_string()];
        row.extend(times);
        table.add_row(row);
        document.insert((*name).to_owned(), destroyed.document());
    }
    println!("{table}");
    let targets = targets(&results)?;
    let mut all_met = true;
    for target in &targets {
        let met = target.measured <= target.at_most;
        all_met &= met;
        let verdict = if met { "reached" } else { "MISSED" };
        println!(
            "{}: {:.3}, to reach ≤ {}: {verdict}",
            target.what, target.measured, target.at_most
        );
    }
    document.insert("targets_met".to_owned(), json!(all_met));
    let directory = Path::new("target/figures");
    std::fs::create_dir_all(directory)?;
    let path = directory.join("bench-destroy.json");
    std::fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
    say(&format!("written to {}", path.display()));
    anyhow::ensure!(all_met, "a target was missed");
    Ok(())
}

fn targets(results: &[(&str, Destroyed)]) -> anyhow::Result<Vec<Target>> {
    let last = |wanted: &str| -> anyhow::Result<f64> {
        let result = results.iter().find(|(name, _)| *name == wanted);
        let last = result.and_then(|(_, destroyed)| destroyed.last);
        Ok(ms(
            last.with_context(|| format!("the last death by {wanted}"))?
        ))
    };
    Ok(vec![Target {
        what: "last death, reap / docker kill",
        measured: last("reap")? / last("docker_kill")?,
        at_most: 0.1,
    }])
}

fn say(text: &str) {
    eprintln!("bench-destroy: {text}");
}
