//! How a session gets a container: by a claim, or by the store's word that the repl is already ours.

use std::time::Duration;

use super::container::{After, Container, Phase, Ticket};
use super::refusal::{draining, fenced, no_capacity, no_keeper, not_owner};
use super::{Answer, Effect, Host, Keeper, Ownership, answer, refuse, refuse_all, stopped_all};
use crate::api::Refusal;
use crate::id::{ContainerId, Epoch, HostId, ReplId};
use crate::mutant::{EPOCH_CHECKED, removed};
use crate::time::BootTime;
use crate::wire::node::{NodeRefusal, OwnerHint};

impl Host {
    pub(super) fn open(
        &mut self,
        ticket: Ticket,
        repl: ReplId,
        epoch: Option<Epoch>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(incarnation) = self.lease.incarnation(now) else {
            if self.lease.is_fenced() || self.lease.deadline().is_some() {
                refuse(ticket, fenced(), out);
            } else {
                self.early.push((ticket, repl, epoch));
            }
            return;
        };
        if let Some(container) = self.containers.get_mut(&repl) {
            match (container.epoch, epoch) {
                (Some(mine), Some(wanted)) if is_other(mine, wanted) => {
                    refuse(ticket, other_epoch(&self.me, &repl, mine, wanted), out);
                }
                (Some(mine), _)
                    if matches!(container.phase, Phase::Running | Phase::Destroying { .. }) =>
                {
                    answer(ticket, Answer::Opened { epoch: mine }, out);
                }
                _ if container.phase == Phase::Asking && epoch.is_none() => {
                    container.claimers.push(ticket);
                }
                (_, wanted) => container.wait(ticket, wanted),
            }
            return;
        }
        if !matches!(self.keeper, Keeper::Matched) {
            // A known owner is worth waiting for; a new repl is better off elsewhere.
            match epoch {
                Some(_) => self.early.push((ticket, repl, epoch)),
                None => refuse(ticket, no_keeper(), out),
            }
            return;
        }
        let (phase, effect) = match epoch {
            Some(_) => (
                Phase::Asking,
                Effect::Ask {
                    repl: repl.clone(),
                    incarnation,
                },
            ),
            None if self.drain.is_some() => return refuse(ticket, draining(&self.me), out),
            None if self.containers.len() >= self.capacity as usize => {
                return refuse(ticket, no_capacity(&self.me, self.capacity), out);
            }
            None => (
                Phase::Claiming,
                Effect::Claim {
                    repl: repl.clone(),
                    incarnation,
                },
            ),
        };
        let mut container = Container::new(phase, None, now);
        container.wait(ticket, epoch);
        self.containers.insert(repl, container);
        out.push(effect);
    }

    pub(super) fn handed_off(
        &mut self,
        repls: Vec<(ReplId, Epoch)>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        // A message may be late by any time: only the store says whether the repls are still ours.
        let Some(incarnation) = self.lease.incarnation(now) else {
            return;
        };
        if self.keeper != Keeper::Matched {
            return;
        }
        let mut repls = repls;
        repls.retain(|(repl, _)| !self.containers.contains_key(repl));
        for (repl, _) in &repls {
            let container = Container::new(Phase::Asking, None, now);
            self.containers.insert(repl.clone(), container);
        }
        if !repls.is_empty() {
            out.push(Effect::Confirm { repls, incarnation });
        }
    }

    pub(super) fn asked(
        &mut self,
        repl: ReplId,
        ownership: Ownership,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(container) = self.containers.get_mut(&repl) else {
            return;
        };
        if container.phase != Phase::Asking {
            return;
        }
        let claimers = std::mem::take(&mut container.claimers);
        if matches!(ownership, Ownership::NotMine(_)) {
            self.owned_or_not(repl.clone(), ownership, now, out);
            for ticket in claimers {
                self.open(ticket, repl.clone(), None, now, out);
            }
        } else {
            container.waiting.extend(claimers);
            self.owned_or_not(repl, ownership, now, out);
        }
    }

    pub(super) fn claimed(
        &mut self,
        repl: ReplId,
        ownership: Ownership,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if self.phase(&repl) == Some(Phase::Claiming) {
            self.owned_or_not(repl, ownership, now, out);
        } else if let Ownership::Mine { epoch } = ownership {
            // The wish is gone, the claim came through: it was never started, so it may be released.
            if !self.containers.contains_key(&repl) && self.lease.incarnation(now).is_some() {
                let container = Container::new(Phase::Releasing, Some(epoch), now);
                self.containers.insert(repl.clone(), container);
                self.leaving.push(ContainerId { repl, epoch }, now);
            }
        }
    }

    pub(super) fn owned_or_not(
        &mut self,
        repl: ReplId,
        ownership: Ownership,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let epoch = match ownership {
            Ownership::Mine { epoch } => epoch,
            Ownership::NotMine(hint) => return self.drop_wish(&repl, &not_owner(&repl, hint), out),
            Ownership::Failed(refusal) => {
                let refusal = NodeRefusal {
                    refusal,
                    hint: None,
                };
                return self.drop_wish(&repl, &refusal, out);
            }
        };
        let target = self.drain.as_mut().map(|drain| drain.target(&repl));
        let Some(container) = self.containers.get_mut(&repl) else {
            return;
        };
        container.epoch = Some(epoch);
        for (ticket, wanted) in std::mem::take(&mut container.knowing) {
            if is_other(epoch, wanted) {
                refuse(ticket, other_epoch(&self.me, &repl, epoch, wanted), out);
            } else {
                container.waiting.push(ticket);
            }
        }
        if let Some(after) = target {
            container.after = after;
        }
        for (ticket, wanted, stop) in std::mem::take(&mut container.early_stops) {
            self.stop(ticket, repl.clone(), wanted, stop.grace, now, out);
        }
        let id = ContainerId {
            repl: repl.clone(),
            epoch,
        };
        let Some(container) = self.container(&id) else {
            return;
        };
        if container.stop.is_some() || container.after != After::Release {
            return self.give_up(id, now, out);
        }
        container.phase = Phase::Starting;
        out.push(Effect::Changed { repl });
        out.push(Effect::Start { id });
    }

    pub(super) fn drop_wish(&mut self, repl: &ReplId, why: &NodeRefusal, out: &mut Vec<Effect>) {
        if let Some(mut container) = self.containers.remove(repl) {
            refuse_all(&mut container.take_waiting(), why, out);
            stopped_all(container.take_stopping(), out);
        }
    }

    pub(super) fn started(
        &mut self,
        id: ContainerId,
        idle_timeout: Option<Duration>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(container) = self.container(&id) else {
            // Nobody wants it: it must not live.
            out.push(Effect::Kill { ids: vec![id] });
            return;
        };
        if container.phase != Phase::Starting {
            return;
        }
        container.phase = Phase::Running;
        container.started = Some(now);
        container.idle_timeout = idle_timeout;
        container.idle_since = now;
        match container.stop.take() {
            Some(stop) => self.end(&id, stop, now, out),
            None => {
                for ticket in std::mem::take(&mut container.waiting) {
                    answer(ticket, Answer::Opened { epoch: id.epoch }, out);
                }
            }
        }
        out.push(Effect::Changed { repl: id.repl });
    }

    pub(super) fn start_failed(
        &mut self,
        id: &ContainerId,
        refusal: Refusal,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if let Some(container) = self.container(id) {
            let why = NodeRefusal {
                refusal,
                hint: None,
            };
            // Whoever waits for one that the platform has ended is told where it goes, when that is known.
            if container.stop.is_none() {
                refuse_all(&mut container.waiting, &why, out);
            }
            self.remains.push(id.clone());
            self.give_up(id.clone(), now, out);
        }
    }
}

/// Whether a session came for another epoch than the owner's own.
fn is_other(mine: Epoch, wanted: Epoch) -> bool {
    mine != wanted && !removed(EPOCH_CHECKED)
}

fn other_epoch(me: &HostId, repl: &ReplId, mine: Epoch, wanted: Epoch) -> NodeRefusal {
    let hint = (mine > wanted).then(|| OwnerHint {
        host: Some(me.clone()),
        epoch: mine,
    });
    not_owner(repl, hint)
}
