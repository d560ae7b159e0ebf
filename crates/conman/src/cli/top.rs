//! `conman stuck top`: what a tracker knows now, for somebody who looks on.
//!
//! ```text
//!   tracker ──► an answer a second ──► View ──► lines, as many as there is room for ──► screen
//!                 none: the last one stays, and how long there has been none
//! ```

use std::time::Duration;

use anyhow::Context;
use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::ApiArgs;
use super::exit::Exit;
use super::output::{Mood, Output};
use super::screen::{Screen, Signals, keys};
use crate::client::{Client, ClientError};
use crate::tracker;

/// How often the tracker is asked, and the view drawn.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to answer before that is told. It keeps what it knows in its memory.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// What Ctrl-C and Ctrl-D are on a terminal in raw mode.
const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;

/// Whom to ask, and how to show it.
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// How many of the worst to show
    #[arg(long, value_name = "N", default_value_t = tracker::WORST_DEFAULT)]
    worst: usize,
    /// Print once and end, as a pipe gets it anyway
    #[arg(long)]
    once: bool,
}

impl TopArgs {
    pub(super) fn is_json(&self) -> bool {
        self.api.json
    }
}

/// Shows who is stuck: on a terminal again and again, else once.
pub(super) async fn top(args: TopArgs) -> anyhow::Result<Exit> {
    let client = args.api.client()?;
    let output = args.api.output();
    let path = format!("/v1/stuck?worst={}", args.worst);
    // Before the terminal is touched: a wrong address is told as any command tells it.
    let known = client.call(Method::GET, &path, None).await?;
    if output.json {
        output.document(&known)?;
    } else if args.once || !output.is_live() {
        for line in lines(&known, output, usize::MAX) {
            output.line(&line)?;
        }
    } else {
        look_on(&client, &path, known, output, &args.api.url).await?;
    }
    Ok(Exit::Done)
}

/// What is shown, and since when nothing newer is to be had.
struct View {
    known: Value,
    answered: Instant,
    failure: Option<String>,
}

impl View {
    fn take(&mut self, answer: Result<Value, String>) {
        match answer {
            Ok(known) => {
                *self = Self {
                    known,
                    answered: Instant::now(),
                    failure: None,
                }
            }
            Err(why) => self.failure = Some(why),
        }
    }

    fn draw(&self, screen: &Screen, output: Output, url: &str) -> std::io::Result<()> {
        let mut shown = vec![match &self.failure {
            None => format!("{url}  q leaves"),
            Some(why) => {
                let seconds = self.answered.elapsed().as_secs();
                output.tint(&format!("no answer for {seconds} s: {why}"), Mood::Bad)
            }
        }];
        let room = screen.rows().saturating_sub(shown.len());
        shown.extend(lines(&self.known, output, room));
        screen.draw(&shown)
    }
}

async fn look_on(
    client: &Client,
    path: &str,
    known: Value,
    output: Output,
    url: &str,
) -> anyhow::Result<()> {
    let ask = async || {
        tokio::time::sleep(ASK_EVERY).await;
        match tokio::time::timeout(ANSWER_MAX, client.call(Method::GET, path, None)).await {
            Ok(answer) => answer.map_err(|error: ClientError| error.to_string()),
            Err(_) => Err(format!("{url} is silent")),
        }
    };
    let mut signals = Signals::new().context("listen to signals")?;
    let mut keys = keys().context("read the keyboard")?;
    let mut is_typing = true;
    let mut view = View {
        known,
        answered: Instant::now(),
        failure: None,
    };
    let screen = Screen::enter().context("switch the terminal to its other screen")?;
    let mut asking = Box::pin(ask());
    loop {
        view.draw(&screen, output, url)?;
        tokio::select! {
            answer = &mut asking => {
                view.take(answer);
                asking.set(ask());
            }
            // A tracker that is silent, for how long it has been.
            () = tokio::time::sleep(ASK_EVERY), if view.failure.is_some() => {}
            typed = keys.recv(), if is_typing => match typed {
                Some(typed) if typed.iter().any(|key| matches!(*key, b'q' | CONTROL_C | CONTROL_D)) => return Ok(()),
                Some(_) => {}
                None => is_typing = false,
            },
            _ = signals.resized.recv() => {}
            _ = signals.interrupted.recv() => return Ok(()),
            _ = signals.terminated.recv() => return Ok(()),
            _ = signals.hung_up.recv() => return Ok(()),
        }
    }
}

/// What is known, in at most this many lines.
fn lines(known: &Value, output: Output, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = ["users", "probes"]
        .iter()
        .map(|who| summary(&known[who], who))
        .collect();
    lines.extend(
        array(&known["sources"])
            .iter()
            .filter(|source| source["standing"] != "following")
            .map(|source| {
                let told = format!("{} is {}", text(&source["name"]), text(&source["standing"]));
                output.tint(&told, Mood::Warning)
            }),
    );
    let worst: Vec<_> = array(&known["worst"]).iter().map(row).collect();
    let header = [
        "ENTITY", "STUCK", "CLASS", "STATE", "ATTEMPTS", "SINCE", "REASON",
    ];
    let mut table: Vec<String> = output
        .render(&header, worst)
        .lines()
        .map(str::to_owned)
        .collect();
    let left = room.saturating_sub(lines.len());
    if table.len() > left {
        // The last line says how many there are below it.
        let shown = left.saturating_sub(1);
        let more = table.len() - shown.max(1);
        table.truncate(shown);
        table.push(format!("... and {more} more"));
    }
    lines.append(&mut table);
    lines
}

/// One line about those whom a tracker tells apart: users, or probes.
fn summary(known: &Value, who: &str) -> String {
    let sum = |key: &str| -> u64 {
        let classes = array(&known["episodes"]).iter();
        classes.filter_map(|class| class[key].as_u64()).sum()
    };
    let count = |key: &str| known["sessions"][key].as_u64().unwrap_or(0);
    let failed = count("failed");
    let all = count("at_once") + count("delayed") + failed;
    format!(
        "{who}: {} open, {} recovered, {} abandoned; {all} sessions, {failed} failed ({})",
        sum("open"),
        sum("recovered"),
        sum("abandoned"),
        ::stuck::report::share(failed, all),
    )
}

fn row(open: &Value) -> Vec<(String, Mood)> {
    let mood = match open["class"].as_str() {
        Some("A") => Mood::Plain,
        Some("middle") => Mood::Warning,
        _ => Mood::Bad,
    };
    let stuck = Duration::from_secs_f64(open["stuck_seconds"].as_f64().unwrap_or(0.0).max(0.0));
    let state = if open["known"] == true {
        "open"
    } else {
        "unknown"
    };
    vec![
        (text(&open["entity"]), Mood::Plain),
        (::stuck::report::human(stuck), mood),
        (text(&open["class"]), mood),
        (state.to_owned(), Mood::Plain),
        (text(&open["attempts"]), Mood::Plain),
        (text(&open["start"]), Mood::Plain),
        (text(&open["reason"]), Mood::Plain),
    ]
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Fit to be shown: a log may have anything in a name, as what moves the cursor.
fn text(value: &Value) -> String {
    let text = value.as_str().map(str::to_owned);
    let text = text.unwrap_or_else(|| value.to_string());
    text.replace(char::is_control, " ")
}
