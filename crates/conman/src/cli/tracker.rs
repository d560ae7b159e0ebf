//! `conman stuck serve` and `conman stuck top`: a tracker on its own, and what any tracker knows now.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use http::Method;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{CannotStart, Exit};
use super::output::{Mood, Output};
use super::serve::listen_on;
use super::{ApiArgs, ConfigArgs};
use crate::config::{LogFormat, Stuck, StuckKeys, Surroundings};
use crate::tracker::{self, Tracker};

/// How often the live view is drawn.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal, and goes to its first place.
const CLEAR: &str = "\u{1B}[H\u{1B}[2J";

/// How a tracker is started.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    keys: StuckKeys,
    /// Where everything of this machine is kept [default: conman in the XDG state directory]
    #[arg(long, env = "CONMAN_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// What is logged, as in info or conman::tracker=debug [default: info]
    #[arg(long, env = "CONMAN_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, env = "CONMAN_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

pub(super) fn serve(args: ServeArgs, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    let file = args.config.read()?;
    let stuck = Stuck::resolve(args.keys, args.state, &file, surroundings)?;
    let filter = args.log.or(file.log).unwrap_or_else(|| "info".to_owned());
    let format = args.log_format.or(file.log_format).unwrap_or_default();
    super::log::begin_as(&filter, format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let served = runtime.block_on(follow(stuck));
    // A follower may be in the middle of a read that does not end, of a pipe.
    runtime.shutdown_background();
    served
}

async fn follow(stuck: Stuck) -> anyhow::Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen_on(stuck.listen, "--stuck-listen")?;
    let listener = tokio::net::TcpListener::from_std(listener).context("listen")?;
    let address = listener.local_addr().context("look at the port")?;
    if let Some(directory) = stuck.tracker.database.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|error| CannotStart(format!("make {}: {error}", directory.display())))?;
    }
    let (failed, failure) = tokio::sync::oneshot::channel();
    let tracker = Tracker::start(stuck.tracker, move |error| {
        // Whoever waits for it may have been asked to end meanwhile.
        let _ = failed.send(error);
    });
    let tracker = tracker.map_err(|error| CannotStart(format!("start the tracker: {error:#}")))?;
    println!("ready http://{address}");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(tracker::serve(tracker, listener, stop.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Ok(error) = failure => return Err(error.context("follow the logs")),
    }
    stop.cancel();
    // Scrapes are short; nobody waits for one that is not.
    let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
    Ok(Exit::Done)
}

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
    let is_live = output.is_live() && !args.once;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let known: Value = client.call(Method::GET, &path, None).await?;
        if output.json {
            output.document(&known)?;
            return Ok(Exit::Done);
        }
        if is_live {
            print!("{CLEAR}");
        }
        show(&known, output)?;
        std::io::stdout().flush()?;
        if !is_live {
            return Ok(Exit::Done);
        }
        tokio::select! {
            () = tokio::time::sleep(DRAW_EVERY) => {}
            _ = interrupt.recv() => return Ok(Exit::Done),
        }
    }
}

fn show(known: &Value, output: Output) -> std::io::Result<()> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let sum = |who: &str, key: &str| -> u64 {
        let episodes = known[who]["episodes"].as_array();
        episodes.map_or(0, |all| {
            all.iter().filter_map(|class| class[key].as_u64()).sum()
        })
    };
    for who in ["users", "probes"] {
        let sessions = &known[who]["sessions"];
        let count = |key: &str| sessions[key].as_u64().unwrap_or(0);
        let (failed, all) = (
            count("failed"),
            count("at_once") + count("delayed") + count("failed"),
        );
        let share = ::stuck::report::share(failed, all);
        output.line(&format!(
            "{who}: {} open, {} recovered, {} abandoned; {all} sessions, {failed} failed ({share})",
            sum(who, "open"),
            sum(who, "recovered"),
            sum(who, "abandoned"),
        ))?;
    }
    let sources = known["sources"].as_array().map_or(&[][..], Vec::as_slice);
    for source in sources
        .iter()
        .filter(|source| source["standing"] != "following")
    {
        output.line(&format!(
            "{} is {}",
            text(&source["name"]),
            text(&source["standing"])
        ))?;
    }
    let worst = known["worst"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = worst.iter().map(|open| {
        let mood = match open["class"].as_str() {
            Some("A") => Mood::Plain,
            Some("middle") => Mood::Warning,
            _ => Mood::Bad,
        };
        let stuck = open["stuck_seconds"].as_f64().unwrap_or(0.0);
        let stuck = ::stuck::report::human(Duration::from_secs_f64(stuck.max(0.0)));
        let known = if open["known"] == true {
            "open"
        } else {
            "unknown"
        };
        vec![
            (text(&open["entity"]), Mood::Plain),
            (stuck, mood),
            (text(&open["class"]), mood),
            (known.to_owned(), Mood::Plain),
            (text(&open["attempts"]), Mood::Plain),
            (text(&open["start"]), Mood::Plain),
            (text(&open["reason"]), Mood::Plain),
        ]
    });
    let header = [
        "ENTITY", "STUCK", "CLASS", "STATE", "ATTEMPTS", "SINCE", "REASON",
    ];
    output.table(&header, rows.collect())
}
