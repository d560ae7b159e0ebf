//! A host: the real driver of `model::host`, and the node API over it.
//!
//! ```text
//!   node API ──► Handle ──► actor (owns model::host::Host) ──► effects ──► store, runtime
//!                             ▲                                   │
//!                             └────────── their results ──────────┘
//! ```
//!
//! One task, the actor, owns the state machine. Effects run as tasks of their own and report back as
//! events, so that no slow store and no hung container can hold up a renewal. The observer is a
//! second task with a machine of its own.

mod actor;
mod api;
mod departures;
mod effects;
mod fence;
mod live;
mod metrics;
mod notice;
mod observe;
mod ownership;
mod session;
mod shell;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use model::host::{Answer, DrainOrder};
use model::id::{HostId, Incarnation};
use model::timing::{OPERATOR_GRACE, PREEMPTION_NOTICE, Timing};
use model::wire::node::{DrainCause, DrainRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::actor::Handle;
pub use self::fence::Fences;
pub use self::metrics::HostMetrics;
pub use self::notice::{Notices, Terminate};
use crate::node::{Address, Dialer};
use crate::runtime::Runtime;
use crate::store::Store;
use crate::telemetry::operations::Operations;

/// What a host is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, unique in the fleet.
    pub host: HostId,
    /// Where it serves the node API.
    pub address: Address,
    /// How many containers it carries at the most.
    pub capacity: u32,
    /// The fleet's lease timings.
    pub timing: Timing,
    /// The kernel's boot id.
    pub boot_id: String,
    /// How it is emptied.
    pub drains: Drains,
    /// Whom it believes that its machine is about to be gone.
    pub notices: Notices,
    /// How it listens, and its way to the other hosts.
    pub dialer: Dialer,
    /// What is under way on its repls, for whoever asks what hangs.
    pub operations: Operations,
    /// The watchdog's way to give up what hangs of it.
    pub fences: Fences,
}

/// How a host is emptied when the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drains {
    /// From SIGTERM to SIGKILL when an operator wants it empty.
    pub operator_grace: Duration,
    /// The same when the machine is about to be gone.
    pub preemption_grace: Duration,
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            operator_grace: OPERATOR_GRACE,
            preemption_grace: Duration::ZERO,
        }
    }
}

impl Drains {
    fn order(&self, asked: &DrainRequest) -> DrainOrder {
        let (grace, budget) = match asked.cause {
            DrainCause::Operator => (self.operator_grace, None),
            DrainCause::Preemption => (self.preemption_grace, Some(PREEMPTION_NOTICE)),
        };
        DrainOrder {
            grace: asked.grace_ms.map_or(grace, Duration::from_millis),
            budget: asked.budget_ms.map(Duration::from_millis).or(budget),
        }
    }
}

/// Empties the host at each notice of a source.
async fn listen(
    source: Box<dyn notice::Source>,
    drains: Drains,
    metrics: Arc<HostMetrics>,
    handle: Handle,
) {
    let drain = |order| {
        let handle = handle.clone();
        async move {
            match handle.drain(order).await {
                Answer::Drained(report) => Some(report),
                _ => None,
            }
        }
    };
    notice::watch(source, drains, notice::RETRY, &metrics, drain).await;
}

/// Runs a host until `stop` is cancelled. Its containers live on in the keeper, until the deadline.
/// `registration` shows its registration while it holds one.
///
/// # Errors
/// When the address cannot be listened on, or the runtime's events are taken already.
pub async fn serve(
    config: Config,
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    metrics: HostMetrics,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    registration: watch::Sender<Option<Incarnation>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = config
        .dialer
        .listen(&config.address)
        .await
        .with_context(|| format!("listen on {}", config.address))?;
    let runtime_events = runtime
        .events()
        .context("take the runtime's events, which somebody else has")?;
    let metrics = Arc::new(metrics);
    let (handle, effects, actor) = actor::new(
        config.clone(),
        store.clone(),
        runtime.clone(),
        metrics.clone(),
        registration,
    );
    let (caller, called) = notice::called();
    let sources = notice::sources(&config.notices, called).context("listen for notices")?;
    let mut tasks = tokio::task::JoinSet::new();
    for source in sources {
        tasks.spawn(listen(
            source,
            config.drains,
            metrics.clone(),
            handle.clone(),
        ));
    }
    tasks.spawn(actor.run(runtime_events));
    let fences = config.fences.clone();
    tasks.spawn(fences.serve(handle.clone(), runtime.clone()));
    tasks.spawn(observe::run(
        config.host.clone(),
        config.timing,
        store,
        handle.clone(),
        metrics,
    ));
    tasks.spawn(api::serve(
        listener,
        api::Node {
            config,
            effects,
            runtime,
            handle,
            caller,
            render_metrics,
        },
    ));
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        // None of them ends by itself: one that does has panicked, and a host that limps is worse
        // than one that is restarted while its containers live on.
        ended = tasks.join_next() => match ended {
            Some(Err(error)) => Err(error).context("a task of the host ended"),
            _ => anyhow::bail!("a task of the host ended"),
        },
    }
}
