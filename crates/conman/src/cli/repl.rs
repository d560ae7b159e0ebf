//! `conman repl …`: repls over the API.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use http::Method;
use http_body_util::BodyExt;
use model::id::ReplId;
use model::spec::{Image, Limits, Spec, Visibility};
use model::wire::node::ExecAnswer;
use serde_json::{Value, json};

use super::ApiArgs;
use super::exit::Exit;
use super::output::{Mood, Output, Progress};
use super::shell;
use crate::client::Client;
use crate::config::parse_bytes;

/// What to do with repls.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a repl, or change one that does not run; safe to repeat
    Create(Box<CreateArgs>),
    /// List all repls
    Ls,
    /// Show one repl
    Show {
        /// The repl
        repl: ReplId,
    },
    /// Start a repl's container, which the first connection would do as well
    Start {
        /// The repl
        repl: ReplId,
    },
    /// Open the repl's shared terminal (Enter ~ . leaves it)
    Shell {
        /// The repl
        repl: ReplId,
    },
    /// Run a command in the repl's container and pass on its exit code
    Exec {
        /// The repl
        repl: ReplId,
        /// Give it this command's standard input
        #[arg(short = 'i', long)]
        stdin: bool,
        /// How long the command may take, as in 90s or 10m
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Print what the repl's container has written
    Logs {
        /// The repl
        repl: ReplId,
        /// Go on as it writes more
        #[arg(short, long)]
        follow: bool,
    },
    /// Kill the repl's container at once
    Kill {
        /// The repl
        repl: ReplId,
    },
    /// End the repl's container: SIGTERM, a grace, then kill
    Destroy {
        /// The repl
        repl: ReplId,
        /// From SIGTERM to SIGKILL
        #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "TIME")]
        grace: Duration,
    },
    /// Remove the repl from any state, its container first; its workspace stays
    Rm {
        /// The repl
        repl: ReplId,
    },
}

/// A repl's spec as flags.
#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Its name: a-z, 0-9 and -
    repl: ReplId,
    /// The root file system: host, dir:/absolute/path or docker:reference
    #[arg(long, default_value = "host", value_parser = parse_image)]
    image: Image,
    /// The port that its connections go to
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A variable of its environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Its memory, as in 512M
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    memory: Option<u64>,
    /// Its CPU time, in CPUs, as in 0.5
    #[arg(long, value_parser = parse_cpus, value_name = "CPUS")]
    cpus: Option<u32>,
    /// How many processes and threads it may have
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Destroy its container after so long without a session, as in 10m
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    idle_timeout: Option<Duration>,
    /// Let everybody open sessions, also where the gateways ask for tokens
    #[arg(long)]
    public: bool,
    /// Read the whole spec from a JSON file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "port", "env", "memory", "cpus", "pids", "idle_timeout", "public", "command"])]
    spec: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required_unless_present = "spec", value_name = "COMMAND")]
    command: Vec<String>,
}

fn parse_image(text: &str) -> Result<Image, String> {
    Image::try_from(text.to_owned()).map_err(|error| error.to_string())
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// Thousandths of a CPU, from CPUs with at most three decimals.
fn parse_cpus(text: &str) -> Result<u32, String> {
    let bad = || format!("{text:?} is not a number of CPUs, as in 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || !part.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: u32 = whole.parse().map_err(|_| bad())?;
    let millis: u32 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    whole
        .checked_mul(1000)
        .and_then(|cpus| cpus.checked_add(millis))
        .ok_or_else(bad)
}

/// A time with its unit: `500ms`, `90s`, `10m`, `2h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time, as in 500ms, 90s, 10m or 2h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(bad)
}

impl CreateArgs {
    fn spec(self) -> anyhow::Result<(ReplId, Spec)> {
        let spec = match &self.spec {
            Some(path) => {
                let text =
                    std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
                serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?
            }
            None => {
                let defaults = Limits::default();
                Spec {
                    image: self.image,
                    command: self.command,
                    env: self.env.into_iter().collect::<BTreeMap<_, _>>(),
                    port: self.port,
                    limits: Limits {
                        memory_bytes: self.memory.unwrap_or(defaults.memory_bytes),
                        cpu_millis: self.cpus,
                        pids: self.pids.unwrap_or(defaults.pids),
                    },
                    idle_timeout_seconds: self.idle_timeout.map(|time| time.as_secs()),
                    visibility: if self.public {
                        Visibility::Public
                    } else {
                        Visibility::Private
                    },
                }
            }
        };
        spec.validate()?;
        Ok((self.repl, spec))
    }
}

/// Carries out one of them.
pub(super) async fn run(args: ApiArgs, command: Command) -> anyhow::Result<Exit> {
    let client = args.client()?;
    let output = args.output();
    match command {
        Command::Create(create) => {
            let (repl, spec) = create.spec()?;
            let body = serde_json::to_value(&spec)?;
            let path = format!("/v1/repls/{repl}");
            let answer: Value = client.call(Method::PUT, &path, Some(&body)).await?;
            report(output, &answer, &format!("{repl}: created"))
        }
        Command::Ls => list(&client, output).await,
        Command::Show { repl } => {
            let path = format!("/v1/repls/{repl}");
            let answer: Value = client.call(Method::GET, &path, None).await?;
            if output.json {
                output.document(&answer)?;
            } else {
                show(output, &answer)?;
            }
            Ok(Exit::Done)
        }
        Command::Start { repl } => {
            order(&client, output, Method::POST, &repl, "/start", "started").await
        }
        Command::Kill { repl } => {
            order(&client, output, Method::POST, &repl, "/kill", "killed").await
        }
        Command::Destroy { repl, grace } => {
            let verb = format!("/destroy?grace={}ms", grace.as_millis());
            order(&client, output, Method::POST, &repl, &verb, "destroyed").await
        }
        Command::Rm { repl } => order(&client, output, Method::DELETE, &repl, "", "removed").await,
        Command::Shell { repl } => shell::run(&client, &repl).await,
        Command::Exec {
            repl,
            stdin,
            timeout,
            command,
        } => exec(&client, output, &repl, stdin, timeout, command).await,
        Command::Logs { repl, follow } => logs(&client, &repl, follow).await,
    }
}

fn report(output: Output, answer: &Value, sentence: &str) -> anyhow::Result<Exit> {
    if output.json {
        output.document(answer)?;
    } else {
        output.line(sentence)?;
    }
    Ok(Exit::Done)
}

/// An order to one repl that is answered when it is carried out.
async fn order(
    client: &Client,
    output: Output,
    method: Method,
    repl: &ReplId,
    verb: &str,
    done: &str,
) -> anyhow::Result<Exit> {
    let progress = Progress::begin(&format!("waiting until {repl} is {done}"));
    let path = format!("/v1/repls/{repl}{verb}");
    let answer: Result<Value, _> = client.call(method, &path, None).await;
    drop(progress);
    report(output, &answer?, &format!("{repl}: {done}"))
}

/// A field in words; `-` where it is absent.
pub(super) fn field(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn mood(state: &str) -> Mood {
    match state {
        "running" => Mood::Good,
        "starting" | "destroying" | "killing" | "releasing" => Mood::Warning,
        _ => Mood::Plain,
    }
}

async fn list(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let answer: Value = client.call(Method::GET, "/v1/repls", None).await?;
    if output.json {
        output.document(&answer)?;
        return Ok(Exit::Done);
    }
    let repls = answer["repls"].as_array().or(answer.as_array());
    let rows = repls.into_iter().flatten().map(|repl| {
        let state = field(repl, "/state");
        let mood = mood(&state);
        vec![
            (field(repl, "/id"), Mood::Plain),
            (state, mood),
            (field(repl, "/host"), Mood::Plain),
            (field(repl, "/epoch"), Mood::Plain),
            (field(repl, "/sessions"), Mood::Plain),
            (field(repl, "/started_at"), Mood::Plain),
            (command_of(repl), Mood::Plain),
        ]
    });
    let header = [
        "REPL", "STATE", "HOST", "EPOCH", "SESSIONS", "STARTED", "COMMAND",
    ];
    output.table(&header, rows.collect())?;
    Ok(Exit::Done)
}

fn command_of(repl: &Value) -> String {
    let words = repl["spec"]["command"].as_array().into_iter().flatten();
    let command: Vec<_> = words.filter_map(Value::as_str).collect();
    let command = command.join(" ");
    match command.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &command[..cut]),
        None => command,
    }
}

fn show(output: Output, repl: &Value) -> io::Result<()> {
    let mut rows = Vec::new();
    for name in ["id", "state", "host", "epoch", "sessions", "started_at"] {
        let text = field(repl, &format!("/{name}"));
        let mood = if name == "state" {
            mood(&text)
        } else {
            Mood::Plain
        };
        rows.push(vec![(name.to_owned(), Mood::Plain), (text, mood)]);
    }
    for (name, value) in repl["spec"].as_object().into_iter().flatten() {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        rows.push(vec![
            (format!("spec.{name}"), Mood::Plain),
            (text, Mood::Plain),
        ]);
    }
    output.table(&["FIELD", "VALUE"], rows)
}

async fn exec(
    client: &Client,
    output: Output,
    repl: &ReplId,
    stdin: bool,
    timeout: Option<Duration>,
    command: Vec<String>,
) -> anyhow::Result<Exit> {
    let mut body = json!({ "command": command });
    if stdin {
        let mut input = String::new();
        io::stdin()
            .read_to_string(&mut input)
            .context("read standard input")?;
        body["stdin"] = input.into();
    }
    if let Some(timeout) = timeout {
        body["timeout_ms"] = json!(timeout.as_millis() as u64);
    }
    let path = format!("/v1/repls/{repl}/exec");
    let answer: Value = client.call(Method::POST, &path, Some(&body)).await?;
    if output.json {
        output.document(&answer)?;
    }
    let answer: ExecAnswer = serde_json::from_value(answer).context("read the answer")?;
    if !output.json {
        io::stdout().write_all(answer.stdout.as_bytes())?;
        io::stdout().flush()?;
        io::stderr().write_all(answer.stderr.as_bytes())?;
        if answer.truncated {
            eprintln!("conman: the output was longer and has been cut");
        }
    }
    Ok(Exit::of_program(answer.exit_code))
}

async fn logs(client: &Client, repl: &ReplId, follow: bool) -> anyhow::Result<Exit> {
    let path = format!("/v1/repls/{repl}/logs?follow={follow}");
    let mut body = client.send(Method::GET, &path, None).await?.into_body();
    let mut interrupted =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The usual way to end a --follow: nothing has failed.
            _ = interrupted.recv() => return Ok(Exit::Done),
        };
        match frame {
            None => return Ok(Exit::Done),
            Some(frame) => {
                if let Ok(bytes) = frame.context("read the logs")?.into_data() {
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [
            ("0ms", 0),
            ("500ms", 500),
            ("90s", 90_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        }
        for bad in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "5 s",
            "5d",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_have_three_decimals_at_most() {
        for (text, millis) in [
            ("1", 1000),
            ("0.5", 500),
            ("1.25", 1250),
            ("0.001", 1),
            ("2.", 2000),
        ] {
            assert_eq!(parse_cpus(text), Ok(millis));
        }
        for bad in ["", ".", ".5", "1.0001", "-1", "1.-5", "1e3", "4294968"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
