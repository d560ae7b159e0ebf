//! A drain by the host's machine alone: what it wants done in which order, and what it does when nobody answers.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use model::departure::Left;
use model::host::container::{Target, Ticket};
use model::host::{Answer, Death, DrainOrder, Effect, Event, Host, Ownership};
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId};
use model::lease::LeaseEvent;
use model::time::BootTime;
use model::timing::{
    DRAIN_GATHER, DRAIN_RESERVE, DRAIN_STARTED_MAX, DRAIN_TELL_MAX, FAST, OPERATOR_GRACE,
};
use model::wire::node::{DrainPhase, DrainReport};

const MINE: Incarnation = Incarnation(1);

struct Machine {
    host: Host,
    now: BootTime,
}

fn repl(number: u32) -> ReplId {
    format!("repl-{number}").parse().unwrap()
}

fn id(number: u32) -> ContainerId {
    ContainerId {
        repl: repl(number),
        epoch: Epoch(u64::from(number) + 10),
    }
}

fn target(name: &str, room: u32) -> Target {
    Target {
        host: name.parse().unwrap(),
        incarnation: Incarnation(7),
        room,
    }
}

impl Machine {
    /// A host whose containers `0..count` run; the last one has most users.
    fn with(count: u32) -> Self {
        let mut machine = Self {
            host: Host::new("me".parse().unwrap(), 1_000, FAST),
            now: BootTime(1_000_000_000),
        };
        machine.step(Event::Keeper { running: vec![] });
        let sent = machine.now;
        machine.step(Event::Lease(LeaseEvent::Joined {
            incarnation: MINE,
            sent,
        }));
        machine.step(Event::Claims {
            incarnation: MINE,
            claims: vec![],
        });
        for number in 0..count {
            machine.step(Event::Open {
                ticket: Ticket(u64::from(number)),
                repl: repl(number),
                epoch: None,
            });
            machine.claimed(number);
            machine.step(Event::Started {
                id: id(number),
                idle_timeout: None,
            });
            machine.step(Event::Sessions {
                id: id(number),
                count: number,
            });
        }
        machine
    }

    fn claimed(&mut self, number: u32) -> Vec<Effect> {
        self.step(Event::Claimed {
            repl: repl(number),
            ownership: Ownership::Mine {
                epoch: id(number).epoch,
            },
        })
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.host.step(event, self.now)
    }

    fn drain(&mut self, grace: Duration, budget: Option<Duration>) -> Vec<Effect> {
        self.step(Event::Drain {
            ticket: Ticket(900),
            order: DrainOrder { grace, budget },
        })
    }

    fn after(&mut self, by: Duration) -> Vec<Effect> {
        self.now = self.now.plus(by);
        // The lease is somebody else's test.
        let sent = self.now;
        let mut effects = self.step(Event::Lease(LeaseEvent::RenewAcked { sent }));
        effects.extend(self.step(Event::Tick));
        effects
    }

    fn dead(&mut self, number: u32) -> Vec<Effect> {
        self.step(Event::Dead {
            id: id(number),
            death: Death::Program,
        })
    }
}

fn killed(effects: &[Effect]) -> Vec<ContainerId> {
    let kills = effects.iter().filter_map(|effect| match effect {
        Effect::Kill { ids } => Some(ids.clone()),
        _ => None,
    });
    let kills: Vec<_> = kills.collect();
    assert!(kills.len() <= 1, "all kills are one effect");
    kills.concat()
}

fn departing(effects: &[Effect]) -> Vec<(ReplId, Option<HostId>)> {
    let departures = effects.iter().filter_map(|effect| match effect {
        Effect::Depart { departures } => Some(departures),
        _ => None,
    });
    departures
        .flatten()
        .map(|(id, target)| (id.repl.clone(), target.as_ref().map(|one| one.host.clone())))
        .collect()
}

fn reached(effects: &[Effect]) -> Vec<DrainPhase> {
    let phases = effects.iter().filter_map(|effect| match effect {
        Effect::Reached { phase, .. } => Some(*phase),
        _ => None,
    });
    phases.collect()
}

fn report(effects: &[Effect]) -> Option<DrainReport> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer {
            answer: Answer::Drained(report),
            ..
        } => Some(report.clone()),
        _ => None,
    })
}

#[test]
fn targets_are_told_then_all_die_at_once_and_leave_in_batches_users_first() {
    let mut machine = Machine::with(4);
    let effects = machine.drain(Duration::ZERO, None);
    assert!(effects.contains(&Effect::SayDraining { draining: true }));
    assert!(effects.contains(&Effect::ReadTargets));
    assert!(killed(&effects).is_empty());
    let targets = vec![target("one", 100), target("two", 1)];
    let effects = machine.step(Event::Targets { targets });
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Prepare { told } => Some(told.clone()),
        _ => None,
    });
    let one: HostId = "one".parse().unwrap();
    assert_eq!(
        told.unwrap(),
        [(one.clone(), vec![repl(3), repl(2), repl(1), repl(0)])]
    );
    let effects = machine.step(Event::Told);
    assert_eq!(killed(&effects), [id(3), id(2), id(1), id(0)]);
    assert_eq!(reached(&effects), [DrainPhase::Told, DrainPhase::Sent]);

    // The first death waits for others, but not for long; what dies meanwhile goes next, by its users.
    assert!(departing(&machine.dead(1)).is_empty());
    assert_eq!(machine.host.wakeup(), Some(machine.now.plus(DRAIN_GATHER)));
    let effects = machine.after(DRAIN_GATHER);
    assert_eq!(departing(&effects), [(repl(1), Some(one.clone()))]);
    assert!(departing(&machine.dead(0)).is_empty());
    assert!(departing(&machine.dead(2)).is_empty());
    let effects = machine.dead(3);
    assert_eq!(reached(&effects), [DrainPhase::Dead]);
    let departed = vec![(id(1), Left::HandedOff(Epoch(50)))];
    let effects = machine.step(Event::Departed { departed });
    let order: Vec<_> = departing(&effects)
        .into_iter()
        .map(|(repl, _)| repl)
        .collect();
    assert_eq!(order, [repl(3), repl(2), repl(0)]);

    // One heir is gone: that repl is released instead.
    let departed = vec![
        (id(3), Left::HandedOff(Epoch(51))),
        (id(2), Left::HeirGone),
        (id(0), Left::HandedOff(Epoch(51))),
    ];
    let effects = machine.step(Event::Departed { departed });
    assert_eq!(departing(&effects), [(repl(2), None)]);
    let departed = vec![(id(2), Left::Released)];
    let effects = machine.step(Event::Departed { departed });
    assert_eq!(reached(&effects), [DrainPhase::Released]);
    assert_eq!(report(&effects), None);
    machine.step(Event::HeardOf {
        count: 1,
        started: 1,
    });
    machine.now = machine.now.plus(Duration::from_millis(250));
    let effects = machine.step(Event::HeardOf {
        count: 2,
        started: 1,
    });
    assert_eq!(reached(&effects), [DrainPhase::Started]);
    // Nothing was cleaned up before, and now everything is.
    let cleaned = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Cleanup { .. }));
    assert_eq!(cleaned.count(), 4);
    let report = report(&effects).unwrap();
    assert_eq!(
        (report.containers, report.handed_off, report.started),
        (4, 3, 2)
    );
    assert_eq!((report.unfinished, report.started_ms), (0, Some(270.0)));
}

#[test]
fn a_host_alone_kills_at_once_and_frees_its_repls() {
    let mut machine = Machine::with(2);
    machine.drain(Duration::ZERO, None);
    let effects = machine.step(Event::Targets { targets: vec![] });
    assert_eq!(killed(&effects).len(), 2);
    machine.dead(0);
    // Nobody else is to come: all go, at once.
    let expected = [(repl(1), None), (repl(0), None)];
    assert_eq!(departing(&machine.dead(1)), expected);
}

#[test]
fn an_empty_host_is_drained_at_once() {
    let mut machine = Machine::with(0);
    let report = report(&machine.drain(OPERATOR_GRACE, None)).unwrap();
    assert_eq!(report.released_ms, Some(0.0));
    // The store has not said yet that the host is closed.
    assert_eq!(report.closed_ms, None);
}

#[test]
fn neither_a_silent_store_nor_a_silent_target_holds_up_the_kill() {
    for told in [false, true] {
        let mut machine = Machine::with(2);
        machine.drain(Duration::ZERO, None);
        if told {
            machine.step(Event::Targets {
                targets: vec![target("one", 9)],
            });
        }
        assert_eq!(
            machine.host.wakeup(),
            Some(machine.now.plus(DRAIN_TELL_MAX))
        );
        assert!(killed(&machine.after(DRAIN_TELL_MAX / 2)).is_empty());
        let effects = machine.after(DRAIN_TELL_MAX / 2);
        assert_eq!(killed(&effects).len(), 2);
        assert_eq!(reached(&effects), [DrainPhase::Sent]);
        let expected = told.then(|| "one".parse().unwrap());
        machine.dead(0);
        let effects = machine.after(DRAIN_GATHER);
        assert_eq!(departing(&effects), [(repl(0), expected)]);
        // What comes too late changes nothing more.
        assert!(killed(&machine.step(Event::Told)).is_empty());
    }
}

#[test]
fn one_that_does_not_die_holds_up_no_other_and_the_report_comes_when_it_is_due() {
    let budget = Duration::from_secs(30);
    let mut machine = Machine::with(2);
    machine.drain(Duration::ZERO, Some(budget));
    machine.step(Event::Targets { targets: vec![] });
    machine.dead(0);
    assert_eq!(departing(&machine.after(DRAIN_GATHER)), [(repl(0), None)]);
    let departed = vec![(id(0), Left::Released)];
    assert_eq!(report(&machine.step(Event::Departed { departed })), None);
    let report = report(&machine.after(budget)).unwrap();
    assert_eq!(report.unfinished, 1);
    assert_eq!((report.dead_ms, report.released_ms), (None, None));
    assert!(report.sent_ms.is_some());
    // And it leaves as soon as it does die.
    assert_eq!(departing(&machine.dead(1)), [(repl(1), None)]);
}

#[test]
fn a_heir_that_says_nothing_holds_up_the_report_for_a_while_only() {
    let mut machine = Machine::with(1);
    machine.drain(Duration::ZERO, None);
    machine.step(Event::Targets {
        targets: vec![target("one", 9)],
    });
    machine.step(Event::Told);
    machine.dead(0);
    let departed = vec![(id(0), Left::HandedOff(Epoch(50)))];
    assert_eq!(report(&machine.step(Event::Departed { departed })), None);
    let report = report(&machine.after(DRAIN_STARTED_MAX)).unwrap();
    assert_eq!((report.handed_off, report.started), (1, 0));
    assert!(report.released_ms.is_some() && report.started_ms.is_none());
}

#[test]
fn a_grace_is_given_within_the_budget_and_not_beyond_it() {
    let budget = DRAIN_RESERVE + Duration::from_secs(2);
    let mut machine = Machine::with(1);
    machine.drain(OPERATOR_GRACE, Some(budget));
    let effects = machine.step(Event::Targets { targets: vec![] });
    assert!(killed(&effects).is_empty());
    assert!(effects.contains(&Effect::Terminate { id: id(0) }));
    assert!(killed(&machine.after(Duration::from_secs(1))).is_empty());
    assert_eq!(killed(&machine.after(Duration::from_secs(1))), [id(0)]);
}

#[test]
fn a_notice_overtakes_an_operator() {
    let mut machine = Machine::with(1);
    machine.drain(OPERATOR_GRACE, None);
    machine.step(Event::Targets { targets: vec![] });
    let effects = machine.drain(Duration::ZERO, Some(Duration::from_secs(30)));
    assert_eq!(killed(&effects), [id(0)]);
    machine.dead(0);
    let departed = vec![(id(0), Left::Released)];
    let effects = machine.step(Event::Departed { departed });
    let answers = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Answer { .. }));
    assert_eq!(answers.count(), 2);
}

#[test]
fn what_is_claimed_or_starting_at_the_notice_goes_to_a_heir_too() {
    let mut machine = Machine::with(0);
    for number in [1, 2] {
        machine.step(Event::Open {
            ticket: Ticket(u64::from(number)),
            repl: repl(number),
            epoch: None,
        });
    }
    machine.claimed(1);
    machine.drain(Duration::ZERO, None);
    machine.step(Event::Targets {
        targets: vec![target("one", 9)],
    });
    // The one that is starting is killed where it is.
    assert_eq!(killed(&machine.step(Event::Told)), [id(1)]);
    let one: HostId = "one".parse().unwrap();
    assert_eq!(
        departing(&machine.claimed(2)),
        [(repl(2), Some(one.clone()))]
    );
    let refusal = model::api::Refusal::new(model::api::RefusalCode::StartFailed, "killed");
    machine.step(Event::StartFailed { id: id(1), refusal });
    let departed = vec![(id(2), Left::HandedOff(Epoch(60)))];
    let effects = machine.step(Event::Departed { departed });
    assert_eq!(departing(&effects), [(repl(1), Some(one))]);
    // Its session is told where to go, and not that a start has failed.
    let departed = vec![(id(1), Left::HandedOff(Epoch(61)))];
    let effects = machine.step(Event::Departed { departed });
    let hint = effects.iter().find_map(|effect| match effect {
        Effect::Answer {
            answer: Answer::Refused(refused),
            ..
        } => refused.hint.clone(),
        _ => None,
    });
    assert_eq!(hint.unwrap().epoch, Epoch(61));
}

#[test]
fn an_undrained_host_keeps_what_still_runs() {
    let mut machine = Machine::with(1);
    machine.drain(Duration::ZERO, None);
    machine.step(Event::Targets {
        targets: vec![target("one", 9)],
    });
    let effects = machine.step(Event::Undrain);
    assert!(report(&effects).is_some());
    // Its program ends by itself, later: the repl is free, and not somebody else's.
    assert_eq!(departing(&machine.dead(0)), [(repl(0), None)]);
}
