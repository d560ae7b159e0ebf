//! Hosts in a small world that goes wrong in every order that proptest thinks of: never two containers of
//! one repl, never an epoch twice, and a free repl can always be had again.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod world;

use proptest::prelude::*;
use world::{Action, World};

fn action() -> impl Strategy<Value = Action> {
    let node = 0..3_u8;
    let stale = prop_oneof![4 => Just(0_u8), 1 => 1..6_u8];
    prop_oneof![
        20 => (node.clone(), any::<u8>(), stale.clone()).prop_map(|(n, w, s)| Action::Run(n, w, s)),
        8 => (25..900_u16).prop_map(Action::Advance),
        2 => (node.clone(), any::<u8>()).prop_map(|(n, w)| Action::Lose(n, w)),
        6 => (node.clone(), 0..2_u8, any::<bool>()).prop_map(|(n, r, k)| Action::Open(n, r, k)),
        2 => (node.clone(), 0..2_u8, 0..400_u16).prop_map(|(n, r, g)| Action::Stop(n, r, g)),
        1 => (node.clone(), 0..2_u16).prop_map(|(n, g)| Action::Drain(n, g * 300)),
        1 => node.clone().prop_map(Action::Undrain),
        1 => node.clone().prop_map(Action::Pause),
        1 => node.clone().prop_map(Action::Resume),
        1 => node.clone().prop_map(Action::CrashConman),
        1 => node.clone().prop_map(Action::KillKeeper),
        2 => node.clone().prop_map(Action::StartKeeper),
        1 => node.clone().prop_map(Action::Exit),
        6 => (node, stale).prop_map(|(n, s)| Action::Observe(n, s)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn never_two_alive_and_never_stuck(
        actions in prop::collection::vec(action(), 50..400),
        slow in 995_000..=1_000_000_u64,
        fast in 1_000_000..=1_005_000_u64,
    ) {
        let mut world = World::new(&[slow, 1_000_000, fast]);
        world.settle(3);
        prop_assert_eq!(world.ready(), 3);
        for action in &actions {
            world.act(action);
        }
        // Whatever happened, a quiet fleet comes back, and every repl can be had.
        for node in 0..3 {
            world.act(&Action::Resume(node));
            world.act(&Action::Undrain(node));
        }
        world.settle(200);
        prop_assert_eq!(world.ready(), 3);
        for number in 0..2 {
            for node in 0..3 {
                world.act(&Action::Open(node, number, true));
                world.act(&Action::Open(node, number, false));
            }
        }
        world.settle(20);
        prop_assert!(world.is_alive(0) && world.is_alive(1), "a repl cannot be had {}", world.story());
    }
}

#[test]
fn a_silent_host_is_robbed_and_its_repl_starts_elsewhere() {
    let mut world = World::new(&[1_000_000; 3]);
    world.settle(3);
    world.act(&Action::Open(0, 0, false));
    world.settle(3);
    assert!(world.is_alive(0));
    world.act(&Action::Pause(0));
    for _ in 0..45 {
        world.act(&Action::Advance(100));
        for node in 1..3 {
            for _ in 0..8 {
                world.act(&Action::Run(node, 0, 0));
            }
            world.act(&Action::Observe(node, 0));
        }
    }
    assert_eq!(world.store.thefts, 1);
    assert!(!world.is_alive(0), "the kernel killed it at the deadline");
    world.act(&Action::Open(1, 0, false));
    for _ in 0..8 {
        world.act(&Action::Run(1, 0, 0));
    }
    assert!(world.is_alive(0));
    assert_eq!(world.starts, 2);
}

#[test]
fn a_crashed_conman_finds_its_containers_again() {
    let mut world = World::new(&[1_000_000]);
    world.settle(3);
    world.act(&Action::Open(0, 0, false));
    world.settle(3);
    world.act(&Action::CrashConman(0));
    world.settle(10);
    assert!(world.is_alive(0));
    assert_eq!((world.starts, world.ready()), (1, 1));
}
