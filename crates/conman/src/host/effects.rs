//! The effects of the host's machine, each a task of its own that reports back as an event.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use model::api::{Refusal, RefusalCode};
use model::host::{Claim, Effect, Event, Ownership};
use model::id::{ContainerId, Incarnation, ReplId};
use model::keys::{self, HostState};
use model::lease::{LeaseEffect, LeaseEvent};
use model::spec::Spec;
use model::store::{StoreError, TxnOutcome};
use model::timing::{CLAIM_STUCK_AFTER, STORE_RETRY};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::actor::Input;
use super::departures::Starts;
use super::live::Live;
use super::metrics::{HostMetrics, Lateness};
use super::ownership::{self, Me};
use super::{Config, Handle};
use crate::clock;
use crate::runtime::{Running, Runtime, StartRequest};
use crate::store::Store;
use crate::telemetry::locks::AsyncMutex;
use crate::telemetry::operations::{Kind, Operation, Stage, while_wanted};

/// How many dead containers are cleaned up after at once: nobody waits for it, and everybody shares its locks.
const CLEANUPS_AT_ONCE: usize = 2;

/// Carries out effects. Cheap to clone into tasks.
#[derive(Clone)]
pub(super) struct Effects {
    pub(super) config: Config,
    pub(super) store: Arc<dyn Store>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) handle: Handle,
    metrics: Arc<HostMetrics>,
    me: Arc<Me>,
    pub(super) starts: Starts,
    cleanups: Arc<Semaphore>,
}

impl Effects {
    pub(super) fn new(
        config: Config,
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        handle: Handle,
        metrics: Arc<HostMetrics>,
    ) -> Self {
        Self {
            me: Arc::new(Me::new(config.host.clone())),
            config,
            store,
            runtime,
            handle,
            metrics,
            starts: Starts::default(),
            cleanups: Arc::new(Semaphore::new(CLEANUPS_AT_ONCE)),
        }
    }

    pub(super) fn perform(&self, effect: Effect) {
        if let Effect::Start { id } = effect {
            // Not in a task: their order counts.
            return self.start_in_turn(id);
        }
        let this = self.clone();
        tokio::spawn(async move {
            match effect {
                Effect::Lease(LeaseEffect::Join) => this.join().await,
                Effect::Lease(LeaseEffect::Renew { incarnation }) => this.renew(incarnation).await,
                Effect::Lease(LeaseEffect::Arm { deadline }) => {
                    if let Err(refusal) = this.runtime.arm(deadline).await {
                        // Without a keeper there is nothing that the deadline could be for.
                        tracing::debug!(%refusal, "arm the keeper");
                    }
                }
                Effect::ReadClaims { incarnation } => this.read_claims(incarnation).await,
                Effect::Ask { repl, incarnation } => {
                    let ownership = this.me.ask(&*this.store, &repl, incarnation).await;
                    this.handle.send(Event::Asked { repl, ownership });
                }
                Effect::Claim { repl, incarnation } => {
                    let ownership = this.claim(&repl, incarnation).await;
                    this.handle.send(Event::Claimed { repl, ownership });
                }
                Effect::Confirm { repls, incarnation } => {
                    let known = this.me.confirm_all(&*this.store, repls, incarnation);
                    for (repl, ownership) in known.await {
                        this.handle.send(Event::Asked { repl, ownership });
                    }
                }
                Effect::Terminate { id } => {
                    if let Err(refusal) = this.runtime.terminate(&id).await {
                        tracing::info!(repl = %id.repl, %refusal, "terminate");
                    }
                }
                Effect::Depart { departures } => this.depart(departures).await,
                Effect::ReadTargets => this.read_targets().await,
                Effect::Prepare { told } => this.tell_what_is_coming(told).await,
                Effect::Cleanup { id } => {
                    // Closed only with the process.
                    let _turn = this.cleanups.acquire().await;
                    if let Err(refusal) = this.runtime.cleanup(&id).await {
                        tracing::warn!(repl = %id.repl, epoch = id.epoch.0, %refusal, "clean up");
                    }
                }
                Effect::SayDraining { draining } => this.say_draining(draining).await,
                // Done above, or the actor's own.
                Effect::Start { .. }
                | Effect::Reached { .. }
                | Effect::Lease(LeaseEffect::Fence { .. })
                | Effect::Kill { .. }
                | Effect::Answer { .. }
                | Effect::Changed { .. } => {}
            }
        });
    }

    async fn claim(&self, repl: &ReplId, incarnation: Incarnation) -> Ownership {
        let operations = &self.config.operations;
        let operation = operations.begin(Kind::Claim, repl, CLAIM_STUCK_AFTER);
        let claim = Stage::Store.of(self.me.claim(&*self.store, repl, incarnation));
        // A claim that comes through after all is the store's word to whoever asks next.
        let given_up = |given_up| Ownership::Failed(Refusal::from(given_up));
        operation.run(claim).await.unwrap_or_else(given_up)
    }

    /// Kills everything in one call of the runtime.
    pub(super) fn kill(&self, ids: Vec<ContainerId>) {
        let (runtime, handle) = (self.runtime.clone(), self.handle.clone());
        tokio::spawn(async move {
            if let Err(refusal) = runtime.kill(&ids).await {
                tracing::warn!(count = ids.len(), %refusal, "kill");
            }
            handle.told_to_die(ids);
        });
    }

    /// Asks a keeper that has just come what it holds. That may take as long as the store does not answer: the actor judges
    /// whether this keeper is still the one that is there.
    pub(super) fn adopt(&self, keeper: u64) {
        let this = self.clone();
        tokio::spawn(async move {
            let found = match this.runtime.adopt().await {
                Ok(found) => found,
                // It went again: the next one that comes is asked.
                Err(refusal) => return tracing::info!(%refusal, "adopt"),
            };
            let mut running = vec![];
            for container in found {
                running.push((container.id.clone(), container.started));
                if this.handle.live.get(&container.id).is_none() {
                    match this.spec(&container.id).await {
                        Ok(spec) => this.insert_live(container, spec),
                        // Its repl is deleted: it has no claim either, and is killed for that.
                        Err(refusal) => {
                            tracing::info!(repl = %container.id.repl, %refusal, "adopt")
                        }
                    }
                }
            }
            // The actor ends only with the process.
            let _ = this.handle.inputs.send(Input::Adopted { keeper, running });
        });
    }

    fn insert_live(&self, running: Running, spec: Spec) {
        self.handle.live.insert(Live {
            running,
            spec,
            since: Instant::now(),
            started_at: jiff::Timestamp::now().to_string(),
            killed: CancellationToken::new(),
            exit: OnceLock::new(),
            gone: CancellationToken::new(),
            ready: false.into(),
            shell: AsyncMutex::new("terminal of a repl", None),
        });
    }

    async fn spec(&self, id: &ContainerId) -> Result<Spec, Refusal> {
        ownership::read_spec(&*self.store, &id.repl)
            .await
            .map(|(spec, _)| spec)
    }

    /// An operation on a container that has to be begun before it can be started.
    pub(super) fn begin_start(&self, id: &ContainerId) -> Operation {
        let patience = self.runtime.start_stuck_after();
        let operation = self.config.operations.begin(Kind::Start, id, patience);
        operation.at(Stage::Turn);
        operation
    }

    pub(super) async fn start(&self, id: ContainerId, operation: Operation) {
        let began = Instant::now();
        let started = async {
            while_wanted(crate::faults::in_start(&id.repl)).await?;
            let spec = while_wanted(Stage::Store.of(self.spec(&id))).await??;
            let request = StartRequest {
                id: id.clone(),
                spec: spec.clone(),
            };
            let running = Stage::Runtime.of(self.runtime.start(request)).await?;
            Ok::<_, Refusal>((running, spec))
        };
        match operation.around(started).await {
            Ok((running, spec)) => {
                self.metrics.started(began.elapsed());
                let idle_timeout = spec.idle_timeout();
                tracing::info!(repl = %id.repl, epoch = id.epoch.0, pid = running.pid, "container started");
                self.insert_live(running, spec);
                self.handle.send(Event::Started { id, idle_timeout });
            }
            Err(refusal) => {
                tracing::info!(repl = %id.repl, epoch = id.epoch.0, code = %refusal.code, %refusal, "start failed");
                self.handle.send(Event::StartFailed { id, refusal });
            }
        }
    }

    async fn join(&self) {
        let joined = self.me.join(&*self.store, &self.config).await;
        let event = match joined {
            Ok((incarnation, sent)) => {
                tracing::info!(incarnation = incarnation.0, "registered");
                LeaseEvent::Joined { incarnation, sent }
            }
            Err(error) => {
                said(&error, "register");
                tokio::time::sleep(STORE_RETRY).await;
                LeaseEvent::JoinFailed
            }
        };
        self.handle.send(Event::Lease(event));
    }

    async fn renew(&self, incarnation: Incarnation) {
        let sent = clock::boottime();
        let txn = keys::renew(&self.config.host, incarnation, self.me.next_beat());
        // An answer after the deadline is worth nothing, and a hung one must not stop the next.
        let patience = self.config.timing.hold / 3;
        let event = match tokio::time::timeout(patience, self.store.txn(txn)).await {
            Ok(Ok(TxnOutcome::Committed(_))) => {
                let spent = clock::boottime().since(sent);
                let margin = self.config.timing.hold.saturating_sub(spent);
                self.metrics.renewed(Lateness { spent, margin });
                LeaseEvent::RenewAcked { sent }
            }
            Ok(Ok(TxnOutcome::Rejected { .. })) => LeaseEvent::RenewRejected,
            Ok(Err(error)) => {
                self.metrics.renewals_failed.inc();
                said(&error, "renew");
                LeaseEvent::RenewFailed
            }
            Err(_) => {
                self.metrics.renewals_failed.inc();
                tracing::debug!("renew: no answer in time");
                LeaseEvent::RenewFailed
            }
        };
        self.handle.send(Event::Lease(event));
    }

    pub(super) fn still_holds(&self, incarnation: Incarnation) -> bool {
        *self.handle.incarnation.borrow() == Some(incarnation)
    }

    async fn read_claims(&self, incarnation: Incarnation) {
        while self.still_holds(incarnation) {
            match self.me.claims(&*self.store, incarnation).await {
                Ok(owned) => {
                    let mut claims = vec![];
                    for id in owned {
                        let idle_timeout = self.spec(&id).await.ok().and_then(|s| s.idle_timeout());
                        claims.push(Claim { id, idle_timeout });
                    }
                    return self.handle.send(Event::Claims {
                        incarnation,
                        claims,
                    });
                }
                Err(error) => {
                    said(&error, "read the claims");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            }
        }
    }

    async fn say_draining(&self, draining: bool) {
        let state = if draining {
            HostState::Draining
        } else {
            HostState::Active
        };
        let Some(incarnation) = *self.handle.incarnation.borrow() else {
            return;
        };
        while self.still_holds(incarnation) {
            let txn = self.me.update(&self.config, state, incarnation);
            match self.store.txn(txn).await {
                Ok(_) => {
                    if draining {
                        self.handle.send(Event::SaidDraining);
                    }
                    break;
                }
                Err(StoreError::Fatal(why)) => return tracing::warn!(why, "say draining"),
                Err(error) => {
                    said(&error, "say draining");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            }
        }
        let _ = self
            .handle
            .events
            .send(model::wire::node::NodeEvent::Draining { draining });
    }
}

/// Logs a failure of the store that is tried again. One that is unreachable says so itself, once.
fn said(error: &StoreError, what: &'static str) {
    match error {
        StoreError::Unavailable(_) | StoreError::Ambiguous(_) => tracing::debug!(%error, what),
        StoreError::Compacted { .. } | StoreError::Fatal(_) => tracing::warn!(%error, what),
    }
}

/// A refusal for a store that failed.
pub(super) fn store_refusal(error: &StoreError) -> Refusal {
    Refusal::new(RefusalCode::StoreUnavailable, error.to_string())
}
