//! Locks with names, which say who holds them, since when, and who waits: for whoever must say what hangs.
//!
//! ```text
//! lock ─► free ──────────────────────────────────► holder noted ─► guard dropped: holder struck
//!      └► held by another: waiter noted ─► waits ──► struck ─────┘
//! ```
//!
//! What is noted about a lock is behind a leaf of its own (see `leaf`), which is never held while anything is waited
//! for. So a watchdog can read it while the lock itself is held for ever. A lock that is free costs some hundred
//! nanoseconds.

mod asynchronous;
pub(crate) mod circle;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, TryLockError, Weak};
use std::time::Instant;

pub use self::asynchronous::{AsyncGuard, AsyncMutex};
use super::leaf::{self, Blind};
use super::operations::{Entry, current, thread_id};

/// Every lock of this process.
static REGISTRY: std::sync::Mutex<BTreeMap<u64, Weak<Record>>> =
    std::sync::Mutex::new(BTreeMap::new());

static NEXT: AtomicU64 = AtomicU64::new(1);

/// How a lock is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// With the whole thread: nothing can call the waiter off.
    Blocks,
    /// As a task, which can be cancelled.
    Yields,
}

/// Who holds a lock or waits for it.
#[derive(Clone)]
pub(crate) struct Party {
    /// The thread that asked for it, as below `/proc/self/task`.
    pub(crate) thread: u32,
    /// The task that asked for it.
    pub(crate) task: Option<tokio::task::Id>,
    /// What for.
    pub(crate) operation: Option<Arc<Entry>>,
    pub(crate) since: Instant,
}

impl Party {
    fn of_caller() -> Self {
        Self {
            thread: thread_id(),
            task: tokio::task::try_id(),
            operation: current(),
            since: Instant::now(),
        }
    }
}

/// What is known of one lock.
pub(crate) struct Record {
    id: u64,
    name: &'static str,
    waiting: Waiting,
    state: std::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    holder: Option<Party>,
    waiters: BTreeMap<u64, Party>,
}

/// A lock and everyone around it, at one moment.
pub(crate) struct Held {
    pub(crate) name: &'static str,
    pub(crate) waiting: Waiting,
    pub(crate) holder: Option<Party>,
    pub(crate) waiters: Vec<Party>,
}

/// Every lock that is held or waited for. Never waits for a leaf.
///
/// # Errors
/// When a leaf was not to be had.
pub(crate) fn held() -> Result<Vec<Held>, Blind> {
    let records: Vec<Arc<Record>> = {
        let registry = leaf::try_take(&REGISTRY)?;
        registry.values().filter_map(Weak::upgrade).collect()
    };
    let held = records.iter().map(|record| {
        let state = leaf::try_take(&record.state)?;
        let is_busy = state.holder.is_some() || !state.waiters.is_empty();
        Ok(is_busy.then(|| Held {
            name: record.name,
            waiting: record.waiting,
            holder: state.holder.clone(),
            waiters: state.waiters.values().cloned().collect(),
        }))
    });
    held.filter_map(Result::transpose).collect()
}

impl Record {
    fn new(name: &'static str, waiting: Waiting) -> Arc<Self> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(Self {
            id,
            name,
            waiting,
            state: std::sync::Mutex::default(),
        });
        leaf::take(&REGISTRY).insert(id, Arc::downgrade(&record));
        record
    }

    fn hold(&self) {
        leaf::take(&self.state).holder = Some(Party::of_caller());
    }

    fn let_go(&self) {
        leaf::take(&self.state).holder = None;
    }

    /// Notes that the caller waits, until what comes back is dropped.
    fn wait(&self) -> Waiter<'_> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        leaf::take(&self.state)
            .waiters
            .insert(number, Party::of_caller());
        Waiter {
            record: self,
            number,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // The last one to look at it may be the watchdog. What it cannot strike is a few bytes that nobody sees.
        if let Ok(mut registry) = leaf::try_take(&REGISTRY) {
            registry.remove(&self.id);
        }
    }
}

struct Waiter<'a> {
    record: &'a Record,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        leaf::take(&self.record.state).waiters.remove(&self.number);
    }
}

/// A lock on a value that is whole after every statement: one whose holder has panicked can be taken all the same.
pub struct Mutex<T> {
    record: Arc<Record>,
    inner: std::sync::Mutex<T>,
}

impl<T> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mutex").field(&self.record.name).finish()
    }
}

/// What is locked, until this is dropped.
pub struct Guard<'a, T> {
    record: &'a Record,
    inner: std::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    /// A lock that people know by this name.
    pub fn new(name: &'static str, value: T) -> Self {
        Self {
            record: Record::new(name, Waiting::Blocks),
            inner: std::sync::Mutex::new(value),
        }
    }

    /// Waits for it with the whole thread.
    pub fn lock(&self) -> Guard<'_, T> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let _waiter = self.record.wait();
                let taken = self.inner.lock();
                taken.unwrap_or_else(PoisonError::into_inner)
            }
        };
        self.record.hold();
        Guard {
            record: &self.record,
            inner,
        }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // Before the lock is free: the next holder must not be struck.
        self.record.let_go();
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<(usize, bool)> {
        let all = held().unwrap();
        let held = all.into_iter().find(|held| held.name == name)?;
        Some((held.waiters.len(), held.holder.is_some()))
    }

    #[test]
    fn a_lock_says_who_holds_it_and_who_waits() {
        let mutex = Mutex::new("one of the tests", 1);
        assert_eq!(of("one of the tests"), None);
        let guard = mutex.lock();
        assert_eq!(of("one of the tests"), Some((0, true)));
        let me = thread_id();
        let second = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| *mutex.lock());
            // Spins as long as the other thread takes to ask: nothing tells when it does.
            while of("one of the tests") != Some((1, true)) {
                std::thread::yield_now();
            }
            let all = held().unwrap();
            let one = all.iter().find(|held| held.name == "one of the tests");
            let one = one.unwrap();
            assert_eq!(one.holder.as_ref().unwrap().thread, me);
            assert_ne!(one.waiters[0].thread, me);
            drop(guard);
            waiter.join().unwrap()
        });
        assert_eq!(second, 1);
        assert_eq!(of("one of the tests"), None);
    }

    #[test]
    fn one_whose_holder_panicked_is_taken_and_one_that_is_gone_is_forgotten() {
        let mutex = Mutex::new("a poisoned one", 1);
        let panicked = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let mut value = mutex.lock();
                *value = 2;
                panic!("as the test wants it");
            });
            holder.join().is_err()
        });
        assert!(panicked);
        assert_eq!(*mutex.lock(), 2);
        let id = mutex.record.id;
        assert!(leaf::take(&REGISTRY).contains_key(&id));
        drop(mutex);
        assert!(!leaf::take(&REGISTRY).contains_key(&id));
    }

    #[tokio::test]
    async fn a_waiter_that_is_called_off_waits_no_more() {
        let mutex = AsyncMutex::new("an asynchronous one", ());
        let guard = mutex.lock().await;
        {
            let waiting = std::pin::pin!(mutex.lock());
            assert!(futures_util::poll!(waiting).is_pending());
            assert_eq!(of("an asynchronous one"), Some((1, true)));
        }
        // `pin!` keeps the future until the end of its block.
        assert_eq!(of("an asynchronous one"), Some((0, true)));
        drop(guard);
        assert_eq!(of("an asynchronous one"), None);
    }
}
