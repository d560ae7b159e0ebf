//! Emptying a host: who goes where, and how long each phase took.

use std::time::Duration;

use super::container::{After, Phase, Stop, Target, Ticket};
use super::event::pick_target;
use super::{Answer, Effect, Host};
use crate::id::{ContainerId, ReplId};
use crate::time::BootTime;
use crate::wire::node::DrainReport;

/// A drain that goes on, or has ended: the host takes nothing new until it is undrained.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drain {
    began: BootTime,
    targets: Vec<Target>,
    tickets: Vec<Ticket>,
    report: DrainReport,
}

impl Drain {
    /// Where a repl goes: to the host with most room, or free if there is none.
    pub(super) fn target(&mut self, repl: &ReplId) -> After {
        pick_target(&mut self.targets, repl).map_or(After::Release, After::HandOff)
    }

    pub(super) fn died(&mut self, now: BootTime) {
        self.report.dead_ms = milliseconds(now.since(self.began));
    }

    pub(super) fn left(&mut self, handed_off: bool, now: BootTime) {
        self.report.handed_off += u32::from(handed_off);
        self.report.released_ms = milliseconds(now.since(self.began));
    }

    pub(super) fn answer(mut self, out: &mut Vec<Effect>) {
        self.answer_all(out);
    }

    fn answer_all(&mut self, out: &mut Vec<Effect>) {
        for ticket in self.tickets.drain(..) {
            out.push(Effect::Answer {
                ticket,
                answer: Answer::Drained(self.report.clone()),
            });
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Host {
    pub(super) fn drain(
        &mut self,
        ticket: Ticket,
        grace: Duration,
        targets: Vec<Target>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        if let Some(drain) = &mut self.drain {
            drain.tickets.push(ticket);
            drain.targets = targets;
        } else {
            out.push(Effect::SayDraining { draining: true });
            self.drain = Some(Drain {
                began: now,
                targets,
                tickets: vec![ticket],
                report: DrainReport {
                    containers: u32::try_from(self.containers.len()).unwrap_or(u32::MAX),
                    ..DrainReport::default()
                },
            });
        }
        self.move_all(Stop { grace }, now, out);
    }

    /// Ends every container, those with connected users first, all kills in one effect.
    fn move_all(&mut self, stop: Stop, now: BootTime, out: &mut Vec<Effect>) {
        let mut order: Vec<(u32, ContainerId)> = self
            .containers
            .iter()
            .filter(|(_, container)| {
                matches!(
                    container.phase,
                    Phase::Starting | Phase::Running | Phase::Destroying { .. }
                )
            })
            .filter_map(|(repl, container)| {
                let id = ContainerId {
                    repl: repl.clone(),
                    epoch: container.epoch?,
                };
                Some((container.sessions, id))
            })
            .collect();
        order.sort_by(|(sessions_a, a), (sessions_b, b)| sessions_b.cmp(sessions_a).then(a.cmp(b)));
        let mut kill = vec![];
        for (_, id) in order {
            let after = match &mut self.drain {
                Some(drain) => drain.target(&id.repl),
                None => return,
            };
            let Some(container) = self.container(&id) else {
                continue;
            };
            // What is being ended already, by a user or for want of one, is not started elsewhere.
            let ends = matches!(container.phase, Phase::Destroying { .. });
            if !ends && container.stopping.is_empty() && container.after == After::Release {
                container.after = after;
            }
            if stop.grace.is_zero() && container.phase != Phase::Starting {
                container.phase = Phase::Killing;
                out.push(Effect::Changed {
                    repl: id.repl.clone(),
                });
                kill.push(id);
            } else {
                self.end(&id, stop, now, out);
            }
        }
        if !kill.is_empty() {
            out.push(Effect::Kill { ids: kill });
        }
        if let Some(drain) = &mut self.drain {
            drain.report.sent_ms = milliseconds(now.since(drain.began));
        }
    }

    pub(super) fn finish_drain(&mut self, out: &mut Vec<Effect>) {
        if self.containers.is_empty()
            && let Some(drain) = &mut self.drain
        {
            drain.answer_all(out);
        }
    }
}
