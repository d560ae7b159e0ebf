//! One host: its lease, its containers, its draining. Everything that decides whether a container may
//! live is in here; everything that takes time is an effect.
//!
//! The happy path: `Keeper` (what runs already) → join the lease → `Claims` (what the store says is
//! ours): containers with a claim are adopted, claims without a container are released, containers without
//! a claim are killed. From then on sessions `Open`, which claims, starts and answers.
//!
//! **Invariants.** `Start` only for an epoch that a committed transaction gave to this registration.
//! `Depart` only after `Dead`, or when it was never started. Nothing is opened past
//! the deadline. Each ticket is answered exactly once, unless its repl's wait ends with the process.

pub mod container;
mod drain;
mod ending;
pub mod event;
mod leaving;
mod refusal;
mod session;

use std::collections::BTreeMap;
use std::time::Duration;

use self::container::{After, Container, Phase, Stop, Ticket};
use self::drain::Drain;
pub use self::event::{Answer, Claim, Death, DrainOrder, Effect, Event, Ownership};
use self::leaving::Leaving;
use self::refusal::{exited_at_once, fenced};
use crate::id::{ContainerId, Epoch, HostId, Incarnation, ReplId};
use crate::lease::{Lease, LeaseEffect, LeaseEvent};
use crate::mutant::{DEAD_NOT_ADOPTED, ORPHANS_KILLED, RELEASE_AFTER_DEATH, removed};
use crate::time::BootTime;
use crate::timing::Timing;
use crate::wire::node::NodeRefusal;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Keeper {
    /// Nothing can be started; nothing is known of what runs. The list of the one that comes may be older than these deaths.
    Absent { died: Vec<ContainerId> },
    /// It is there; what it held when it came is not matched with the store yet.
    Unmatched(Vec<(ContainerId, BootTime)>),
    /// It is there, and everything in it has a claim or is being killed.
    Matched,
}

/// One host, as a state machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    me: HostId,
    capacity: u32,
    lease: Lease,
    keeper: Keeper,
    containers: BTreeMap<ReplId, Container>,
    drain: Option<Drain>,
    leaving: Leaving,
    /// The dead that are not cleaned up after yet.
    remains: Vec<ContainerId>,
    /// Sessions that came before the host knew what it owns.
    early: Vec<(Ticket, ReplId, Option<Epoch>)>,
}

impl Host {
    /// A host that knows nothing yet and has no lease.
    pub fn new(me: HostId, capacity: u32, timing: Timing) -> Self {
        Self {
            me,
            capacity,
            lease: Lease::new(timing),
            keeper: Keeper::Absent { died: vec![] },
            containers: BTreeMap::new(),
            drain: None,
            leaving: Leaving::default(),
            remains: vec![],
            early: vec![],
        }
    }

    /// Its name.
    pub fn id(&self) -> &HostId {
        &self.me
    }

    /// Its lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Its containers.
    pub fn containers(&self) -> &BTreeMap<ReplId, Container> {
        &self.containers
    }

    /// Whether it takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether it has a lease, a keeper, and knows what it owns.
    pub fn is_ready(&self, now: BootTime) -> bool {
        self.keeper == Keeper::Matched && self.lease.incarnation(now).is_some()
    }

    /// When the next [`Event::Tick`] is due.
    pub fn wakeup(&self) -> Option<BootTime> {
        self.containers
            .values()
            .filter_map(Container::wakeup)
            .chain(self.lease.wakeup())
            .chain(self.drain.as_ref().and_then(Drain::wakeup))
            .chain(self.leaving.gathers_until())
            .min()
    }

    /// Takes one event; what is to be done comes back.
    pub fn step(&mut self, event: Event, now: BootTime) -> Vec<Effect> {
        let mut out = vec![];
        self.apply(event, now, &mut out);
        if removed(RELEASE_AFTER_DEATH) {
            self.believe_the_killed_dead(now, &mut out);
        }
        self.settle(now, &mut out);
        out
    }

    fn apply(&mut self, event: Event, now: BootTime, out: &mut Vec<Effect>) {
        match event {
            Event::Keeper { running } => self.keeper_came(running, now, out),
            Event::KeeperLost => self.keeper = Keeper::Absent { died: vec![] },
            Event::Lease(event) => self.lease_step(event, now, out),
            Event::Claims {
                incarnation,
                claims,
            } => self.match_claims(incarnation, &claims, now, out),
            Event::Open {
                ticket,
                repl,
                epoch,
            } => self.open(ticket, repl, epoch, now, out),
            Event::HandedOff { repls } => self.handed_off(repls, now, out),
            Event::Sessions { id, count } => {
                if let Some(container) = self.container(&id)
                    && container.sessions != count
                {
                    container.sessions = count;
                    container.idle_since = now;
                    out.push(Effect::Changed { repl: id.repl });
                }
            }
            Event::Stop {
                ticket,
                repl,
                epoch,
                grace,
            } => self.stop(ticket, repl, epoch, grace, now, out),
            Event::Drain { ticket, order } => self.drain(ticket, order, now, out),
            Event::Undrain => self.undrain(out),
            Event::SaidDraining => self.closed(now, out),
            Event::Targets { targets } => self.choose_heirs(targets, now, out),
            Event::Told => self.told(now, out),
            Event::HeardOf { count, started } => self.heard_of(count, started),
            Event::Asked { repl, ownership } => self.asked(repl, ownership, now, out),
            Event::Claimed { repl, ownership } => self.claimed(repl, ownership, now, out),
            Event::Started { id, idle_timeout } => self.started(id, idle_timeout, now, out),
            Event::StartFailed { id, refusal } => self.start_failed(&id, refusal, now, out),
            Event::Dead { id, death } => {
                self.strike(&id);
                if let Some(container) = self.container(&id) {
                    // Nobody but its own program has ended it: starting it again would change nothing.
                    if container.phase == Phase::Starting
                        && container.stop.is_none()
                        && death == Death::Program
                    {
                        refuse_all(&mut container.waiting, &exited_at_once(&id.repl), out);
                    }
                    self.remains.push(id.clone());
                    self.give_up(id, now, out);
                }
            }
            Event::Departed { departed } => self.departed(departed, now, out),
            Event::Tick => self.tick(now, out),
        }
    }

    // ---- lease and keeper ----

    fn keeper_came(
        &mut self,
        mut running: Vec<(ContainerId, BootTime)>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if let Keeper::Absent { died } = &self.keeper {
            running.retain(|(id, _)| !died.contains(id));
        }
        self.keeper = Keeper::Unmatched(running);
        if let (Some(incarnation), Some(deadline)) =
            (self.lease.incarnation(now), self.lease.deadline())
        {
            out.push(Effect::Lease(LeaseEffect::Arm { deadline }));
            out.push(Effect::ReadClaims { incarnation });
        }
    }

    /// A death and the keeper's list come by different ways: whoever has died is not adopted, whichever comes first.
    fn strike(&mut self, dead: &ContainerId) {
        match &mut self.keeper {
            _ if removed(DEAD_NOT_ADOPTED) => {}
            Keeper::Absent { died } => died.push(dead.clone()),
            Keeper::Unmatched(running) => running.retain(|(id, _)| id != dead),
            Keeper::Matched => {}
        }
    }

    fn lease_step(&mut self, event: LeaseEvent, now: BootTime, out: &mut Vec<Effect>) {
        let before = self.lease.incarnation(now);
        for effect in self.lease.step(event, now) {
            match effect {
                LeaseEffect::Fence { .. } => self.fence(out),
                other => out.push(Effect::Lease(other)),
            }
        }
        // Joined, or held again by an answer that came after the deadline it moves: what came meanwhile was not matched.
        if before.is_none()
            && self.keeper != Keeper::Matched
            && let Some(incarnation) = self.lease.incarnation(now)
        {
            out.push(Effect::ReadClaims { incarnation });
        }
    }

    /// After each event: the dead leave; a lost lease whose containers are all gone may be joined anew.
    fn settle(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        self.send_leaving(now, out);
        if self.lease.is_fenced() && self.containers.is_empty() {
            self.lease_step(LeaseEvent::Emptied, now, out);
            // The keeper holds nothing of ours any more, whatever it held when it came.
            if self.keeper == Keeper::Matched {
                self.keeper = Keeper::Unmatched(vec![]);
            }
        }
        let is_absent = matches!(self.keeper, Keeper::Absent { .. });
        if !is_absent && self.lease.deadline().is_none() {
            // No effect unless the lease is down.
            self.lease_step(LeaseEvent::Join, now, out);
        }
        self.settle_drain(now, out);
        self.clean_up(out);
    }

    /// Cleaning up is for nobody who waits: it must not take the machine from deaths and from starts elsewhere, so it
    /// comes after the repls have left, and after a drain as a whole.
    fn clean_up(&mut self, out: &mut Vec<Effect>) {
        if self.drain.as_ref().is_some_and(|drain| !drain.is_over()) {
            return;
        }
        let mut remains = std::mem::take(&mut self.remains);
        remains.retain(|id| {
            let leaves = self.container(id).is_some();
            if !leaves {
                out.push(Effect::Cleanup { id: id.clone() });
            }
            leaves
        });
        self.remains = remains;
    }

    fn fence(&mut self, out: &mut Vec<Effect>) {
        let mut kill = vec![];
        let mut forget = vec![];
        for (repl, container) in &mut self.containers {
            container.after = After::Abandon;
            refuse_all(&mut container.take_waiting(), &fenced(), out);
            refuse_all(&mut container.claimers, &fenced(), out);
            match (container.phase, container.epoch) {
                (Phase::Asking | Phase::Claiming, _) | (_, None) => forget.push(repl.clone()),
                (Phase::Starting, _) => {
                    container.stop = Some(Stop {
                        grace: Duration::ZERO,
                    });
                }
                (Phase::Releasing, _) => {}
                (Phase::Running | Phase::Destroying { .. } | Phase::Killing, Some(epoch)) => {
                    container.phase = Phase::Killing;
                    kill.push(ContainerId {
                        repl: repl.clone(),
                        epoch,
                    });
                    out.push(Effect::Changed { repl: repl.clone() });
                }
            }
        }
        if !kill.is_empty() {
            out.push(Effect::Kill { ids: kill });
        }
        for repl in forget {
            if let Some(mut container) = self.containers.remove(&repl) {
                stopped_all(container.take_stopping(), out);
            }
        }
    }

    fn match_claims(
        &mut self,
        incarnation: Incarnation,
        claims: &[Claim],
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if self.lease.incarnation(now) != Some(incarnation) {
            return;
        }
        // A keeper that went meanwhile has taken everything along, and nothing can be started without one.
        let Keeper::Unmatched(running) = &mut self.keeper else {
            return;
        };
        let running = std::mem::take(running);
        self.keeper = Keeper::Matched;
        let mut kill = vec![];
        for (id, started) in &running {
            if self.container(id).is_some() {
                continue;
            }
            let mut container = Container::new(Phase::Running, Some(id.epoch), now);
            container.started = Some(*started);
            match claims.iter().find(|claim| claim.id == *id) {
                Some(claim) => container.idle_timeout = claim.idle_timeout,
                None if removed(ORPHANS_KILLED) => {}
                None => {
                    container.phase = Phase::Killing;
                    container.after = After::Abandon;
                    kill.push(id.clone());
                }
            }
            self.containers.insert(id.repl.clone(), container);
            out.push(Effect::Changed {
                repl: id.repl.clone(),
            });
        }
        if !kill.is_empty() {
            out.push(Effect::Kill { ids: kill });
        }
        for claim in claims {
            // Whatever is in the map has its own way to its end.
            if !self.containers.contains_key(&claim.id.repl) {
                let container = Container::new(Phase::Releasing, Some(claim.id.epoch), now);
                self.containers.insert(claim.id.repl.clone(), container);
                self.leaving.push(claim.id.clone(), now);
            }
        }
        for (ticket, repl, epoch) in std::mem::take(&mut self.early) {
            self.open(ticket, repl, epoch, now, out);
        }
    }

    fn tick(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        self.lease_step(LeaseEvent::Tick, now, out);
        let mut kill = vec![];
        let mut idle = vec![];
        for (repl, container) in &mut self.containers {
            let Some(epoch) = container.epoch else {
                continue;
            };
            let id = ContainerId {
                repl: repl.clone(),
                epoch,
            };
            match container.phase {
                Phase::Destroying { kill_at } if now >= kill_at => {
                    container.phase = Phase::Killing;
                    out.push(Effect::Changed { repl: repl.clone() });
                    kill.push(id);
                }
                _ if container.idle_at().is_some_and(|at| now >= at) => idle.push(id),
                _ => {}
            }
        }
        if !kill.is_empty() {
            out.push(Effect::Kill { ids: kill });
        }
        for id in idle {
            let grace = crate::timing::DESTROY_GRACE;
            self.end(&id, Stop { grace }, now, out);
        }
    }

    /// What a host without the rule would do.
    fn believe_the_killed_dead(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let killed = out.iter().filter_map(|effect| match effect {
            Effect::Kill { ids } => Some(ids.clone()),
            _ => None,
        });
        for id in killed.flatten().collect::<Vec<_>>() {
            let death = Death::Program;
            self.apply(Event::Dead { id, death }, now, out);
        }
    }

    // ---- small things ----

    fn container(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.containers
            .get_mut(&id.repl)
            .filter(|container| container.epoch == Some(id.epoch))
    }

    fn phase(&self, repl: &ReplId) -> Option<Phase> {
        self.containers.get(repl).map(|container| container.phase)
    }
}

fn answer(ticket: Ticket, answer: Answer, out: &mut Vec<Effect>) {
    out.push(Effect::Answer { ticket, answer });
}

fn refuse(ticket: Ticket, why: NodeRefusal, out: &mut Vec<Effect>) {
    answer(ticket, Answer::Refused(why), out);
}

fn refuse_all(tickets: &mut Vec<Ticket>, why: &NodeRefusal, out: &mut Vec<Effect>) {
    for ticket in tickets.drain(..) {
        refuse(ticket, why.clone(), out);
    }
}

fn stopped_all(tickets: Vec<Ticket>, out: &mut Vec<Effect>) {
    for ticket in tickets {
        answer(ticket, Answer::Stopped, out);
    }
}
