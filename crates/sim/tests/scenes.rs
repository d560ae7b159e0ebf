//! Scenes with one hazard each: what would happen without the rule that answers it. Each removes no rule by itself; `scripts/mutants`
//! runs them with one removed, and then the scene of that rule must fail.

#![allow(missing_docs, clippy::unwrap_used)]

mod stage;

use std::time::Duration;

use model::timing::CLOCK_DRIFT_PPM_MAX;
use sim::client::{FRESH, Reads};
use sim::world::World;
use stage::{STALENESS_MAX, go_on, one_running, quiet};

const MACHINES: usize = 3;
/// Clocks as far apart as is allowed.
const SLOW: u64 = 1_000_000 - CLOCK_DRIFT_PPM_MAX / 2;
const FAST_CLOCK: u64 = 1_000_000 + CLOCK_DRIFT_PPM_MAX / 2;

#[test]
fn a_silent_host_is_robbed_and_its_repl_starts_elsewhere() {
    let mut world = quiet(&[1_000_000; MACHINES]);
    world.open_free(0, 0);
    go_on(&mut world, &[0, 1, 2], 3);
    assert_eq!(world.alive(), 1);
    world.pause(0, false);
    go_on(&mut world, &[1, 2], 45);
    assert!(!world.is_registered(0), "it was robbed");
    assert_eq!(world.alive(), 0, "the kernel killed it at the deadline");
    world.open_free(1, 0);
    go_on(&mut world, &[1, 2], 3);
    assert_eq!(world.alive(), 1);
    assert_eq!(world.started().count(), 2);
}

#[test]
fn a_crashed_conman_finds_its_containers_again() {
    let mut world = one_running();
    world.crash(0, false);
    go_on(&mut world, &[0], 10);
    assert_eq!((world.alive(), world.ready()), (1, 1));
    assert_eq!(world.started().count(), 1);
}

#[test]
fn a_container_that_dies_beside_a_new_conman_is_not_taken_for_alive() {
    let mut world = one_running();
    world.crash(0, false);
    world.exit(0);
    // Of the keeper's list and the death, the death comes first.
    world.run_any(0, 1, FRESH);
    go_on(&mut world, &[0], 10);
    world.open_free(0, 0);
    go_on(&mut world, &[0], 3);
    assert_eq!((world.alive(), world.ready()), (1, 1));
    assert_eq!(world.started().count(), 2);
}

#[test]
fn a_store_that_serves_the_past_hides_no_claim_from_a_new_conman() {
    let mut world = one_running();
    // Conman and its keeper are both replaced.
    world.crash(0, false);
    world.kill_keeper(0);
    for _ in 0..12 {
        world.run_any(0, 0, (Reads::Whole, STALENESS_MAX));
    }
    world.open_owned(0, 0);
    go_on(&mut world, &[0], 10);
    world.open_free(0, 0);
    go_on(&mut world, &[0], 3);
    assert_eq!(world.violations(), []);
    assert_eq!((world.alive(), world.ready()), (1, 1));
    assert_eq!(world.started().count(), 2);
}

/// The first machine has one container and has fallen silent; the others go on until they rob it, and one of them takes the repl in
/// that very moment.
fn robbed_and_claimed(world: &mut World, thieves: &[usize]) {
    be_robbed(world, 0, thieves);
    world.open_free(thieves[0], 0);
    run_all(world, thieves);
    assert_eq!(world.started().count(), 2, "the thief has it now");
    assert_eq!(world.violations(), []);
}

/// Everything that is under way on these machines gets on, at this very time.
fn run_all(world: &mut World, machines: &[usize]) {
    for machine in machines {
        while world.pending(*machine) > 0 {
            world.run(*machine, 0, FRESH);
        }
    }
}

/// Somebody opens the repl at the second machine: one container is alive, wherever.
fn opened_elsewhere_it_lives_once(world: &mut World) {
    world.open_free(1, 0);
    run_all(world, &[1]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}

/// All are registered, nobody wants a repl, and nothing is under way.
fn idle(rates_ppm: &[u64]) -> World {
    let mut world = quiet(rates_ppm);
    for machine in 0..rates_ppm.len() {
        run_all(&mut world, &[machine]);
    }
    world
}

/// A container of the first repl on the first machine.
fn running(rates_ppm: &[u64]) -> World {
    let mut world = idle(rates_ppm);
    world.open_free(0, 0);
    run_all(&mut world, &[0]);
    assert_eq!(world.alive(), 1);
    world
}

#[test]
fn a_thief_waits_until_the_kernel_has_killed() {
    robbed_and_claimed(&mut running(&[1_000_000; 2]), &[1]);
}

#[test]
fn a_thief_with_a_fast_clock_waits_for_an_owner_with_a_slow_one() {
    robbed_and_claimed(&mut running(&[SLOW, FAST_CLOCK]), &[1]);
}

#[test]
fn an_answer_that_was_long_under_way_makes_no_deadline_later() {
    let mut world = running(&[1_000_000; 2]);
    // The next renewal is committed, and its answer comes a second later.
    while world.pending(0) == 0 {
        world.advance(5);
        run_all(&mut world, &[1]);
    }
    world.run(0, 0, FRESH);
    for _ in 0..10 {
        world.advance(100);
        run_all(&mut world, &[1]);
    }
    world.run(0, 0, FRESH);
    // The new deadline is armed, and the renewal that is due again by now is never sent.
    world.run(0, 0, FRESH);
    robbed_and_claimed(&mut world, &[1]);
}

#[test]
fn who_beats_is_not_silent_however_long_ago_it_was_seen_first() {
    let mut world = running(&[1_000_000; 2]);
    go_on(&mut world, &[0, 1], 60);
    assert_eq!(world.ready(), 2);
    opened_elsewhere_it_lives_once(&mut world);
    assert_eq!(world.started().count(), 1);
}

#[test]
fn who_sees_the_past_robs_nobody_that_has_beaten_since() {
    let mut world = running(&[1_000_000; 2]);
    world.freeze(1);
    go_on(&mut world, &[0, 1], 60);
    assert_eq!(world.ready(), 2);
    opened_elsewhere_it_lives_once(&mut world);
    assert_eq!(world.started().count(), 1);
}

#[test]
fn a_repl_is_not_free_before_its_container_is_dead() {
    let mut world = running(&[1_000_000; 2]);
    world.stop(0, 0, Duration::ZERO);
    // SIGKILL is sent, and the kernel takes its time.
    world.run(0, 0, FRESH);
    world.hold(0, 0);
    run_all(&mut world, &[0]);
    opened_elsewhere_it_lives_once(&mut world);
}

#[test]
fn of_two_who_read_that_a_repl_is_free_one_has_it() {
    let mut world = idle(&[1_000_000; 2]);
    world.open_free(0, 0);
    run_all(&mut world, &[0]);
    world.open_free(1, 0);
    world.run(1, 0, FRESH);
    // The claim, on a read from before the other's.
    world.run(1, 0, (Reads::Whole, 1));
    run_all(&mut world, &[1]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}

#[test]
fn a_host_that_has_registered_since_the_read_keeps_what_it_claimed() {
    let mut world = idle(&[1_000_000; 2]);
    be_robbed(&mut world, 0, &[1]);
    come_back(&mut world, 0, &[1]);
    world.open_free(0, 0);
    run_all(&mut world, &[0]);
    world.open_free(1, 0);
    world.run(1, 0, FRESH);
    // The owner as it is, and its host as it was: from before it had registered.
    world.run(1, 0, (Reads::Torn, 2));
    run_all(&mut world, &[1]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}

/// A machine is silent until it is robbed.
fn be_robbed(world: &mut World, silent: usize, others: &[usize]) {
    world.pause(silent, false);
    while world.is_registered(silent) {
        world.advance(5);
        run_all(world, others);
    }
}

/// It goes on, and registers anew.
fn come_back(world: &mut World, silent: usize, others: &[usize]) {
    world.resume(silent);
    world.start_keeper(silent);
    while !world.is_ready(silent) {
        world.advance(5);
        run_all(world, others);
        run_all(world, &[silent]);
    }
}

#[test]
fn a_claim_of_a_registration_that_has_ended_is_not_taken_for_the_next_ones() {
    let mut world = idle(&[1_000_000; 2]);
    world.open_free(0, 0);
    world.run(0, 0, FRESH);
    world.hold(0, 0);
    be_robbed(&mut world, 0, &[1]);
    come_back(&mut world, 0, &[1]);
    world.open_free(0, 0);
    world.run(0, 0, FRESH);
    world.hold(0, 0);
    // The claim of before gets to the store, while the next registration waits for the answer to its own.
    world.let_go(0, 0);
    run_all(&mut world, &[0]);
    opened_elsewhere_it_lives_once(&mut world);
}

#[test]
fn a_read_of_the_past_starts_nothing() {
    let mut world = running(&[1_000_000; 2]);
    let id = world.started().next().unwrap().clone();
    world.stop(0, 0, Duration::ZERO);
    run_all(&mut world, &[0]);
    // A keeper that has seen no epoch.
    world.kill_keeper(0);
    run_all(&mut world, &[0]);
    world.open_free(1, 0);
    run_all(&mut world, &[1]);
    world.open_at(0, &id);
    world.run(0, 0, FRESH);
    // By a read from before its release it is still the first one's.
    world.run(0, 0, (Reads::Whole, 2));
    run_all(&mut world, &[0]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}

#[test]
fn who_was_robbed_renews_nothing_and_registers_anew() {
    let mut world = idle(&[SLOW, FAST_CLOCK]);
    // The renewal is on its way for as long as it takes the other to rob.
    while world.pending(0) == 0 {
        world.advance(5);
        run_all(&mut world, &[1]);
    }
    be_robbed(&mut world, 0, &[1]);
    world.resume(0);
    world.start_keeper(0);
    run_all(&mut world, &[0]);
    go_on(&mut world, &[0, 1], 20);
    assert!(world.is_registered(0));
    assert_eq!(world.ready(), 2);
}

#[test]
fn a_release_that_was_long_under_way_frees_nothing_of_the_next_owners() {
    let mut world = running(&[1_000_000; 2]);
    world.exit(0);
    // The death is told; the release is on its way.
    world.run(0, 0, FRESH);
    world.hold(0, 0);
    be_robbed(&mut world, 0, &[1]);
    world.open_free(1, 0);
    run_all(&mut world, &[1]);
    world.let_go(0, 0);
    come_back(&mut world, 0, &[1]);
    world.open_free(0, 0);
    run_all(&mut world, &[0]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}

#[test]
fn a_heir_that_has_registered_anew_inherits_nothing() {
    let mut world = running(&[1_000_000; 3]);
    world.drain(0, Duration::ZERO);
    // All but the hand-off to the heir that was chosen.
    let heir = loop {
        if let Some((place, heir)) = world.departure(0) {
            world.hold(0, place);
            break heir.unwrap();
        }
        if world.pending(0) == 0 {
            world.advance(5);
        } else {
            world.run(0, 0, FRESH);
        }
    };
    let others = [0, 3 - heir];
    be_robbed(&mut world, heir, &others);
    come_back(&mut world, heir, &others);
    world.let_go(0, 0);
    run_all(&mut world, &[0, heir]);
    world.open_free(3 - heir, 0);
    run_all(&mut world, &[3 - heir]);
    assert_eq!((world.violations(), world.alive()), (&[][..], 1));
}
