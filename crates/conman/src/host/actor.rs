//! The one task that owns the host's state machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::api::{ContainerState, Refusal, RefusalCode};
use model::host::container::Ticket;
use model::host::{Answer, Death, DrainOrder, Effect, Event, Host};
use model::id::{ContainerId, Epoch, Incarnation, ReplId};
use model::time::BootTime;
use model::time::milliseconds;
use model::timing::KILL_STUCK_AFTER;
use model::wire::node::{
    ContainerStatus, HandedOff, HandedOffAnswer, HostStatus, NodeEvent, NodeRefusal,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::effects::Effects;
use super::live::LiveMap;
use super::{Config, HostMetrics};
use crate::clock;
use crate::runtime::{Exit, Runtime, RuntimeEvent};
use crate::store::Store;
use crate::telemetry::operations::{Kind, Operation, Operations, Stage};

/// How many changes a slow follower of the events may lag before it is sent everything anew.
const EVENTS_BUFFERED_MAX: usize = 1024;

/// What the actor is sent.
pub(super) enum Input {
    /// An event of the model.
    Event(Event),
    /// A caller's event, with where its answer goes.
    Call(Ticket, oneshot::Sender<Answer>, Event),
    /// What a keeper holds: the so-manieth, by the actor's count of their comings and goings.
    Adopted {
        keeper: u64,
        running: Vec<(ContainerId, BootTime)>,
    },
    /// A session joined or left.
    Session { id: ContainerId, joined: bool },
    /// The runtime has been told to kill these.
    ToldToDie(Vec<ContainerId>),
    /// Somebody asks for everything.
    Status(oneshot::Sender<HostStatus>),
}

/// The way to the actor. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    next_ticket: Arc<AtomicU64>,
    pub(super) live: Arc<LiveMap>,
    pub(super) events: broadcast::Sender<NodeEvent>,
    /// The registration while it is held: what effects check before they try again.
    pub(super) incarnation: watch::Receiver<Option<Incarnation>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) fn send(&self, event: Event) {
        // The actor ends only with the process.
        let _ = self.inputs.send(Input::Event(event));
    }

    pub(super) fn told_to_die(&self, ids: Vec<ContainerId>) {
        let _ = self.inputs.send(Input::ToldToDie(ids));
    }

    async fn call(&self, event: impl FnOnce(Ticket) -> Event) -> Answer {
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Call(ticket, answer, event(ticket)));
        answered.await.unwrap_or_else(|_| {
            Answer::Refused(NodeRefusal {
                refusal: Refusal::new(RefusalCode::Internal, "the host is stopping"),
                hint: None,
            })
        })
    }

    pub(super) async fn open(&self, repl: ReplId, epoch: Option<Epoch>) -> Answer {
        self.call(|ticket| Event::Open {
            ticket,
            repl,
            epoch,
        })
        .await
    }

    pub(super) async fn stop(&self, repl: ReplId, epoch: Epoch, grace: Duration) -> Answer {
        self.call(|ticket| Event::Stop {
            ticket,
            repl,
            epoch,
            grace,
        })
        .await
    }

    pub(super) async fn drain(&self, order: DrainOrder) -> Answer {
        self.call(|ticket| Event::Drain { ticket, order }).await
    }

    /// Has these started in their order; comes back when each of them runs or will not.
    pub(super) async fn handed_off(&self, message: HandedOff) -> HandedOffAnswer {
        self.send(Event::HandedOff {
            repls: message.repls.clone(),
        });
        let opens = message
            .repls
            .into_iter()
            .map(|(repl, epoch)| self.open(repl, Some(epoch)));
        let opened = futures_util::future::join_all(opens).await;
        let runs = opened
            .iter()
            .filter(|answer| matches!(answer, Answer::Opened { .. }));
        HandedOffAnswer {
            started: u32::try_from(runs.count()).unwrap_or(u32::MAX),
        }
    }

    pub(super) async fn status(&self) -> Option<HostStatus> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Status(answer));
        answered.await.ok()
    }
}

/// When each step of a container's end happened.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    killed: Option<BootTime>,
    dead: Option<BootTime>,
}

pub(super) struct Actor {
    host: Host,
    inputs: mpsc::UnboundedReceiver<Input>,
    handle: Handle,
    incarnation: watch::Sender<Option<Incarnation>>,
    effects: Effects,
    callers: HashMap<Ticket, oneshot::Sender<Answer>>,
    sessions: HashMap<ContainerId, u32>,
    ends: HashMap<ContainerId, End>,
    /// Until their deaths are proven.
    kills: HashMap<ContainerId, Operation>,
    operations: Operations,
    /// The container whose state was last announced, by repl.
    announced: HashMap<ReplId, (ContainerId, ContainerState)>,
    keeper_pid: Option<u32>,
    /// Counts the comings and goings of keepers: a list that was read for long may be of one that has gone since.
    keeper: u64,
    metrics: Arc<HostMetrics>,
}

pub(super) fn new(
    config: Config,
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    metrics: Arc<HostMetrics>,
    incarnation: watch::Sender<Option<Incarnation>>,
) -> (Handle, Effects, Actor) {
    let (sender, inputs) = mpsc::unbounded_channel();
    let handle = Handle {
        inputs: sender,
        next_ticket: Arc::default(),
        live: Arc::default(),
        events: broadcast::channel(EVENTS_BUFFERED_MAX).0,
        incarnation: incarnation.subscribe(),
    };
    let host = Host::new(config.host.clone(), config.capacity, config.timing);
    let operations = config.operations.clone();
    let effects = Effects::new(config, store, runtime, handle.clone(), metrics.clone());
    let actor = Actor {
        host,
        inputs,
        effects: effects.clone(),
        handle: handle.clone(),
        incarnation,
        callers: HashMap::new(),
        sessions: HashMap::new(),
        ends: HashMap::new(),
        kills: HashMap::new(),
        operations,
        announced: HashMap::new(),
        keeper_pid: None,
        keeper: 0,
        metrics,
    };
    (handle, effects, actor)
}

impl Actor {
    pub(super) async fn run(mut self, mut runtime: mpsc::UnboundedReceiver<RuntimeEvent>) {
        loop {
            let wakeup = self.host.wakeup();
            tokio::select! {
                // Deadlines first, whatever else is waiting.
                biased;
                () = clock::until(wakeup) => self.step(Event::Tick),
                event = runtime.recv() => match event {
                    Some(event) => self.runtime_event(event),
                    None => return,
                },
                input = self.inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return,
                },
            }
        }
    }

    fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Dead { id, exit } => {
                tracing::info!(repl = %id.repl, epoch = id.epoch.0, ?exit, "container proven dead");
                let now = clock::boottime();
                let end = self.ends.entry(id.clone()).or_default();
                end.dead = Some(now);
                if let Some(killed) = end.killed {
                    self.metrics
                        .kill(super::metrics::KillPhase::Dead, now.since(killed));
                }
                self.kills.remove(&id);
                self.handle.live.remove(&id, exit);
                let death = match exit {
                    Exit::Unknown => Death::WithKeeper,
                    Exit::Code(_) | Exit::Signal(_) => Death::Program,
                };
                self.step(Event::Dead { id, death });
            }
            RuntimeEvent::KeeperLost => {
                tracing::warn!("the keeper is gone, and with it every container of this host");
                self.keeper_pid = None;
                self.keeper += 1;
                self.step(Event::KeeperLost);
            }
            RuntimeEvent::KeeperConnected { pid } => {
                tracing::info!(keeper_pid = pid, "a keeper is there");
                self.keeper_pid = Some(pid);
                self.keeper += 1;
                self.effects.adopt(self.keeper);
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.step(event),
            Input::Call(ticket, answer, event) => {
                self.callers.insert(ticket, answer);
                self.step(event);
            }
            Input::Adopted { keeper, running } => {
                if keeper == self.keeper {
                    self.step(Event::Keeper { running });
                }
            }
            Input::Session { id, joined } => {
                let count = self.sessions.entry(id.clone()).or_insert(0);
                *count = if joined {
                    *count + 1
                } else {
                    count.saturating_sub(1)
                };
                let count = *count;
                if count == 0 {
                    self.sessions.remove(&id);
                }
                self.step(Event::Sessions { id, count });
            }
            Input::ToldToDie(ids) => {
                for id in ids {
                    // One that never came to live has no death to be proven.
                    match self.handle.live.get(&id) {
                        Some(_) => drop(self.kills.get(&id).map(|kill| kill.at(Stage::Proof))),
                        None => drop(self.kills.remove(&id)),
                    }
                }
            }
            Input::Status(answer) => {
                let _ = answer.send(self.status());
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now = clock::boottime();
        let fenced_before = self.host.lease().is_fenced();
        let effects = self.host.step(event, now);
        if self.host.lease().is_fenced() && !fenced_before {
            tracing::warn!("the lease is lost: every container of this host is being killed");
            self.metrics.fences.inc();
        }
        let incarnation = self.host.lease().incarnation(now);
        self.incarnation.send_if_modified(|known| {
            let changed = *known != incarnation;
            *known = incarnation;
            changed
        });
        for effect in effects {
            self.perform(effect, now);
        }
    }

    fn perform(&mut self, effect: Effect, now: BootTime) {
        match effect {
            Effect::Answer { ticket, answer } => {
                if let Some(caller) = self.callers.remove(&ticket) {
                    // A caller that has gone away needs no answer.
                    let _ = caller.send(answer);
                }
            }
            Effect::Changed { repl } => self.announce(repl, now),
            Effect::Kill { ids } => {
                for id in &ids {
                    self.begin_kill(id);
                    self.ends.entry(id.clone()).or_default().killed = Some(now);
                    if let Some(live) = self.handle.live.get(id) {
                        live.killed.cancel();
                    }
                }
                self.effects.kill(ids);
            }
            Effect::Reached { phase, after } => {
                let after_ms = after.as_secs_f64() * 1e3;
                tracing::info!(phase = phase.as_str(), after_ms, "drain");
                self.metrics.drained(phase, after);
            }
            other => self.effects.perform(other),
        }
    }

    fn begin_kill(&mut self, id: &ContainerId) {
        let operations = &self.operations;
        let kill = self.kills.entry(id.clone());
        kill.or_insert_with(|| operations.begin(Kind::Kill, id, KILL_STUCK_AFTER))
            .at(Stage::Runtime);
    }

    fn announce(&mut self, repl: ReplId, now: BootTime) {
        let status = self.container_status(&repl);
        let event = match status {
            Some(status) => {
                let id = ContainerId {
                    repl: repl.clone(),
                    epoch: status.epoch,
                };
                let before = self.announced.insert(repl, (id, status.state));
                self.metrics
                    .moved(before.map(|(_, state)| state), Some(status.state));
                NodeEvent::Container(status)
            }
            None => {
                let Some((id, before)) = self.announced.remove(&repl) else {
                    return;
                };
                self.metrics.moved(Some(before), None);
                if let Some(end) = self.ends.remove(&id)
                    && let Some(dead) = end.dead
                {
                    self.metrics
                        .kill(super::metrics::KillPhase::Released, now.since(dead));
                }
                NodeEvent::Gone {
                    repl: id.repl,
                    epoch: id.epoch,
                }
            }
        };
        // Nobody may be following.
        let _ = self.handle.events.send(event);
    }

    fn container_status(&self, repl: &ReplId) -> Option<ContainerStatus> {
        let container = self.host.containers().get(repl)?;
        let (state, epoch) = (container.state()?, container.epoch?);
        let id = ContainerId {
            repl: repl.clone(),
            epoch,
        };
        let live = self
            .handle
            .live
            .get(&id)
            .filter(|_| state != ContainerState::Starting);
        Some(ContainerStatus {
            repl: repl.clone(),
            epoch,
            state,
            started_at: live.as_ref().map(|live| live.started_at.clone()),
            sessions: container.sessions,
            pid: live.map(|live| live.running.pid),
        })
    }

    fn status(&self) -> HostStatus {
        let now = clock::boottime();
        let margin = self.host.lease().margin(now);
        HostStatus {
            host: self.host.id().clone(),
            incarnation: self.host.lease().incarnation(now),
            lease_margin_ms: milliseconds(margin),
            draining: self.host.is_draining(),
            conman_pid: std::process::id(),
            keeper_pid: self.keeper_pid,
            containers: self
                .host
                .containers()
                .keys()
                .filter_map(|repl| self.container_status(repl))
                .collect(),
        }
    }
}
