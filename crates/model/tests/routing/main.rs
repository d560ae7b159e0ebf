//! The router: first scenes that read as scripts, then a small world that goes wrong in every order.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod world;

use model::api::{Refusal, RefusalCode};
use model::id::{Epoch, HostId, Incarnation};
use model::keys::HostState;
use model::routing::{Effect, Event, Joined, Resolution};
use model::wire::node::{NodeRefusal, OwnerHint};
use proptest::prelude::*;
use world::{Action, Stage, World, host_id, repl_id};

fn refused(code: RefusalCode, hint: Option<OwnerHint>) -> Result<Joined, NodeRefusal> {
    let refusal = Refusal::new(code, format!("because of {code}"));
    Err(NodeRefusal { refusal, hint })
}

fn joined(epoch: u64) -> Result<Joined, NodeRefusal> {
    Ok(Joined {
        epoch: Epoch(epoch),
        load: None,
    })
}

fn asked(effects: &[Effect]) -> Vec<(u64, HostId, Option<u64>)> {
    let ask = |effect: &_| match effect {
        Effect::Ask {
            ticket,
            host,
            epoch,
            ..
        } => Some((ticket.0, host.id.clone(), epoch.map(|epoch| epoch.0))),
        _ => None,
    };
    effects.iter().filter_map(ask).collect()
}

fn resolves(effects: &[Effect]) -> usize {
    let is_resolve = |effect: &&Effect| matches!(effect, Effect::Resolve { .. });
    effects.iter().filter(is_resolve).count()
}

#[test]
fn the_store_is_read_once_for_all_sessions_and_not_at_all_for_the_next() {
    let mut stage = Stage::new(2);
    assert_eq!(resolves(&stage.open(1)), 1);
    assert_eq!(stage.open(2), []);
    assert_eq!(stage.open(3), []);
    let asks = stage.owned(0, 7);
    let at_owner = |ticket| (ticket, host_id(0), Some(7));
    assert_eq!(asked(&asks), [1, 2, 3].map(at_owner));
    let granted = stage.answer(1, joined(7));
    assert!(matches!(
        granted[..],
        [Effect::Grant {
            epoch: Epoch(7),
            ..
        }]
    ));
    stage.answer(2, joined(7));
    stage.answer(3, joined(7));
    assert_eq!(stage.router.sessions(), 0);
    assert_eq!(asked(&stage.open(4)), [at_owner(4)]);
}

#[test]
fn a_free_repl_is_claimed_by_one_host_for_all_of_its_sessions() {
    let mut stage = Stage::new(3);
    stage.open(1);
    stage.open(2);
    let asks = stage.resolved(Resolution::Free);
    let asks = asked(&asks);
    assert_eq!(asks.len(), 2);
    assert_eq!((&asks[0].1, asks[0].2), (&asks[1].1, None));
}

#[test]
fn sessions_wait_for_a_store_that_is_away_and_one_of_them_tries_it() {
    let mut stage = Stage::new(1);
    stage.open(1);
    stage.open_other(2);
    let failed = Refusal::new(RefusalCode::StoreUnavailable, "gone fishing");
    assert_eq!(stage.resolved(Resolution::Failed(failed.clone())), []);
    assert_eq!(stage.resolved_other(Resolution::Failed(failed)), []);
    let mut tried = 0;
    while tried < 3 {
        let effects = stage.next_tick();
        // Two repls wait, one read is made.
        assert_eq!(effects.len(), 1, "{effects:?}");
        let [Effect::Resolve { repl }] = &effects[..] else {
            panic!("{effects:?}");
        };
        let resolution =
            Resolution::Failed(Refusal::new(RefusalCode::StoreUnavailable, "still away"));
        let repl = repl.clone();
        assert_eq!(stage.step(Event::Resolved { repl, resolution }), []);
        tried += 1;
    }
    let effects = stage.next_tick();
    let [Effect::Resolve { repl }] = &effects[..] else {
        panic!("{effects:?}");
    };
    let (repl, resolution) = (repl.clone(), Resolution::Free);
    let woken = stage.step(Event::Resolved { repl, resolution });
    // The one that tried goes on, and the other is woken at once.
    assert_eq!((asked(&woken).len(), resolves(&woken)), (1, 1), "{woken:?}");
}

#[test]
fn a_session_says_at_its_deadline_what_it_waited_for() {
    let mut stage = Stage::new(1);
    stage.open(1);
    let failed = Refusal::new(RefusalCode::StoreUnavailable, "gone fishing");
    stage.resolved(Resolution::Failed(failed));
    let refusal = stage.until_refused();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (
            RefusalCode::StoreUnavailable,
            "blue was not reached within 15 s: gone fishing"
        )
    );
    let mut stage = Stage::new(1);
    stage.open(1);
    let refusal = stage.until_refused();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (RefusalCode::ParkTimeout, "blue was not ready within 15 s")
    );
}

#[test]
fn a_hand_off_is_followed_by_its_hint() {
    let mut stage = Stage::new(2);
    stage.open(1);
    stage.owned(0, 7);
    let hint = OwnerHint {
        host: Some(host_id(1)),
        epoch: Epoch(9),
    };
    let effects = stage.answer(1, refused(RefusalCode::NotOwner, Some(hint)));
    assert_eq!(asked(&effects), [(1, host_id(1), Some(9))]);
    assert_eq!(resolves(&effects), 0);
}

#[test]
fn nothing_is_routed_below_the_highest_epoch_that_was_seen() {
    let mut stage = Stage::new(2);
    stage.open(1);
    stage.owned(1, 9);
    stage.answer(1, joined(9));
    let denied = |stage: &mut Stage, ticket| {
        let hint = OwnerHint {
            host: Some(host_id(0)),
            epoch: Epoch(7),
        };
        stage.answer(ticket, refused(RefusalCode::NotOwner, Some(hint)))
    };
    stage.open(2);
    // A hint to an owner of the past, then a stale read of the same.
    let effects = denied(&mut stage, 2);
    assert_eq!((asked(&effects).len(), resolves(&effects)), (0, 1));
    assert_eq!(stage.owned(0, 7), []);
    // And a host that joins the session to the container of the past.
    assert_eq!(resolves(&stage.next_tick()), 1);
    stage.resolved(Resolution::Free);
    assert_eq!(stage.answer(2, joined(7)), []);
    assert_eq!(stage.router.sessions(), 1);
}

#[test]
fn the_end_of_a_registration_frees_those_who_wait_for_a_stopped_host() {
    let mut stage = Stage::new(2);
    stage.open(1);
    stage.owned(0, 7);
    stage.hosts.remove(&host_id(0));
    let effects = stage.tell_hosts();
    assert!(matches!(
        effects[..],
        [Effect::Drop { .. }, Effect::Resolve { .. }]
    ));
    // What the stopped host says when it wakes up is worth nothing.
    assert_eq!(stage.answer_attempt(1, 1, joined(7)), []);
    let effects = stage.resolved(Resolution::Free);
    assert_eq!(asked(&effects), [(1, host_id(1), None)]);
    // Nor what was on its way while the next host was asked.
    assert_eq!(stage.answer_attempt(1, 1, joined(7)), []);
    assert_eq!(stage.router.sessions(), 1);
}

#[test]
fn the_next_one_tries_when_the_one_that_tried_has_gone() {
    let away = || Resolution::Failed(Refusal::new(RefusalCode::StoreUnavailable, "away"));
    let mut stage = Stage::new(1);
    stage.open(1);
    stage.open_other(2);
    stage.resolved(away());
    stage.resolved_other(away());
    assert_eq!(resolves(&stage.next_tick()), 1);
    stage.gone(1);
    assert_eq!(stage.resolved(away()), []);
    let tried = stage.next_tick();
    assert!(matches!(&tried[..], [Effect::Resolve { repl }] if *repl == repl_id(1)));

    let mut stage = Stage::new(1);
    for ticket in 1..=2 {
        stage.open(ticket);
    }
    stage.owned(0, 7);
    for ticket in 1..=2 {
        stage.answer(ticket, refused(RefusalCode::HostUnreachable, None));
    }
    assert_eq!(asked(&stage.next_tick()), [(1, host_id(0), Some(7))]);
    let tried = stage.gone(1);
    assert_eq!(asked(&tried), [(2, host_id(0), Some(7))]);
}

/// A read of the store tells of a host's next registration before the watch does: whoever was asking its earlier one, for
/// all who wait for it, gets no answer.
#[test]
fn the_next_one_tries_when_the_registration_that_was_tried_has_ended() {
    let mut stage = Stage::new(1);
    stage.open(1);
    stage.owned(0, 7);
    stage.answer(1, refused(RefusalCode::HostUnreachable, None));
    assert_eq!(asked(&stage.next_tick()), [(1, host_id(0), Some(7))]);
    stage.hosts.get_mut(&host_id(0)).unwrap().incarnation = Incarnation(8);
    stage.open_other(2);
    let host = stage.hosts[&host_id(0)].clone();
    let epoch = Epoch(9);
    stage.resolved_other(Resolution::Owned { host, epoch });
    let woken = stage.tell_hosts();
    assert_eq!(resolves(&woken), 1, "{woken:?}");
    assert_eq!(asked(&woken), [(2, host_id(0), Some(9))]);
}

#[test]
fn nothing_is_left_of_a_session_that_is_over() {
    let mut stage = Stage::new(1);
    stage.open(1);
    stage.open(2);
    stage.owned(0, 7);
    stage.answer(1, joined(7));
    assert!(matches!(stage.gone(2)[..], [Effect::Drop { .. }]));
    assert_eq!((stage.router.sessions(), stage.router.wakeup()), (0, None));
}

#[test]
fn a_host_that_cannot_be_reached_is_tried_by_one_session_and_wakes_all() {
    let mut stage = Stage::new(1);
    for ticket in 1..=3 {
        stage.open(ticket);
    }
    stage.owned(0, 7);
    for ticket in 1..=3 {
        assert_eq!(
            stage.answer(ticket, refused(RefusalCode::HostUnreachable, None)),
            []
        );
    }
    let probe = stage.next_tick();
    assert_eq!(asked(&probe), [(1, host_id(0), Some(7))]);
    let woken = stage.answer(1, joined(7));
    assert_eq!(
        asked(&woken),
        [(2, host_id(0), Some(7)), (3, host_id(0), Some(7))]
    );
}

#[test]
fn what_no_host_can_start_is_refused_with_its_reason() {
    let mut stage = Stage::new(2);
    stage.open(1);
    stage.resolved(Resolution::Free);
    let next = stage.answer(1, refused(RefusalCode::StartFailed, None));
    assert_eq!(asked(&next).len(), 1);
    let over = stage.answer(1, refused(RefusalCode::StartFailed, None));
    let [Effect::Refuse { no_way, .. }] = &over[..] else {
        panic!("{over:?}");
    };
    assert_eq!(no_way.refusal.message, "because of start_failed");
}

#[test]
fn a_full_fleet_is_waited_for_until_a_host_takes_repls_again() {
    let mut stage = Stage::new(1);
    stage.hosts.get_mut(&host_id(0)).unwrap().record.state = HostState::Draining;
    stage.tell_hosts();
    stage.open(1);
    assert_eq!(stage.resolved(Resolution::Free), []);
    stage.hosts.get_mut(&host_id(0)).unwrap().record.state = HostState::Active;
    assert_eq!(resolves(&stage.tell_hosts()), 1);
}

#[test]
fn what_the_users_side_says_is_passed_on_at_once() {
    let mut stage = Stage::new(1);
    stage.open(1);
    stage.owned(0, 7);
    let over = stage.answer(1, refused(RefusalCode::PortNotListening, None));
    assert!(matches!(&over[..], [Effect::Refuse { no_way, .. }]
        if no_way.refusal.code == RefusalCode::PortNotListening && no_way.epoch == Some(Epoch(7))));
    stage.open(2);
    let hint = refused(RefusalCode::NotOwner, None);
    stage.answer(2, hint);
    let over = stage.resolved(Resolution::Unknown);
    assert!(matches!(&over[..], [Effect::Refuse { no_way, .. }]
        if no_way.refusal.message == "there is no repl \"blue\""));
}

fn action() -> impl Strategy<Value = Action> {
    let host = 0..3_u8;
    let repl = 0..2_u8;
    prop_oneof![
        10 => repl.clone().prop_map(Action::Open),
        1 => any::<u8>().prop_map(Action::Gone),
        30 => any::<u8>().prop_map(Action::Run),
        6 => (1..800_u16).prop_map(Action::Advance),
        3 => (repl.clone(), host.clone()).prop_map(|(repl, host)| Action::Move(repl, host)),
        2 => repl.clone().prop_map(Action::Free),
        2 => host.clone().prop_map(Action::CutOff),
        3 => host.clone().prop_map(Action::Reach),
        1 => host.clone().prop_map(Action::Leave),
        2 => host.clone().prop_map(Action::Register),
        1 => host.clone().prop_map(Action::Drain),
        1 => Just(Action::StoreAway),
        2 => Just(Action::StoreBack),
        6 => Just(Action::TellHosts),
        1 => any::<bool>().prop_map(Action::Stale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// [`World`] checks the router's invariants at each effect; here, that nobody waits for nothing.
    #[test]
    fn every_session_ends_once_and_a_quiet_fleet_grants_all(
        actions in prop::collection::vec(action(), 1..250),
    ) {
        let mut world = World::new(3);
        for action in &actions {
            world.act(action);
        }
        world.heal();
        let waiting = world.open_tickets();
        // Long before any deadline: at most the longest pauses of a few probes.
        world.settle(4_000);
        for ticket in waiting {
            prop_assert!(world.was_granted(ticket), "{ticket:?} waits for nothing: {:#?}", world.router);
        }
        prop_assert_eq!(world.router.sessions(), 0);
    }
}
