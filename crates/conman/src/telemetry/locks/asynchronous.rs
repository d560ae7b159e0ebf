//! The same for a lock that is held across awaits.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use await_tree::InstrumentAwait;

use super::{Record, Waiting};

/// A lock that may be held while something is awaited.
pub struct AsyncMutex<T> {
    record: Arc<Record>,
    inner: tokio::sync::Mutex<T>,
}

impl<T> std::fmt::Debug for AsyncMutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.record.name;
        f.debug_tuple("AsyncMutex").field(name).finish()
    }
}

/// What is locked, until this is dropped.
pub struct AsyncGuard<'a, T> {
    record: &'a Record,
    inner: tokio::sync::MutexGuard<'a, T>,
}

impl<T> AsyncMutex<T> {
    /// A lock that people know by this name.
    pub fn new(name: &'static str, value: T) -> Self {
        Self {
            record: Record::new(name, Waiting::Yields),
            inner: tokio::sync::Mutex::new(value),
        }
    }

    /// Waits for it.
    pub async fn lock(&self) -> AsyncGuard<'_, T> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(_) => {
                let _waiter = self.record.wait();
                let name = format!("lock of the {}", self.record.name);
                self.inner.lock().instrument_await(name).await
            }
        };
        self.record.hold();
        AsyncGuard {
            record: &self.record,
            inner,
        }
    }
}

impl<T> Drop for AsyncGuard<'_, T> {
    fn drop(&mut self) {
        // Before the lock is free: the next holder must not be struck.
        self.record.let_go();
    }
}

impl<T> Deref for AsyncGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for AsyncGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
