//! Whether the store can be reached: a state with a metric, said once when it begins and once when it ends.
//!
//! ```text
//! reachable ──every call has failed for a second──► unreachable: one line, the gauge at 1
//!     ▲                                                  │
//!     └──────────a call was answered: one line───────────┘
//! ```
//!
//! A wrapper around any store. The roles see each failure and act on it; they need not log it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::id::Revision;
use model::time::milliseconds;
use model::timing::STORE_UNREACHABLE_AFTER;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::{Change, KeyValue, Range, Store, StoreError, Txn, TxnOutcome};
use crate::telemetry::locks::Mutex;

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Unreachable,
    Back { after: Duration },
}

/// The state itself. Time is an argument.
#[derive(Debug, Default)]
struct Reach {
    failing_since: Option<Instant>,
    is_unreachable: bool,
    answered: Option<Instant>,
}

impl Reach {
    fn answered(&mut self, now: Instant) -> Option<Said> {
        self.answered = Some(now);
        let since = self.failing_since.take()?;
        std::mem::take(&mut self.is_unreachable).then(|| Said::Back {
            after: now.saturating_duration_since(since),
        })
    }

    fn failed(&mut self, asked: Instant, now: Instant) -> Option<Said> {
        // A call that began before another was answered says nothing about now.
        if self.answered.is_some_and(|answered| answered > asked) {
            return None;
        }
        let since = *self.failing_since.get_or_insert(asked);
        let is_long = now.saturating_duration_since(since) >= STORE_UNREACHABLE_AFTER;
        let begins = is_long && !self.is_unreachable;
        self.is_unreachable |= is_long;
        begins.then_some(Said::Unreachable)
    }

    /// Whether nothing has been heard for so long that somebody must ask.
    fn is_quiet(&self, now: Instant) -> bool {
        self.answered
            .is_none_or(|answered| now.duration_since(answered) >= STORE_UNREACHABLE_AFTER)
    }
}

/// A store that is watched over. `clone` shares the state.
#[derive(Clone)]
pub struct Reached {
    inner: Arc<dyn Store>,
    reach: Arc<Mutex<Reach>>,
    unreachable: Gauge<i64>,
    outages: Counter,
}

impl Reached {
    /// Watches over a store, which counts as reachable until it is not.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            reach: Arc::new(Mutex::new("reach of the store", Reach::default())),
            unreachable: Gauge::default(),
            outages: Counter::default(),
        }
    }

    /// Makes its metrics known to a registry; of each role's, where a process has several.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "conman_store_unreachable",
            "Whether every call of the store has failed for a second or longer",
            self.unreachable.clone(),
        );
        registry.register(
            "conman_store_outages",
            "How often the store has become unreachable",
            self.outages.clone(),
        );
    }

    /// Asks for as long as nobody else does, so that a process without work knows too. Does not return.
    pub async fn watch_over(&self) {
        let mut ticks = tokio::time::interval(STORE_UNREACHABLE_AFTER);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let is_quiet = self.reach.lock().is_quiet(Instant::now());
            if is_quiet {
                // A key that nobody has. What becomes of it is seen below, as with every call.
                let _ = self.get("/").await;
            }
        }
    }

    fn saw<T>(&self, asked: Instant, outcome: &Result<T, StoreError>) {
        let now = Instant::now();
        let (said, why) = match outcome {
            Err(StoreError::Unavailable(why) | StoreError::Ambiguous(why)) => {
                (self.reach.lock().failed(asked, now), why.as_str())
            }
            // A refusal is an answer.
            Ok(_) | Err(StoreError::Compacted { .. } | StoreError::Fatal(_)) => {
                (self.reach.lock().answered(now), "")
            }
        };
        match said {
            None => {}
            Some(Said::Unreachable) => {
                self.unreachable.set(1);
                self.outages.inc();
                tracing::warn!(why, "the store cannot be reached");
            }
            Some(Said::Back { after }) => {
                self.unreachable.set(0);
                let after_ms = milliseconds(after);
                tracing::warn!(after_ms, "the store can be reached again");
            }
        }
    }
}

/// A caller that gives up has had no answer: that counts as a failure too.
struct Asked<'a> {
    store: &'a Reached,
    at: Instant,
    is_answered: bool,
}

impl<'a> Asked<'a> {
    fn now(store: &'a Reached) -> Self {
        Self {
            store,
            at: Instant::now(),
            is_answered: false,
        }
    }

    fn answered<T>(mut self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        self.is_answered = true;
        self.store.saw(self.at, &outcome);
        outcome
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let outcome: Result<(), _> = Err(StoreError::Unavailable("no answer in time".into()));
            self.store.saw(self.at, &outcome);
        }
    }
}

impl Store for Reached {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>> {
        let call = self.inner.range(prefix);
        Box::pin(async move {
            let asked = Asked::now(self);
            asked.answered(call.await)
        })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let call = self.inner.get(key);
        Box::pin(async move {
            let asked = Asked::now(self);
            asked.answered(call.await)
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        let fault = crate::faults::in_txn(&txn);
        let call = self.inner.txn(txn);
        Box::pin(async move {
            let asked = Asked::now(self);
            fault.await;
            asked.answered(call.await)
        })
    }

    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        self.inner.watch(prefix, from)
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;

    use super::super::memory::{Calls, Memory, Misbehaviour};
    use super::*;

    const SHORT: Duration = Duration::from_millis(400);

    #[test]
    fn it_is_said_once_when_it_begins_and_once_when_it_ends() {
        let mut reach = Reach::default();
        let start = Instant::now();
        let fail = |reach: &mut Reach, at: u32| {
            let now = start + SHORT * at;
            reach.failed(now, now)
        };
        assert_eq!(reach.answered(start), None);
        let said: Vec<_> = (0..10).map(|at| fail(&mut reach, at)).collect();
        let begun = said
            .iter()
            .position(|said| *said == Some(Said::Unreachable));
        // 0, 0.4, 0.8, and at 1.2 s it is a second.
        assert_eq!(begun, Some(3));
        assert_eq!(said.iter().flatten().count(), 1);
        let after = SHORT * 10;
        let back = reach.answered(start + SHORT * 10);
        assert_eq!(back, Some(Said::Back { after }));
        assert_eq!(reach.answered(start + SHORT * 11), None);
    }

    #[test]
    fn a_failure_among_answers_is_no_outage() {
        let mut reach = Reach::default();
        let start = Instant::now();
        for at in 0..10 {
            let now = start + SHORT * at;
            assert_eq!(reach.failed(now, now), None);
            assert_eq!(reach.answered(now), None);
            // One that was asked long ago and fails only now.
            assert_eq!(reach.failed(start, now + SHORT / 2), None);
        }
    }

    /// Until the gauge says so: it tells nobody when it does.
    async fn becomes(store: &Reached, unreachable: i64) {
        let waiting = async {
            while store.unreachable.get() != unreachable {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let became = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(became.is_ok(), "never {unreachable}");
    }

    #[tokio::test]
    async fn a_process_without_work_knows_too() {
        let memory = Memory::new();
        let store = Reached::new(Arc::new(memory.clone()));
        let misbehave = |calls| {
            memory.misbehave(Misbehaviour {
                calls,
                ..Misbehaviour::default()
            });
        };
        let asking = store.clone();
        let _asking =
            AbortOnDropHandle::new(tokio::spawn(async move { asking.watch_over().await }));
        misbehave(Calls::Unavailable);
        becomes(&store, 1).await;
        misbehave(Calls::Answered);
        becomes(&store, 0).await;
        assert_eq!(store.outages.get(), 1);
    }

    #[tokio::test]
    async fn who_gives_up_has_seen_it_fail() {
        let memory = Memory::new();
        let store = Reached::new(Arc::new(memory.clone()));
        memory.misbehave(Misbehaviour {
            calls: Calls::Hanging,
            ..Misbehaviour::default()
        });
        for _ in 0..3 {
            let hung = tokio::time::timeout(SHORT, store.range("")).await;
            assert!(hung.is_err());
        }
        assert_eq!(store.unreachable.get(), 1);
    }
}
