//! The gateway's decisions: where a session goes, what it waits for, and who wakes it.
//!
//! ```text
//!              ┌────────────── denied, no hint ◄───────────────────┐
//!              ▼                                                   │
//!   Open ► Unknown ─► Resolving ─ owned ─► Led to the owner ───► asking ─► Grant
//!              ▲          └────── free ──► Led to a host that ──►  │ │
//!              │                           is to claim it ◄─ hint ─┘ │
//!              └──── a pause, a change of the hosts ◄── unreachable ─┘      the deadline ─► Refuse
//! ```
//!
//! The happy path: a session opens; the store is read once for all sessions of its repl; the owner, or the least loaded
//! host, is asked for a way in and holds the request while the container starts or moves; the session is granted.
//! The owner is remembered, so the next session asks it without the store; it accepts its own exact epoch only, and
//! says with a hint who came after it.
//!
//! **Woken, not polling.** A session that waits is woken by what it waits for: the store's answer, the host's, or a change of
//! the hosts (one is gone, back, or takes repls again). What tells nothing of itself when it recovers, a store or a host
//! that is cut off, is tried by *one* session at a time, ever less often, and its answer wakes the others.
//!
//! **Invariants.** A ticket is granted or refused exactly once, unless its client goes away, and by its deadline at the
//! latest. Nothing is asked, and nothing granted, below the highest epoch that was seen of the repl. A session is refused
//! early only when the client's or the user's side failed, or no host can start it.

mod answer;
pub mod event;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use self::event::{Effect, Event, Joined, NoWay, Resolution};
use self::route::{Lead, Memory, Outage, Route, Stage};
use crate::api::{Refusal, RefusalCode};
use crate::id::{Epoch, HostId, Incarnation, ReplId, Ticket};
use crate::keys::Host;
use crate::placement::Loads;
use crate::time::BootTime;
use crate::timing::REROUTE_PAUSE_MAX;

/// A host that was asked, and has not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asking {
    host: HostId,
    incarnation: Incarnation,
    epoch: Option<Epoch>,
    generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    repl: ReplId,
    patience: Duration,
    deadline: BootTime,
    /// How many hosts were asked for it.
    attempt: u32,
    asking: Option<Asking>,
}

/// What a point in time is for. One that has lost its purpose does no harm: everything is looked at anew.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deadline(Ticket),
    Route(ReplId),
    Store,
    Host(HostId),
}

/// A gateway's router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Router {
    hosts: BTreeMap<HostId, Host>,
    loads: Loads,
    sessions: BTreeMap<Ticket, Session>,
    /// The repls that have sessions.
    routes: BTreeMap<ReplId, Route>,
    memory: Memory,
    store: Option<Outage<ReplId>>,
    outages: BTreeMap<HostId, Outage<Ticket>>,
    timers: BTreeSet<(BootTime, Due)>,
}

impl Router {
    /// How many sessions wait for their way in.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// When the next [`Event::Tick`] is due.
    pub fn wakeup(&self) -> Option<BootTime> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes one event; what is to be done comes back.
    pub fn step(&mut self, event: Event, now: BootTime) -> Vec<Effect> {
        let mut out = vec![];
        match event {
            Event::Open {
                ticket,
                repl,
                patience,
            } => self.open(ticket, repl, patience, now, &mut out),
            Event::Gone { ticket } => self.end(ticket, now, &mut out),
            Event::Hosts { hosts } => self.hosts_changed(hosts, now, &mut out),
            Event::Resolved { repl, resolution } => {
                self.resolved(&repl, resolution, now, &mut out);
            }
            Event::Answered {
                ticket,
                attempt,
                answer,
            } => self.answered(ticket, attempt, answer, now, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    // ---- sessions ----

    fn open(
        &mut self,
        ticket: Ticket,
        repl: ReplId,
        patience: Duration,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let memory = &mut self.memory;
        let route = self
            .routes
            .entry(repl.clone())
            .or_insert_with_key(|repl| Route::new(memory.take(repl)));
        route.sessions += 1;
        route.waiting.insert(ticket);
        let session = Session {
            repl: repl.clone(),
            patience,
            deadline: now.plus(patience),
            attempt: 0,
            asking: None,
        };
        self.timers
            .insert((session.deadline, Due::Deadline(ticket)));
        self.sessions.insert(ticket, session);
        self.advance(&repl, now, out);
    }

    /// The session is over, however it ended: nothing of it stays, and nobody waits for it.
    fn end(&mut self, ticket: Ticket, now: BootTime, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.remove(&ticket) else {
            return;
        };
        self.timers
            .remove(&(session.deadline, Due::Deadline(ticket)));
        if let Some(route) = self.routes.get_mut(&session.repl) {
            route.waiting.remove(&ticket);
            route.sessions -= 1;
            if route.sessions == 0
                && let Some(route) = self.routes.remove(&session.repl)
            {
                self.memory.keep(session.repl, route);
            }
        }
        if let Some(asking) = session.asking {
            out.push(Effect::Drop { ticket });
            if let Some(outage) = self.outages.get_mut(&asking.host)
                && outage.lost(&ticket)
            {
                let parked = std::mem::take(&mut outage.parked);
                self.advance_all(parked, now, out);
            }
        }
    }

    fn refuse(&mut self, ticket: Ticket, no_way: NoWay, now: BootTime, out: &mut Vec<Effect>) {
        self.end(ticket, now, out);
        out.push(Effect::Refuse { ticket, no_way });
    }

    fn refuse_waiting(
        &mut self,
        repl: &ReplId,
        no_way: &NoWay,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let waiting = self
            .routes
            .get_mut(repl)
            .map(|route| std::mem::take(&mut route.waiting));
        for ticket in waiting.into_iter().flatten() {
            self.refuse(ticket, no_way.clone(), now, out);
        }
    }

    fn too_late(&mut self, ticket: Ticket, now: BootTime, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(&ticket) else {
            return;
        };
        let repl = &session.repl;
        let seconds = session.patience.as_secs_f64();
        let last = self.routes.get(repl).and_then(|route| route.last.clone());
        let no_way = match last {
            Some(last) => NoWay {
                refusal: Refusal::new(
                    last.refusal.code,
                    format!(
                        "{repl} was not reached within {seconds} s: {}",
                        last.refusal.message
                    ),
                ),
                ..last
            },
            None => Refusal::new(
                RefusalCode::ParkTimeout,
                format!("{repl} was not ready within {seconds} s"),
            )
            .into(),
        };
        self.refuse(ticket, no_way, now, out);
    }

    // ---- the search ----

    fn advance_all(
        &mut self,
        repls: impl IntoIterator<Item = ReplId>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        for repl in repls {
            self.advance(&repl, now, out);
        }
    }

    /// Takes a repl's waiting sessions one step further, if anything may be done for them now.
    fn advance(&mut self, repl: &ReplId, now: BootTime, out: &mut Vec<Effect>) {
        let Some(route) = self.routes.get_mut(repl) else {
            return;
        };
        if route.waiting.is_empty() || route.stage == Stage::Resolving {
            return;
        }
        if now < route.not_before {
            self.timers
                .insert((route.not_before, Due::Route(repl.clone())));
            return;
        }
        match &route.stage {
            Stage::Led(lead) if is_registered(&self.hosts, &lead.host, lead.incarnation) => {
                let (lead, generation) = (lead.clone(), route.generation);
                self.ask(repl, &lead, generation, now, out);
            }
            _ => self.resolve(repl, now, out),
        }
    }

    fn resolve(&mut self, repl: &ReplId, now: BootTime, out: &mut Vec<Effect>) {
        if let Some(outage) = &mut self.store
            && let Err(wait) = outage.admit(repl.clone(), repl, now)
        {
            self.timers.extend(wait.map(|at| (at, Due::Store)));
            return;
        }
        if let Some(route) = self.routes.get_mut(repl) {
            route.stage = Stage::Resolving;
            out.push(Effect::Resolve { repl: repl.clone() });
        }
    }

    fn ask(
        &mut self,
        repl: &ReplId,
        lead: &Lead,
        generation: u32,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let (Some(host), Some(route)) = (self.hosts.get(&lead.host), self.routes.get_mut(repl))
        else {
            return;
        };
        while let Some(ticket) = route.waiting.pop_first() {
            if let Some(outage) = self.outages.get_mut(&lead.host)
                && let Err(wait) = outage.admit(ticket, repl, now)
            {
                route.waiting.insert(ticket);
                let due = Due::Host(lead.host.clone());
                self.timers.extend(wait.map(|at| (at, due)));
                return;
            }
            let Some(session) = self.sessions.get_mut(&ticket) else {
                continue;
            };
            session.attempt += 1;
            session.asking = Some(Asking {
                host: lead.host.clone(),
                incarnation: lead.incarnation,
                epoch: lead.epoch,
                generation,
            });
            out.push(Effect::Ask {
                ticket,
                attempt: session.attempt,
                host: host.clone(),
                epoch: lead.epoch,
                deadline: session.deadline,
            });
        }
    }

    /// The repl is free: sends its sessions to a host that is to claim it.
    fn place(&mut self, repl: &ReplId, now: BootTime, out: &mut Vec<Effect>) {
        let Some(route) = self.routes.get_mut(repl) else {
            return;
        };
        if let Some(host) = self.loads.place(&self.hosts, repl, &route.unwilling) {
            return route.lead_to(host.id.clone(), host.incarnation, None);
        }
        route.stage = Stage::Unknown;
        // Its room, unlike its readiness, no host tells: after this long all are asked again.
        route.not_before = now.plus(REROUTE_PAUSE_MAX);
        let nobody = if route.unwilling.is_empty() {
            Refusal::new(RefusalCode::NoHost, "no host takes new repls at the moment")
        } else {
            Refusal::new(
                RefusalCode::NoCapacity,
                "every host carries as many containers as it may",
            )
        };
        route.unwilling.clear();
        // What no host can start now, none will start for being asked again and again.
        let hopeless = route.last.take_if(|last| {
            let code = last.refusal.code;
            matches!(code, RefusalCode::StartFailed | RefusalCode::DiskFull)
        });
        match hopeless {
            Some(last) => self.refuse_waiting(repl, &last, now, out),
            None => {
                route.last.get_or_insert(nobody.into());
            }
        }
    }

    fn resolved(
        &mut self,
        repl: &ReplId,
        resolution: Resolution,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if matches!(resolution, Resolution::Failed(_)) {
            let outage = self.store.get_or_insert_with(|| Outage::begin(now));
            outage.met(repl, now);
            // Those who wait for this probe's answer wait for the next one now, whether or not this repl still does.
            self.timers.insert((outage.retry_at, Due::Store));
        }
        let woken = match resolution {
            Resolution::Failed(_) => None,
            _ => self.store.take(),
        };
        if let Some(route) = self.routes.get_mut(repl)
            && route.stage == Stage::Resolving
        {
            route.stage = Stage::Unknown;
            match resolution {
                Resolution::Owned { epoch, .. } if epoch < route.highest => route.pause(now),
                Resolution::Owned { host, epoch } => {
                    route.lead_to(host.id.clone(), host.incarnation, Some(epoch));
                    // The watch on the hosts may lag behind this read.
                    let known = self.hosts.get(&host.id);
                    if known.is_none_or(|known| known.incarnation < host.incarnation) {
                        self.hosts.insert(host.id.clone(), host);
                    }
                }
                Resolution::Free => self.place(repl, now, out),
                Resolution::Unknown => {
                    self.refuse_waiting(repl, &unknown_repl(repl).into(), now, out);
                }
                Resolution::Failed(refusal) => route.last = Some(refusal.into()),
            }
            self.advance(repl, now, out);
        }
        if let Some(outage) = woken {
            self.advance_all(outage.parked, now, out);
        }
    }

    // ---- what wakes ----

    fn hosts_changed(
        &mut self,
        hosts: BTreeMap<HostId, Host>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let before = std::mem::replace(&mut self.hosts, hosts);
        let hosts = &self.hosts;
        self.loads.retain(|id| hosts.contains_key(id));
        // Whatever is new of a host is a reason to try it again.
        self.outages
            .retain(|id, _| hosts.contains_key(id) && hosts.get(id) == before.get(id));
        for (ticket, session) in &mut self.sessions {
            let ended = session
                .asking
                .take_if(|asking| !is_registered(hosts, &asking.host, asking.incarnation));
            if let (Some(ended), Some(route)) = (ended, self.routes.get_mut(&session.repl)) {
                // A host that was robbed may be stopped: it never answers. That goes for one that was asked to find
                // out whether a host is back, too, where a read of the store had told of its next registration before.
                out.push(Effect::Drop { ticket: *ticket });
                if let Some(outage) = self.outages.get_mut(&ended.host) {
                    outage.lost(ticket);
                }
                route.waiting.insert(*ticket);
                let message = format!("the registration of {} has ended", ended.host);
                route.last = Some(NoWay {
                    refusal: Refusal::new(RefusalCode::HostUnreachable, message),
                    host: Some(ended.host),
                    epoch: ended.epoch,
                });
            }
        }
        let mut woken = vec![];
        for (repl, route) in &mut self.routes {
            if !route.waiting.is_empty() {
                route.not_before = now;
                route.unwilling.clear();
                woken.push(repl.clone());
            }
        }
        self.advance_all(woken, now, out);
    }

    fn tick(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
            && let Some((_, due)) = self.timers.pop_first()
        {
            let parked = match due {
                Due::Deadline(ticket) => {
                    self.too_late(ticket, now, out);
                    continue;
                }
                Due::Route(repl) => BTreeSet::from([repl]),
                Due::Store => self
                    .store
                    .as_mut()
                    .map_or_else(BTreeSet::new, |outage| std::mem::take(&mut outage.parked)),
                Due::Host(host) => self
                    .outages
                    .get_mut(&host)
                    .map_or_else(BTreeSet::new, |outage| std::mem::take(&mut outage.parked)),
            };
            self.advance_all(parked, now, out);
        }
    }
}

fn is_registered(hosts: &BTreeMap<HostId, Host>, host: &HostId, incarnation: Incarnation) -> bool {
    hosts
        .get(host)
        .is_some_and(|host| host.incarnation == incarnation)
}

/// There is no such repl.
pub fn unknown_repl(repl: &ReplId) -> Refusal {
    Refusal::new(
        RefusalCode::UnknownRepl,
        format!("there is no repl \"{repl}\""),
    )
}
