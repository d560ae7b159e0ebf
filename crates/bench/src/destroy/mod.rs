//! `make bench-destroy`: two hundred containers that sleep, destroyed at once by each contender, in one run.
//!
//! Every contender is a module with one function that makes its containers, destroys them, and gives a [`Destroyed`].
//! Deaths are seen by this program itself (module `deaths`), whatever a contender says. Prints a table and
//! writes the same to `target/figures/bench-destroy.json`.

mod deaths;
mod docker_kill;
mod engine;
mod floor;
mod native;
mod reap;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use comfy_table::Table;
use serde_json::{Map, Value, json};

use crate::{ms, say};

/// How many containers each contender destroys.
const COUNT: usize = 200;
/// And how many in the large run.
const COUNT_LARGE: usize = 1_000;

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
    /// Nothing of the containers is left; of an engine, it has recorded every end and cleaned up.
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

/// A time that a contender's own report has, in milliseconds.
fn said(report: &Value, name: &str) -> Option<Duration> {
    report[name]
        .as_f64()
        .map(|ms| Duration::from_secs_f64(ms / 1e3))
}

/// Something that is to be reached.
struct Target {
    /// Its name in the document, where it says whether it was.
    name: &'static str,
    what: &'static str,
    measured: f64,
    at_most: f64,
}

impl Target {
    fn is_met(&self) -> bool {
        self.measured <= self.at_most
    }
}

/// Runs all contenders, one after the other.
pub(crate) async fn run() -> anyhow::Result<()> {
    crate::fleet::raise_open_files()?;
    let mut results = Vec::new();
    say("the floor: clone3, and one write to cgroup.kill");
    results.push(("floor", floor::destroy(COUNT)?));
    say("the native runtime's drain");
    results.push(("native", native::destroy(COUNT).await?));
    say("the same with 1,000");
    results.push(("native_1000", native::destroy(COUNT_LARGE).await?));
    let engine = engine::Engine::prepare()?;
    say("docker kill");
    results.push(("docker_kill", docker_kill::destroy(&engine, COUNT)?));
    say("conman reap");
    results.push(("reap", reap::destroy(&engine, COUNT)?));
    drop(engine);
    let targets = targets(&results)?;
    report(&results, &targets)
}

fn targets(results: &[(&str, Destroyed)]) -> anyhow::Result<Vec<Target>> {
    let time = |wanted: &str, which: fn(&Destroyed) -> Option<Duration>| -> anyhow::Result<f64> {
        let result = results.iter().find(|(name, _)| *name == wanted);
        let time = result.and_then(|(_, destroyed)| which(destroyed));
        time.map(ms).with_context(|| format!("a time of {wanted}"))
    };
    let last = |wanted| time(wanted, |destroyed| destroyed.last);
    let released = |wanted| time(wanted, |destroyed| destroyed.released);
    Ok(vec![
        Target {
            name: "reap_last_within_tenth_of_docker_kill",
            what: "last death, reap / docker kill",
            measured: last("reap")? / last("docker_kill")?,
            at_most: 0.1,
        },
        Target {
            name: "native_last_within_100_ms",
            what: "last death, native, ms",
            measured: last("native")?,
            at_most: 100.0,
        },
        Target {
            name: "native_last_within_3_floors",
            what: "last death, native / floor",
            measured: last("native")? / last("floor")?,
            at_most: 3.0,
        },
        Target {
            name: "native_released_within_200_ms",
            what: "200 repls free, ms",
            measured: released("native")?,
            at_most: 200.0,
        },
        Target {
            name: "native_1000_released_within_1_s",
            what: "1,000 repls free, ms",
            measured: released("native_1000")?,
            at_most: 1_000.0,
        },
    ])
}

fn report(results: &[(&str, Destroyed)], targets: &[Target]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.set_header([
        "contender",
        "count",
        "sent",
        "first",
        "median",
        "last",
        "released",
        "settled",
    ]);
    let mut document = Map::new();
    for (name, destroyed) in results {
        let times = destroyed.times().map(|(_, time)| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.1} ms", ms(time)))
        });
        let mut row = vec![(*name).to_owned(), destroyed.count.to_string()];
        row.extend(times);
        table.add_row(row);
        document.insert((*name).to_owned(), destroyed.document());
    }
    println!("{table}");
    for target in targets {
        let verdict = if target.is_met() { "reached" } else { "MISSED" };
        println!(
            "{}: {:.3}, to reach ≤ {}: {verdict}",
            target.what, target.measured, target.at_most
        );
        document.insert(target.name.to_owned(), json!(target.is_met()));
    }
    let all_met = targets.iter().all(Target::is_met);
    document.insert("targets_met".to_owned(), json!(all_met));
    let text = serde_json::to_string_pretty(&Value::Object(document))? + "\n";
    crate::figures::write(Path::new("target/figures/bench-destroy.json"), &text)?;
    anyhow::ensure!(all_met, "a target was missed");
    Ok(())
}
