//! A watch that survives its connection.
//!
//! ```text
//! connect ─► created ─► events …
//!    ▲          │         ├──broken, silent, cancelled──► the next endpoint, from the revision after the last
//!    └──────────┼─────────┘
//!               └──compacted, another cluster, an older store──► Compacted: whoever watches lists again
//! ```
//!
//! - A member that is stopped or cut off closes nothing. So life is asked for and an answer is due, twice a second;
//!   and a member that has lost its leader cancels (`hasleader`).
//! - etcd is asked for one revision more than is wanted. Its releases before 2025 lose deletions at exactly
//!   the revision that the history was cut at, without a word; cut there, the one before is refused as compacted.
//! - A store that is restored from a backup is another cluster, or older than what was seen. Its history does not join
//!   ours.

use std::sync::Arc;

use futures_util::stream::{self, Stream};
use model::id::Revision;
use model::store::{Change, StoreError};
use model::timing::{STORE_RETRY, WATCH_PING_EVERY, WATCH_SILENCE_MAX};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::Streaming;

use super::race::Failure;
use super::translate::{self, Foreign};
use super::{Shared, wire};

/// Where a broken watch goes on.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    prefix: String,
    next: Revision,
    /// Known from the first connection on.
    cluster: Option<u64>,
    /// The last connection was refused for want of permission, which an old token looks like.
    was_denied: bool,
    connection: Option<Connection>,
    has_ended: bool,
}

struct Connection {
    endpoint: usize,
    orders: mpsc::Sender<wire::WatchRequest>,
    answers: Streaming<wire::WatchResponse>,
    heard: Instant,
    pings: Interval,
}

/// What an answer means for the watch.
enum Heard {
    Nothing,
    Changes(Vec<Change>),
    /// Not on this connection.
    Break(String),
    End(StoreError),
}

type Batch = Result<Vec<Change>, StoreError>;

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, prefix: &str, from: Revision) -> Self {
        Self {
            shared,
            prefix: prefix.to_owned(),
            next: from.max(Revision(1)),
            cluster: None,
            was_denied: false,
            connection: None,
            has_ended: false,
        }
    }

    pub(super) fn stream(self) -> impl Stream<Item = Batch> + Send + 'static {
        stream::unfold(self, |mut watcher| async move {
            if watcher.has_ended {
                return None;
            }
            let batch = watcher.next_batch().await;
            watcher.has_ended = batch.is_err();
            Some((batch, watcher))
        })
    }

    async fn next_batch(&mut self) -> Batch {
        let mut failures = 0;
        loop {
            let heard = match &mut self.connection {
                Some(connection) => {
                    let endpoint = connection.endpoint;
                    match connection.listen().await {
                        Ok(answer) => self.take(&answer, endpoint),
                        Err(why) => Heard::Break(why),
                    }
                }
                None => match self.connect().await {
                    Ok(()) => Heard::Nothing,
                    Err(Failure::Hopeless(why)) => Heard::End(StoreError::Fatal(why)),
                    Err(Failure::NotDone(why) | Failure::Lost(why)) => Heard::Break(why),
                },
            };
            match heard {
                Heard::Nothing => {}
                Heard::Changes(changes) => return Ok(changes),
                Heard::End(error) => return Err(error),
                Heard::Break(why) => {
                    tracing::debug!(why, from = self.next.0, "a watch goes on elsewhere");
                    self.connection = None;
                    failures += 1;
                    if failures >= self.shared.endpoints.len() {
                        failures = 0;
                        tokio::time::sleep(STORE_RETRY).await;
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let (endpoint, there) = self.shared.preferred();
        let (key, range_end) = self.shared.keys.range(&self.prefix);
        let before = Revision(self.next.0.saturating_sub(1).max(1));
        let create = wire::WatchCreateRequest {
            key,
            range_end,
            start_revision: translate::number(before),
        };
        let order = wire::WatchRequest {
            order: Some(wire::WatchOrder::Create(create)),
        };
        let connected = tokio::time::timeout(WATCH_SILENCE_MAX, there.watch(order)).await;
        let connected = connected.unwrap_or_else(|_| Err(Failure::Lost("no answer".to_owned())));
        match connected {
            Ok((orders, answers)) => {
                let mut pings = tokio::time::interval(WATCH_PING_EVERY);
                pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
                self.connection = Some(Connection {
                    endpoint,
                    orders,
                    answers,
                    heard: Instant::now(),
                    pings,
                });
                Ok(())
            }
            Err(failure) => {
                self.shared.demote(endpoint);
                Err(failure)
            }
        }
    }

    fn take(&mut self, answer: &wire::WatchResponse, endpoint: usize) -> Heard {
        if answer.canceled {
            return self.cancelled(answer, endpoint);
        }
        if answer.created {
            return self.created(answer);
        }
        let changes = answer
            .events
            .iter()
            .map(|event| self.shared.keys.change(event));
        match changes.collect::<Result<Vec<_>, Foreign>>() {
            Err(Foreign(why)) => Heard::End(StoreError::Fatal(why)),
            Ok(mut changes) => {
                changes.retain(|change| change.revision() >= self.next);
                match changes.last() {
                    None => Heard::Nothing,
                    Some(last) => {
                        self.next = Revision(last.revision().0 + 1);
                        Heard::Changes(changes)
                    }
                }
            }
        }
    }

    fn created(&mut self, answer: &wire::WatchResponse) -> Heard {
        self.was_denied = false;
        let header = answer.header.clone().unwrap_or_default();
        let revision = translate::revision(header.revision);
        let oldest = Revision(revision.0 + 1);
        // A member that lags is taken for a restored store here too, which costs a list.
        let is_other = self
            .cluster
            .is_some_and(|cluster| cluster != header.cluster_id || oldest < self.next);
        self.cluster = Some(header.cluster_id);
        if is_other {
            return Heard::End(StoreError::Compacted { oldest });
        }
        Heard::Nothing
    }

    fn cancelled(&mut self, answer: &wire::WatchResponse, endpoint: usize) -> Heard {
        if answer.compact_revision > 0 {
            let oldest = Revision(translate::revision(answer.compact_revision).0 + 1);
            return Heard::End(StoreError::Compacted { oldest });
        }
        let why = answer.cancel_reason.clone();
        // Releases differ in what they say of a watcher whom they do not know.
        let is_denied = ["InvalidArgument", "PermissionDenied", "Unauthenticated"]
            .iter()
            .any(|code| why.contains(code));
        if is_denied {
            if self.was_denied {
                return Heard::End(StoreError::Fatal(why));
            }
            self.was_denied = true;
            self.shared.endpoints[endpoint].forget_token();
        } else {
            self.shared.demote(endpoint);
        }
        Heard::Break(why)
    }
}

impl Connection {
    /// The next answer, or why there will be none on this connection.
    async fn listen(&mut self) -> Result<wire::WatchResponse, String> {
        loop {
            tokio::select! {
                answer = self.answers.message() => {
                    self.heard = Instant::now();
                    return match answer {
                        Ok(Some(answer)) => Ok(answer),
                        Ok(None) => Err("closed".to_owned()),
                        Err(status) => Err(status.message().to_owned()),
                    };
                }
                () = tokio::time::sleep_until(self.heard + WATCH_SILENCE_MAX) => {
                    return Err("silent".to_owned());
                }
                _ = self.pings.tick() => {
                    let progress = wire::WatchProgressRequest {};
                    let order = wire::WatchRequest {
                        order: Some(wire::WatchOrder::Progress(progress)),
                    };
                    // A queue that is full has been silent for long: the branch above says so soon.
                    let _ = self.orders.try_send(order);
                }
            }
        }
    }
}
