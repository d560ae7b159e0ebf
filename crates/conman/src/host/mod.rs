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
mod effects;
mod live;
mod metrics;
mod observe;
mod ownership;
mod session;
mod shell;
mod tail;

use std::sync::Arc;

use anyhow::Context;
use model::id::HostId;
use model::timing::Timing;
use tokio_util::sync::CancellationToken;

pub use self::actor::Handle;
pub use self::metrics::HostMetrics;
use crate::node::Address;
use crate::runtime::Runtime;
use crate::store::Store;

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
}

/// Runs a host until `stop` is cancelled. Its containers live on in the keeper, until the deadline.
///
/// # Errors
/// When the address cannot be listened on, or the runtime's events are taken already.
pub async fn serve(
    config: Config,
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    metrics: HostMetrics,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = config
        .address
        .listen()
        .await
        .with_context(|| format!("listen on {}", config.address))?;
    let runtime_events = runtime
        .events()
        .context("take the runtime's events, which somebody else has")?;
    let metrics = Arc::new(metrics);
    let (handle, actor) = actor::new(
        config.clone(),
        store.clone(),
        runtime.clone(),
        metrics.clone(),
    );
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(actor.run(runtime_events));
    tasks.spawn(observe::run(
        config.host.clone(),
        config.timing,
        store.clone(),
        handle.clone(),
        metrics.clone(),
    ));
    tasks.spawn(api::serve(
        listener,
        api::Node {
            config,
            store,
            runtime,
            handle,
            metrics,
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
