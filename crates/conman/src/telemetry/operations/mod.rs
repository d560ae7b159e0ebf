//! What is under way on repls right now: every claim, start, kill, release, route and exec with its stage and deadline.
//!
//! ```text
//! begin ─► Operation (a guard) ─► at(stage)* ─► dropped: it is over, however it ended
//!              └── run(future): until it is done or told to end; its awaits are kept as a tree
//! ```
//!
//! The book is for whoever must say what hangs, so nothing in it waits for anything: an entry's moving parts are
//! atomics, and the maps' locks are leaves, held for one insertion, one removal or one copy.

mod name;
mod report;
mod stuck;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use await_tree::InstrumentAwait;
use model::api::{Refusal, RefusalCode};
use model::time::milliseconds;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use self::name::{Kind, Stage};
pub use self::report::{FleetReport, LockReport, OperationReport, PartyReport, Report};
pub(super) use self::stuck::Stuck;
use super::leaf::{self, Blind};

/// So many maps, by the operation's number: a gateway begins and ends tens of thousands a second.
const SHARDS: usize = 16;

/// The number of the next operation of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

tokio::task_local! {
    /// The operation that the current task works for.
    static CURRENT: Arc<Entry>;
}

/// The operations of one role of this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Operations(Arc<Book>);

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").finish_non_exhaustive()
    }
}

struct Book {
    shards: [Mutex<HashMap<u64, Arc<Entry>>>; SHARDS],
    trees: await_tree::Registry,
    stuck: Stuck,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            trees: await_tree::Registry::new(await_tree::Config::default()),
            stuck: Stuck::default(),
        }
    }
}

impl Book {
    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        // The remainder is below the number of shards.
        leaf::take(&self.shards[(id % SHARDS as u64) as usize])
    }
}

/// One operation, as long as it is under way.
pub(crate) struct Entry {
    id: u64,
    kind: Kind,
    subject: String,
    begun: Instant,
    /// In milliseconds.
    patience_ms: AtomicU64,
    stage: AtomicU8,
    /// When the stage was entered, in microseconds after `begun`.
    staged_us: AtomicU64,
    /// The thread that entered it; zero before any has.
    thread: AtomicU32,
    cancel: CancellationToken,
}

impl Entry {
    fn enter(&self, stage: Stage) {
        let spent = self.begun.elapsed().as_micros();
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.staged_us
            .store(u64::try_from(spent).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.thread.store(thread_id(), Ordering::Relaxed);
    }

    /// What it is, on what.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.kind.as_str(), self.subject)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How long it may take from its beginning.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Relaxed))
    }

    fn given_up(&self) -> GivenUp {
        GivenUp {
            kind: self.kind,
            stage: self.stage(),
            after: self.age(),
        }
    }

    /// Tells it to end.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(super) fn stage(&self) -> Stage {
        Stage::of_number(self.stage.load(Ordering::Relaxed))
    }
}

/// What the caller works for.
pub(super) fn current() -> Option<Arc<Entry>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// The kernel's number of this thread, as below `/proc/self/task`.
pub(super) fn thread_id() -> u32 {
    thread_local! {
        static ID: u32 = rustix::thread::gettid().as_raw_pid().unsigned_abs();
    }
    ID.with(|id| *id)
}

impl From<GivenUp> for Refusal {
    fn from(given_up: GivenUp) -> Self {
        let code = match given_up.stage {
            Stage::Store => RefusalCode::StoreUnavailable,
            _ => RefusalCode::Internal,
        };
        Refusal::new(code, given_up.to_string())
    }
}

/// The operation was told to end because it was long past its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} was given up in its stage {stage}, {after:?} after it began", kind = kind.as_str(), stage = stage.as_str())]
pub struct GivenUp {
    /// What it was.
    pub kind: Kind,
    /// What it was at.
    pub stage: Stage,
    /// After how long.
    pub after: Duration,
}

/// An operation that is under way; over when this is dropped.
pub struct Operation {
    book: Operations,
    entry: Arc<Entry>,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.entry.name())
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.book.0.shard(self.entry.id).remove(&self.entry.id);
    }
}

impl Operation {
    /// It is at this from now on.
    pub fn at(&self, stage: Stage) {
        self.entry.enter(stage);
    }

    /// Waits until it is told to end.
    pub async fn cancelled(&self) -> GivenUp {
        self.entry.cancel.cancelled().await;
        self.entry.given_up()
    }

    /// Awaits `work` for this operation, until it is done or told to end.
    ///
    /// # Errors
    /// [`GivenUp`] when it was told to end; `work` is dropped.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> Result<T, GivenUp> {
        tokio::select! {
            biased;
            done = self.around(work) => Ok(done),
            given_up = self.cancelled() => Err(given_up),
        }
    }

    /// Awaits `work` for this operation, whatever it is told meanwhile.
    pub async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        let entry = self.entry.clone();
        let tree = self.book.0.trees.register(entry.id, entry.name());
        CURRENT.scope(entry, tree.instrument(work)).await
    }
}

impl Operations {
    /// Begins an operation that must be over within `patience`.
    pub fn begin(&self, kind: Kind, subject: impl fmt::Display, patience: Duration) -> Operation {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            id,
            kind,
            subject: subject.to_string(),
            begun: Instant::now(),
            patience_ms: AtomicU64::new(milliseconds(patience)),
            stage: AtomicU8::new(Stage::Begun as u8),
            staged_us: AtomicU64::new(0),
            thread: AtomicU32::new(0),
            cancel: CancellationToken::new(),
        });
        self.0.shard(id).insert(id, entry.clone());
        Operation {
            book: self.clone(),
            entry,
        }
    }

    /// What is under way, in any order. Never waits for a leaf.
    ///
    /// # Errors
    /// When a leaf was not to be had.
    pub(super) fn look(&self) -> Result<Vec<Arc<Entry>>, Blind> {
        let mut entries = vec![];
        for shard in &self.0.shards {
            entries.extend(leaf::try_take(shard)?.values().cloned());
        }
        Ok(entries)
    }

    /// How many of them hang, by kind.
    pub(super) fn stuck(&self) -> &Stuck {
        &self.0.stuck
    }

    /// Makes its metrics known to the registry of the role that it is of.
    pub fn register(&self, registry: &mut Registry) {
        self.0.stuck.register(registry);
    }

    /// Everything that is under way, the oldest first.
    pub fn report(&self) -> Vec<OperationReport> {
        let mut entries: Vec<Arc<Entry>> = vec![];
        for id in 0..SHARDS as u64 {
            entries.extend(self.0.shard(id).values().cloned());
        }
        entries.sort_by_key(|entry| (entry.begun, entry.id));
        let tree = |id| self.0.trees.get(id).map(|tree| tree.to_string());
        let reports = entries.iter().map(|entry| entry.report(tree(entry.id)));
        reports.collect()
    }
}

/// Has the current operation be overdue sooner.
#[cfg(feature = "faults")]
pub(crate) fn hurry(patience: Duration) {
    if let Some(entry) = current() {
        let patience_ms = milliseconds(patience);
        entry.patience_ms.store(patience_ms, Ordering::Relaxed);
    }
}

/// Awaits `work` for the current operation, if there is one, until it is done or the operation is told to end.
///
/// # Errors
/// [`GivenUp`] when it was told to end; `work` is dropped.
pub async fn while_wanted<T>(work: impl Future<Output = T>) -> Result<T, GivenUp> {
    let Some(entry) = current() else {
        return Ok(work.await);
    };
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = entry.cancel.cancelled() => Err(entry.given_up()),
    }
}

impl Stage {
    /// Awaits `work` as this stage of the current operation, if there is one; then it is at what it was at before.
    pub async fn of<T>(self, work: impl Future<Output = T>) -> T {
        let entry = current();
        let before = entry.as_ref().map(|entry| {
            let before = entry.stage();
            entry.enter(self);
            before
        });
        let done = work.instrument_await(self.as_str()).await;
        if let (Some(entry), Some(before)) = (entry, before) {
            entry.enter(before);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn an_operation_is_listed_until_it_is_dropped() {
        let operations = Operations::default();
        let kill = operations.begin(Kind::Kill, "a@7", PATIENCE);
        let release = operations.begin(Kind::Release, "b", PATIENCE);
        kill.at(Stage::Proof);
        let listed: Vec<_> = operations
            .report()
            .into_iter()
            .map(|one| (one.kind, one.subject, one.stage, one.deadline_ms))
            .collect();
        let expected = [
            (Kind::Kill, "a@7".to_owned(), Stage::Proof, 5_000),
            (Kind::Release, "b".to_owned(), Stage::Begun, 5_000),
        ];
        assert_eq!(listed, expected);
        drop(kill);
        drop(release);
        assert_eq!(operations.report(), []);
    }

    #[tokio::test]
    async fn a_stage_lasts_as_long_as_its_future_and_shows_in_the_tree() {
        let operations = Operations::default();
        let (go_on, told) = tokio::sync::oneshot::channel::<()>();
        let work = async {
            Stage::Store.of(told).await.unwrap();
            operations.report()
        };
        let run = operations.begin(Kind::Claim, "a", PATIENCE).run(work);
        let look = async {
            tokio::task::yield_now().await;
            let during = operations.report();
            go_on.send(()).unwrap();
            during
        };
        let (after, during) = tokio::join!(run, look);
        assert_eq!(during[0].stage, Stage::Store);
        let tree = during[0].awaits.as_deref().unwrap();
        assert!(tree.starts_with("claim a ["), "{tree}");
        assert!(tree.contains("\n  store ["), "{tree}");
        assert_eq!(after.unwrap()[0].stage, Stage::Begun);
        assert_eq!(operations.report(), []);
    }

    #[tokio::test]
    async fn one_that_is_told_to_end_drops_its_work() {
        let operations = Operations::default();
        let (held, mut released) = tokio::sync::oneshot::channel::<()>();
        let work = async {
            let _held = held;
            Stage::Runtime.of(std::future::pending::<()>()).await;
        };
        let run = operations.begin(Kind::Start, "a", PATIENCE).run(work);
        let cancel = async {
            tokio::task::yield_now().await;
            operations.look().unwrap()[0].cancel();
        };
        let (ended, ()) = tokio::join!(run, cancel);
        let given_up = ended.unwrap_err();
        assert_eq!(
            (given_up.kind, given_up.stage),
            (Kind::Start, Stage::Runtime)
        );
        assert!(released.try_recv().is_err(), "the work is gone");
        assert_eq!(operations.report(), []);
    }
}
