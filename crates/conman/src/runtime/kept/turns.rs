//! Starts take turns: who comes first is done first.
//!
//! A start is work for a processor, not waiting. Begun all at once, a hundred of them are all done at the end; one
//! after another, half of them are done in half of the time. And the host that hands its repls over
//! has put those with users first.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How long one waits for its turn. Those before it may hang on a dead disk, for ever: that must not spread.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// The line.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    /// One for each processor, and one that waits for the keeper.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Semaphore::new(processors + 1))
    }
}

impl Turns {
    /// Waits for a turn, which lasts until what is returned is dropped. `None` when it took too long: then whoever
    /// asked goes on without.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        let turn = tokio::time::timeout(WAIT_MAX, self.0.acquire()).await;
        // It is never closed.
        turn.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;

    const AT_ONCE: usize = 3;

    #[tokio::test]
    async fn who_comes_first_is_first() {
        let turns = Arc::new(Turns(Semaphore::new(AT_ONCE)));
        let mut held = vec![];
        for _ in 0..AT_ONCE {
            held.push(turns.take().await.unwrap());
        }
        let (done, mut order) = mpsc::unbounded_channel();
        for number in 0..5 {
            let (turns, done) = (turns.clone(), done.clone());
            tokio::spawn(async move {
                let turn = turns.take().await;
                done.send((number, turn.is_some())).unwrap();
            });
            // Each is in line before the next one comes.
            tokio::task::yield_now().await;
        }
        assert!(order.try_recv().is_err(), "nobody waited");
        drop(held.pop());
        for expected in 0..5 {
            assert_eq!(order.recv().await, Some((expected, true)));
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_behind_those_that_hang() {
        let turns = Turns(Semaphore::new(AT_ONCE));
        let mut held = vec![];
        for _ in 0..AT_ONCE {
            held.push(turns.take().await.unwrap());
        }
        let began = tokio::time::Instant::now();
        assert!(turns.take().await.is_none());
        assert!(began.elapsed() >= WAIT_MAX);
    }
}
