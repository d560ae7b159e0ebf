//! The cell's gateway, with the router of production, and the users: each wants its repl all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::host;
use model::id::{Epoch, HostId, ReplId, Revision, Ticket};
use model::keys::{self, Host};
use model::routing::{Effect, Event, Joined, Resolution, Router};
use model::stuck::{self, GAP_DEFAULT, LogTime, Proof, Tracker};
use model::time::BootTime;
use model::timing::{PARK_MAX, RESOLVE_MAX};
use model::wire::node::NodeRefusal;

use super::node::{Conman, Machine};
use super::plan::{Fault, assumed};
use super::queue::Happening;
use super::random::nanoseconds;
use super::report::{Report, Violation};
use super::{Fleet, STALENESS_MAX, repl_id};
use crate::client;

/// How long the watch on the hosts takes to tell of a change.
const WATCH_NS: u64 = 5_000_000;

/// A way in that a host was asked for.
#[derive(Debug)]
struct Ask {
    ticket: Ticket,
    attempt: u32,
    host: u32,
    epoch: Option<Epoch>,
}

/// A user without a container.
#[derive(Debug, Clone, Copy)]
struct Lost {
    since: u64,
    cause: &'static str,
}

/// The gateway and the users.
#[derive(Debug)]
pub(super) struct Gateway {
    router: Router,
    hosts: BTreeMap<HostId, Host>,
    /// Hosts whose records have changed since the router was told.
    changed: BTreeSet<u32>,
    asks: BTreeMap<Ticket, Ask>,
    sessions: BTreeMap<Ticket, u32>,
    opening: BTreeSet<u32>,
    lost: BTreeMap<u32, Lost>,
    trackers: BTreeMap<u32, Tracker>,
    next_ticket: u64,
    draws: u64,
    wake_at: Option<u64>,
}

impl Gateway {
    pub(super) fn new() -> Self {
        Self {
            router: Router::default(),
            hosts: BTreeMap::new(),
            changed: BTreeSet::new(),
            asks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            opening: BTreeSet::new(),
            lost: BTreeMap::new(),
            trackers: BTreeMap::new(),
            next_ticket: 1,
            draws: 0,
            wake_at: None,
        }
    }

    pub(super) fn waiting(&self) -> u64 {
        self.lost.len() as u64
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn attempted(&mut self, repl: u32, at: u64, proof: Proof, report: &mut Report) {
        let at = LogTime(i64::try_from(at).unwrap_or(i64::MAX));
        let before = self.trackers.remove(&repl).unwrap_or_default();
        let (after, ended) = before.step(stuck::Event::Attempt(at, proof), GAP_DEFAULT);
        ended.iter().for_each(|ended| report.ended(ended));
        if after != Tracker::Calm {
            self.trackers.insert(repl, after);
        }
    }

    /// What has not ended counts as it stands.
    pub(super) fn finish(&mut self, at: u64, report: &mut Report) {
        let at = LogTime(i64::try_from(at).unwrap_or(i64::MAX));
        for tracker in std::mem::take(&mut self.trackers).into_values() {
            let ended = tracker.at_end(at, GAP_DEFAULT);
            ended.iter().for_each(|ended| report.ended(ended));
        }
    }
}

impl Fleet {
    // ---- users ----

    /// The first containers are started without a gateway, evenly.
    pub(super) fn place_all(&mut self) {
        for repl in 0..self.plan.repls {
            let jitter = self.chance.draw(&[u64::from(repl), 2]) % 1_000_000_000;
            let first = Happening::Asks {
                host: repl % self.plan.hosts,
                ticket: Ticket(0),
                repl: repl_id(repl),
                epoch: None,
            };
            self.queue.plan(1_000_000_000 + jitter, first);
            self.queue
                .plan(5_000_000_000, Happening::UserOpens { repl });
        }
    }

    /// A user's container is gone: it wants the next one at once.
    pub(super) fn user_lost(&mut self, repl: usize, host: u32) {
        let cause = self.reason(host);
        let repl = u32::try_from(repl).unwrap_or(u32::MAX);
        let since = self.now;
        let lost = Lost { since, cause };
        self.gateway.lost.entry(repl).or_insert(lost);
        self.queue.plan(self.now, Happening::UserOpens { repl });
    }

    pub(super) fn user_opens(&mut self, repl: u32) {
        let gateway = &mut self.gateway;
        let is_lost = gateway.lost.contains_key(&repl);
        if !is_lost && self.alive[repl as usize].is_some() {
            return;
        }
        let (since, cause) = (self.now, "the beginning");
        gateway.lost.entry(repl).or_insert(Lost { since, cause });
        if !gateway.opening.insert(repl) {
            return;
        }
        let ticket = gateway.ticket();
        gateway.sessions.insert(ticket, repl);
        self.route(Event::Open {
            ticket,
            repl: repl_id(repl),
            patience: PARK_MAX,
        });
    }

    fn granted(&mut self, ticket: Ticket, epoch: Epoch) {
        let Some(repl) = self.gateway.sessions.remove(&ticket) else {
            return;
        };
        self.gateway.opening.remove(&repl);
        self.trace(40, repl.into());
        let (now, report) = (self.now, &mut self.report);
        self.gateway.attempted(repl, now, Proof::Reached, report);
        if self.alive[repl as usize].is_none_or(|(_, alive)| alive != epoch) {
            // It has died on the way.
            self.queue.plan(self.now, Happening::UserOpens { repl });
            return;
        }
        if let Some(lost) = self.gateway.lost.remove(&repl) {
            let took = self.now - lost.since;
            if lost.cause == "zone lost" {
                self.report.zone.add(took);
            }
            if lost.cause != "the beginning" {
                let causes = &mut self.report.failover;
                causes.entry(lost.cause).or_default().add(took);
            }
        }
    }

    fn refused(&mut self, ticket: Ticket) {
        if let Some(repl) = self.gateway.sessions.remove(&ticket) {
            self.gateway.opening.remove(&repl);
            self.trace(41, repl.into());
            let (now, report) = (self.now, &mut self.report);
            self.gateway.attempted(repl, now, Proof::Failed, report);
            let again = self.now + self.gateway_draw(assumed::TRY_AGAIN);
            self.queue.plan(again, Happening::UserOpens { repl });
        }
    }

    // ---- the router ----

    fn gateway_draw(&mut self, (least, most): (Duration, Duration)) -> u64 {
        self.gateway.draws += 1;
        let purpose = [u64::MAX, self.gateway.draws];
        self.chance.between(least, most, &purpose)
    }

    fn route(&mut self, event: Event) {
        let now = BootTime(self.now);
        for effect in self.gateway.router.step(event, now) {
            match effect {
                Effect::Resolve { repl } => {
                    let takes = if self.is_wrong(Fault::StoreOutage) {
                        nanoseconds(RESOLVE_MAX)
                    } else {
                        self.gateway_draw(assumed::STORE)
                    };
                    self.queue
                        .plan(self.now + takes, Happening::Resolves { repl });
                }
                Effect::Ask {
                    ticket,
                    attempt,
                    host,
                    epoch,
                    ..
                } => self.ask(ticket, attempt, &host.id, epoch),
                Effect::Drop { ticket } => {
                    self.gateway.asks.retain(|_, ask| ask.ticket != ticket);
                }
                Effect::Grant { ticket, epoch, .. } => self.granted(ticket, epoch),
                Effect::Refuse { ticket, .. } => self.refused(ticket),
            }
        }
        let due = self.gateway.router.wakeup().map(|at| at.0.max(self.now));
        if let Some(at) = due.filter(|at| self.gateway.wake_at.is_none_or(|known| known > *at)) {
            self.gateway.wake_at = Some(at);
            self.queue.plan(at, Happening::RouterWake);
        }
    }

    pub(super) fn router_wakes(&mut self) {
        if self.gateway.wake_at.is_some_and(|at| at <= self.now) {
            self.gateway.wake_at = None;
            self.route(Event::Tick);
        }
    }

    pub(super) fn resolves(&mut self, repl: &ReplId) {
        let resolution = if self.is_wrong(Fault::StoreOutage) {
            let refusal = Refusal::new(RefusalCode::StoreUnavailable, "no answer");
            Resolution::Failed(refusal)
        } else {
            let staleness = if self.is_wrong(Fault::StaleRead) {
                self.now as usize % STALENESS_MAX
            } else {
                0
            };
            self.resolution(repl, staleness)
        };
        let repl = repl.clone();
        self.route(Event::Resolved { repl, resolution });
    }

    fn resolution(&self, repl: &ReplId, staleness: usize) -> Resolution {
        let view = self.store.read(staleness);
        let owner = view.get(&keys::owner(repl));
        let owner = owner.and_then(|item| keys::read_owner(item, client::decode).ok());
        let Some(owner) = owner else {
            return Resolution::Free;
        };
        let host = view.get(&keys::host(&owner.record.host));
        let create = host.map_or(Revision::ABSENT, |item| item.create);
        let host = host.and_then(|item| keys::read_host(item, client::decode).ok());
        match (keys::freedom(Some(&owner), create), host) {
            (None, Some(host)) => Resolution::Owned {
                host,
                epoch: owner.epoch,
            },
            _ => Resolution::Free,
        }
    }

    /// A host's record is new, or gone.
    pub(super) fn hosts_changed(&mut self, host: u32) {
        if self.gateway.changed.is_empty() {
            self.queue.plan(self.now + WATCH_NS, Happening::HostsSeen);
        }
        self.gateway.changed.insert(host);
    }

    pub(super) fn hosts_seen(&mut self) {
        if let Some(until) = self.wrong.get(&Fault::WatchGap) {
            self.queue.plan(*until + 1, Happening::HostsSeen);
            return;
        }
        for host in std::mem::take(&mut self.gateway.changed) {
            let id = self.nodes[host as usize].id.clone();
            let item = self.store.now().get(&keys::host(&id));
            match item.and_then(|item| keys::read_host(item, client::decode).ok()) {
                Some(host) => self.gateway.hosts.insert(id, host),
                None => self.gateway.hosts.remove(&id),
            };
        }
        let hosts = self.gateway.hosts.clone();
        self.route(Event::Hosts { hosts });
    }

    // ---- between the router and the hosts ----

    fn ask(&mut self, ticket: Ticket, attempt: u32, host: &HostId, epoch: Option<Epoch>) {
        let Some(host) = self.number_of(host) else {
            return;
        };
        let way = self.gateway_draw(assumed::NETWORK);
        let repl = self.gateway.sessions.get(&ticket).copied();
        let asked = self.gateway.ticket();
        let ask = Ask {
            ticket,
            attempt,
            host,
            epoch,
        };
        self.gateway.asks.insert(asked, ask);
        let asks = Happening::Asks {
            host,
            ticket: asked,
            repl: repl_id(repl.unwrap_or_default()),
            epoch,
        };
        self.queue.plan(self.now + way, asks);
    }

    pub(super) fn asks(&mut self, host: u32, ticket: Ticket, repl: ReplId, epoch: Option<Epoch>) {
        let node = &self.nodes[host as usize];
        if node.machine == Machine::Gone
            || node.conman == Conman::Dead
            || node.has(Fault::Partition)
        {
            return self.unreached(ticket);
        }
        let life = node.life;
        let open = host::Event::Open {
            ticket,
            repl,
            epoch,
        };
        self.told(host, life, open);
    }

    fn answer(&mut self, ticket: Ticket, after: u64, answer: Result<Joined, NodeRefusal>) {
        if let Some(ask) = self.gateway.asks.remove(&ticket) {
            let answers = Happening::Answers {
                ticket: ask.ticket,
                attempt: ask.attempt,
                answer: Box::new(answer),
            };
            self.queue.plan(self.now + after, answers);
        }
    }

    fn unreached(&mut self, ticket: Ticket) {
        let refusal = Refusal::new(RefusalCode::HostUnreachable, "no answer");
        let refused = NodeRefusal {
            refusal,
            hint: None,
        };
        self.answer(ticket, nanoseconds(assumed::DIAL_PATIENCE), Err(refused));
    }

    /// A host's conman is gone, and every connection with it.
    pub(super) fn drop_asks(&mut self, host: u32) {
        let asks = self.gateway.asks.iter().filter(|(_, ask)| ask.host == host);
        let tickets: Vec<Ticket> = asks.map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            self.unreached(ticket);
        }
    }

    pub(super) fn let_in(&mut self, host: u32, ticket: Ticket, epoch: Epoch) {
        if let Some(ask) = self.gateway.asks.get(&ticket)
            && ask.epoch.is_some_and(|wanted| wanted != epoch)
        {
            let what = format!("epoch {epoch} on h{host}");
            self.report.violations.push(Violation::WrongContainer(what));
        }
        let load = self.nodes[host as usize].host.containers().len();
        let load = u32::try_from(load).ok();
        self.host_answers(host, ticket, Ok(Joined { epoch, load }));
    }

    pub(super) fn host_answers(
        &mut self,
        host: u32,
        ticket: Ticket,
        answer: Result<Joined, NodeRefusal>,
    ) {
        if self.nodes[host as usize].has(Fault::Partition) {
            return self.unreached(ticket);
        }
        if self.gateway.asks.contains_key(&ticket) {
            let way = self.gateway_draw(assumed::NETWORK);
            self.answer(ticket, way, answer);
        }
    }

    pub(super) fn answers(
        &mut self,
        ticket: Ticket,
        attempt: u32,
        answer: Result<Joined, NodeRefusal>,
    ) {
        self.route(Event::Answered {
            ticket,
            attempt,
            answer,
        });
    }
}
