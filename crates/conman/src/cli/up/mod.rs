//! `conman up`: a whole fleet on this machine.
//!
//! ```text
//! lock the state ─► take the port ─► (start etcd) ─► open the store ─► clean what an earlier run left
//!      ─► start keepers and conmans ─► gateway ─► `ready URL` ─► supervise ─► kill all ─► clean
//! ```
//!
//! Nothing is started before everything that can be refused has been checked. The gateway lives in this
//! process, so this process has no children without it and no gateway outlives it: the kernel kills the
//! children with their parent, and the containers with their keepers.

mod backoff;
mod etcd;
mod fleet;
mod lock;
pub(super) mod node_client;
mod process;
mod signs;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use model::api::{Refusal, RefusalCode};
use model::id::{HostId, Incarnation, Revision};
use model::keys;
use model::timing::STORE_RETRY;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::etcd::Etcd;
use self::fleet::{Fleet, Order};
use self::lock::StateLock;
pub(super) use self::lock::join_members;
use super::exit::{CannotStart, Exit};
use super::serve::{
    Guard, Ways, gateway_role, listen_on, open_store, prober, raise_open_files, runtime_options,
    watch_over,
};
use crate::config::{self, Common, Host, RuntimeKind, Up, host_name};
use crate::gateway::{self, Preemptor};
use crate::host::Notices;
use crate::node::Address;
use crate::runtime;
use crate::store::{Change, Store, StoreError};
use crate::telemetry::watchdog::Watchdog;

/// How long the processes of an earlier run may take to die.
const EARLIER_DEATH_MAX: Duration = Duration::from_secs(5);
/// How long the first hosts may take to register.
const READY_MAX: Duration = Duration::from_secs(20);

pub(super) fn run(up: Up) -> anyhow::Result<Exit> {
    super::log::begin(&up.common)?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    // On the main thread, which ends last: the children's death signal hangs on it.
    runtime.block_on(supervise(up))
}

async fn supervise(mut up: Up) -> anyhow::Result<Exit> {
    // First of all, so that no signal finds a half-made fleet without anybody to end it.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hang_up.recv() => "SIGHUP",
        }
    };
    tokio::pin!(asked);

    let guard = Guard::open(&up.common.gateway, None)?;
    check_rights(&up.common, rustix::process::geteuid().is_root())?;
    make_directories(&up.common)?;
    let _lock = StateLock::take(&up.common.state)?;
    wait_for_earlier(&up.common.state).await?;
    let listener = listen_on(up.listen, "--listen")?;
    let address = listener.local_addr().context("look at the listener")?;
    let mut etcd = match up.common.store {
        config::Store::Etcd(_) => Some(Etcd::start(&up.common.state, up.restart)?),
        config::Store::Sqlite(_) => None,
    };
    if let Some(etcd) = &etcd {
        up.common.store = config::Store::Etcd(Some(etcd.options()));
    }
    let up = Arc::new(up);
    let store = open_store(&up.common)?;
    let _watched = watch_over(&store);
    tokio::select! {
        cleaned = clean_when_there(&up.common, &store) => cleaned?,
        () = members(&mut etcd) => {}
        signal = &mut asked => {
            tracing::info!(signal, "ending");
            stop_members(etcd).await;
            return Ok(Exit::Done);
        }
    }

    let mut fleet =
        Fleet::start(up.clone()).map_err(|error| CannotStart(format!("start a host: {error}")))?;
    let (orders, mut ordered) = mpsc::channel(16);
    let stop = gateway::Stop::default();
    let ways = Ways {
        guard,
        preemptor: Some(Arc::new(Drills { orders })),
        prober: prober(&up.common, address.to_string(), up.probe_hosts),
        ..Ways::default()
    };
    // Nobody starts this process again without ending its children: here, what hangs is told to end, and said.
    let _watchdog = Watchdog::start(vec![ways.watched()], None).context("start the watchdog")?;
    let gateway = gateway_role(&up.common, listener, &store, ways, &stop)?;
    let mut gateway = tokio::spawn(gateway);
    let outcome = tokio::select! {
        signal = &mut asked => {
            tracing::info!(signal, "ending");
            Ok(())
        }
        () = fleet.run(&mut ordered) => Ok(()),
        () = members(&mut etcd) => Ok(()),
        ended = &mut gateway => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("the gateway ended")),
            Ok(Err(error)) => Err(error.context("run the gateway")),
            Err(error) => Err(anyhow::Error::from(error).context("the gateway panicked")),
        },
        error = say_ready(&store, &up, address) => Err(error),
    };
    // Its sessions have a moment to end while the containers are killed.
    stop.ask(Duration::ZERO);
    let hosts = fleet.stop().await;
    let common = up.common.clone();
    tokio::task::spawn_blocking(move || {
        for host in &hosts {
            clean_host(&common, host);
        }
        remove(&common.sockets());
    })
    .await
    .context("clean up")?;
    retire_all(&store).await.context("retire the hosts")?;
    stop_members(etcd).await;
    if !gateway.is_finished() {
        // It has had longer than it takes; what it still has are sessions that do not end.
        gateway.abort();
    }
    outcome?;
    Ok(Exit::Done)
}

/// Keeps the members of an own etcd alive. Does not return.
async fn members(etcd: &mut Option<Etcd>) {
    match etcd {
        Some(etcd) => etcd.run().await,
        None => std::future::pending().await,
    }
}

async fn stop_members(etcd: Option<Etcd>) {
    if let Some(etcd) = etcd {
        etcd.stop().await;
    }
}

/// [`clean`], as soon as a store that has just been started answers.
async fn clean_when_there(common: &Common, store: &dyn Store) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + READY_MAX;
    loop {
        match store.range(keys::HOSTS).await {
            Ok(_) => return clean(common, store).await,
            Err(StoreError::Unavailable(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(STORE_RETRY).await;
            }
            Err(error) => return Err(CannotStart(format!("read the store: {error}")).into()),
        }
    }
}

/// Says that sessions are accepted, once they are. Returns only with a reason why they will not be.
async fn say_ready(store: &dyn Store, up: &Up, address: SocketAddr) -> anyhow::Error {
    let ready = async {
        match tokio::time::timeout(READY_MAX, all_registered(store, up.hosts)).await {
            Ok(registered) => registered?,
            Err(_) => {
                let seconds = READY_MAX.as_secs();
                return Err(
                    CannotStart(format!("the hosts did not register within {seconds} s")).into(),
                );
            }
        }
        let mut out = std::io::stdout().lock();
        let scheme = match up.common.gateway.tls {
            Some(_) => "https",
            None => "http",
        };
        writeln!(out, "ready {scheme}://{address}")?;
        out.flush()?;
        anyhow::Ok(())
    };
    match ready.await {
        Ok(()) => std::future::pending().await,
        Err(error) => error.context("get ready"),
    }
}

/// The gateway's way to the supervisor.
struct Drills {
    orders: mpsc::Sender<Order>,
}

impl Preemptor for Drills {
    fn preempt(&self, host: HostId) -> BoxFuture<'_, Result<serde_json::Value, Refusal>> {
        Box::pin(async move {
            let ended = || Refusal::new(RefusalCode::Internal, "the supervisor is ending");
            let (reply, replied) = oneshot::channel();
            self.orders
                .send(Order::Preempt { host, reply })
                .await
                .map_err(|_| ended())?;
            replied.await.map_err(|_| ended())?
        })
    }
}

/// Refuses early, and says what would help.
fn check_rights(common: &Common, is_root: bool) -> Result<(), CannotStart> {
    match common.runtime {
        RuntimeKind::Native | RuntimeKind::Docker if !is_root => Err(CannotStart(format!(
            "the {} runtime needs root: run this as root, or with --runtime process, which has no \
             isolation; `conman doctor` says what this machine offers",
            common.runtime.as_str()
        ))),
        _ => Ok(()),
    }
}

fn make_directories(common: &Common) -> Result<(), CannotStart> {
    for directory in [&common.state, &common.sockets(), &common.workspaces] {
        std::fs::create_dir_all(directory)
            .map_err(|error| CannotStart(format!("make {}: {error}", directory.display())))?;
    }
    Ok(())
}

async fn wait_for_earlier(state: &Path) -> Result<(), CannotStart> {
    let path = state.to_owned();
    let waits = tokio::task::spawn_blocking(move || lock::wait_for_members(&path));
    match tokio::time::timeout(EARLIER_DEATH_MAX, waits).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(CannotStart(format!("wait for an earlier run: {error}"))),
        Err(_) => Err(CannotStart(format!(
            "processes of an earlier `conman up` on {} are still there",
            state.display()
        ))),
    }
}

/// Removes everything that an earlier run on this state directory left, however it ended. Nothing of it
/// lives: its processes are waited for before this.
async fn clean(common: &Common, store: &dyn Store) -> anyhow::Result<()> {
    let mut hosts: BTreeSet<HostId> = retire_all(store).await.context("clean the store")?;
    for directory in ["overlay", "run"] {
        let entries = match std::fs::read_dir(common.state.join(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context("look for what an earlier run left"),
        };
        for entry in entries {
            let name = entry?.file_name();
            hosts.extend(name.to_str().and_then(|name| name.parse().ok()));
        }
    }
    let common = common.clone();
    tokio::task::spawn_blocking(move || {
        for host in &hosts {
            clean_host(&common, host);
        }
        remove(&common.sockets());
        std::fs::create_dir_all(common.sockets())
    })
    .await
    .context("clean up")?
    .context("make the sockets' directory")
}

/// Removes what a host that is down has left. What cannot be removed is said, and stays: the next start
/// tries again.
fn clean_host(common: &Common, host: &HostId) {
    let options = runtime_options(
        common,
        &Host {
            name: host.clone(),
            address: Address::Unix(common.host_socket(host)),
            keeper_socket: common.keeper_socket(host),
            notices: Notices::default(),
        },
    );
    let purged = match common.runtime {
        RuntimeKind::Native => runtime::native::purge(&options),
        RuntimeKind::Docker => runtime::docker::purge(&options, common.docker.clone()),
        RuntimeKind::Process => runtime::process::purge(&options),
    };
    if let Err(error) = purged {
        tracing::error!(%host, %error, "not everything that the host left could be removed");
    }
}

fn remove(directory: &Path) {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(directory = %directory.display(), %error, "could not be removed");
        }
        _ => {}
    }
}

/// Gives up every registration on behalf of hosts that are dead with all of their containers, which frees
/// all repls at once instead of after a steal. Returns whose.
async fn retire_all(store: &dyn Store) -> Result<BTreeSet<HostId>, StoreError> {
    let mut retired = BTreeSet::new();
    for item in store.range(keys::HOSTS).await?.items {
        let Some(host) = item
            .key
            .strip_prefix(keys::HOSTS)
            .and_then(|host| host.parse::<HostId>().ok())
        else {
            continue;
        };
        store
            .txn(keys::retire(&host, Incarnation(item.create.0)))
            .await?;
        retired.insert(host);
    }
    Ok(retired)
}

/// Returns when the first `count` hosts of the fleet are registered.
async fn all_registered(store: &dyn Store, count: u16) -> anyhow::Result<()> {
    let mut missing: BTreeSet<_> = (1..=u32::from(count))
        .map(|number| keys::host(&host_name(number)))
        .collect();
    // Everything since the store was cleaned is news; the history is long enough for that.
    let range = store.range(keys::HOSTS).await?;
    for item in &range.items {
        missing.remove(&item.key);
    }
    let mut changes = store.watch(keys::HOSTS, Revision(range.revision.0 + 1));
    while !missing.is_empty() {
        let batch = changes.next().await.context("the store's watch ended")??;
        for change in batch {
            match change {
                Change::Put(item) => missing.remove(&item.key),
                Change::Delete { key, .. } => missing.insert(key),
            };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommonKeys, File, Surroundings};

    #[test]
    fn without_root_there_is_a_way_on() {
        let common = |runtime| {
            let keys = CommonKeys {
                state: Some("/x".into()),
                runtime: Some(runtime),
                ..CommonKeys::default()
            };
            Common::resolve(keys, &File::default(), &Surroundings::default()).unwrap()
        };
        let refused = check_rights(&common(RuntimeKind::Native), false)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--runtime process"), "{refused}");
        assert!(refused.contains("conman doctor"), "{refused}");
        let refused = check_rights(&common(RuntimeKind::Docker), false).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("the docker runtime needs root")
        );
        check_rights(&common(RuntimeKind::Native), true).unwrap();
        check_rights(&common(RuntimeKind::Process), false).unwrap();
    }
}
