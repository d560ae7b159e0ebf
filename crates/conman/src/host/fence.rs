//! Repls that the watchdog gives up: the container is killed, and its repl released as after every other end.
//!
//! To give up is a stop without grace, which the host's machine takes as from any caller: nothing is released before
//! death is proven, whatever hangs.

use std::sync::Arc;
use std::time::Duration;

use model::api::RefusalCode;
use model::host::Answer;
use model::id::ContainerId;
use tokio::sync::broadcast;

use super::Handle;
use crate::runtime::{Runtime, parse_id};
use crate::telemetry::operations::Kind;

/// How many may be given up at once, before the first of them has been heard of.
const ORDERS_MAX: usize = 64;

/// An operation that hangs.
#[derive(Debug, Clone)]
struct Order {
    kind: Kind,
    subject: String,
}

/// The watchdog's way to a host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fences(broadcast::Sender<Order>);

impl Default for Fences {
    fn default() -> Self {
        Self(broadcast::channel(ORDERS_MAX).0)
    }
}

impl Fences {
    /// Has the repl given up that an operation of this kind is on, as the operation names it. Does not wait.
    pub fn give_up(&self, kind: Kind, subject: &str) {
        let subject = subject.to_owned();
        // A host that does not serve has nothing to give up.
        let _ = self.0.send(Order { kind, subject });
    }

    /// Carries out what is ordered. Does not return.
    pub(super) async fn serve(self, handle: Handle, runtime: Arc<dyn Runtime>) {
        let mut orders = self.0.subscribe();
        loop {
            match orders.recv().await {
                // Beside the others: what hangs must not be in the way of what hangs next.
                Ok(order) => drop(tokio::spawn(order.obey(handle.clone(), runtime.clone()))),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::error!(missed, "repls to be given up were not");
                }
                // This task has a sender of its own.
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

impl Order {
    async fn obey(self, handle: Handle, runtime: Arc<dyn Runtime>) {
        match self.kind {
            // What is not owned yet, or not any more, has nothing to be given up; and a way is somebody else's.
            Kind::Claim | Kind::Release | Kind::Route => {}
            Kind::Exec => {
                let repl = self.subject.parse().ok();
                let live = repl.and_then(|repl| handle.live.of_repl(&repl));
                if let Some(live) = live {
                    stop(&handle, &live.running.id).await;
                }
            }
            Kind::Start => {
                if let Some(id) = parse_id(&self.subject) {
                    stop(&handle, &id).await;
                }
            }
            Kind::Kill => {
                let ids: Vec<_> = parse_id(&self.subject).into_iter().collect();
                if let Err(refusal) = runtime.kill(&ids).await {
                    tracing::warn!(subject = self.subject, %refusal, "kill again");
                }
            }
        }
    }
}

async fn stop(handle: &Handle, id: &ContainerId) {
    let answer = handle.stop(id.repl.clone(), id.epoch, Duration::ZERO).await;
    match answer {
        // It has come to its end meanwhile.
        Answer::Refused(refused) if refused.refusal.code == RefusalCode::NotOwner => {}
        Answer::Refused(refused) => {
            tracing::warn!(%id, refusal = %refused.refusal, "give up what hangs");
        }
        _ => tracing::info!(%id, "what hung is given up"),
    }
}
