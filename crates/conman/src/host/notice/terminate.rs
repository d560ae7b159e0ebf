//! SIGTERM: what a machine that shuts down sends to everything on it, or a service manager to this process alone.
//! Whatever comes after this process needs its part of the notice too.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::timing::STOP_MAX;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Kind, Notice, Seen, Source, SourceError, Urgency};

pub(super) struct Terminated {
    signal: Signal,
    count: u32,
}

impl Terminated {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            signal: signal(SignalKind::terminate())?,
            count: 0,
        })
    }
}

impl Source for Terminated {
    fn kind(&self) -> Kind {
        Kind::Terminate
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        async move {
            // Listens for as long as the process lives.
            let _ = self.signal.recv().await;
            self.count += 1;
            Ok(Seen::Notice(Notice {
                id: format!("SIGTERM {}", self.count),
                urgency: Urgency::Gone(STOP_MAX),
            }))
        }
        .boxed()
    }

    fn pace(&self) -> Duration {
        Duration::ZERO
    }
}
