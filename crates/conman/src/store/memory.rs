//! The store in memory: the reference for the contract, and the one that misbehaves on request.
//!
//! ```text
//! Memory ──another()──► Memory      handles on one state; each misbehaves by itself
//!    └── misbehave(Misbehaviour)    how this handle, and nobody else's, goes wrong from now on
//! ```
//!
//! Every way of going wrong is one that a real store shows: an unreachable member, a read from a member
//! that lags, an acknowledgement lost after the commit, a commit that happens after its caller has given
//! up, a watch that is silent, drops changes, or falls behind a compaction. What goes wrong and when is
//! said by the test, never drawn: a failure repeats.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use model::id::Revision;
use tokio::sync::watch;

use super::{Change, KeyValue, Operation, Range, Store, StoreError, Target, Txn, TxnOutcome};

/// How the calls of a handle are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Calls {
    /// As they should be.
    #[default]
    Answered,
    /// Each with [`StoreError::Unavailable`], nothing written.
    Unavailable,
    /// Never, until the switch is put back: nothing written before that.
    Hanging,
}

/// Which state a handle's reads show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// The newest.
    #[default]
    Fresh,
    /// The one at the moment of the switch, for as long as it stays.
    Frozen,
}

/// What becomes of a handle's transactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Txns {
    /// Carried out and acknowledged.
    #[default]
    Acknowledged,
    /// Carried out, and answered with [`StoreError::Ambiguous`].
    AckLost,
    /// Not carried out, and answered with [`StoreError::Ambiguous`].
    RequestLost,
    /// Answered with [`StoreError::Ambiguous`], and carried out at [`Memory::commit_late`].
    Late,
}

/// What a handle's watches deliver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Watches {
    /// Everything, soon.
    #[default]
    Delivered,
    /// Nothing while the switch stays; everything afterwards.
    Silent,
    /// What is committed while the switch stays is never delivered.
    Dropped,
}

/// How one handle goes wrong. The default does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Misbehaviour {
    /// All of its calls.
    pub calls: Calls,
    /// Its reads.
    pub reads: Reads,
    /// Its transactions.
    pub txns: Txns,
    /// Its watches.
    pub watches: Watches,
}

#[derive(Debug, Clone, Default)]
struct Snapshot {
    revision: Revision,
    items: BTreeMap<String, KeyValue>,
}

#[derive(Debug, Default)]
struct State {
    now: Snapshot,
    /// One entry per writing transaction.
    log: VecDeque<(Revision, Vec<Change>)>,
    /// A watch may start from here or later.
    oldest: Revision,
    /// The transactions that are still on their way.
    late: Vec<Txn>,
}

#[derive(Debug, Default)]
struct Handle {
    misbehaviour: Misbehaviour,
    frozen: Option<Snapshot>,
    /// Closed ranges of revisions that this handle's watches never deliver; the end of the last one
    /// is `None` while the switch stays.
    dropped: Vec<(Revision, Option<Revision>)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signals that the state, or some handle's switch, has changed.
    changed: watch::Sender<()>,
}

/// A handle on a store in memory. `clone` shares the switch, [`Memory::another`] has its own.
#[derive(Debug, Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    handle: Arc<Mutex<Handle>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// An empty store at revision zero.
    pub fn new() -> Self {
        let state = State {
            oldest: Revision(1),
            ..State::default()
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: watch::Sender::new(()),
            }),
            handle: Arc::default(),
        }
    }

    /// Another handle on the same state, which behaves.
    pub fn another(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            handle: Arc::default(),
        }
    }

    /// Goes wrong like this from now on; the default puts everything right again.
    pub fn misbehave(&self, misbehaviour: Misbehaviour) {
        {
            let state = lock(&self.shared.state);
            let mut handle = lock(&self.handle);
            let before = handle.misbehaviour;
            match (before.reads, misbehaviour.reads) {
                (Reads::Fresh, Reads::Frozen) => handle.frozen = Some(state.now.clone()),
                (Reads::Frozen, Reads::Fresh) => handle.frozen = None,
                _ => {}
            }
            let revision = state.now.revision;
            match (
                before.watches == Watches::Dropped,
                misbehaviour.watches == Watches::Dropped,
            ) {
                (false, true) => handle.dropped.push((Revision(revision.0 + 1), None)),
                (true, false) => {
                    if let Some(last) = handle.dropped.last_mut() {
                        last.1 = Some(revision);
                    }
                }
                _ => {}
            }
            handle.misbehaviour = misbehaviour;
        }
        self.shared.changed.send_replace(());
    }

    /// Carries out, in the order of their sending, the transactions that [`Txns::Late`] has kept back.
    /// Their compares are checked now; nobody hears of the outcome but the caller of this.
    pub fn commit_late(&self) -> Vec<TxnOutcome> {
        let outcomes = {
            let mut state = lock(&self.shared.state);
            let late = std::mem::take(&mut state.late);
            late.iter().map(|txn| state.apply(txn)).collect()
        };
        self.shared.changed.send_replace(());
        outcomes
    }

    /// Forgets the history before `oldest`; watches that have not delivered it end with
    /// [`StoreError::Compacted`].
    pub fn compact(&self, oldest: Revision) {
        {
            let mut state = lock(&self.shared.state);
            let oldest = oldest.min(Revision(state.now.revision.0 + 1));
            state.oldest = state.oldest.max(oldest);
            state.log.retain(|(revision, _)| *revision >= oldest);
        }
        self.shared.changed.send_replace(());
    }

    /// Returns when this handle's calls are answered at all, with how.
    async fn admitted(&self) -> Result<Misbehaviour, StoreError> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let misbehaviour = lock(&self.handle).misbehaviour;
            match misbehaviour.calls {
                Calls::Answered => return Ok(misbehaviour),
                Calls::Unavailable => {
                    return Err(StoreError::Unavailable("told to be unavailable".into()));
                }
                Calls::Hanging => {
                    // The sender lives in `self`: this cannot fail.
                    let _ = changed.changed().await;
                }
            }
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        if let Some(frozen) = &lock(&self.handle).frozen {
            return look(frozen);
        }
        look(&lock(&self.shared.state).now)
    }

    /// What a watch at `from` can deliver now: the changes and where it goes on.
    fn changes_since(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<(Vec<Change>, Revision), StoreError> {
        let state = lock(&self.shared.state);
        let handle = lock(&self.handle);
        match handle.misbehaviour.calls {
            Calls::Answered => {}
            Calls::Hanging => return Ok((Vec::new(), from)),
            Calls::Unavailable => {
                return Err(StoreError::Unavailable("told to be unavailable".into()));
            }
        }
        if handle.misbehaviour.watches == Watches::Silent {
            return Ok((Vec::new(), from));
        }
        if from < state.oldest && state.now.revision >= from {
            return Err(StoreError::Compacted {
                oldest: state.oldest,
            });
        }
        let is_dropped = |revision: Revision| {
            let inside = |&(first, last): &(Revision, Option<Revision>)| {
                first <= revision && last.is_none_or(|last| revision <= last)
            };
            handle.dropped.iter().any(inside)
        };
        let changes = state
            .log
            .iter()
            .filter(|(revision, _)| *revision >= from && !is_dropped(*revision))
            .flat_map(|(_, changes)| changes)
            .filter(|change| change.key().starts_with(prefix))
            .cloned()
            .collect();
        Ok((changes, from.max(Revision(state.now.revision.0 + 1))))
    }
}

impl State {
    fn apply(&mut self, txn: &Txn) -> TxnOutcome {
        let current: Vec<_> = txn
            .compares
            .iter()
            .map(|compare| self.now.items.get(&compare.key).cloned())
            .collect();
        let holds = txn.compares.iter().zip(&current).all(|(compare, item)| {
            let revision = item
                .as_ref()
                .map_or(Revision::ABSENT, |item| match compare.target {
                    Target::Create => item.create,
                    Target::Modified => item.modified,
                });
            revision == compare.revision
        });
        if !holds {
            return TxnOutcome::Rejected { current };
        }
        let revision = Revision(self.now.revision.0 + 1);
        let mut changes = Vec::new();
        for operation in &txn.operations {
            match operation {
                Operation::Put { key, value } => {
                    let create = self
                        .now
                        .items
                        .get(key)
                        .map_or(revision, |before| before.create);
                    let item = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create,
                        modified: revision,
                    };
                    self.now.items.insert(key.clone(), item.clone());
                    changes.push(Change::Put(item));
                }
                Operation::Delete { key } => {
                    if self.now.items.remove(key).is_some() {
                        changes.push(Change::Delete {
                            key: key.clone(),
                            revision,
                        });
                    }
                }
            }
        }
        if changes.is_empty() {
            return TxnOutcome::Committed(self.now.revision);
        }
        self.now.revision = revision;
        self.log.push_back((revision, changes));
        TxnOutcome::Committed(revision)
    }
}

impl Store for Memory {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.admitted().await?;
            Ok(self.read(|snapshot| Range {
                revision: snapshot.revision,
                items: snapshot
                    .items
                    .range(prefix.clone()..)
                    .take_while(|(key, _)| key.starts_with(&prefix))
                    .map(|(_, item)| item.clone())
                    .collect(),
            }))
        })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.admitted().await?;
            Ok(self.read(|snapshot| snapshot.items.get(&key).cloned()))
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(async move {
            super::check_txn(&txn)?;
            let misbehaviour = self.admitted().await?;
            let lost = |what: &str| Err(StoreError::Ambiguous(format!("told to lose {what}")));
            let answer = {
                let mut state = lock(&self.shared.state);
                match misbehaviour.txns {
                    Txns::Acknowledged => Ok(state.apply(&txn)),
                    Txns::AckLost => {
                        state.apply(&txn);
                        lost("the acknowledgement")
                    }
                    Txns::RequestLost => lost("the request"),
                    Txns::Late => {
                        state.late.push(txn);
                        lost("time")
                    }
                }
            };
            self.shared.changed.send_replace(());
            answer
        })
    }

    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        let memory = self.clone();
        let prefix = prefix.to_owned();
        let changed = self.shared.changed.subscribe();
        let from = Some(from.max(Revision(1)));
        stream::unfold((from, changed), move |(from, mut changed)| {
            let memory = memory.clone();
            let prefix = prefix.clone();
            async move {
                let mut from = from?;
                loop {
                    changed.borrow_and_update();
                    match memory.changes_since(&prefix, from) {
                        Err(error) => return Some((Err(error), (None, changed))),
                        Ok((changes, next)) if !changes.is_empty() => {
                            return Some((Ok(changes), (Some(next), changed)));
                        }
                        Ok((_, next)) => from = next,
                    }
                    // The sender lives in `memory`: this cannot fail.
                    let _ = changed.changed().await;
                }
            }
        })
        .boxed()
    }
}
