//! `conman stuck serve`: a tracker on its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::ConfigArgs;
use super::exit::{CannotStart, Exit};
use super::serve::listen_on;
use crate::config::{LogFormat, Stuck, StuckKeys, Surroundings};
use crate::tracker::{self, Tracker};

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
