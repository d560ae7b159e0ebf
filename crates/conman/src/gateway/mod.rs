//! The gateway: what users and operators connect to.
//!
//! ```text
//!   <repl>.<domain> ──► proxy ──┐
//!   /v1/repls/…/shell ─► shell ─┼─► router ──► node client ──► the owner's node API
//!   /v1/… ─────────────► api ───┘     │
//!                                   fleet (a watch on /h/), the store (who owns the repl)
//! ```
//!
//! Happy path: a request's `Host` names a repl; the router finds its owner, or has a host claim and start it;
//! the request goes through the byte stream that the owner gives, and one line goes to the session log.
//!
//! A gateway owns nothing: it may die at any time, and there may be any number of them. It never imports
//! `host` or `runtime`.

mod access;
mod aim;
mod api;
mod client_body;
mod document;
mod door;
mod error;
mod events;
mod fleet;
mod frames;
mod front;
mod metrics;
mod node_client;
mod open;
mod origin;
mod page;
mod pool;
mod prober;
mod proxy;
mod router;
mod session_log;
mod session_stream;
mod shell;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use model::api::Refusal;
use model::id::HostId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use self::access::{
    Access, AccessError, AccessOptions, ApiKeys, TokenError, TokenKeys, new_api_key,
    new_token_secret,
};
pub use self::door::bind as bind_for_user;
pub use self::door::{Certificate, CertificateError, CertificateFiles, Door, Lock};
use self::fleet::Fleet;
pub use self::metrics::GatewayMetrics;
use self::pool::Pool;
use self::router::Router;
use self::session_log::{Rotation, SessionLog};
use crate::node::Dialer;
use crate::store::Store;
use crate::telemetry::operations::Operations;

/// Plays the loss of a machine: only whoever started a host's processes can kill them.
pub trait Preemptor: Send + Sync + 'static {
    /// Gives the host notice, drains it, and after the notice kills its processes. Answers when the drain
    /// is over, with its report as JSON; the killing follows.
    fn preempt(&self, host: HostId) -> BoxFuture<'_, Result<serde_json::Value, Refusal>>;
}

/// How a gateway probes the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prober {
    /// This gateway's name among those that probe.
    pub name: String,
    /// How many hosts' probes it opens at the most.
    pub hosts_max: usize,
    /// Where each attempt's line goes.
    pub log: PathBuf,
}

/// How long that log becomes before it begins anew.
const PROBE_LOG_BYTES_MAX: u64 = 16 << 20;

/// Says who is stuck, as JSON, with so many of the worst.
pub type Stuck = Arc<dyn Fn(usize) -> serde_json::Value + Send + Sync>;

/// What a gateway is told at its start.
#[derive(Clone)]
pub struct Config {
    /// `<repl>.<domain>` leads to a repl.
    pub domain: String,
    /// The API's own names, besides addresses, `localhost` and the domain.
    pub api_names: Vec<String>,
    /// How long a request waits for a repl that cannot be reached yet.
    pub park: Duration,
    /// Where each attempt's line goes; `None` for nowhere.
    pub session_log: Option<PathBuf>,
    /// How hosts are probed, if they are.
    pub prober: Option<Prober>,
    /// Plays the loss of machines, where that is possible.
    pub preemptor: Option<Arc<dyn Preemptor>>,
    /// What the tracker that reads the log knows.
    pub stuck: Stuck,
    /// The way to the hosts.
    pub dialer: Dialer,
    /// What is under way for its sessions, for whoever asks what hangs.
    pub operations: Operations,
    /// How clients come in.
    pub door: Door,
    /// Where the socket is by which this machine's administrators come in, who need no key for the API.
    pub socket: Option<PathBuf>,
    /// Who may do what.
    pub access: Arc<Access>,
    /// How many bytes the body of a request to a repl may have; `None` for as many as its server takes.
    pub body_bytes_max: Option<u64>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("domain", &self.domain)
            .field("park", &self.park)
            .finish_non_exhaustive()
    }
}

/// What every request shares.
struct Gateway {
    config: Config,
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    router: Router,
    pool: Pool,
    metrics: GatewayMetrics,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    log: SessionLog,
    probe_log: SessionLog,
    next_session: AtomicU64,
    /// Sessions without an end: they are told when the gateway goes.
    endless: Endless,
}

/// The sessions that have no end of their own: shells, WebSockets, whatever was upgraded.
#[derive(Debug, Clone, Default)]
struct Endless {
    /// Those that are.
    tasks: TaskTracker,
    /// The gateway goes: whoever has one is to connect again.
    closing: CancellationToken,
}

impl Gateway {
    /// A number for a session, unique in this process and unlikely to be another's.
    fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }
}

/// How a gateway is told to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: CancellationToken,
    over: CancellationToken,
}

impl Stop {
    /// Take nothing new, and for so long give answers to what was taken before. Must be called within tokio.
    pub fn ask(&self, patience: Duration) {
        self.asked.cancel();
        let over = self.over.clone();
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            over.cancel();
        });
    }
}

/// How often those are forgotten who have not asked for anything of late.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Serves until it is asked to stop; then takes nothing new, answers what is under way, and closes sessions without an end.
///
/// # Errors
/// When the session log cannot be opened, or the store cannot be used at all.
pub async fn serve(
    config: Config,
    store: Arc<dyn Store>,
    listener: TcpListener,
    metrics: GatewayMetrics,
    render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    stop: Stop,
) -> anyhow::Result<()> {
    let log = SessionLog::open(config.session_log.as_deref(), Rotation::Others)?;
    let probe_log = config.prober.as_ref().map(|prober| prober.log.as_path());
    let probe_log = SessionLog::open(probe_log, Rotation::Above(PROBE_LOG_BYTES_MAX))?;
    let fleet = Fleet::follow(store.clone()).await?;
    let router = Router::start(store.clone(), fleet.clone(), config.dialer.clone());
    let gateway = Arc::new(Gateway {
        config,
        store,
        fleet,
        router,
        pool: Pool::default(),
        metrics,
        render_metrics,
        log,
        probe_log,
        // Sessions of a gateway's earlier lives are in the same log.
        next_session: AtomicU64::new(crate::clock::boottime().0),
        endless: Endless::default(),
    });
    let pool = gateway.pool.clone();
    let _tidying = AbortOnDropHandle::new(tokio::spawn(async move { pool.tidy().await }));
    let access = gateway.config.access.clone();
    let _forgetting = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            access.forget_idle();
        }
    }));
    let _probing = prober::start(&gateway, &stop.asked);
    let socket = gateway.config.socket.as_deref().map(door::bind);
    let socket = socket.transpose().context("listen for this machine")?;
    front::serve(gateway.clone(), listener, socket, stop).await;
    // A disk that hangs must not hold up the end.
    let _ = tokio::time::timeout(Duration::from_secs(1), gateway.log.flush()).await;
    Ok(())
}
