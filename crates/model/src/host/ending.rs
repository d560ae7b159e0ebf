//! How a container ends, and where its repl goes: nothing is given up before death is proven.

use std::time::Duration;

use super::container::{After, Container, Phase, Stop, Ticket};
use super::refusal::{fenced, not_owner};
use super::{Effect, Host, refuse, refuse_all, stopped_all};
use crate::id::{ContainerId, Epoch, ReplId};
use crate::time::BootTime;
use crate::wire::node::OwnerHint;

impl Host {
    pub(super) fn stop(
        &mut self,
        ticket: Ticket,
        repl: ReplId,
        epoch: Epoch,
        grace: Duration,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(incarnation) = self.lease.incarnation(now) else {
            return refuse(ticket, fenced(), out);
        };
        let me = self.me.clone();
        let Some(container) = self.containers.get_mut(&repl) else {
            let mut container = Container::new(Phase::Asking, None, now);
            container.early_stops.push((ticket, epoch, Stop { grace }));
            self.containers.insert(repl.clone(), container);
            return out.push(Effect::Ask { repl, incarnation });
        };
        let Some(mine) = container.epoch else {
            return container.early_stops.push((ticket, epoch, Stop { grace }));
        };
        if mine != epoch {
            let hint = Some(OwnerHint {
                host: Some(me),
                epoch: mine,
            });
            return refuse(ticket, not_owner(&repl, hint), out);
        }
        container.stopping.push(ticket);
        if matches!(container.after, After::HandOff(_)) {
            container.after = After::Release;
        }
        self.end(&ContainerId { repl, epoch }, Stop { grace }, now, out);
    }

    /// Takes a container one step nearer to its death, as fast as `stop` says or faster.
    pub(super) fn end(
        &mut self,
        id: &ContainerId,
        stop: Stop,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(container) = self.container(id) else {
            return;
        };
        let kill_at = now.plus(stop.grace);
        match container.phase {
            Phase::Running | Phase::Destroying { .. } if stop.grace.is_zero() => {
                container.phase = Phase::Killing;
                out.push(Effect::Kill {
                    ids: vec![id.clone()],
                });
            }
            Phase::Running => {
                container.phase = Phase::Destroying { kill_at };
                out.push(Effect::Terminate { id: id.clone() });
            }
            Phase::Destroying { kill_at: before } => {
                container.phase = Phase::Destroying {
                    kill_at: before.min(kill_at),
                };
            }
            Phase::Asking | Phase::Claiming | Phase::Starting => container.stop = Some(stop),
            Phase::Killing | Phase::Releasing => return,
        }
        out.push(Effect::Changed {
            repl: id.repl.clone(),
        });
    }

    /// The container is proven dead or was never started: its repl goes where it shall.
    pub(super) fn give_up(&mut self, id: ContainerId, now: BootTime, out: &mut Vec<Effect>) {
        let Some(container) = self.container(&id) else {
            return;
        };
        if container.phase == Phase::Releasing {
            return;
        }
        container.phase = Phase::Releasing;
        out.push(Effect::Changed {
            repl: id.repl.clone(),
        });
        self.leaving.push(id, now);
    }

    pub(super) fn gone(
        &mut self,
        id: &ContainerId,
        hint: Option<OwnerHint>,
        out: &mut Vec<Effect>,
    ) {
        if self.container(id).is_none() {
            return;
        }
        let Some(mut container) = self.containers.remove(&id.repl) else {
            return;
        };
        if let Some(drain) = &mut self.drain {
            drain.left(hint.is_some());
        }
        let why = match (&container.after, hint) {
            (After::Abandon, _) => fenced(),
            (_, Some(hint)) => not_owner(&id.repl, Some(hint)),
            (_, None) => not_owner(
                &id.repl,
                Some(OwnerHint {
                    host: None,
                    epoch: id.epoch,
                }),
            ),
        };
        refuse_all(&mut container.waiting, &why, out);
        stopped_all(container.take_stopping(), out);
        out.push(Effect::Changed {
            repl: id.repl.clone(),
        });
    }
}
