//! What a host makes of the containers that its keeper holds already, and of who comes before it knows what it owns.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use model::host::container::{Phase, Ticket};
use model::host::{Answer, Claim, Death, Effect, Event, Host, Ownership};
use model::id::{ContainerId, Epoch, Incarnation};
use model::lease::{LeaseEffect, LeaseEvent};
use model::time::BootTime;
use model::timing::FAST;

const NOW: BootTime = BootTime(1_000_000_000);
const MINE: Incarnation = Incarnation(1);

fn id() -> ContainerId {
    ContainerId {
        repl: "a".parse().unwrap(),
        epoch: Epoch(10),
    }
}

/// The events that a new conman hears of a container that was there before it.
fn listed() -> Event {
    Event::Keeper {
        running: vec![(id(), NOW)],
    }
}

fn joined() -> Event {
    Event::Lease(LeaseEvent::Joined {
        incarnation: MINE,
        sent: NOW,
    })
}

fn claims() -> Event {
    Event::Claims {
        incarnation: MINE,
        claims: vec![Claim {
            id: id(),
            idle_timeout: None,
        }],
    }
}

fn dead() -> Event {
    Event::Dead {
        id: id(),
        death: Death::Program,
    }
}

fn run(events: impl IntoIterator<Item = Event>) -> (Host, Vec<Effect>) {
    let mut host = Host::new("me".parse().unwrap(), 8, FAST);
    let mut effects = vec![];
    for event in events {
        effects.extend(host.step(event, NOW));
    }
    (host, effects)
}

#[test]
fn what_is_alive_and_claimed_is_adopted() {
    let (mut host, _) = run([listed(), joined(), claims()]);
    assert_eq!(host.containers()[&id().repl].phase, Phase::Running);
    let open = Event::Open {
        ticket: Ticket(1),
        repl: id().repl,
        epoch: Some(id().epoch),
    };
    let answer = Answer::Opened { epoch: id().epoch };
    let opened = Effect::Answer {
        ticket: Ticket(1),
        answer,
    };
    assert!(host.step(open, NOW).contains(&opened));
}

#[test]
fn what_is_alive_and_not_claimed_is_killed() {
    let [_, _, nothing_claimed] = empty();
    let (host, effects) = run([listed(), joined(), nothing_claimed]);
    assert_eq!(host.containers()[&id().repl].phase, Phase::Killing);
    assert!(effects.contains(&Effect::Kill { ids: vec![id()] }));
}

/// The answer to a renewal comes after the deadline that it moves, and before anybody has noticed; a keeper came meanwhile.
#[test]
fn a_lease_revived_late_beside_a_new_keeper_reads_its_claims() {
    let [nothing, joined, nothing_claimed] = empty();
    let (mut host, _) = run([nothing.clone(), joined, nothing_claimed]);
    let sent = NOW.plus(FAST.renew);
    host.step(Event::Tick, sent);
    let late = NOW.plus(FAST.hold);
    host.step(Event::KeeperLost, late);
    let reads = |effects: &[Effect]| effects.contains(&Effect::ReadClaims { incarnation: MINE });
    assert!(
        !reads(&host.step(nothing, late)),
        "without a lease there is nothing to read"
    );
    let effects = host.step(Event::Lease(LeaseEvent::RenewAcked { sent }), late);
    assert!(reads(&effects), "{effects:?}");
    let deadline = sent.plus(FAST.hold);
    let armed = Effect::Lease(LeaseEffect::Arm { deadline });
    assert!(effects.contains(&armed), "{effects:?}");
}

#[test]
fn whoever_dies_while_the_host_finds_out_is_given_up_and_not_adopted() {
    let courses = [
        // The death is told by the kernel, and the list by the keeper: either may be first.
        [dead(), listed(), joined(), claims()],
        [listed(), dead(), joined(), claims()],
        [listed(), joined(), dead(), claims()],
        [listed(), joined(), claims(), dead()],
    ];
    for course in courses {
        let (host, effects) = run(course.clone());
        assert_eq!(
            host.containers()[&id().repl].phase,
            Phase::Releasing,
            "{course:?}"
        );
        let leaves = |effect: &Effect| matches!(effect, Effect::Depart { departures } if departures[0].0 == id());
        assert!(effects.iter().any(leaves), "{course:?}: {effects:?}");
    }
}

fn empty() -> [Event; 3] {
    let claims = vec![];
    let claims = Event::Claims {
        incarnation: MINE,
        claims,
    };
    let running = vec![];
    [Event::Keeper { running }, joined(), claims]
}

fn stop(epoch: Epoch) -> Event {
    Event::Stop {
        ticket: Ticket(2),
        repl: id().repl,
        epoch,
        grace: Duration::ZERO,
    }
}

/// The store says at which epoch the repl is this host's.
fn asked(epoch: Epoch) -> Event {
    Event::Asked {
        repl: id().repl,
        ownership: Ownership::Mine { epoch },
    }
}

fn starts(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Start { .. }))
}

#[test]
fn a_stop_ends_the_epoch_that_it_came_for_and_no_newer_one() {
    let (mut host, _) = run(empty());
    host.step(stop(Epoch(9)), NOW);
    let effects = host.step(asked(Epoch(10)), NOW);
    let refused = |effect: &Effect| {
        matches!(effect, Effect::Answer { ticket: Ticket(2), answer: Answer::Refused(why) }
            if why.hint.as_ref().is_some_and(|hint| hint.epoch == Epoch(10)))
    };
    assert!(effects.iter().any(refused), "{effects:?}");
    assert!(starts(&effects), "{effects:?}");

    let (mut host, _) = run(empty());
    host.step(stop(Epoch(10)), NOW);
    let effects = host.step(asked(Epoch(10)), NOW);
    assert!(!starts(&effects), "{effects:?}");
    assert_eq!(host.containers()[&id().repl].phase, Phase::Releasing);
}

#[test]
fn a_session_is_let_into_the_epoch_that_it_came_for_and_no_newer_one() {
    let (mut host, _) = run(empty());
    let open = Event::Open {
        ticket: Ticket(3),
        repl: id().repl,
        epoch: Some(Epoch(9)),
    };
    host.step(open, NOW);
    let effects = host.step(asked(Epoch(10)), NOW);
    let refused = |effect: &Effect| {
        matches!(
            effect,
            Effect::Answer {
                ticket: Ticket(3),
                answer: Answer::Refused(_)
            }
        )
    };
    assert!(effects.iter().any(refused), "{effects:?}");
}
