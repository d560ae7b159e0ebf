//! A call of the node API: for whoever can speak HTTP and has heard that this machine will be gone.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Kind, Notice, Seen, Source, SourceError, UNSAID, Urgency};

/// The source's side.
pub(in crate::host) struct Called {
    calls: mpsc::Receiver<Option<Duration>>,
    count: u32,
}

/// The API's side.
#[derive(Clone)]
pub(in crate::host) struct Caller(mpsc::Sender<Option<Duration>>);

/// Calls that wait while the source is told of another. More say the same.
const WAITING_MAX: usize = 8;

pub(in crate::host) fn called() -> (Caller, Called) {
    let (caller, calls) = mpsc::channel(WAITING_MAX);
    (Caller(caller), Called { calls, count: 0 })
}

impl Caller {
    /// Gives notice: after `within` the machine is gone.
    pub(in crate::host) fn call(&self, within: Option<Duration>) {
        // A full line means that notice was given often enough.
        let _ = self.0.try_send(within);
    }
}

impl Source for Called {
    fn kind(&self) -> Kind {
        Kind::Http
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        async move {
            let Some(within) = self.calls.recv().await else {
                // The API has ended, and with it the process.
                return std::future::pending().await;
            };
            self.count += 1;
            Ok(Seen::Notice(Notice {
                id: format!("call {}", self.count),
                urgency: Urgency::Gone(within.unwrap_or(UNSAID)),
            }))
        }
        .boxed()
    }

    fn pace(&self) -> Duration {
        Duration::ZERO
    }
}
