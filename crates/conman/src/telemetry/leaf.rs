//! The locks under what is told of this process: leaves, under which nothing is ever waited for.
//!
//! Two kinds of readers come here. Whoever works takes a leaf as any lock. The watchdog only ever tries: should a leaf
//! never come free after all, then the watchdog does not see, says so, and acts on that; it does not hang.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a look tries to get at a leaf: its holder may have lost its processor to others for a few turns.
const LOOK_PATIENCE: Duration = Duration::from_millis(100);

/// A leaf was not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blind;

/// Takes a leaf, for a moment. What is under it is whole after every statement.
pub(crate) fn take<T>(leaf: &Mutex<T>) -> MutexGuard<'_, T> {
    leaf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a leaf if it can be had soon.
pub(crate) fn try_take<T>(leaf: &Mutex<T>) -> Result<MutexGuard<'_, T>, Blind> {
    let began = Instant::now();
    loop {
        match leaf.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if began.elapsed() >= LOOK_PATIENCE => return Err(Blind),
            // To be woken it would have to wait.
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_held_for_ever_is_not_waited_for() {
        let leaf = Mutex::new(1);
        let held = take(&leaf);
        assert_eq!(try_take(&leaf).map(|guard| *guard), Err(Blind));
        drop(held);
        assert_eq!(try_take(&leaf).map(|guard| *guard), Ok(1));
    }
}
