//! Starts take turns: who comes first is done first.
//!
//! A start is work for a processor, not waiting. Begun all at once, a hundred of them are all done at the end; one
//! after another, half of them are done in half of the time. And the host that hands its repls over
//! has put those with users first.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// How long one waits while nobody before it is done. They may hang on a dead disk, for ever: that must not spread. While
/// the line moves it is worth waiting: whoever has lost patience takes the processors from those before it, and a hundred
/// that lose it together are all done at the end.
const STANDSTILL_MAX: Duration = Duration::from_millis(500);

/// The line.
#[derive(Debug)]
pub(super) struct Turns {
    line: Semaphore,
    standstill_max: Duration,
    began: Instant,
    /// When somebody was done last, in microseconds from `began`.
    moved_us: AtomicU64,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    _place: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Before its place is free.
        self.turns.moves();
    }
}

impl Default for Turns {
    /// One for each processor, and one that waits for the keeper.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::of(processors + 1, STANDSTILL_MAX)
    }
}

impl Turns {
    fn of(at_once: usize, standstill_max: Duration) -> Self {
        Self {
            line: Semaphore::new(at_once),
            standstill_max,
            began: Instant::now(),
            moved_us: AtomicU64::new(0),
        }
    }

    fn moves(&self) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.moved_us.fetch_max(now, Ordering::Relaxed);
    }

    fn moved(&self) -> Instant {
        self.began + Duration::from_micros(self.moved_us.load(Ordering::Relaxed))
    }

    /// Waits for a turn. `None` when the line stood still for too long: then whoever asked goes on without.
    pub(super) async fn take(&self) -> Option<Turn<'_>> {
        let came = Instant::now();
        let mut place = pin!(self.line.acquire());
        loop {
            let patience_ends = self.moved().max(came) + self.standstill_max;
            match timeout_at(patience_ends, &mut place).await {
                // It is never closed.
                Ok(place) => {
                    return place.ok().map(|place| Turn {
                        turns: self,
                        _place: place,
                    });
                }
                Err(_) if self.moved() + self.standstill_max > patience_ends => {}
                Err(_) => return None,
            }
        }
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
        let turns = Arc::new(Turns::of(AT_ONCE, STANDSTILL_MAX));
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
        let turns = Turns::of(AT_ONCE, STANDSTILL_MAX);
        let mut held = vec![];
        for _ in 0..AT_ONCE {
            held.push(turns.take().await.unwrap());
        }
        let began = Instant::now();
        assert!(turns.take().await.is_none());
        assert!(began.elapsed() >= STANDSTILL_MAX);
    }

    #[tokio::test]
    async fn one_waits_for_as_long_as_the_line_moves() {
        const TURN: Duration = Duration::from_millis(600);
        let standstill_max = TURN * 3;
        let turns = Arc::new(Turns::of(1, standstill_max));
        let began = Instant::now();
        let mut waiters = vec![];
        for _ in 0..5 {
            let turns = turns.clone();
            waiters.push(tokio::spawn(async move {
                let turn = turns.take().await;
                tokio::time::sleep(TURN).await;
                turn.is_some()
            }));
        }
        for waiter in waiters {
            assert!(waiter.await.unwrap(), "it lost patience");
        }
        assert!(began.elapsed() > standstill_max, "nobody waited for longer");
    }
}
