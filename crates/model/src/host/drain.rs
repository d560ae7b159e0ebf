//! Emptying a host under one budget, from the notice until what was here runs elsewhere.
//!
//! ```text
//!           targets read, told, prepared             all dead, all left the store
//!  Telling ─────────────────────────────► Ending ───────────────────────────────► Waiting ──────────► Over
//!     │  or DRAIN_TELL_MAX is over           │                                       │  heirs' word, or
//!     │                                      │                                       │  DRAIN_STARTED_MAX is over
//!     └──────────────────────────────────────┴── the budget is over ─────────────────┴───────────────►
//! ```
//!
//! From the notice on nothing new is taken. Whatever hangs (a store that names no targets, a target that does not
//! answer, a container that does not die), the next phase begins at the end of its time. The report says which
//! phases ended, and when. What kills for certain is not here: it is the keeper's deadline.

use std::collections::BTreeMap;

use super::container::{After, Phase, Stop, Target, Ticket};
use super::event::{DrainOrder, pick_target};
use super::{Answer, Effect, Host};
use crate::id::{ContainerId, HostId, ReplId};
use crate::time::BootTime;
use crate::timing::{DRAIN_RESERVE, DRAIN_STARTED_MAX, DRAIN_TELL_MAX};
use crate::wire::node::{DrainPhase, DrainReport};

/// A drain that goes on, or has ended: the host takes nothing new until it is undrained.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drain {
    began: BootTime,
    /// When the report is due, whatever is left.
    due: BootTime,
    stop: Stop,
    step: Step,
    targets: Vec<Target>,
    tickets: Vec<Ticket>,
    /// The containers in the order in which they are to live again.
    ranks: BTreeMap<ReplId, usize>,
    /// How many are handed off, and their heirs have not said yet what became of them.
    abroad: u32,
    report: DrainReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Who takes over is being found out and told.
    Telling { until: BootTime },
    /// Everything is being ended and given up.
    Ending,
    /// The host is empty; its heirs are at work.
    Waiting { until: BootTime },
    /// The report is final.
    Over,
}

impl Drain {
    /// Where a repl goes: to the host with most room, or free if there is none.
    pub(super) fn target(&mut self, repl: &ReplId) -> After {
        pick_target(&mut self.targets, repl).map_or(After::Release, After::HandOff)
    }

    /// The repl's place in line: what was not here at the notice goes before all others.
    pub(super) fn rank(&self, repl: &ReplId) -> Option<usize> {
        self.ranks.get(repl).copied()
    }

    /// Whether its report is final.
    pub(super) fn is_over(&self) -> bool {
        self.step == Step::Over
    }

    pub(super) fn left(&mut self, handed_off: bool) {
        self.report.handed_off += u32::from(handed_off);
        self.abroad += u32::from(handed_off);
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

    /// A phase has ended, for the first time.
    fn reach(&mut self, phase: DrainPhase, now: BootTime, out: &mut Vec<Effect>) {
        let after = now.since(self.began);
        let end = self.report.end_of(phase);
        if end.is_none() {
            *end = Some(after.as_secs_f64() * 1e3);
            out.push(Effect::Reached { phase, after });
        }
    }

    pub(super) fn wakeup(&self) -> Option<BootTime> {
        match self.step {
            Step::Telling { until } | Step::Waiting { until } => Some(until.min(self.due)),
            Step::Ending => Some(self.due),
            Step::Over => None,
        }
    }

    /// A second notice may come while a drain goes on: what is sooner counts.
    fn hurry(&mut self, other: &Self) {
        self.due = self.due.min(other.due);
        self.stop.grace = self.stop.grace.min(other.stop.grace);
        self.tickets.extend(&other.tickets);
    }
}

impl Host {
    pub(super) fn drain(
        &mut self,
        ticket: Ticket,
        order: DrainOrder,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let budget = order.budget.unwrap_or(
            // Without a limit: as long as it takes when nothing hangs.
            DRAIN_TELL_MAX + order.grace + DRAIN_RESERVE,
        );
        let new = Drain {
            began: now,
            due: now.plus(budget),
            stop: Stop {
                grace: order.grace.min(budget.saturating_sub(DRAIN_RESERVE)),
            },
            step: Step::Telling {
                until: now.plus(DRAIN_TELL_MAX.min(budget / 4)),
            },
            targets: vec![],
            tickets: vec![ticket],
            ranks: BTreeMap::new(),
            abroad: 0,
            report: DrainReport {
                containers: u32::try_from(self.containers.len()).unwrap_or(u32::MAX),
                ..DrainReport::default()
            },
        };
        match &mut self.drain {
            Some(drain) if drain.step != Step::Over => {
                drain.hurry(&new);
                if drain.step == Step::Ending {
                    self.end_all(now, out);
                }
            }
            _ => {
                self.drain = Some(new);
                out.push(Effect::SayDraining { draining: true });
                if self.in_order().is_empty() {
                    self.end_all(now, out);
                } else {
                    out.push(Effect::ReadTargets);
                }
            }
        }
    }

    pub(super) fn undrain(&mut self, out: &mut Vec<Effect>) {
        let Some(drain) = self.drain.take() else {
            return;
        };
        drain.answer(out);
        // What was chosen for its end and not ended yet stays.
        for container in self.containers.values_mut() {
            if container.phase == Phase::Running && matches!(container.after, After::HandOff(_)) {
                container.after = After::Release;
            }
        }
        out.push(Effect::SayDraining { draining: false });
    }

    /// The store says that the host takes nothing new.
    pub(super) fn closed(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if let Some(drain) = &mut self.drain {
            drain.reach(DrainPhase::Closed, now, out);
        }
    }

    /// Who can take repls over: each container is given its heir, and these are told.
    pub(super) fn choose_heirs(
        &mut self,
        targets: Vec<Target>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let order = self.in_order();
        let Some(drain) = &mut self.drain else {
            return;
        };
        drain.targets = targets;
        if !matches!(drain.step, Step::Telling { .. }) {
            // Too late for what was here; what is still to come has somewhere to go.
            return;
        }
        let mut told: Vec<(HostId, Vec<ReplId>)> = vec![];
        for id in order {
            let Some(container) = self.containers.get_mut(&id.repl) else {
                continue;
            };
            // What is being ended already, by a user or for want of one, is not started elsewhere.
            let ends = matches!(container.phase, Phase::Destroying { .. })
                || container.stop.is_some()
                || !container.stopping.is_empty();
            if ends || container.after != After::Release {
                continue;
            }
            container.after = drain.target(&id.repl);
            if let After::HandOff(target) = &container.after {
                match told.iter_mut().find(|(host, _)| *host == target.host) {
                    Some((_, repls)) => repls.push(id.repl),
                    None => told.push((target.host.clone(), vec![id.repl])),
                }
            }
        }
        if told.is_empty() {
            self.told(now, out);
        } else {
            out.push(Effect::Prepare { told });
        }
    }

    /// Every heir has been told, and has prepared what it could.
    pub(super) fn told(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if let Some(drain) = &mut self.drain
            && matches!(drain.step, Step::Telling { .. })
        {
            drain.reach(DrainPhase::Told, now, out);
            self.end_all(now, out);
        }
    }

    /// Whether more of a drain's containers are about to die.
    pub(super) fn expects_deaths(&self) -> bool {
        let is_dying = |phase| matches!(phase, Phase::Killing | Phase::Destroying { .. });
        self.drain
            .as_ref()
            .is_some_and(|drain| drain.step == Step::Ending)
            && self.containers.values().any(|one| is_dying(one.phase))
    }

    /// Heirs say what became of some that were handed off.
    pub(super) fn heard_of(&mut self, count: u32, started: u32) {
        if let Some(drain) = &mut self.drain {
            drain.abroad = drain.abroad.saturating_sub(count);
            drain.report.started += started;
        }
    }

    /// What is to be ended, those with connected users first.
    fn in_order(&self) -> Vec<ContainerId> {
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
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Ends every container, all kills in one effect.
    fn end_all(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let order = self.in_order();
        let Some(drain) = &mut self.drain else {
            return;
        };
        drain.step = Step::Ending;
        for (rank, id) in order.iter().enumerate() {
            drain.ranks.entry(id.repl.clone()).or_insert(rank);
        }
        drain.reach(DrainPhase::Sent, now, out);
        let stop = drain.stop;
        let mut kill = vec![];
        for id in order {
            if !stop.grace.is_zero() {
                self.end(&id, stop, now, out);
                continue;
            }
            let Some(container) = self.container(&id) else {
                continue;
            };
            if container.phase == Phase::Starting {
                // The keeper knows it, or will hear of it only after this: then it is ended when it has started.
                container.stop = Some(stop);
            } else {
                container.phase = Phase::Killing;
                out.push(Effect::Changed {
                    repl: id.repl.clone(),
                });
            }
            kill.push(id);
        }
        if !kill.is_empty() {
            out.push(Effect::Kill { ids: kill });
        }
    }

    /// After each event: goes on where a phase has ended or its time is over.
    pub(super) fn settle_drain(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if let Some(drain) = &self.drain
            && let Step::Telling { until } = drain.step
            && now >= until
        {
            self.end_all(now, out);
        }
        let is_dead = |phase: Phase| phase == Phase::Releasing;
        let all_dead = self.containers.values().all(|one| is_dead(one.phase));
        let left = u32::try_from(self.containers.len()).unwrap_or(u32::MAX);
        let Some(drain) = &mut self.drain else {
            return;
        };
        if drain.step == Step::Ending && all_dead {
            drain.reach(DrainPhase::Dead, now, out);
        }
        if drain.step == Step::Ending && left == 0 {
            drain.reach(DrainPhase::Released, now, out);
            let until = now.plus(DRAIN_STARTED_MAX);
            drain.step = Step::Waiting { until };
        }
        if let Step::Waiting { until } = drain.step {
            if drain.abroad == 0 {
                drain.reach(DrainPhase::Started, now, out);
                drain.step = Step::Over;
            } else if now >= until {
                drain.step = Step::Over;
            }
        }
        if now >= drain.due {
            drain.step = Step::Over;
        }
        if drain.step == Step::Over {
            drain.report.unfinished = left;
            drain.answer_all(out);
        }
    }
}
