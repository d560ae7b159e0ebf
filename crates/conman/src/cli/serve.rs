//! `conman serve`: one node. The roles know nothing of each other; they meet here and in the store.
//!
//! ```text
//! running ──SIGTERM, SIGINT──► drain ──► every repl handed off or given up ──► end
//!    │                           └──again──► end: the containers live on, until the deadline
//!    ├──SIGHUP──► end: the containers live on; a conman that comes back adopts them (an upgrade)
//!    └──another process has taken the listening socket over──► the same; that one is the conman that comes back
//! ```

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use keeper::manager::{Manager, Word};
use model::id::Incarnation;
use model::timing::{PARK_MAX, STOP_ANSWERS_MAX, STOP_MAX};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::exit::{CannotStart, Exit};
use super::handover::{self, Predecessor};
use super::service::{self, Roles};
use crate::config::{self, Common, RuntimeKind};
use crate::gateway::{self, Access, Door, GatewayMetrics, Lock, Preemptor, Prober};
use crate::host::{self, Fences, HostMetrics};
use crate::node::{Address, Dialer, Identity};
use crate::runtime::{self, Kept, RuntimeOptions};
use crate::store::Store;
use crate::store::etcd::Etcd;
use crate::store::reach::Reached;
use crate::store::sqlite::Sqlite;
use crate::telemetry::operations::Operations;
use crate::telemetry::rendering;
use crate::telemetry::watchdog::{Restart, Watchdog, Watched};
use crate::tracker::Tracker;

/// What makes containers for a host, by its configuration.
pub(super) fn runtime_options(common: &Common, host: &config::Host) -> RuntimeOptions {
    RuntimeOptions {
        host: host.name.clone(),
        state: common.state.clone(),
        workspaces: common.workspaces.clone(),
        keeper_socket: host.keeper_socket.clone(),
        witness: common.witness.clone(),
        cgroup: common.cgroup.clone(),
    }
}

/// Opens the store, and its directory if that is not there. Must be called within tokio.
pub(super) fn open_store(common: &Common) -> Result<Reached, CannotStart> {
    let cannot = |text: String| CannotStart(format!("open the store: {text}"));
    let store: Arc<dyn Store> = match &common.store {
        config::Store::Sqlite(file) => {
            if let Some(directory) = file.parent() {
                std::fs::create_dir_all(directory)
                    .map_err(|error| cannot(format!("{}: {error}", directory.display())))?;
            }
            Arc::new(Sqlite::open(file).map_err(|error| cannot(error.to_string()))?)
        }
        config::Store::Etcd(Some(options)) => {
            Arc::new(Etcd::open(options.clone()).map_err(|error| cannot(error.to_string()))?)
        }
        // Said with the key's name where the configuration is checked.
        config::Store::Etcd(None) => return Err(cannot("no endpoints are given".to_owned())),
    };
    Ok(Reached::new(store))
}

/// How many open files the process's table has room for from the start.
const OPEN_FILES_ROOM: u64 = 16_384;

/// As many open files as this process may have: every session and every container needs some. Must be called before there are
/// threads: a table that grows under several is exchanged only when no processor looks at the old one any more, and on a busy
/// machine whoever opened the file waits for that for a second, and with it the tasks of its thread.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let room = limit
        .maximum
        .map_or(OPEN_FILES_ROOM, |maximum| maximum.min(OPEN_FILES_ROOM));
    let last = i32::try_from(room).unwrap_or(i32::MAX).saturating_sub(1);
    // The table keeps its size when the file is closed again. Where it cannot grow, it does later.
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last) {
        tracing::debug!(%error, "no room for open files beforehand");
    }
}

fn open_runtime(common: &Common, options: &RuntimeOptions) -> Result<Kept, CannotStart> {
    let kind = common.runtime;
    let opened = match kind {
        RuntimeKind::Docker => runtime::docker::open(options, common.docker.clone()),
        RuntimeKind::Native => runtime::native::open(options),
        RuntimeKind::Process => runtime::process::open(options),
    };
    opened.map_err(|error| CannotStart(format!("open the {} runtime: {error}", kind.as_str())))
}

/// Whether this node is one of an `up`, which waits for all of them before the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    Alone,
    OfFleet,
}

pub(super) fn run(
    node: config::Node,
    member: Membership,
    takes_over: bool,
) -> anyhow::Result<Exit> {
    super::log::begin(&node.common)?;
    let _member = match member {
        Membership::OfFleet => Some(super::up::join_members(&node.common.state)?),
        Membership::Alone => None,
    };
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(serve(node, Manager::of_process().map(Arc::new), takes_over))
}

async fn serve(
    node: config::Node,
    manager: Option<Arc<Manager>>,
    takes_over: bool,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::new().context("listen to signals")?;
    let state = &node.common.state;
    std::fs::create_dir_all(state)
        .map_err(|error| CannotStart(format!("make {}: {error}", state.display())))?;
    let identity = match &node.identity {
        Some(files) => Some(Arc::new(config::load_identity(files.clone())?)),
        None => None,
    };
    crate::faults::begin(state);
    let dialer = Dialer::new(identity.clone());
    let store = open_store(&node.common)?;
    let _watched = watch_over(&store);
    let (gateway_stop, host_stop) = (gateway::Stop::default(), CancellationToken::new());
    let stopping = CancellationToken::new();
    let mut roles = tokio::task::JoinSet::new();
    let mut gateway = None;
    let mut known = Roles {
        dialer: dialer.clone(),
        ..Roles::default()
    };
    let mut watched = vec![];
    let mut predecessor = None;
    let mut given = None;
    if let Some(listen) = node.listen {
        let successors = node.common.successor_socket();
        let (listener, found) = handover::listen(listen, &successors, takes_over).await?;
        predecessor = found;
        let address = listener.local_addr().context("look at the port")?;
        // Whom only this machine reaches, it need not be shown anything.
        let identity = identity.filter(|_| !address.ip().is_loopback());
        let front = &node.common.gateway;
        let is_for_users = front.tls.is_some() || front.proxy_protocol;
        known.gateway = Some(match identity {
            // What stands before it is not for us.
            _ if is_for_users => Address::Unix(node.common.gateway_socket()),
            Some(_) => Address::Tls(address.to_string()),
            None => Address::Tcp(address.to_string()),
        });
        let name = node.host.as_ref().map(|host| host.name.to_string());
        let name = name.unwrap_or_else(|| address.to_string());
        let ways = Ways {
            dialer: dialer.clone(),
            guard: Guard::open(front, identity)?,
            prober: prober(&node.common, name, node.probe_hosts),
            predecessor: predecessor.clone(),
            ..Ways::default()
        };
        watched.push(ways.watched());
        let own = listener.try_clone().context("keep the listener")?;
        let successors = gateway::bind_for_user(&successors).context("listen for a successor")?;
        given = Some(Box::pin(handover::give(own.into(), address, successors)));
        let role = gateway_role(&node.common, listener, &store, ways, &gateway_stop)?;
        gateway = Some(roles.spawn(role).id());
    }
    if let Some(predecessor) = predecessor {
        // Its keeper's containers are adopted when nobody else has them.
        predecessor
            .gone()
            .await
            .context("wait for the process before this one")?;
    }
    if let Some(host) = &node.host {
        let (registration, registered) = watch::channel(None);
        known.host = Some((host.address.clone(), registered));
        let ties = Ties {
            dialer: dialer.clone(),
            operations: Operations::default(),
            fences: Fences::default(),
            registration,
        };
        watched.push(ties.watched(host));
        roles.spawn(host_role(&node.common, host, &store, ties, &host_stop)?);
    }
    let watchdog =
        Watchdog::start(watched, restart_by(manager.as_ref())).context("start the watchdog")?;
    known.verdict = Some(watchdog.verdict());
    if let Some(manager) = &manager {
        let stopping = stopping.clone();
        tokio::spawn(service::inform(manager.clone(), known, stopping));
    }
    let asked = tokio::select! {
        wanted = signals.next() => {
            let asked = Instant::now();
            if let Some(manager) = &manager {
                manager.tell(&Word::Stopping);
                stopping.cancel();
            }
            watchdog.spare();
            if let (Wanted::Drain, Some(host)) = (wanted, &node.host) {
                tokio::select! {
                    () = drain(&dialer, host) => {}
                    _ = signals.next() => tracing::warn!("asked again: ending before the drain has"),
                }
            }
            asked
        }
        handed_over = to_successor(given) => {
            handed_over?;
            tracing::info!("another process has the listening socket: ending; the containers live on");
            if let Some(manager) = &manager {
                manager.tell(&Word::Stopping);
                stopping.cancel();
            }
            watchdog.spare();
            Instant::now()
        }
        // None of them ends unasked: it has failed, and the node with it.
        ended = roles.join_next() => {
            return match ended {
                Some(Ok(Err(error))) => Err(error),
                Some(Err(error)) => Err(error).context("a role panicked"),
                Some(Ok(Ok(()))) | None => Ok(Exit::Done),
            };
        }
    };
    // Meanwhile the host renews. What a drain has used up is gone from the time that a stop may take.
    gateway_stop.ask(STOP_ANSWERS_MAX.min(STOP_MAX.saturating_sub(asked.elapsed())));
    if gateway.is_none() {
        host_stop.cancel();
    }
    loop {
        let ended = tokio::select! {
            ended = roles.join_next_with_id() => ended,
            _ = signals.next() => {
                gateway_stop.ask(Duration::ZERO);
                continue;
            }
        };
        let Some(ended) = ended else {
            return Ok(Exit::Done);
        };
        let (role, ended) = ended.context("a role panicked")?;
        ended?;
        if gateway == Some(role) {
            host_stop.cancel();
        }
    }
}

/// Until a process that takes this one's place has its listening socket.
async fn to_successor(
    given: Option<impl Future<Output = std::io::Result<()>>>,
) -> anyhow::Result<()> {
    match given {
        Some(given) => given.await.context("hear a successor"),
        None => std::future::pending().await,
    }
}

/// Has the store's state known also where nobody asks it anything, until what comes back is dropped.
pub(super) fn watch_over(store: &Reached) -> AbortOnDropHandle<()> {
    let store = store.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { store.watch_over().await }))
}

/// How a watchdog has the process started again, if there is somebody who would.
fn restart_by(manager: Option<&Arc<Manager>>) -> Option<Restart> {
    let manager = manager.filter(|manager| manager.beat_every().is_some())?;
    let manager = manager.clone();
    Some(Box::new(move || manager.tell(&Word::Hangs)))
}

/// What a host is tied to.
struct Ties {
    dialer: Dialer,
    operations: Operations,
    fences: Fences,
    registration: watch::Sender<Option<Incarnation>>,
}

impl Ties {
    fn watched(&self, host: &config::Host) -> Watched {
        let fences = self.fences.clone();
        Watched {
            host: Some(host.name.to_string()),
            operations: self.operations.clone(),
            fence: Some(Box::new(move |kind, subject| fences.give_up(kind, subject))),
        }
    }
}

fn host_role(
    common: &Common,
    host: &config::Host,
    store: &Reached,
    ties: Ties,
    stop: &CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let runtime = open_runtime(common, &runtime_options(common, host))?;
    let mut registry = Registry::default();
    let metrics = HostMetrics::register(&mut registry);
    store.register(&mut registry);
    let config = host::Config {
        host: host.name.clone(),
        address: host.address.clone(),
        capacity: common.host_capacity,
        timing: common.profile.timing(),
        boot_id: boot_id()?,
        drains: common.drains,
        notices: host.notices.clone(),
        dialer: ties.dialer,
        operations: ties.operations,
        fences: ties.fences,
    };
    config.operations.register(&mut registry);
    Ok(host::serve(
        config,
        Arc::new(store.clone()),
        Arc::new(runtime),
        metrics,
        rendering(registry),
        ties.registration,
        stop.clone(),
    ))
}

/// What guards a gateway.
#[derive(Default)]
pub(super) struct Guard {
    lock: Lock,
    access: Arc<Access>,
}

impl Guard {
    /// Reads its files. Of whom no certificate for users is to be shown, one of the fleet is asked, if there is an identity.
    ///
    /// # Errors
    /// The key of the file that is of no use.
    pub(super) fn open(
        gateway: &config::Gateway,
        identity: Option<Arc<Identity>>,
    ) -> Result<Self, config::ConfigError> {
        let lock = match &gateway.tls {
            Some(files) => Lock::Tls(Arc::new(config::load_certificate(files.clone())?)),
            None => identity.map_or(Lock::None, Lock::Fleet),
        };
        let access = Arc::new(config::load_access(gateway.access.clone())?);
        Ok(Self { lock, access })
    }
}

/// Who a gateway meets: the hosts, its clients, and the supervisor that it may be a part of.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) dialer: Dialer,
    pub(super) guard: Guard,
    pub(super) preemptor: Option<Arc<dyn Preemptor>>,
    /// What is under way on its ways to repls.
    pub(super) operations: Operations,
    pub(super) prober: Option<Prober>,
    /// Whoever has the tracker's database until it is gone.
    pub(super) predecessor: Option<Predecessor>,
}

impl Ways {
    pub(super) fn watched(&self) -> Watched {
        Watched {
            host: None,
            operations: self.operations.clone(),
            fence: None,
        }
    }
}

/// How the gateway of this name probes the hosts, unless it is to probe none.
pub(super) fn prober(common: &Common, name: String, hosts_max: usize) -> Option<Prober> {
    (hosts_max > 0).then(|| Prober {
        name,
        hosts_max,
        log: common.probe_log(),
    })
}

/// The gateway's part of this process, whichever command runs it.
pub(super) fn gateway_role(
    common: &Common,
    listener: TcpListener,
    store: &Reached,
    ways: Ways,
    stop: &gateway::Stop,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let listener = tokio::net::TcpListener::from_std(listener).context("listen")?;
    let mut registry = Registry::default();
    let metrics = GatewayMetrics::register(&mut registry);
    store.register(&mut registry);
    let tracker = start_tracker(common, ways.prober.is_some(), ways.predecessor)?;
    registry.register_collector(tracker.collector());
    let config = gateway::Config {
        domain: common.gateway.domain.clone(),
        api_names: common.gateway.api_names.clone(),
        park: PARK_MAX,
        session_log: Some(common.session_log.clone()),
        stuck: Arc::new(move |worst| tracker.view().json(worst)),
        prober: ways.prober,
        preemptor: ways.preemptor,
        dialer: ways.dialer,
        operations: ways.operations,
        door: Door {
            lock: ways.guard.lock,
            has_proxy_header: common.gateway.proxy_protocol,
        },
        socket: Some(common.gateway_socket()),
        access: ways.guard.access,
        body_bytes_max: common.gateway.body_bytes_max,
    };
    if common.gateway.access.token_keys.is_none() {
        tracing::info!(
            "access is off: whoever reaches this gateway, which only this machine does, needs no token"
        );
    }
    config.operations.register(&mut registry);
    Ok(gateway::serve(
        config,
        Arc::new(store.clone()),
        listener,
        metrics,
        rendering(registry),
        stop.clone(),
    ))
}

/// Follows what the gateway writes into its session log, for as long as this process lives.
/// After a predecessor, when that is gone: the log that it left is read from where it had got to.
fn start_tracker(
    common: &Common,
    is_probing: bool,
    predecessor: Option<Predecessor>,
) -> anyhow::Result<Tracker> {
    let failed = |error: anyhow::Error| {
        // Users are served without it; its metrics stand still, which its alert sees.
        tracing::error!(error = format!("{error:#}"), "the stuck tracker has ended");
    };
    let followed = config::fleet_tracker(common, is_probing);
    if let Some(predecessor) = predecessor {
        let tracker = Tracker::idle();
        let later = tracker.clone();
        tokio::spawn(async move {
            let begun = match predecessor.gone().await {
                Ok(()) => later.begin(followed, failed),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = begun {
                failed(error);
            }
        });
        return Ok(tracker);
    }
    Tracker::start(followed, failed)
        .map_err(|error| CannotStart(format!("start the stuck tracker: {error:#}")).into())
}

/// Takes a port, which the flag says.
pub(super) fn listen_on(address: SocketAddr, flag: &str) -> Result<TcpListener, CannotStart> {
    let listen = || -> std::io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("; end what listens there, or give another with {flag}")
            }
            _ => String::new(),
        };
        CannotStart(format!("listen on {address}: {error}{hint}"))
    })?;
    Ok(listener)
}

fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.trim().to_owned())
}

/// Empties the host within what is left for it of the time before the machine goes.
async fn drain(dialer: &Dialer, host: &config::Host) {
    let drained = super::up::node_client::preempt(dialer, &host.address, Some(STOP_MAX));
    match tokio::time::timeout(STOP_MAX, drained).await {
        Ok(Ok(report)) => tracing::info!(
            containers = report.containers,
            unfinished = report.unfinished,
            "drained"
        ),
        Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "could not drain"),
        Err(_) => tracing::error!("did not drain in time"),
    }
}

enum Wanted {
    Drain,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.terminate.recv() => Wanted::Drain,
            _ = self.interrupt.recv() => Wanted::Drain,
            _ = self.hang_up.recv() => Wanted::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_open_files_before_they_are_opened() {
        raise_open_files();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let room: u64 = room.unwrap().trim().parse().unwrap();
        let wanted = limit.current.unwrap_or(u64::MAX).min(OPEN_FILES_ROOM);
        assert!(room >= wanted, "{room} of {wanted}");
    }
}
