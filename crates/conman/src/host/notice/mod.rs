//! Notices that this machine is about to be gone, from whoever gives them.
//!
//! ```text
//! source: look ─► nothing ─► (its pace) ─► look …
//!           │  └► an error ─► (backoff) ─► look …        metrics: is it up, how often did it fail
//!           └──► a notice, new ─► the host drains within what the notice gives
//!                                   └─► empty: the source is told, where it wants to know
//! ```
//!
//! Each source is a small module behind [`Source`]: it knows its provider's protocol and nothing of hosts. One task
//! for each looks, for ever: a source that fails says nothing of the machine, and none waits for another.

mod amazon;
mod azure;
mod called;
mod file;
mod google;
mod metadata;
mod terminate;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::host::DrainOrder;
use model::timing::PREEMPTION_NOTICE;
use model::wire::node::DrainReport;

pub(super) use self::called::{Called, Caller, called};
use super::Drains;
use super::metrics::HostMetrics;
use crate::node::Address;

/// Which sources a host listens to. All that are given, at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notices {
    /// Google Cloud's metadata server.
    pub google: Option<Address>,
    /// The EC2 instance metadata service.
    pub amazon: Option<Address>,
    /// The Azure instance metadata service.
    pub azure: Option<Address>,
    /// A file whose appearance is a notice.
    pub file: Option<PathBuf>,
    /// SIGTERM to this process.
    pub terminate: Terminate,
}

/// Whether SIGTERM is a notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Terminate {
    /// It is: as it is to every process of a machine that shuts down.
    Notice,
    /// It is nothing to a host: whoever runs it in a process of many things has its own plans.
    #[default]
    Ignored,
}

/// Who gives notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Google,
    Amazon,
    Azure,
    File,
    Terminate,
    Http,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Kind::Google => "google",
            Kind::Amazon => "amazon",
            Kind::Azure => "azure",
            Kind::File => "file",
            Kind::Terminate => "terminate",
            Kind::Http => "http",
        }
    }
}

/// What this machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    /// Tells it from others of the same source: the same notice is said again and again.
    pub(super) id: String,
    /// How much it presses.
    pub(super) urgency: Urgency,
}

/// How much a notice presses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// The machine is gone after this.
    Gone(Duration),
    /// It may be gone some day soon: a good time to leave in peace.
    Advice,
}

/// What a source sees when it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Notice(Notice),
}

/// Why a source sees nothing at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// It cannot be reached, or broke off.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It refuses.
    #[error("it answers {0}")]
    Refused(http::StatusCode),
    /// What it says is not of its protocol.
    #[error("not understood: {0}")]
    Foreign(String),
}

/// One who gives notice.
pub(super) trait Source: Send {
    fn kind(&self) -> Kind;

    /// Looks once. One that can wait for news does so in here. Safe to cancel.
    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>>;

    /// How long to wait between two looks.
    fn pace(&self) -> Duration;

    /// The machine is empty: whoever gave the notice need not wait any longer.
    fn acknowledge<'a>(&'a mut self, notice: &'a Notice) -> BoxFuture<'a, Result<(), SourceError>> {
        let _ = notice;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// How long to leave a source that failed alone: each time twice as long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Retry {
    pub(super) const fn new(first: Duration, most: Duration) -> Self {
        Self {
            next: first,
            first,
            most,
        }
    }

    fn worked(&mut self) {
        self.next = self.first;
    }

    fn failed(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }
}

/// The longest is what it may cost to have missed the beginning of a notice of half a minute.
pub(super) const RETRY: Retry = Retry::new(Duration::from_millis(100), Duration::from_secs(5));

/// The sources that are configured, with one for calls of the node API.
///
/// # Errors
/// When signals cannot be listened to.
pub(super) fn sources(notices: &Notices, called: Called) -> std::io::Result<Vec<Box<dyn Source>>> {
    let mut sources: Vec<Box<dyn Source>> = vec![Box::new(called)];
    if let Some(address) = &notices.google {
        sources.push(Box::new(google::Google::new(address.clone())));
    }
    if let Some(address) = &notices.amazon {
        sources.push(Box::new(amazon::Amazon::new(address.clone())));
    }
    if let Some(address) = &notices.azure {
        sources.push(Box::new(azure::Azure::new(address.clone())));
    }
    if let Some(path) = &notices.file {
        sources.push(Box::new(file::File::new(path.clone())));
    }
    if notices.terminate == Terminate::Notice {
        sources.push(Box::new(terminate::Terminated::new()?));
    }
    Ok(sources)
}

/// Looks for ever. `drain` empties the host and says how that went.
pub(super) async fn watch<F>(
    mut source: Box<dyn Source>,
    drains: Drains,
    mut retry: Retry,
    metrics: &HostMetrics,
    drain: impl Fn(DrainOrder) -> F,
) where
    F: Future<Output = Option<DrainReport>>,
{
    let kind = source.kind();
    let mut known = BTreeSet::new();
    let mut draining = FuturesUnordered::new();
    let mut pause = Duration::ZERO;
    loop {
        let look = async {
            tokio::time::sleep(pause).await;
            source.look().await
        };
        let seen = tokio::select! {
            seen = look => seen,
            Some((notice, report)) = draining.next() => {
                acknowledge(&mut *source, &notice, report).await;
                continue;
            }
        };
        metrics.notice_source(kind, seen.is_ok());
        match seen {
            Ok(seen) => {
                retry.worked();
                pause = source.pace();
                if let Seen::Notice(notice) = seen
                    && known.insert(notice.id.clone())
                {
                    let source = kind.as_str();
                    tracing::warn!(source, id = notice.id, urgency = ?notice.urgency, "this machine is about to be gone");
                    metrics.notice(kind);
                    let drained = drain(order(drains, notice.urgency));
                    draining.push(async move { (notice, drained.await) });
                }
            }
            Err(error) => {
                tracing::info!(source = kind.as_str(), %error, "look for a notice");
                pause = retry.failed();
            }
        }
    }
}

fn order(drains: Drains, urgency: Urgency) -> DrainOrder {
    match urgency {
        Urgency::Gone(within) => DrainOrder {
            grace: drains.preemption_grace,
            budget: Some(within),
        },
        Urgency::Advice => DrainOrder {
            grace: drains.operator_grace,
            budget: None,
        },
    }
}

async fn acknowledge(source: &mut dyn Source, notice: &Notice, report: Option<DrainReport>) {
    if report.is_none_or(|report| report.unfinished > 0) {
        // What is left may use the time that there is.
        return;
    }
    if let Err(error) = source.acknowledge(notice).await {
        let source = source.kind().as_str();
        tracing::info!(source, id = notice.id, %error, "say that this machine is empty");
    }
}

/// What is left until a time on the wall's clock, by which providers name it; at most `most`.
fn left_until(time: jiff::Timestamp, most: Duration) -> Duration {
    let left = time.duration_since(jiff::Timestamp::now());
    Duration::try_from(left).unwrap_or(Duration::ZERO).min(most)
}

/// Where nobody says how long there is.
const UNSAID: Duration = PREEMPTION_NOTICE;
