//! The transactions of the protocol, as one host sends them.
//!
//! What is read may be stale: a read only chooses which compare-and-swap to try. Whether a repl is ours is
//! answered by a *committed* transaction alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use model::api::{Refusal, RefusalCode};
use model::departure::TXN_OPERATIONS_MAX;
use model::host::Ownership;
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId, Revision};
use model::keys::{self, HostRecord, HostState, Owner, OwnerRecord};
use model::mutant::{CLAIMS_SINCE_JOIN, removed};
use model::spec::Spec;
use model::store::{KeyValue, StoreError, Txn, TxnOutcome};
use model::time::BootTime;
use model::wire::node::OwnerHint;

use super::Config;
use super::effects::store_refusal;
use crate::clock;
use crate::store::Store;

/// How often a claim is tried anew after somebody else moved in between.
const CLAIM_TRIES_MAX: usize = 8;

/// This host, as it speaks to the store.
pub(super) struct Me {
    host: HostId,
    beat: AtomicU64,
    process: AtomicU32,
    /// The store's revision at the last join.
    joined: AtomicU64,
}

impl Me {
    pub(super) fn new(host: HostId) -> Self {
        Self {
            host,
            beat: AtomicU64::new(0),
            process: AtomicU32::new(0),
            joined: AtomicU64::new(0),
        }
    }

    /// A beat's value is for people: its mod revision is what observers compare.
    pub(super) fn next_beat(&self) -> String {
        self.beat.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Registers, or resumes the registration that is there. The time is that of the sending.
    pub(super) async fn join(
        &self,
        store: &dyn Store,
        config: &Config,
    ) -> Result<(Incarnation, BootTime), StoreError> {
        let registered = store.get(&keys::host(&self.host)).await?;
        let before = registered
            .as_ref()
            .and_then(|item| decode::<HostRecord>(&item.value));
        self.process.store(
            before.map_or(1, |record| record.process + 1),
            Ordering::Relaxed,
        );
        let record = self.record(config, HostState::Active);
        let sent = clock::boottime();
        let (txn, mine) = match &registered {
            Some(item) => {
                let mine = Incarnation(item.create.0);
                let txn = keys::resume(&self.host, mine, record, self.next_beat());
                (txn, Some(mine))
            }
            None => (keys::register(&self.host, record, self.next_beat()), None),
        };
        match store.txn(txn).await? {
            TxnOutcome::Committed(revision) => {
                self.joined.store(revision.0, Ordering::Relaxed);
                Ok((mine.unwrap_or(Incarnation(revision.0)), sent))
            }
            TxnOutcome::Rejected { .. } => Err(StoreError::Unavailable(
                "the registration changed while it was being resumed".to_owned(),
            )),
        }
    }

    pub(super) fn update(&self, config: &Config, state: HostState, mine: Incarnation) -> Txn {
        keys::update_host(&self.host, mine, self.record(config, state))
    }

    fn record(&self, config: &Config, state: HostState) -> String {
        encode(&HostRecord {
            address: config.address.to_string(),
            boot_id: config.boot_id.clone(),
            state,
            capacity: config.capacity,
            process: self.process.load(Ordering::Relaxed),
        })
    }

    /// All claims of this registration, as of its join or later.
    pub(super) async fn claims(
        &self,
        store: &dyn Store,
        mine: Incarnation,
    ) -> Result<Vec<ContainerId>, StoreError> {
        let range = store.range(keys::OWNERS).await?;
        // A store may serve the past after a pause. Whatever another process of this host has started was claimed before
        // this one joined.
        let joined = Revision(self.joined.load(Ordering::Relaxed));
        if range.revision < joined && !removed(CLAIMS_SINCE_JOIN) {
            return Err(StoreError::Unavailable(format!(
                "the claims are those of revision {}, and this host joined at {joined}",
                range.revision
            )));
        }
        Ok(range
            .items
            .iter()
            .filter_map(|item| keys::read_owner(item, decode).ok())
            .filter(|owner| self.is_mine(owner, mine))
            .map(|owner| ContainerId {
                repl: owner.repl,
                epoch: owner.epoch,
            })
            .collect())
    }

    fn is_mine(&self, owner: &Owner, mine: Incarnation) -> bool {
        owner.record.host == self.host && owner.record.incarnation == mine
    }

    /// Who owns the repl; confirmed by a committed compare if it is this host.
    pub(super) async fn ask(
        &self,
        store: &dyn Store,
        repl: &ReplId,
        mine: Incarnation,
    ) -> Ownership {
        match self.try_ask(store, repl, mine).await {
            Ok(ownership) => ownership,
            Err(error) => Ownership::Failed(store_refusal(&error)),
        }
    }

    async fn try_ask(
        &self,
        store: &dyn Store,
        repl: &ReplId,
        mine: Incarnation,
    ) -> Result<Ownership, StoreError> {
        let Some(owner) = read_owner(store, repl).await? else {
            return Ok(Ownership::NotMine(None));
        };
        if self.is_mine(&owner, mine) {
            return self.confirm(store, &owner, mine).await;
        }
        let create = read_create(store, &keys::host(&owner.record.host)).await?;
        let is_free = keys::freedom(Some(&owner), create).is_some();
        Ok(Ownership::NotMine(Some(OwnerHint {
            host: (!is_free).then_some(owner.record.host),
            epoch: owner.epoch,
        })))
    }

    async fn confirm(
        &self,
        store: &dyn Store,
        owner: &Owner,
        mine: Incarnation,
    ) -> Result<Ownership, StoreError> {
        let txn = keys::confirm(
            &[(owner.repl.clone(), owner.epoch)],
            &self.host,
            mine,
            self.next_beat(),
        );
        Ok(match store.txn(txn).await? {
            TxnOutcome::Committed(_) => Ownership::Mine { epoch: owner.epoch },
            TxnOutcome::Rejected { .. } => Ownership::NotMine(None),
        })
    }

    /// Claims the repl if it is free.
    pub(super) async fn claim(
        &self,
        store: &dyn Store,
        repl: &ReplId,
        mine: Incarnation,
    ) -> Ownership {
        for _ in 0..CLAIM_TRIES_MAX {
            match self.try_claim(store, repl, mine).await {
                Ok(Some(ownership)) => return ownership,
                Ok(None) => {}
                Err(refusal) => return Ownership::Failed(refusal),
            }
        }
        Ownership::Failed(Refusal::new(
            RefusalCode::StoreUnavailable,
            format!("{repl} changed hands {CLAIM_TRIES_MAX} times while it was being claimed"),
        ))
    }

    /// One try; `None` when somebody else moved in between, or it is not known what happened.
    async fn try_claim(
        &self,
        store: &dyn Store,
        repl: &ReplId,
        mine: Incarnation,
    ) -> Result<Option<Ownership>, Refusal> {
        let (_, spec_create) = read_spec(store, repl).await?;
        let failed = |error| store_refusal(&error);
        let owner = read_owner(store, repl).await.map_err(failed)?;
        let host_create = match &owner {
            Some(owner) => read_create(store, &keys::host(&owner.record.host))
                .await
                .map_err(failed)?,
            None => Revision::ABSENT,
        };
        let free = match (keys::freedom(owner.as_ref(), host_create), &owner) {
            (Some(free), _) => free,
            (None, Some(owner)) if self.is_mine(owner, mine) => {
                let ownership = self.confirm(store, owner, mine).await.map_err(failed)?;
                return Ok(matches!(ownership, Ownership::Mine { .. }).then_some(ownership));
            }
            (None, owner) => {
                return Ok(Some(Ownership::NotMine(owner.as_ref().map(|owner| {
                    OwnerHint {
                        host: Some(owner.record.host.clone()),
                        epoch: owner.epoch,
                    }
                }))));
            }
        };
        let record = encode(&OwnerRecord {
            host: self.host.clone(),
            incarnation: mine,
            nonce: nonce(),
        });
        let txn = keys::claim(repl, free, spec_create, &self.host, mine, record);
        match store.txn(txn).await {
            Ok(TxnOutcome::Committed(revision)) => Ok(Some(Ownership::Mine {
                epoch: Epoch(revision.0),
            })),
            Ok(TxnOutcome::Rejected { current }) => {
                // The first compare is this host's registration: without it nothing can be claimed.
                let registered = current.first().and_then(Option::as_ref);
                if registered.is_none_or(|item| item.create.0 != mine.0) {
                    return Err(Refusal::new(
                        RefusalCode::Fenced,
                        format!("{} is no longer registered", self.host),
                    ));
                }
                Ok(None)
            }
            // The next try reads what became of it.
            Err(StoreError::Ambiguous(_)) => Ok(None),
            Err(error) => Err(store_refusal(&error)),
        }
    }

    /// Which of these repls are this host's at these epochs, by as few committed compares as the store takes.
    pub(super) async fn confirm_all(
        &self,
        store: &dyn Store,
        mut repls: Vec<(ReplId, Epoch)>,
        mine: Incarnation,
    ) -> Vec<(ReplId, Ownership)> {
        let mut known = vec![];
        while !repls.is_empty() {
            // One compare is that of the registration.
            let rest = repls.split_off(repls.len().min(TXN_OPERATIONS_MAX - 1));
            let batch = std::mem::replace(&mut repls, rest);
            let txn = keys::confirm(&batch, &self.host, mine, self.next_beat());
            let outcome = store.txn(txn).await;
            let current = match &outcome {
                Ok(TxnOutcome::Rejected { current }) => Some(current),
                _ => None,
            };
            let registered =
                current.is_some_and(|current| compared(current, 0, |item| item.create.0 == mine.0));
            let count = batch.len();
            let mut again = vec![];
            for (number, (repl, epoch)) in batch.into_iter().enumerate() {
                let ownership = match (&outcome, current) {
                    (Ok(TxnOutcome::Committed(_)), _) => Ownership::Mine { epoch },
                    (Err(error), _) => Ownership::Failed(store_refusal(error)),
                    (_, Some(current))
                        if registered
                            && compared(current, number + 1, |item| item.modified.0 == epoch.0) =>
                    {
                        // Rejected for another's sake.
                        again.push((repl, epoch));
                        continue;
                    }
                    _ => Ownership::NotMine(None),
                };
                known.push((repl, ownership));
            }
            if again.len() == count {
                // Rejected for nothing is not what a store does; whoever waits asks again.
                let nobodys = again.drain(..);
                known.extend(nobodys.map(|(repl, _)| (repl, Ownership::NotMine(None))));
            }
            repls.splice(0..0, again);
        }
        known
    }
}

fn compared(
    current: &[Option<KeyValue>],
    which: usize,
    holds: impl FnOnce(&KeyValue) -> bool,
) -> bool {
    current
        .get(which)
        .and_then(Option::as_ref)
        .is_some_and(holds)
}

async fn read_owner(store: &dyn Store, repl: &ReplId) -> Result<Option<Owner>, StoreError> {
    let Some(item) = store.get(&keys::owner(repl)).await? else {
        return Ok(None);
    };
    keys::read_owner(&item, decode)
        .map(Some)
        .map_err(|foreign| StoreError::Fatal(foreign.to_string()))
}

async fn read_create(store: &dyn Store, key: &str) -> Result<Revision, StoreError> {
    let item = store.get(key).await?;
    Ok(item.map_or(Revision::ABSENT, |item| item.create))
}

/// A repl's spec, and the revision at which it was created.
pub(super) async fn read_spec(
    store: &dyn Store,
    repl: &ReplId,
) -> Result<(Spec, Revision), Refusal> {
    let item: Option<KeyValue> = store
        .get(&keys::spec(repl))
        .await
        .map_err(|error| store_refusal(&error))?;
    let item = item.ok_or_else(|| {
        Refusal::new(
            RefusalCode::UnknownRepl,
            format!("there is no repl {repl:?}", repl = repl.as_str()),
        )
    })?;
    let spec = decode(&item.value).ok_or_else(|| {
        let message = format!("the stored spec of {repl} cannot be read");
        Refusal::new(RefusalCode::Internal, message)
    })?;
    Ok((spec, item.create))
}

/// Reads a value of the store; `None` if it is not of this shape.
pub(super) fn decode<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}

pub(super) fn encode(record: &impl serde::Serialize) -> String {
    // Records are plain structs of strings and numbers: there is nothing in them that JSON cannot say.
    serde_json::to_string(record).unwrap_or_default()
}

/// Tells two claims of one host apart.
pub(super) fn nonce() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // The kernel gives 8 bytes whole once it is up; a clock reading is as unique on one host.
        _ => clock::boottime().0,
    }
}

#[cfg(test)]
mod tests {
    use model::store::Operation;

    use super::*;
    use crate::store::memory::{Memory, Misbehaviour, Reads};

    #[tokio::test]
    async fn claims_of_before_the_join_are_no_answer() {
        let store = Memory::new();
        let me = Me::new("host-0".parse().expect("a name"));
        let mine = Incarnation(1);
        let claim = Txn {
            compares: vec![],
            operations: vec![Operation::Put {
                key: keys::owner(&"a".parse().expect("a name")),
                value: encode(&OwnerRecord {
                    host: me.host.clone(),
                    incarnation: mine,
                    nonce: 0,
                }),
            }],
        };
        let past = Misbehaviour {
            reads: Reads::Frozen,
            ..Misbehaviour::default()
        };
        store.misbehave(past);
        let TxnOutcome::Committed(epoch) = store.txn(claim).await.expect("a commit") else {
            panic!("nothing is compared");
        };
        me.joined.store(epoch.0, Ordering::Relaxed);
        let read = me.claims(&store, mine).await;
        assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
        store.misbehave(Misbehaviour::default());
        let read = me
            .claims(&store, mine)
            .await
            .expect("a read of the present");
        assert_eq!(
            read.iter().map(|id| id.epoch.0).collect::<Vec<_>>(),
            [epoch.0]
        );
    }
}
