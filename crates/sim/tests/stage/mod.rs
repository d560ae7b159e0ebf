//! A world for scenes and for lives: all are registered, and nobody wants a repl.

#![allow(dead_code, reason = "each of the tests uses a part of it")]

use model::timing::FAST;
use sim::client::FRESH;
use sim::world::{Users, World};

pub(crate) const REPLS: usize = 2;
pub(crate) const STALENESS_MAX: usize = 6;

/// All are registered, and nobody wants a repl.
pub(crate) fn quiet(rates_ppm: &[u64]) -> World {
    let mut world = World::new(FAST, rates_ppm, REPLS, STALENESS_MAX);
    world.set_users(Users::Sleep);
    world.settle(1_000);
    assert_eq!(world.ready(), rates_ppm.len());
    world
}

/// One round of the usual course on each machine, for `rounds` of 100 ms.
pub(crate) fn go_on(world: &mut World, machines: &[usize], rounds: usize) {
    for _ in 0..rounds {
        world.advance(100);
        for machine in machines {
            for _ in 0..8 {
                world.run_any(*machine, 0, FRESH);
            }
        }
    }
}

/// One machine, and its container runs.
pub(crate) fn one_running() -> World {
    let mut world = quiet(&[1_000_000]);
    world.open_free(0, 0);
    go_on(&mut world, &[0], 3);
    world
}
