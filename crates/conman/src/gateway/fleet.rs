//! The hosts, as the store tells of them: kept by a watch, so that whoever waits is woken by a change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use model::id::{HostId, Incarnation, Revision};
use model::keys::{self, Host};
use model::store::{Change, StoreError};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::store::Store;

/// The hosts by name.
pub(super) type Hosts = Arc<BTreeMap<HostId, Host>>;

/// How long to wait before a broken watch is begun anew.
const WATCH_RETRY: Duration = Duration::from_millis(100);

/// All hosts.
pub(super) struct Fleet {
    hosts: watch::Receiver<Hosts>,
    _follower: AbortOnDropHandle<()>,
}

impl Fleet {
    /// Reads the hosts once, and follows them from then on. Where the store is away there are none until it is back.
    pub(super) async fn follow(store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let (sender, hosts) = watch::channel(Hosts::default());
        let from = match read(&*store, &sender).await {
            Ok(from) => Some(from),
            Err(error @ StoreError::Fatal(_)) => return Err(error),
            Err(_) => None,
        };
        let follower = tokio::spawn(follow(store, sender, from));
        Ok(Arc::new(Self {
            hosts,
            _follower: AbortOnDropHandle::new(follower),
        }))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Hosts> {
        self.hosts.clone()
    }

    pub(super) fn now(&self) -> Hosts {
        self.hosts.borrow().clone()
    }

    /// Waits until a host's registration has ended: whatever still goes through it goes nowhere, for its
    /// containers are dead, even when the host itself (stopped, cut off) has closed nothing.
    pub(super) fn ended(
        &self,
        host: HostId,
        incarnation: Incarnation,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut hosts = self.hosts.clone();
        async move {
            // An error means that nobody follows the hosts any more: the gateway itself has ended.
            let _ = hosts
                .wait_for(|hosts| {
                    hosts
                        .get(&host)
                        .is_none_or(|now| now.incarnation != incarnation)
                })
                .await;
        }
    }
}

async fn read(store: &dyn Store, sender: &watch::Sender<Hosts>) -> Result<Revision, StoreError> {
    let range = store.range(keys::HOSTS).await?;
    let hosts = range.items.iter().filter_map(|item| {
        let host = keys::read_host(item, decode).ok()?;
        Some((host.id.clone(), host))
    });
    sender.send_replace(Arc::new(hosts.collect()));
    Ok(Revision(range.revision.0 + 1))
}

async fn follow(store: Arc<dyn Store>, sender: watch::Sender<Hosts>, mut from: Option<Revision>) {
    loop {
        if let Some(first) = from {
            let mut changes = store.watch(keys::HOSTS, first);
            while let Some(Ok(batch)) = changes.next().await {
                sender.send_modify(|hosts| {
                    let hosts = Arc::make_mut(hosts);
                    for change in &batch {
                        apply(hosts, change);
                    }
                });
            }
        }
        // The history is gone, or the store: what is there now tells the rest.
        tokio::time::sleep(WATCH_RETRY).await;
        from = match read(&*store, &sender).await {
            Ok(next) => Some(next),
            Err(error) => {
                // A store that is away says so itself, once.
                tracing::debug!(%error, "read the hosts");
                None
            }
        };
    }
}

fn apply(hosts: &mut BTreeMap<HostId, Host>, change: &Change) {
    match change {
        Change::Put(item) => match keys::read_host(item, decode) {
            Ok(host) => {
                hosts.insert(host.id.clone(), host);
            }
            Err(error) => tracing::warn!(%error, "a host's key"),
        },
        Change::Delete { key, .. } => {
            if let Some(id) = key.strip_prefix(keys::HOSTS)
                && let Ok(id) = id.parse::<HostId>()
            {
                hosts.remove(&id);
            }
        }
    }
}

/// Reads a value of the store; `None` if it is not of this shape.
pub(super) fn decode<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}
