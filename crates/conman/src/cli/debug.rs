//! `conman debug …`: what is under way, for the one who has to say what hangs.

use std::time::Duration;

use clap::Subcommand;
use http::Method;

use super::ApiArgs;
use super::exit::Exit;
use super::output::{Mood, Output};
use crate::telemetry::operations::{FleetReport, OperationReport, Report};

/// What to look at.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Every claim, start, kill, release, route and exec that is under way on the fleet
    Operations,
}

/// Looks.
pub(super) async fn run(args: ApiArgs, command: Command) -> anyhow::Result<Exit> {
    let Command::Operations = command;
    let client = args.client()?;
    let output = args.output();
    let found: FleetReport = client.call(Method::GET, "/debug/operations", None).await?;
    if output.json {
        output.document(&serde_json::to_value(&found)?)?;
    } else {
        show(&found, output)?;
    }
    Ok(Exit::Done)
}

fn show(found: &FleetReport, output: Output) -> std::io::Result<()> {
    let rows = found.processes.iter().flat_map(|process| {
        let row = |operation| row(process, operation);
        process.operations.iter().map(row)
    });
    let header = [
        "WHERE",
        "OPERATION",
        "ON",
        "STAGE",
        "AGE",
        "DEADLINE",
        "STATE",
    ];
    output.table(&header, rows.collect())?;
    for text in explained(found) {
        output.line(&text)?;
    }
    Ok(())
}

fn place(process: &Report) -> String {
    process.host.clone().unwrap_or_else(|| "gateway".to_owned())
}

fn row(process: &Report, operation: &OperationReport) -> Vec<(String, Mood)> {
    let seconds = |ms| ::stuck::report::human(Duration::from_millis(ms));
    let (state, mood) = match (operation.overdue, operation.cancelled) {
        (_, true) => ("told to end", Mood::Bad),
        (true, false) => ("overdue", Mood::Bad),
        (false, false) => ("in time", Mood::Plain),
    };
    vec![
        (place(process), Mood::Plain),
        (operation.kind.as_str().to_owned(), Mood::Plain),
        (operation.subject.clone(), Mood::Plain),
        (operation.stage.as_str().to_owned(), Mood::Plain),
        (seconds(operation.age_ms), mood),
        (seconds(operation.deadline_ms), Mood::Plain),
        (state.to_owned(), mood),
    ]
}

/// What a table has no room for: where each overdue operation waits, and who does not answer.
fn explained(found: &FleetReport) -> Vec<String> {
    let mut texts = vec![];
    let mut told = vec![];
    for process in &found.processes {
        texts.extend(of(process, process.operations_in_words()));
        // A gateway and a host may be one process.
        if !told.contains(&process.pid) {
            told.push(process.pid);
            texts.extend(of(process, process.process_in_words()));
        }
    }
    for host in &found.unreachable {
        texts.push(format!(
            "\n{host} does not answer: look into its log for what its watchdog has found"
        ));
    }
    texts
}

fn of(process: &Report, texts: Vec<String>) -> impl Iterator<Item = String> {
    let place = place(process);
    texts
        .into_iter()
        .map(move |text| format!("\n{place}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::operations::{Kind, LockReport, PartyReport, Stage};

    #[test]
    fn an_overdue_operation_is_explained_and_a_silent_host_is_named() {
        let operation = OperationReport {
            id: 1,
            kind: Kind::Claim,
            subject: "a".into(),
            stage: Stage::Store,
            age_ms: 9_000,
            stage_age_ms: 8_999,
            deadline_ms: 8_000,
            overdue: true,
            cancelled: false,
            thread: Some(7),
            awaits: Some("claim a [9.000s]\n  store [8.999s]\n".into()),
        };
        let in_time = OperationReport {
            overdue: false,
            ..operation.clone()
        };
        let process = Report {
            host: Some("host-1".into()),
            pid: 1,
            operations: vec![operation, in_time],
            locks: vec![LockReport {
                name: "containers".into(),
                blocks: true,
                holder: Some(PartyReport {
                    thread: 7,
                    task: Some("12".into()),
                    operation: Some("start b@3".into()),
                    since_ms: 5_000,
                }),
                waiters: vec![PartyReport {
                    thread: 8,
                    task: None,
                    operation: None,
                    since_ms: 4_000,
                }],
            }],
            circles: vec!["one waits for itself".into()],
            threads: vec![],
        };
        let words = |at: usize| -> Vec<String> {
            let row = row(&process, &process.operations[at]);
            row.into_iter().map(|(text, _)| text).collect()
        };
        let overdue = ["host-1", "claim", "a", "store", "9s", "8s", "overdue"];
        assert_eq!(words(0), overdue);
        assert_eq!(words(1)[6], "in time");
        let found = FleetReport {
            processes: vec![process],
            unreachable: vec!["host-2".into()],
        };
        let expected = [
            "\nhost-1: claim a is at store for 8999 ms, 9000 ms after it began, and had 8000 ms (thread 7)\n\
             claim a [9.000s]\n  store [8.999s]",
            "\nhost-1: circle: one waits for itself",
            "\nhost-1: lock of the containers: held by start b@3 (thread 7, task 12, 5000 ms); \
             no operation (thread 8, 4000 ms) waits",
            "\nhost-2 does not answer: look into its log for what its watchdog has found",
        ];
        assert_eq!(explained(&found), expected);
    }
}
