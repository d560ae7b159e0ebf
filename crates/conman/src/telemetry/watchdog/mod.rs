//! The watchdog of a process: finds what hangs, says so, and ends it.
//!
//! ```text
//!   the book of operations, the named locks, the process' signs of life
//!        │ read without ever waiting
//!        ▼
//!   eye (a thread) ─► Decider ─► orders ─► hand (a thread): tells to end, fences, writes the dump
//!        │
//!        └─► the verdict: signs of life for the service manager go on only while it is good
//! ```
//!
//! The eye takes no lock that anybody works under, and waits for nothing but time, so that nothing that hangs can hang
//! it. Whatever may wait (a log's reader that does not read, the waking of a task) is the hand's; should the hand hang,
//! the eye goes on and has the process ended without it.

mod decider;
mod eye;
mod hand;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::time::milliseconds;
use model::timing::{WATCHDOG_ABSENT_MAX, WATCHDOG_LOOK_EVERY};
use tokio_util::task::AbortOnDropHandle;

use super::operations::{Kind, Operations, Report};

/// Gives up the one repl that an operation of this kind is on, as the operation names it. Must not wait.
pub type Fence = Box<dyn Fn(Kind, &str) + Send + Sync>;

/// Ends the process from outside. Must not wait.
pub type Restart = Box<dyn Fn() + Send + Sync>;

/// One role of the process.
pub struct Watched {
    /// What its operations are on: a host's name, nothing for a gateway.
    pub host: Option<String>,
    /// What is under way.
    pub operations: Operations,
    /// How a repl is given up; absent where none is held.
    pub fence: Option<Fence>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Watched {
    fn report(&self) -> Report {
        Report::take(self.host.clone(), &self.operations)
    }
}

/// A watchdog that watches, for as long as this lives.
#[derive(Debug)]
pub struct Watchdog {
    verdict: Arc<Verdict>,
    _life: AbortOnDropHandle<()>,
}

/// What the eye says to everybody: atomics alone.
#[derive(Debug)]
pub struct Verdict {
    began: Instant,
    /// When it last looked, in milliseconds after `began`.
    looked_ms: AtomicU64,
    is_hopeless: AtomicBool,
    is_spared: AtomicBool,
    is_over: AtomicBool,
}

impl Verdict {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            looked_ms: AtomicU64::new(0),
            is_hopeless: AtomicBool::new(false),
            is_spared: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    fn looks(&self) {
        let now_ms = milliseconds(self.began.elapsed());
        self.looked_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Whether the watchdog looks, and holds that this process is of use.
    pub fn is_good(&self) -> bool {
        let looked = Duration::from_millis(self.looked_ms.load(Ordering::Relaxed));
        let absent = self.began.elapsed().saturating_sub(looked);
        absent < WATCHDOG_ABSENT_MAX && !self.is_hopeless.load(Ordering::Relaxed)
    }
}

impl Watchdog {
    /// Begins to watch over a process with these roles. `restart` has it ended by whoever will start it again, if there
    /// is somebody. Must be called within tokio.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(watched: Vec<Watched>, restart: Option<Restart>) -> std::io::Result<Self> {
        let watched = Arc::new(watched);
        let verdict = Arc::new(Verdict::begin());
        let beats = Arc::new(AtomicU64::new(0));
        let hand = hand::start(watched.clone())?;
        eye::start(watched, verdict.clone(), beats.clone(), hand, restart)?;
        Ok(Self {
            verdict,
            _life: AbortOnDropHandle::new(tokio::spawn(live(beats))),
        })
    }

    /// What it says, for whoever gives signs of life.
    pub fn verdict(&self) -> Arc<Verdict> {
        self.verdict.clone()
    }

    /// The process ends in order: it is not to be started again before it has.
    pub fn spare(&self) {
        self.verdict.is_spared.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.verdict.is_over.store(true, Ordering::Relaxed);
    }
}

/// The process' signs of life: whether its tasks still run.
async fn live(beats: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval(WATCHDOG_LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        beats.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
