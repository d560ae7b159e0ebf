//! The thread that looks and decides. It waits for nothing but time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use model::timing::WATCHDOG_LOOK_EVERY;

use super::decider::{Decider, Order, Seen, SeenOperation};
use super::hand::{Batch, Deed};
use super::{Restart, Verdict, Watched};
use crate::telemetry::leaf::Blind;
use crate::telemetry::locks;
use crate::telemetry::operations::{Entry, Kind};

/// How long the end of the process waits for the hand to write down why.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

struct Eye {
    watched: Arc<Vec<Watched>>,
    verdict: Arc<Verdict>,
    beats: Arc<AtomicU64>,
    hand: Sender<Batch>,
    restart: Option<Restart>,
    decider: Decider,
}

/// An operation, and whose it is.
struct Found {
    role: usize,
    entry: Arc<Entry>,
}

pub(super) fn start(
    watched: Arc<Vec<Watched>>,
    verdict: Arc<Verdict>,
    beats: Arc<AtomicU64>,
    hand: Sender<Batch>,
    restart: Option<Restart>,
) -> std::io::Result<()> {
    let mut eye = Eye {
        watched,
        verdict,
        beats,
        hand,
        restart,
        decider: Decider::default(),
    };
    let watch = move || {
        while !eye.verdict.is_over.load(Ordering::Relaxed) {
            eye.look();
            #[expect(
                clippy::disallowed_methods,
                reason = "time is all that it may wait for"
            )]
            std::thread::sleep(WATCHDOG_LOOK_EVERY);
        }
    };
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(watch)
        .map(drop)
}

impl Eye {
    fn look(&mut self) {
        let now = self.verdict.began.elapsed();
        let (seen, found) = match self.see() {
            Ok((seen, found)) => (Some(seen), found),
            Err(Blind) => (None, BTreeMap::new()),
        };
        let orders = self.decider.step(seen.as_ref(), now);
        self.count(&found);
        if !orders.is_empty() {
            self.carry_out(&orders, &found);
        }
        self.verdict.looks();
    }

    fn see(&self) -> Result<(Seen, BTreeMap<u64, Found>), Blind> {
        let mut found = BTreeMap::new();
        for (role, watched) in self.watched.iter().enumerate() {
            for entry in watched.operations.look()? {
                found.insert(entry.id(), Found { role, entry });
            }
        }
        let locks = locks::held()?;
        let operations = found.values().map(|one| SeenOperation {
            id: one.entry.id(),
            kind: one.entry.kind(),
            stage: one.entry.stage(),
            age: one.entry.age(),
            patience: one.entry.patience(),
        });
        let seen = Seen {
            operations: operations.collect(),
            locks: locks.iter().map(locks::circle::SeenLock::from).collect(),
            beats: self.beats.load(Ordering::Relaxed),
        };
        Ok((seen, found))
    }

    fn count(&self, found: &BTreeMap<u64, Found>) {
        let stuck = self.decider.stuck();
        for (role, watched) in self.watched.iter().enumerate() {
            let of_role = |id: &u64| found.get(id).filter(|one| one.role == role);
            let kinds = stuck.iter().filter_map(of_role);
            let kinds: Vec<Kind> = kinds.map(|one| one.entry.kind()).collect();
            watched.operations.stuck().set(&kinds);
        }
    }

    fn restart(&self) -> Option<&Restart> {
        let is_spared = self.verdict.is_spared.load(Ordering::Relaxed);
        self.restart.as_ref().filter(|_| !is_spared)
    }

    fn carry_out(&self, orders: &[Order], found: &BTreeMap<u64, Found>) {
        let of = |id| found.get(&id).map(|one| (one.role, one.entry.clone()));
        let deeds = orders.iter().filter_map(|order| match *order {
            Order::Cancel(id) => of(id).map(|(_, entry)| Deed::Cancel(entry)),
            Order::Fence(id) => of(id).map(|(role, entry)| Deed::Fence { role, entry }),
            Order::Tell => Some(Deed::Tell),
            Order::Restart(why) => Some(Deed::GiveUp {
                why,
                is_restarted: self.restart().is_some(),
            }),
        });
        let deeds = deeds.collect();
        let (done, is_done) = mpsc::channel();
        // The hand ends only with the eye.
        let told = self.hand.send(Batch { deeds, done });
        let is_end = |order: &Order| matches!(order, Order::Restart(_));
        if !orders.iter().any(is_end) {
            return;
        }
        self.verdict.is_hopeless.store(true, Ordering::Relaxed);
        if told.is_ok() {
            // It is done, or takes too long.
            let _ = is_done.recv_timeout(LAST_WORDS_MAX);
        }
        if let Some(restart) = self.restart() {
            restart();
        }
    }
}
