//! Finding a way into a repl's container, wherever it is and wherever it goes meanwhile.
//!
//! ```text
//!            ┌──────────── not the owner (with or without a hint) ◄─────────────┐
//!            ▼                                                                  │
//!   who owns it? ── owned ──► ask the owner, with the epoch ──────────────► opened
//!     ▲      └───── free ───► ask the least loaded host to claim it ──────────► │
//!     │                            │ full, draining: the next host              │
//!     └── something changed ◄── wait ◄── unreachable, fenced ◄──────────────────┘
//! ```
//!
//! What is waited for is a change of the hosts (one is gone, one is back) or of the owner's answer, never
//! a poll. A session fails at its deadline, or at once when the user's side failed.

use std::time::Duration;

use http::Method;
use model::api::{Refusal, RefusalCode, Side};
use model::id::{Epoch, HostId, Incarnation, ReplId};
use model::keys::{self, Host, Owner};
use model::wire::node::{NodeRefusal, OpenKind, OpenRequest, OwnerHint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Gateway;
use super::fleet::{Hosts, decode};
use super::node_client::{self, NodeError, Opened};

/// A host that cannot be reached though the store says nothing new: its socket may have been full. This is
/// the net under the events, not the way.
const UNREACHABLE_RETRY: Duration = Duration::from_millis(500);

/// The same owner denies the same epoch again and again: its store and ours are not of one mind yet.
const DENIED_RETRY: Duration = Duration::from_millis(20);

/// Where a session has got to.
pub(super) struct Way {
    pub(super) host: HostId,
    pub(super) incarnation: Incarnation,
    pub(super) opened: Opened,
}

/// Why there is none: what the client is told, and which host said so.
#[derive(Debug, Clone)]
pub(super) struct NoWay {
    pub(super) refusal: Refusal,
    pub(super) host: Option<HostId>,
    pub(super) epoch: Option<Epoch>,
}

impl From<Refusal> for NoWay {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            host: None,
            epoch: None,
        }
    }
}

/// Where to try.
enum Place {
    /// At the owner.
    Owner(Host, Epoch),
    /// Anywhere: the repl is free.
    Free,
    /// Nowhere for now: its owner is registered no more, or not yet seen here.
    Later,
}

/// Whether to look for another place at once.
enum Next {
    Again,
    AfterChange(Duration),
}

struct Search<'a> {
    gateway: &'a Gateway,
    repl: &'a ReplId,
    deadline: Instant,
    hint: Option<OwnerHint>,
    /// Hosts that would not take it.
    unwilling: Vec<HostId>,
    /// The last answer that says why, for the deadline's sentence.
    last: Option<NoWay>,
    /// Who denied what last.
    denied: Option<(HostId, Option<Epoch>)>,
}

impl Gateway {
    /// Finds the way, within the gateway's patience.
    pub(super) async fn open(&self, repl: &ReplId, kind: &OpenKind) -> Result<Way, NoWay> {
        let deadline = Instant::now() + self.config.park;
        let mut search = Search {
            gateway: self,
            repl,
            deadline,
            hint: None,
            unwilling: vec![],
            last: None,
            denied: None,
        };
        let _parked = self.metrics.park();
        match tokio::time::timeout_at(deadline, search.run(kind)).await {
            Ok(found) => found,
            Err(_) => Err(search.too_late()),
        }
    }

    /// One call of a host, given up when its registration ends: a stopped host answers nothing for ever.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        host: &Host,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, NodeError> {
        tokio::select! {
            answer = node_client::call(host, Method::POST, path, body) => answer,
            () = self.fleet.ended(host.id.clone(), host.incarnation) => Err(ended()),
        }
    }

    /// Reads who owns the repl, and from which host.
    pub(super) async fn owner(&self, repl: &ReplId) -> Result<Option<Owner>, Refusal> {
        let item = self
            .store
            .get(&keys::owner(repl))
            .await
            .map_err(|error| Refusal::new(RefusalCode::StoreUnavailable, error.to_string()))?;
        Ok(item.and_then(|item| keys::read_owner(&item, decode).ok()))
    }
}

impl Search<'_> {
    async fn run(&mut self, kind: &OpenKind) -> Result<Way, NoWay> {
        let mut changes = self.gateway.fleet.watch();
        loop {
            let hosts = changes.borrow_and_update().clone();
            let next = match self.place(&hosts).await? {
                Place::Owner(host, epoch) => match self.attempt(&host, Some(epoch), kind).await {
                    Ok(opened) => {
                        return Ok(Way {
                            host: host.id,
                            incarnation: host.incarnation,
                            opened,
                        });
                    }
                    Err(error) => self.judge(host.id, Some(epoch), error)?,
                },
                Place::Free => match self.claim_somewhere(&hosts, kind).await? {
                    Ok(way) => return Ok(way),
                    Err(next) => next,
                },
                Place::Later => Next::AfterChange(UNREACHABLE_RETRY),
            };
            match next {
                Next::Again => {}
                Next::AfterChange(at_most) => {
                    // Both ends of this race mean the same: look again.
                    let _ = tokio::time::timeout(at_most, changes.changed()).await;
                }
            }
        }
    }
}

impl Search<'_> {
    async fn place(&mut self, hosts: &Hosts) -> Result<Place, NoWay> {
        if let Some(OwnerHint {
            host: Some(host),
            epoch,
        }) = self.hint.take()
            && let Some(host) = hosts.get(&host)
        {
            return Ok(Place::Owner(host.clone(), epoch));
        }
        let Some(owner) = self.gateway.owner(self.repl).await? else {
            return self.free().await;
        };
        match hosts.get(&owner.record.host) {
            Some(host) if host.incarnation == owner.record.incarnation => {
                Ok(Place::Owner(host.clone(), owner.epoch))
            }
            // A registration that this gateway has not seen yet: the watch is about to tell of it.
            Some(host) if host.incarnation < owner.record.incarnation => Ok(Place::Later),
            None if self.is_registered(&owner).await? => Ok(Place::Later),
            _ => self.free().await,
        }
    }

    async fn is_registered(&self, owner: &Owner) -> Result<bool, NoWay> {
        let key = keys::host(&owner.record.host);
        let item = self
            .gateway
            .store
            .get(&key)
            .await
            .map_err(|error| Refusal::new(RefusalCode::StoreUnavailable, error.to_string()))?;
        Ok(item.is_some_and(|item| item.create.0 == owner.record.incarnation.0))
    }

    async fn free(&self) -> Result<Place, NoWay> {
        let spec = self
            .gateway
            .store
            .get(&keys::spec(self.repl))
            .await
            .map_err(|error| Refusal::new(RefusalCode::StoreUnavailable, error.to_string()))?;
        match spec {
            Some(_) => Ok(Place::Free),
            None => Err(unknown_repl(self.repl).into()),
        }
    }

    async fn claim_somewhere(
        &mut self,
        hosts: &Hosts,
        kind: &OpenKind,
    ) -> Result<Result<Way, Next>, NoWay> {
        let chosen = self.gateway.fleet.place(hosts, self.repl, &self.unwilling);
        let Some(host) = chosen else {
            let none = if self.unwilling.is_empty() {
                Refusal::new(RefusalCode::NoHost, "no host takes new repls at the moment")
            } else {
                Refusal::new(
                    RefusalCode::NoCapacity,
                    "every host carries as many containers as it may",
                )
            };
            self.unwilling.clear();
            // What no host can start now, none will start for being asked again and again.
            if let Some(last) = self.last.take_if(|last| {
                let code = last.refusal.code;
                matches!(code, RefusalCode::StartFailed | RefusalCode::DiskFull)
            }) {
                return Err(last);
            }
            self.last.get_or_insert_with(|| none.into());
            return Ok(Err(Next::AfterChange(UNREACHABLE_RETRY)));
        };
        match self.attempt(&host, None, kind).await {
            Ok(opened) => Ok(Ok(Way {
                host: host.id,
                incarnation: host.incarnation,
                opened,
            })),
            Err(error) => self.judge(host.id, None, error).map(Err),
        }
    }

    /// Asks one host, for as long as its registration stands: nobody waits for the dead.
    async fn attempt(
        &self,
        host: &Host,
        epoch: Option<Epoch>,
        kind: &OpenKind,
    ) -> Result<Opened, NodeError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let ask = OpenRequest {
            repl: self.repl.clone(),
            epoch,
            kind: kind.clone(),
            wait_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        tokio::select! {
            answer = node_client::open(host, &ask) => {
                if let Ok(Opened { load: Some(load), .. }) = &answer {
                    self.gateway.fleet.set_load(&host.id, *load);
                }
                answer
            }
            () = self.gateway.fleet.ended(host.id.clone(), host.incarnation) => Err(ended()),
        }
    }

    /// What a host's answer means for the search.
    fn judge(
        &mut self,
        host: HostId,
        epoch: Option<Epoch>,
        error: NodeError,
    ) -> Result<Next, NoWay> {
        let (refusal, hint) = match error {
            NodeError::Refused(refused) => {
                let NodeRefusal { refusal, hint } = *refused;
                (refusal, hint)
            }
            unreachable => (unreachable.into_refusal(&host), None),
        };
        let code = refusal.code;
        let no_way = NoWay {
            refusal,
            host: Some(host.clone()),
            epoch,
        };
        if code.side() != Side::Platform {
            return Err(no_way);
        }
        if code == RefusalCode::NotOwner {
            self.hint = hint.filter(|hint| hint.host.is_some());
            // It says where not to look, not what is wrong: an earlier answer may say that.
            self.last.get_or_insert(no_way);
            let denial = Some((host, epoch));
            let was_denied_before = self.denied == denial;
            self.denied = denial;
            return Ok(if was_denied_before {
                Next::AfterChange(DENIED_RETRY)
            } else {
                Next::Again
            });
        }
        self.last = Some(no_way);
        Ok(match code {
            RefusalCode::Draining
            | RefusalCode::NoCapacity
            | RefusalCode::DiskFull
            | RefusalCode::StartFailed => {
                self.unwilling.push(host);
                Next::Again
            }
            _ => Next::AfterChange(UNREACHABLE_RETRY),
        })
    }

    fn too_late(&mut self) -> NoWay {
        let seconds = self.gateway.config.park.as_secs_f64();
        match self.last.take() {
            Some(last) => NoWay {
                refusal: Refusal::new(
                    last.refusal.code,
                    format!(
                        "{} was not reached within {seconds} s: {}",
                        self.repl, last.refusal.message
                    ),
                ),
                ..last
            },
            None => Refusal::new(
                RefusalCode::ParkTimeout,
                format!("{} was not ready within {seconds} s", self.repl),
            )
            .into(),
        }
    }
}

/// What a host says no more.
fn ended() -> NodeError {
    NodeError::Unreachable("its registration has ended".to_owned())
}

/// There is no such repl.
pub(super) fn unknown_repl(repl: &ReplId) -> Refusal {
    Refusal::new(
        RefusalCode::UnknownRepl,
        format!("there is no repl \"{repl}\""),
    )
}
