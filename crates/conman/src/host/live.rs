//! What sessions need to know of the containers that run: shared with the actor, which alone changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use model::id::ContainerId;
use model::spec::Spec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::shell::SharedShell;
use crate::runtime::{Exit, Running};
use crate::telemetry::locks::{AsyncMutex, Guard, Mutex};

/// One container that runs.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) running: Running,
    pub(super) spec: Spec,
    /// When conman saw it run: what its port's readiness is measured from.
    pub(super) since: Instant,
    /// RFC 3339 UTC, for people.
    pub(super) started_at: String,
    /// Cancelled when the platform kills it: what is told apart from its own end.
    pub(super) killed: CancellationToken,
    /// How it ended, once that is known.
    pub(super) exit: OnceLock<Exit>,
    /// Cancelled when it is proven dead.
    pub(super) gone: CancellationToken,
    /// Whether its port has accepted a connection: from then on, a refusal is the user's own.
    pub(super) ready: AtomicBool,
    /// The one terminal that everyone shares.
    pub(super) shell: AsyncMutex<Option<SharedShell>>,
}

/// All containers that run on this host.
#[derive(Debug)]
pub(super) struct LiveMap {
    map: Mutex<BTreeMap<ContainerId, std::sync::Arc<Live>>>,
    /// Those whose death was heard of before their start: a program may end at once.
    dead_before_told: Mutex<BTreeSet<ContainerId>>,
    /// The number of containers, for the load that sessions' answers carry.
    pub(super) count: watch::Sender<usize>,
}

impl Default for LiveMap {
    fn default() -> Self {
        Self {
            map: Mutex::new("containers", BTreeMap::new()),
            dead_before_told: Mutex::new("early deaths", BTreeSet::new()),
            count: watch::Sender::default(),
        }
    }
}

impl LiveMap {
    /// Taken only while the map's own lock is held.
    fn dead_early(&self) -> Guard<'_, BTreeSet<ContainerId>> {
        self.dead_before_told.lock()
    }

    pub(super) fn insert(&self, live: Live) {
        let mut map = self.map.lock();
        if self.dead_early().remove(&live.running.id) {
            return;
        }
        map.insert(live.running.id.clone(), std::sync::Arc::new(live));
        self.count.send_replace(map.len());
    }

    pub(super) fn get(&self, id: &ContainerId) -> Option<std::sync::Arc<Live>> {
        self.map.lock().get(id).cloned()
    }

    pub(super) fn of_repl(&self, repl: &model::id::ReplId) -> Option<std::sync::Arc<Live>> {
        self.map
            .lock()
            .values()
            .rfind(|live| live.running.id.repl == *repl)
            .cloned()
    }

    pub(super) fn remove(&self, id: &ContainerId, exit: Exit) {
        let mut map = self.map.lock();
        if let Some(live) = map.remove(id) {
            // Whoever is woken by its end may ask how it ended.
            live.exit.get_or_init(|| exit);
            live.gone.cancel();
        } else {
            self.dead_early().insert(id.clone());
        }
        self.count.send_replace(map.len());
    }
}
