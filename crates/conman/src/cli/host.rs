//! `conman host …`: the machines of the fleet over the API.

use std::time::Duration;

use clap::Subcommand;
use http::Method;
use model::id::HostId;
use serde_json::Value;

use super::ApiArgs;
use super::exit::Exit;
use super::output::{Mood, Output, Progress};
use super::repl::field;
use crate::client::Client;

/// What to do with hosts.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all hosts
    Ls,
    /// Empty a host: its repls move to others
    Drain {
        /// The host
        host: HostId,
        /// From SIGTERM to SIGKILL, as in 5s; zero kills at once [default: the host's drain_grace]
        #[arg(long, value_parser = stuck::query::parse_duration, value_name = "DURATION")]
        grace: Option<Duration>,
    },
    /// Let a drained host take repls again
    Undrain {
        /// The host
        host: HostId,
    },
    /// The drill: notice, drain, and after 30 seconds the host's processes are killed
    Preempt {
        /// The host
        host: HostId,
    },
}

/// Carries out one of them.
pub(super) async fn run(args: ApiArgs, command: Command) -> anyhow::Result<Exit> {
    let client = args.client()?;
    let output = args.output();
    match command {
        Command::Ls => list(&client, output).await,
        Command::Drain { host, grace } => {
            let verb = match grace {
                Some(grace) => format!("drain?grace={}ms", grace.as_millis()),
                None => "drain".to_owned(),
            };
            let progress = Progress::begin(&format!("draining {host}"));
            let answer = order(&client, &host, &verb).await;
            drop(progress);
            let answer = answer?;
            report(output, &answer, &format!("{host}: {}", drained(&answer)))
        }
        Command::Undrain { host } => {
            let answer = order(&client, &host, "undrain").await?;
            report(output, &answer, &format!("{host}: takes repls again"))
        }
        Command::Preempt { host } => {
            let progress = Progress::begin(&format!("draining {host} within its notice"));
            let answer = order(&client, &host, "preempt").await;
            drop(progress);
            let answer = answer?;
            let sentence = format!(
                "{host}: {}; its processes are killed 30 s after the notice",
                drained(&answer)
            );
            report(output, &answer, &sentence)
        }
    }
}

async fn order(client: &Client, host: &HostId, verb: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/hosts/{host}/{verb}");
    Ok(client.call(Method::POST, &path, None).await?)
}

fn report(output: Output, answer: &Value, sentence: &str) -> anyhow::Result<Exit> {
    if output.json {
        output.document(answer)?;
    } else {
        output.line(sentence)?;
    }
    Ok(Exit::Done)
}

/// What a drain did, in words.
fn drained(report: &Value) -> String {
    match (
        report["containers"].as_u64(),
        report["handed_off"].as_u64(),
        report["released_ms"].as_f64(),
    ) {
        (Some(containers), Some(handed_off), Some(released_ms)) => format!(
            "drained; {handed_off} of {containers} repls handed off, the last given up after {released_ms:.0} ms"
        ),
        (Some(containers), Some(handed_off), None) => format!(
            "not drained in time; {handed_off} of {containers} repls handed off, {} still there",
            field(report, "/unfinished")
        ),
        _ => "drained".to_owned(),
    }
}

async fn list(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let answer: Value = client.call(Method::GET, "/v1/hosts", None).await?;
    if output.json {
        output.document(&answer)?;
        return Ok(Exit::Done);
    }
    let hosts = answer["hosts"].as_array().or(answer.as_array());
    let rows = hosts.into_iter().flatten().map(|host| {
        let state = field(host, "/state");
        let mood = match state.as_str() {
            "active" => Mood::Good,
            "draining" => Mood::Warning,
            _ => Mood::Bad,
        };
        vec![
            (field(host, "/id"), Mood::Plain),
            (state, mood),
            (field(host, "/containers"), Mood::Plain),
            (field(host, "/capacity"), Mood::Plain),
            (field(host, "/incarnation"), Mood::Plain),
            (field(host, "/address"), Mood::Plain),
        ]
    });
    let header = [
        "HOST",
        "STATE",
        "CONTAINERS",
        "CAPACITY",
        "INCARNATION",
        "ADDRESS",
    ];
    output.table(&header, rows.collect())?;
    Ok(Exit::Done)
}
