//! `conman reap`: kills Docker's containers by their PIDs, and proves it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::exit::Exit;
use super::output::{Mood, Output, Progress};
use super::repl::parse_duration;
use crate::docker::engine::{Engine, EngineAddress, SOCKET};
use crate::reap::driver::{self, Filters, Seen};
use crate::reap::report::{Report, problem};
use crate::reap::{Found, Options, Policies, Reap};

/// What to reap, and how.
#[derive(Debug, clap::Args)]
pub(super) struct ReapArgs {
    /// Only what matches: name=… or label=…, as `docker ps --filter` has it; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Send SIGTERM, and SIGKILL only after so long
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "TIME")]
    grace: Duration,
    /// Give up what is not proven dead, or not settled by the engine, after so long
    #[arg(long, value_parser = parse_duration, default_value = "25s", value_name = "TIME")]
    timeout: Duration,
    /// List what would be killed, and kill nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave the restart policies off that were turned off, instead of putting them back at the end
    #[arg(long)]
    leave_restart_off: bool,
    /// The socket of this machine's engine
    #[arg(long, env = "DOCKER_HOST", default_value = SOCKET, value_name = "ADDRESS")]
    engine: EngineAddress,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// One `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    key: String,
    value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key @ ("name" | "label"), value)) if !value.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!(
                "{text:?} is neither name=PATTERN, label=KEY nor label=KEY=VALUE"
            )),
        }
    }
}

fn filters(given: Vec<Filter>) -> Filters {
    let mut filters = BTreeMap::new();
    for Filter { key, value } in given {
        let values: &mut Vec<String> = filters.entry(key).or_default();
        values.push(value);
    }
    filters
}

pub(super) async fn run(args: ReapArgs, began: Instant) -> anyhow::Result<Exit> {
    let output = Output::of_process(args.json);
    let engine = Engine::new(args.engine);
    let progress = Progress::begin("asking the engine what runs");
    let seen = driver::look(&engine, &filters(args.filter)).await?;
    if args.dry_run {
        drop(progress);
        list(&seen, output)?;
        return Ok(Exit::Done);
    }
    let options = Options {
        grace: args.grace,
        timeout: args.timeout,
        policies: if args.leave_restart_off {
            Policies::LeftOff
        } else {
            Policies::Restored
        },
    };
    let said = progress.handle();
    let watcher = move |reap: &Reap| said.say(&in_words(reap));
    let reap = driver::reap(seen, options, began, &watcher).await?;
    drop(progress);
    report(&reap, output)?;
    Ok(if reap.is_proven() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// The progress line.
fn in_words(reap: &Reap) -> String {
    let report = Report::of(reap);
    let settled = reap.containers().values().filter(|one| one.settled).count();
    if report.proven == report.count && settled > 0 {
        format!(
            "all {} proven dead, {settled} settled by the engine",
            report.count
        )
    } else {
        format!("{} of {} proven dead", report.proven, report.count)
    }
}

fn list(seen: &Seen, output: Output) -> std::io::Result<()> {
    if output.json {
        let containers: Vec<_> = seen
            .found
            .iter()
            .map(|one| {
                json!({
                    "id": one.id.as_str(),
                    "name": one.name,
                    "image": one.image,
                    "state": one.state.as_str(),
                })
            })
            .collect();
        let engine = match &seen.silent {
            Some(_) => "silent",
            None => "answers",
        };
        return output.document(&json!({ "engine": engine, "containers": containers }));
    }
    if let Some(why) = &seen.silent {
        eprintln!("conman: {why}: this is what the cgroup trees say");
    }
    let row = |one: &Found| {
        let cells = [one.id.short(), &one.name, &one.image, one.state.as_str()];
        cells.map(|cell| (cell.to_owned(), Mood::Plain)).to_vec()
    };
    output.table(
        &["CONTAINER", "NAME", "IMAGE", "STATE"],
        seen.found.iter().map(row).collect(),
    )
}

fn report(reap: &Reap, output: Output) -> std::io::Result<()> {
    let report = Report::of(reap);
    if output.json {
        return output.document(&report.document(reap));
    }
    let time = |time: Option<Duration>| {
        let text = time.map_or("-".to_owned(), |time| format!("{} ms", time.as_millis()));
        (text, Mood::Plain)
    };
    let mood = if reap.is_proven() {
        Mood::Good
    } else {
        Mood::Bad
    };
    let row = vec![
        (report.count.to_string(), Mood::Plain),
        (report.proven.to_string(), mood),
        time(report.sent),
        time(report.first),
        time(report.median),
        time(report.last),
        time(report.settled),
    ];
    output.table(
        &[
            "CONTAINERS",
            "PROVEN DEAD",
            "SIGNALS SENT",
            "FIRST DEATH",
            "MEDIAN",
            "LAST",
            "ENGINE SETTLED",
        ],
        vec![row],
    )?;
    for one in reap.containers().values() {
        if let Some(problem) = problem(one) {
            eprintln!(
                "conman: {} {}: {problem}",
                one.found.id.short(),
                one.found.name
            );
        }
    }
    for note in reap.notes() {
        eprintln!("conman: {note}");
    }
    if let Some(why) = reap.look_failed() {
        eprintln!("conman: not known whether more are alive: {why}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_grouped_by_their_keys() {
        let parse = |texts: &[&str]| {
            let parsed: Result<Vec<Filter>, _> = texts.iter().map(|text| text.parse()).collect();
            parsed.map(filters)
        };
        let grouped = parse(&["name=a", "label=b=c", "name=d", "label=e"]).unwrap();
        assert_eq!(grouped["name"], ["a", "d"]);
        assert_eq!(grouped["label"], ["b=c", "e"]);
        for bad in ["", "name", "name=", "id=a", "labels=a", "=a"] {
            let refused = parse(&[bad]).unwrap_err();
            assert!(refused.contains("is neither name=PATTERN"), "{refused}");
        }
    }
}
