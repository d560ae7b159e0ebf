//! Hosts in a world that goes wrong in every order that proptest thinks of: never two containers of one repl, never an
//! epoch twice, never into another's container, and a free repl can always be had again.

#![allow(missing_docs, clippy::unwrap_used)]

mod stage;

use std::time::Duration;

use model::timing::{CLOCK_DRIFT_PPM_MAX, FAST};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sim::client::Reads;
use sim::world::{Users, World};
use stage::{REPLS, STALENESS_MAX, quiet};

const MACHINES: usize = 3;

/// One thing that the test lets happen.
#[derive(Debug, Clone)]
enum Action {
    Advance(u64),
    Run(usize, usize, Reads, usize),
    LoseAnswer(usize, usize),
    OpenFree(usize, usize),
    OpenOwned(usize, usize),
    Stop(usize, usize, Duration),
    Drain(usize, Duration),
    Undrain(usize),
    Pause(usize, bool),
    Resume(usize),
    Crash(usize, bool),
    LoseKeeper(usize),
    StartKeeper(usize),
    Exit(usize),
    Observe(usize, usize),
    Freeze(usize),
    Thaw(usize),
    Users(Users),
}

fn act(world: &mut World, action: &Action) {
    match *action {
        Action::Advance(milliseconds) => world.advance(milliseconds),
        Action::Run(machine, which, reads, staleness) => {
            world.run_any(machine, which, (reads, staleness));
        }
        Action::LoseAnswer(machine, which) => world.lose_any(machine, which),
        Action::OpenFree(machine, repl) => world.open_free(machine, repl),
        Action::OpenOwned(machine, repl) => world.open_owned(machine, repl),
        Action::Stop(machine, repl, grace) => world.stop(machine, repl, grace),
        Action::Drain(machine, grace) => world.drain(machine, grace),
        Action::Undrain(machine) => world.undrain(machine),
        Action::Pause(machine, is_sent) => world.pause(machine, is_sent),
        Action::Resume(machine) => world.resume(machine),
        Action::Crash(machine, is_sent) => world.crash(machine, is_sent),
        Action::LoseKeeper(machine) => world.keeper_dies(machine),
        Action::StartKeeper(machine) => world.start_keeper(machine),
        Action::Exit(machine) => world.exit(machine),
        Action::Observe(machine, staleness) => world.observe_stale(machine, staleness),
        Action::Freeze(machine) => world.freeze(machine),
        Action::Thaw(machine) => world.thaw(machine),
        Action::Users(users) => world.set_users(users),
    }
}

fn action() -> impl Strategy<Value = Action> {
    let machine = || 0..MACHINES;
    let any_of_machine = || (machine(), any::<usize>());
    let repl = || (machine(), 0..REPLS);
    let stale = prop_oneof![4 => Just(0), 1 => 1..STALENESS_MAX];
    let reads = prop_oneof![4 => Just(Reads::Whole), 1 => Just(Reads::Torn)];
    let grace = |most: u64| (0..most).prop_map(Duration::from_millis);
    let run = (any_of_machine(), reads, stale.clone());
    prop_oneof![
        20 => run.prop_map(|((m, w), r, s)| Action::Run(m, w, r, s)),
        8 => (25..900_u64).prop_map(Action::Advance),
        2 => any_of_machine().prop_map(|(m, w)| Action::LoseAnswer(m, w)),
        3 => repl().prop_map(|(m, r)| Action::OpenFree(m, r)),
        3 => repl().prop_map(|(m, r)| Action::OpenOwned(m, r)),
        2 => (repl(), grace(400)).prop_map(|((m, r), g)| Action::Stop(m, r, g)),
        1 => (machine(), prop_oneof![Just(0), Just(300_u64)])
            .prop_map(|(m, g)| Action::Drain(m, Duration::from_millis(g))),
        1 => machine().prop_map(Action::Undrain),
        1 => (machine(), any::<bool>()).prop_map(|(m, s)| Action::Pause(m, s)),
        1 => machine().prop_map(Action::Resume),
        1 => (machine(), any::<bool>()).prop_map(|(m, s)| Action::Crash(m, s)),
        1 => machine().prop_map(Action::LoseKeeper),
        2 => machine().prop_map(Action::StartKeeper),
        1 => machine().prop_map(Action::Exit),
        4 => (machine(), stale).prop_map(|(m, s)| Action::Observe(m, s)),
        1 => machine().prop_map(Action::Freeze),
        1 => machine().prop_map(Action::Thaw),
        1 => prop_oneof![Just(Users::Want), Just(Users::Sleep)].prop_map(Action::Users),
    ]
}

/// The short form guards what is known: the same four hundred lives each time. The long one looks for what is not:
/// `PROPTEST_CASES` says in how many new ones.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let (cases, rng_seed) = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => (config.cases, config.rng_seed),
        None => (400, RngSeed::Fixed(1)),
    };
    ProptestConfig {
        cases,
        rng_seed,
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..config
    }
}

const HALF: u64 = CLOCK_DRIFT_PPM_MAX / 2;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn never_two_alive_and_never_stuck(
        actions in prop::collection::vec(action(), 50..400),
        slow in 1_000_000 - HALF..=1_000_000,
        fast in 1_000_000..=1_000_000 + HALF,
    ) {
        let mut world = quiet(&[slow, 1_000_000, fast]);
        for action in &actions {
            act(&mut world, action);
            prop_assert!(world.violations().is_empty(), "{:?} after {action:?}: {world:?}", world.violations());
        }
        // Whatever happened, a quiet fleet comes back, and every repl can be had.
        let patience = 2 * (FAST.hold + FAST.steal);
        for _ in 0..patience.as_millis() / 500 {
            // What was due already may still kill a keeper; its supervisor starts the next one.
            world.heal();
            world.settle(500);
        }
        prop_assert!(world.violations().is_empty(), "{:?} at last: {world:?}", world.violations());
        prop_assert_eq!((world.ready(), world.alive()), (MACHINES, REPLS), "{:?}", world);
    }
}
