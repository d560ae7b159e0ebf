//! The one task that owns the gateway's `model::routing::Router`.
//!
//! ```text
//!   sessions ──► open ──► task (owns the Router) ──► resolve: the store
//!                           ▲   │                └─► ask: a host's node API
//!       the watch on /h/ ───┘   └─► the session's way in, or its refusal
//! ```
//!
//! Reads and asks run as tasks of their own and report back as events. A session that goes away takes its ask along.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::id::{HostId, ReplId, Ticket};
use model::keys::{self, Host};
use model::routing::{self, Effect, Event, Joined, NoWay, Resolution};
use model::store::StoreError;
use model::time::milliseconds;
use model::timing::RESOLVE_MAX;
use model::wire::node::{NodeRefusal, OpenKind, OpenRequest};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::fleet::{Fleet, Hosts, decode};
use super::node_client::{self, NodeError, Opened};
use super::open::Way;
use crate::clock;
use crate::node::Dialer;
use crate::store::Store;

type Answer = oneshot::Sender<Result<Way, NoWay>>;

/// What the task is sent.
enum Input {
    Open {
        ticket: Ticket,
        repl: ReplId,
        kind: OpenKind,
        patience: Duration,
        answer: Answer,
    },
    Gone(Ticket),
    Resolved {
        repl: ReplId,
        resolution: Resolution,
    },
    Answered {
        ticket: Ticket,
        attempt: u32,
        answer: Result<Opened, NodeRefusal>,
    },
}

/// The way to the task, which ends with it.
pub(super) struct Router {
    inputs: mpsc::UnboundedSender<Input>,
    next_ticket: AtomicU64,
    _task: AbortOnDropHandle<()>,
}

/// Says that a session's client has gone away, unless the session is over.
struct Waiting<'a> {
    inputs: &'a mpsc::UnboundedSender<Input>,
    ticket: Ticket,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // The task ends only with the gateway.
            let _ = self.inputs.send(Input::Gone(self.ticket));
        }
    }
}

impl Router {
    /// Starts the task.
    pub(super) fn start(store: Arc<dyn Store>, fleet: Arc<Fleet>, dialer: Dialer) -> Self {
        let (sender, inputs) = mpsc::unbounded_channel();
        let driver = Driver {
            router: routing::Router::default(),
            store,
            fleet,
            dialer,
            inputs: sender.clone(),
            callers: HashMap::new(),
        };
        Self {
            inputs: sender,
            next_ticket: AtomicU64::new(0),
            _task: AbortOnDropHandle::new(tokio::spawn(driver.run(inputs))),
        }
    }

    /// Finds a way into the repl's container, within `patience`.
    pub(super) async fn open(
        &self,
        repl: &ReplId,
        kind: &OpenKind,
        patience: Duration,
    ) -> Result<Way, NoWay> {
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let mut waiting = Waiting {
            inputs: &self.inputs,
            ticket,
            is_over: false,
        };
        let _ = self.inputs.send(Input::Open {
            ticket,
            repl: repl.clone(),
            kind: kind.clone(),
            patience,
            answer,
        });
        let answer = answered.await;
        waiting.is_over = true;
        answer.unwrap_or_else(|_| {
            Err(Refusal::new(RefusalCode::Internal, "the gateway is stopping").into())
        })
    }
}

/// A session that waits, and what is under way for it.
struct Caller {
    repl: ReplId,
    kind: OpenKind,
    answer: Answer,
    ask: Option<AbortOnDropHandle<()>>,
}

struct Driver {
    router: routing::Router,
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    dialer: Dialer,
    inputs: mpsc::UnboundedSender<Input>,
    callers: HashMap<Ticket, Caller>,
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let mut changes = self.fleet.watch();
        // What is there already is the first change.
        changes.mark_changed();
        loop {
            let wakeup = self.router.wakeup();
            tokio::select! {
                biased;
                () = clock::until(wakeup) => self.step(Event::Tick, None),
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let hosts = changes.borrow_and_update().as_ref().clone();
                    self.step(Event::Hosts { hosts }, None);
                }
                input = inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return,
                },
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Open {
                ticket,
                repl,
                kind,
                patience,
                answer,
            } => {
                let caller = Caller {
                    repl: repl.clone(),
                    kind,
                    answer,
                    ask: None,
                };
                self.callers.insert(ticket, caller);
                let event = Event::Open {
                    ticket,
                    repl,
                    patience,
                };
                self.step(event, None);
            }
            Input::Gone(ticket) => {
                self.callers.remove(&ticket);
                self.step(Event::Gone { ticket }, None);
            }
            Input::Resolved { repl, resolution } => {
                self.step(Event::Resolved { repl, resolution }, None);
            }
            Input::Answered {
                ticket,
                attempt,
                answer,
            } => {
                let (answer, opened) = match answer {
                    Ok(opened) => {
                        let joined = Joined {
                            epoch: opened.epoch,
                            load: opened.load,
                        };
                        (Ok(joined), Some(opened))
                    }
                    Err(refused) => (Err(refused), None),
                };
                let event = Event::Answered {
                    ticket,
                    attempt,
                    answer,
                };
                // An answer that is not granted, for it came too late, is dropped with its stream.
                self.step(event, opened);
            }
        }
    }

    fn step(&mut self, event: Event, mut opened: Option<Opened>) {
        for effect in self.router.step(event, clock::boottime()) {
            match effect {
                Effect::Resolve { repl } => self.resolve(repl),
                Effect::Ask {
                    ticket,
                    attempt,
                    host,
                    epoch,
                    deadline,
                } => {
                    let (inputs, dialer) = (self.inputs.clone(), self.dialer.clone());
                    let Some(caller) = self.callers.get_mut(&ticket) else {
                        continue;
                    };
                    let left = deadline.since(clock::boottime());
                    let request = OpenRequest {
                        repl: caller.repl.clone(),
                        epoch,
                        kind: caller.kind.clone(),
                        wait_ms: milliseconds(left),
                    };
                    caller.ask = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                        let answer = node_client::open(&dialer, &host, &request).await;
                        let answer = answer.map_err(|error| said(error, &host.id));
                        let _ = inputs.send(Input::Answered {
                            ticket,
                            attempt,
                            answer,
                        });
                    })));
                }
                Effect::Drop { ticket } => {
                    if let Some(caller) = self.callers.get_mut(&ticket) {
                        caller.ask = None;
                    }
                }
                Effect::Grant {
                    ticket,
                    host,
                    incarnation,
                    ..
                } => {
                    if let (Some(caller), Some(opened)) =
                        (self.callers.remove(&ticket), opened.take())
                    {
                        let way = Way {
                            host,
                            incarnation,
                            opened,
                        };
                        // A client that has just gone away drops its way.
                        let _ = caller.answer.send(Ok(way));
                    }
                }
                Effect::Refuse { ticket, no_way } => {
                    if let Some(caller) = self.callers.remove(&ticket) {
                        let _ = caller.answer.send(Err(no_way));
                    }
                }
            }
        }
    }

    fn resolve(&self, repl: ReplId) {
        let (store, hosts, inputs) = (self.store.clone(), self.fleet.now(), self.inputs.clone());
        tokio::spawn(async move {
            let read = tokio::time::timeout(RESOLVE_MAX, read(&*store, &hosts, &repl)).await;
            let failed = |why| Resolution::Failed(Refusal::new(RefusalCode::StoreUnavailable, why));
            let resolution = match read {
                Ok(Ok(resolution)) => resolution,
                Ok(Err(error)) => failed(error.to_string()),
                Err(_) => failed(format!(
                    "the store did not answer within {} s",
                    RESOLVE_MAX.as_secs()
                )),
            };
            let _ = inputs.send(Input::Resolved { repl, resolution });
        });
    }
}

/// What a host said, or that it was not reached.
fn said(error: NodeError, host: &HostId) -> NodeRefusal {
    match error {
        NodeError::Refused(refused) => *refused,
        unreachable => NodeRefusal {
            refusal: unreachable.into_refusal(host),
            hint: None,
        },
    }
}

/// Reads who owns the repl. A host that the watch has shown in the very registration need not be read.
async fn read(store: &dyn Store, hosts: &Hosts, repl: &ReplId) -> Result<Resolution, StoreError> {
    let owner = store.get(&keys::owner(repl)).await?;
    if let Some(owner) = owner.and_then(|item| keys::read_owner(&item, decode).ok()) {
        let stands = |host: &Host| host.incarnation == owner.record.incarnation;
        let host = match hosts.get(&owner.record.host).filter(|host| stands(host)) {
            Some(host) => Some(host.clone()),
            None => {
                let item = store.get(&keys::host(&owner.record.host)).await?;
                item.and_then(|item| keys::read_host(&item, decode).ok())
                    .filter(stands)
            }
        };
        if let Some(host) = host {
            let epoch = owner.epoch;
            return Ok(Resolution::Owned { host, epoch });
        }
    }
    let spec = store.get(&keys::spec(repl)).await?;
    Ok(spec.map_or(Resolution::Unknown, |_| Resolution::Free))
}
