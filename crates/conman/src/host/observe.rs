//! Watching the other hosts' beats, and freeing what the silent ones held.

use std::collections::HashMap;
use std::sync::Arc;

use model::id::{HostId, Incarnation, Revision};
use model::keys;
use model::observer::{Observer, Seen};
use model::store::{StoreError, TxnOutcome};
use model::timing::{OBSERVE_EVERY, Timing};
use tokio::time::MissedTickBehavior;

use super::{Handle, HostMetrics};
use crate::clock;
use crate::store::Store;

pub(super) async fn run(
    me: HostId,
    timing: Timing,
    store: Arc<dyn Store>,
    handle: Handle,
    metrics: Arc<HostMetrics>,
) {
    let mut observer = Observer::new(me, timing);
    let mut ticks = tokio::time::interval(OBSERVE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A host that may have been robbed itself has no business robbing others: its reads may be as stale
        // as its lease.
        if handle.incarnation.borrow().is_none() {
            continue;
        }
        let seen = match read(&*store).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(%error, "read the beats");
                continue;
            }
        };
        for theft in observer.step(&seen, clock::raw()) {
            let host = theft.seen.host;
            let txn = keys::steal(&host, theft.seen.incarnation, theft.seen.beat);
            match store.txn(txn).await {
                Ok(TxnOutcome::Committed(_)) => {
                    metrics.thefts.inc();
                    tracing::warn!(
                        %host,
                        silent_ms = theft.silent_for.as_millis(),
                        "a silent host's registration was ended: its repls are free",
                    );
                }
                Ok(TxnOutcome::Rejected { .. }) => tracing::debug!(%host, "it beats, or is gone"),
                Err(error) => tracing::info!(%host, %error, "end a silent host's registration"),
            }
        }
    }
}

async fn read(store: &dyn Store) -> Result<Vec<Seen>, StoreError> {
    let (hosts, beats) = tokio::try_join!(store.range(keys::HOSTS), store.range(keys::BEATS))?;
    let beats: HashMap<&str, Revision> = beats
        .items
        .iter()
        .map(|beat| (beat.key.as_str(), beat.modified))
        .collect();
    Ok(hosts
        .items
        .iter()
        .filter_map(|item| {
            let host: HostId = item.key.strip_prefix(keys::HOSTS)?.parse().ok()?;
            let beat = beats.get(keys::beat(&host).as_str()).copied();
            Some(Seen {
                host,
                incarnation: Incarnation(item.create.0),
                beat: beat.unwrap_or(Revision::ABSENT),
            })
        })
        .collect())
}
