//! How repls leave this host, and what their heirs are told: the driver's part of a drain.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use model::departure::{self, Departure, Heir, Left};
use model::host::Event;
use model::host::container::Target;
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId};
use model::keys::{self, HostState, OwnerRecord};
use model::store::{StoreError, TxnOutcome};
use model::timing::{DRAIN_TELL_MAX, RELEASE_STUCK_AFTER, STORE_RETRY};
use model::wire::node::{HandedOff, HandedOffAnswer, Prepare};

use super::effects::Effects;
use super::ownership::{decode, encode, nonce};
use super::session;
use crate::telemetry::locks::Mutex;
use crate::telemetry::operations::{Kind, Operation, Stage};

/// How long the store may take for one transaction of a batch before it is sent again: that is safe.
const BATCH_PATIENCE: Duration = Duration::from_secs(1);

impl Effects {
    /// Gives up repls that are proven dead, many in one transaction.
    pub(super) async fn depart(&self, departures: Vec<(ContainerId, Option<Target>)>) {
        let nonce = nonce();
        let departures = departures.into_iter().map(|(id, target)| Departure {
            id,
            heir: target.map(|target| Heir {
                record: encode(&OwnerRecord {
                    host: target.host.clone(),
                    incarnation: target.incarnation,
                    nonce,
                }),
                host: target.host,
                incarnation: target.incarnation,
            }),
        });
        let batches = departure::split(departures.collect());
        join_all(batches.into_iter().map(|batch| self.depart_batch(batch))).await;
    }

    async fn depart_batch(&self, mut batch: Vec<Departure>) {
        let incarnation = *self.handle.incarnation.borrow();
        let mut operations: HashMap<ContainerId, Operation> = batch
            .iter()
            .map(|one| (one.id.clone(), self.begin_release(&one.id)))
            .collect();
        loop {
            operations.retain(|id, _| batch.iter().any(|one| one.id == *id));
            let tried = batch.len();
            let txn = self.store.txn(departure::transaction(&batch));
            match tokio::time::timeout(BATCH_PATIENCE, txn).await {
                Ok(Ok(TxnOutcome::Committed(revision))) => {
                    let done = batch.into_iter().map(|one| {
                        let left = match one.heir {
                            Some(_) => Left::HandedOff(Epoch(revision.0)),
                            None => Left::Released,
                        };
                        (one, left)
                    });
                    return self.say_departed(done.collect());
                }
                Ok(Ok(TxnOutcome::Rejected { current })) => {
                    let (known, again) = departure::judge(batch, &current);
                    self.say_departed(known);
                    batch = again;
                    if batch.is_empty() {
                        return;
                    }
                    if batch.len() < tried {
                        continue;
                    }
                }
                Ok(Err(error)) => tracing::info!(count = tried, %error, "give up repls"),
                Err(_) => tracing::info!(count = tried, "give up repls: no answer in time"),
            }
            if incarnation.is_none_or(|incarnation| !self.still_holds(incarnation)) {
                // They went with the registration.
                let lost = batch.into_iter().map(|one| (one, Left::Released));
                return self.say_departed(lost.collect());
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    fn begin_release(&self, id: &ContainerId) -> Operation {
        let operations = &self.config.operations;
        let operation = operations.begin(Kind::Release, id, RELEASE_STUCK_AFTER);
        operation.at(Stage::Store);
        operation
    }

    /// Tells the machine, and each heir what is its own.
    fn say_departed(&self, departed: Vec<(Departure, Left)>) {
        let mut messages: Vec<(HostId, Vec<(ReplId, Epoch)>)> = vec![];
        for (departure, left) in &departed {
            if let (Left::HandedOff(epoch), Some(heir)) = (left, &departure.heir) {
                let entry = (departure.id.repl.clone(), *epoch);
                match messages.iter_mut().find(|(host, _)| *host == heir.host) {
                    Some((_, repls)) => repls.push(entry),
                    None => messages.push((heir.host.clone(), vec![entry])),
                }
            }
        }
        let departed = departed.into_iter().map(|(one, left)| (one.id, left));
        self.handle.send(Event::Departed {
            departed: departed.collect(),
        });
        for (heir, repls) in messages {
            tokio::spawn(self.clone().tell_heir(heir, repls));
        }
    }

    /// A lost message costs time, not safety: the next session finds the owner in the store.
    async fn tell_heir(self, heir: HostId, repls: Vec<(ReplId, Epoch)>) {
        let count = u32::try_from(repls.len()).unwrap_or(u32::MAX);
        let message = HandedOff { repls };
        let told: anyhow::Result<HandedOffAnswer> = session::tell(
            &self.config.dialer,
            &*self.store,
            &heir,
            "handed-off",
            &message,
        )
        .await;
        let started = match told {
            Ok(answer) => answer.started.min(count),
            Err(error) => {
                tracing::info!(%heir, error = format!("{error:#}"), "tell of the hand-off");
                0
            }
        };
        self.handle.send(Event::HeardOf { count, started });
    }

    /// Who can take repls over. The machine has its own patience for an answer.
    pub(super) async fn read_targets(&self) {
        let read = async {
            loop {
                match self.targets().await {
                    Ok(targets) => return targets,
                    Err(error) => tracing::info!(%error, "read who can take over"),
                }
                tokio::time::sleep(DRAIN_TELL_MAX / 10).await;
            }
        };
        if let Ok(targets) = tokio::time::timeout(DRAIN_TELL_MAX, read).await {
            self.handle.send(Event::Targets { targets });
        }
    }

    /// What the store says, which may be a little old: a target that has gone meanwhile rejects its hand-offs, and
    /// those repls are released instead.
    async fn targets(&self) -> Result<Vec<Target>, StoreError> {
        let (hosts, owners) = tokio::try_join!(
            self.store.range(keys::HOSTS),
            self.store.range(keys::OWNERS)
        )?;
        // Counted once: a cell has thousands of hosts and hundreds of thousands of owners.
        let mut carried: HashMap<Incarnation, u32> = HashMap::new();
        for item in &owners.items {
            if let Ok(owner) = keys::read_owner(item, decode) {
                *carried.entry(owner.record.incarnation).or_default() += 1;
            }
        }
        Ok(hosts
            .items
            .iter()
            .filter_map(|item| keys::read_host(item, decode).ok())
            .filter(|host| host.id != self.config.host && host.record.state == HostState::Active)
            .map(|host| {
                let carries = carried.get(&host.incarnation).copied().unwrap_or(0);
                Target {
                    room: host.record.capacity.saturating_sub(carries),
                    host: host.id,
                    incarnation: host.incarnation,
                }
            })
            .collect())
    }

    /// Has every heir prepare. One that does not answer is not waited for longer than the machine does.
    pub(super) async fn tell_what_is_coming(&self, told: Vec<(HostId, Vec<ReplId>)>) {
        let telling = told.into_iter().map(|(heir, repls)| async move {
            let message = Prepare { repls };
            let told = session::tell::<()>(
                &self.config.dialer,
                &*self.store,
                &heir,
                "prepare",
                &message,
            );
            match tokio::time::timeout(DRAIN_TELL_MAX, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(%heir, error = format!("{error:#}"), "tell what is coming");
                }
                Err(_) => tracing::info!(%heir, "tell what is coming: no answer in time"),
            }
        });
        join_all(telling).await;
        self.handle.send(Event::Told);
    }

    /// This host is an heir: it prepares what it can.
    pub(super) async fn prepare(&self, repls: Vec<ReplId>) {
        let preparing = repls.into_iter().map(|repl| async move {
            let prepared = async {
                let (spec, _) = super::ownership::read_spec(&*self.store, &repl).await?;
                self.runtime.prepare(&spec).await
            };
            if let Err(refusal) = prepared.await {
                // The start itself will say the same to those who wait for it.
                tracing::info!(%repl, %refusal, "prepare what is about to be handed off");
            }
        });
        join_all(preparing).await;
    }
}

/// Starts wait in line here: in the order in which they were wanted, only some at a time, so that the first of two
/// hundred has the machine nearly to itself and its users need not wait for the last.
pub(super) struct StartQueue {
    line: Mutex<Line>,
}

impl Default for StartQueue {
    fn default() -> Self {
        Self {
            line: Mutex::new("line of starts", Line::default()),
        }
    }
}

#[derive(Default)]
struct Line {
    waiting: std::collections::VecDeque<(ContainerId, Operation)>,
    under_way: usize,
}

/// How many starts are under way at once. More than the processors of a small machine, for some wait for disks.
const STARTS_AT_ONCE: usize = 16;

impl StartQueue {
    fn next(&self) -> Option<(ContainerId, Operation)> {
        let mut line = self.line.lock();
        if line.under_way >= STARTS_AT_ONCE {
            return None;
        }
        let next = line.waiting.pop_front()?;
        line.under_way += 1;
        Some(next)
    }
}

impl Effects {
    /// Starts it when its turn has come.
    pub(super) fn start_in_turn(&self, id: ContainerId) {
        let operation = self.begin_start(&id);
        self.starts.line.lock().waiting.push_back((id, operation));
        self.start_next();
    }

    fn start_next(&self) {
        while let Some((id, operation)) = self.starts.next() {
            let this = self.clone();
            tokio::spawn(async move {
                this.start(id, operation).await;
                this.starts.line.lock().under_way -= 1;
                this.start_next();
            });
        }
    }
}

/// The line as effects share it.
pub(super) type Starts = Arc<StartQueue>;
