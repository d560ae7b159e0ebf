//! Many repls given up in as few transactions as the store takes: released, or handed to other hosts.
//!
//! ```text
//! departures ─► split ─► one transaction each ─► committed: all of it is done
//!                          ▲                 └─► rejected: some are answered by what was read, the rest …
//!                          └──────────────────── … goes again
//! ```
//!
//! *After proven death* only, as with everything that gives a repl up. The compares are on the epochs, which no
//! other claim shares, so a transaction whose answer was lost may be sent again: what it did the first time
//! is recognised by the record that it wrote.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{ContainerId, Epoch, HostId, Incarnation, Revision};
use crate::keys;
use crate::mutant::{DEPART_COMPARES_EPOCH, HAND_OFF_COMPARES_HEIR};
use crate::store::{Compare, KeyValue, Operation, Target, Txn};

/// The most compares, and the most operations, of one transaction: etcd's `--max-txn-ops` when nothing is said.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// One repl on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// Its dead container.
    pub id: ContainerId,
    /// Who takes it over; `None` when it is to be free.
    pub heir: Option<Heir>,
}

/// Who takes a repl over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// Which host.
    pub host: HostId,
    /// Its registration, as read.
    pub incarnation: Incarnation,
    /// The owner's record that is written: the same bytes at every try, and drawn by nobody else.
    pub record: String,
}

/// What became of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is free, or somebody else's by now: in any case no longer this host's.
    Released,
    /// It is the heir's at this epoch.
    HandedOff(Epoch),
    /// The heir's registration is gone; the repl is still this host's.
    HeirGone,
}

/// Cuts into batches that each fit into one transaction. The order is kept.
pub fn split(departures: Vec<Departure>) -> Vec<Vec<Departure>> {
    let mut batches: Vec<Vec<Departure>> = vec![];
    for departure in departures {
        match batches.last_mut() {
            Some(batch) if fits(batch, &departure) => batch.push(departure),
            _ => batches.push(vec![departure]),
        }
    }
    batches
}

fn fits(batch: &[Departure], more: &Departure) -> bool {
    let mut heirs = heirs(batch);
    heirs.extend(more.heir.iter().map(|heir| (&heir.host, heir.incarnation)));
    // One compare for each repl and for each heir, one operation for each repl.
    batch.len() + 1 + heirs.len() <= TXN_OPERATIONS_MAX
}

fn heirs(batch: &[Departure]) -> BTreeSet<(&HostId, Incarnation)> {
    let heirs = batch.iter().filter_map(|departure| departure.heir.as_ref());
    heirs.map(|heir| (&heir.host, heir.incarnation)).collect()
}

/// The transaction of one batch: each repl at its epoch and each heir's registration as read; then each `/r/`
/// deleted, or put for its heir.
pub fn transaction(batch: &[Departure]) -> Txn {
    let owned = batch.iter().map(|departure| Compare {
        key: keys::owner(&departure.id.repl),
        target: Target::Modified,
        revision: Revision(departure.id.epoch.0),
    });
    let owned = owned.map(|owned| keys::required(DEPART_COMPARES_EPOCH, owned));
    let registered = heirs(batch).into_iter().map(|(host, incarnation)| Compare {
        key: keys::host(host),
        target: Target::Create,
        revision: Revision(incarnation.0),
    });
    let registered = registered.map(|heir| keys::required(HAND_OFF_COMPARES_HEIR, heir));
    let operation = |departure: &Departure| {
        let key = keys::owner(&departure.id.repl);
        match &departure.heir {
            Some(heir) => Operation::Put {
                key,
                value: heir.record.clone(),
            },
            None => Operation::Delete { key },
        }
    };
    Txn {
        compares: owned.chain(registered).collect(),
        operations: batch.iter().map(operation).collect(),
    }
}

/// Reads why a batch was rejected: those whose fate is known by it, and those that are to go again.
/// `current` is in the order of the transaction's compares.
pub fn judge(
    batch: Vec<Departure>,
    current: &[Option<KeyValue>],
) -> (Vec<(Departure, Left)>, Vec<Departure>) {
    let registered: BTreeMap<HostId, Incarnation> = heirs(&batch)
        .into_iter()
        .zip(current.iter().skip(batch.len()))
        .filter_map(|((host, _), item)| Some((host.clone(), Incarnation(item.as_ref()?.create.0))))
        .collect();
    let mut known = vec![];
    let mut again = vec![];
    for (departure, owner) in batch.into_iter().zip(current) {
        let mine = owner
            .as_ref()
            .filter(|owner| owner.modified.0 == departure.id.epoch.0);
        match (mine, &departure.heir) {
            (Some(_), Some(heir)) if registered.get(&heir.host) != Some(&heir.incarnation) => {
                known.push((departure, Left::HeirGone));
            }
            (Some(_), _) => again.push(departure),
            (None, heir) => {
                // An earlier try was committed after all: the record says so.
                let ours = owner
                    .as_ref()
                    .zip(heir.as_ref())
                    .filter(|(owner, heir)| owner.value == heir.record);
                let left = ours.map_or(Left::Released, |(owner, _)| {
                    Left::HandedOff(Epoch(owner.modified.0))
                });
                known.push((departure, left));
            }
        }
    }
    (known, again)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departure(number: u64, heir: Option<&str>) -> Departure {
        Departure {
            id: ContainerId {
                repl: format!("repl-{number}").parse().expect("a name"),
                epoch: Epoch(number),
            },
            heir: heir.map(|host| Heir {
                host: host.parse().expect("a name"),
                incarnation: Incarnation(5),
                record: format!("for {host}"),
            }),
        }
    }

    fn item(key: String, value: &str, create: u64, modified: u64) -> Option<KeyValue> {
        Some(KeyValue {
            key,
            value: value.to_owned(),
            create: Revision(create),
            modified: Revision(modified),
        })
    }

    #[test]
    fn a_batch_fits_into_a_transaction_and_keeps_its_order() {
        for heirs in [0, 1, 3, 60] {
            let all: Vec<_> = (0..1_000)
                .map(|number| {
                    let heir = (heirs > 0).then(|| format!("host-{}", number % heirs.max(1)));
                    departure(number, heir.as_deref())
                })
                .collect();
            let batches = split(all.clone());
            for batch in &batches {
                let txn = transaction(batch);
                assert!(txn.compares.len() <= TXN_OPERATIONS_MAX);
                assert!(txn.operations.len() <= TXN_OPERATIONS_MAX);
            }
            assert!(batches.len() <= 16, "{heirs} heirs: {}", batches.len());
            assert_eq!(batches.concat(), all);
        }
    }

    #[test]
    fn a_rejection_tells_each_repl_apart() {
        let batch = vec![
            departure(10, Some("alive")),
            departure(11, Some("gone")),
            departure(12, Some("alive")),
            departure(13, Some("alive")),
            departure(14, None),
        ];
        let key = |number: usize| keys::owner(&batch[number].id.repl);
        // Compares: the five repls, then the heirs by name.
        let current = [
            item(key(0), "mine", 1, 10),
            item(key(1), "mine", 1, 11),
            item(key(2), "for alive", 1, 40),
            item(key(3), "a thief's", 1, 41),
            None,
            item("/h/alive".into(), "", 5, 5),
            item("/h/gone".into(), "", 6, 6),
        ];
        assert_eq!(transaction(&batch).compares.len(), current.len());
        let (known, again) = judge(batch.clone(), &current);
        assert_eq!(again, [batch[0].clone()]);
        let known: Vec<Left> = known.into_iter().map(|(_, left)| left).collect();
        assert_eq!(
            known,
            [
                Left::HeirGone,
                Left::HandedOff(Epoch(40)),
                Left::Released,
                Left::Released
            ]
        );
    }
}
