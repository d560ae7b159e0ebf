//! The faults.

use std::path::{Path, PathBuf};
use std::sync::{Barrier, LazyLock, OnceLock};
use std::time::Duration;

use await_tree::InstrumentAwait;
use model::id::ReplId;
use model::keys;
use model::store::{Operation, Txn};

use crate::telemetry::locks::Mutex;
use crate::telemetry::operations;

/// How long an operation may take that is struck: no test waits for half a minute.
const PATIENCE: Duration = Duration::from_secs(2);

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Taken by one operation in this order, and by another in the opposite one.
static LOCKS: LazyLock<[Mutex<()>; 2]> =
    LazyLock::new(|| ["ledger", "shelf"].map(|name| Mutex::new(name, ())));

/// Where the two meet, each with one lock.
static MEETING: Barrier = Barrier::new(2);

/// Looks for the files of faults below this state directory.
pub(crate) fn begin(state: &Path) {
    // Only once in a process.
    let _ = DIRECTORY.set(state.join("faults"));
}

/// Whether the current operation, on this repl, is struck now.
fn strikes(fault: &str, repl: &ReplId) -> bool {
    let path = DIRECTORY
        .get()
        .map(|directory| directory.join(format!("{fault}@{repl}")));
    let is_struck = path.is_some_and(|path| std::fs::remove_file(path).is_ok());
    if is_struck {
        tracing::info!(fault, %repl, "a fault strikes");
        operations::hurry(PATIENCE);
    }
    is_struck
}

fn block() {
    loop {
        std::thread::park();
    }
}

/// In the task that starts a container.
pub(crate) async fn in_start(repl: &ReplId) {
    for (fault, order) in [("locks-one-way", [0, 1]), ("locks-other-way", [1, 0])] {
        if strikes(fault, repl) {
            let _first = LOCKS[order[0]].lock();
            MEETING.wait();
            let _second = LOCKS[order[1]].lock();
        }
    }
    if strikes("lost-wakeup", repl) {
        let nobody_tells = tokio::sync::Notify::new();
        nobody_tells
            .notified()
            .instrument_await("word that nobody gives")
            .await;
    }
    if strikes("blocked-worker", repl) {
        block();
    }
}

/// In the thread that prepares a container.
pub(crate) fn in_prepare(repl: &ReplId) -> impl FnOnce() + Send + use<> {
    let is_struck = strikes("silent-runtime", repl);
    move || {
        if is_struck {
            block();
        }
    }
}

/// In a transaction that makes a repl somebody's.
pub(crate) fn in_txn(txn: &Txn) -> impl Future<Output = ()> + use<> {
    let repl = txn.operations.iter().find_map(|operation| match operation {
        Operation::Put { key, .. } => key.strip_prefix(keys::OWNERS)?.parse().ok(),
        Operation::Delete { .. } => None,
    });
    let is_struck = repl.is_some_and(|repl: ReplId| strikes("silent-store", &repl));
    async move {
        if is_struck {
            std::future::pending::<()>().await;
        }
    }
}
