//! A rule whose removal nothing catches is not proven: the same exploration with one rule removed, which
//! must find a violation. Run by `scripts/mutants`, which names the rule.

#![allow(missing_docs, clippy::unwrap_used)]

mod exploration;

use exploration::{Exploration, Start};
use model::timing::FAST;
use sim::fleet::plan::{Plan, Rates};
use sim::fleet::simulate;
use stateright::{Checker, HasDiscoveries, Model};

/// Says what the checker finds with `CONMAN_MUTANT` removed; the script judges.
#[test]
#[ignore = "for scripts/mutants"]
fn what_the_checker_finds() {
    let faults: u8 = std::env::var("CONMAN_FAULTS").map_or(1, |text| text.parse().unwrap());
    for start in Start::ALL {
        let exploration = Exploration {
            timing: FAST,
            machines: 3,
            repls: 2,
            faults,
            length_ms: 6_000,
            start,
        };
        let checker = exploration.checker().threads(2);
        let checker = checker.finish_when(HasDiscoveries::Any).spawn_dfs().join();
        let states = checker.unique_state_count();
        if let Some((property, path)) = checker.discoveries().into_iter().next() {
            if std::env::var_os("CONMAN_PATH").is_some() {
                println!("{:?}", path.last_state());
                println!("{:?}", path.clone().into_actions());
            }
            let steps = path.into_actions().len();
            println!(
                "FOUND {property} ({start:?}, {faults} faults, {steps} steps, {states} states)"
            );
            return;
        }
        println!("STATES {start:?} {states}");
    }
}

/// The same of the simulator: a fleet to which everything happens, from a handful of seeds.
#[test]
#[ignore = "for scripts/mutants"]
fn what_the_simulator_finds() {
    for seed in 1..=4 {
        let report = simulate(
            &Plan {
                length: std::time::Duration::from_secs(3_600),
                rates: Rates::everything(1.0),
                ..Plan::new(40, 400, seed)
            },
            |_| {},
        );
        if let Some(violation) = report.violations.first() {
            println!("FOUND {violation:?} (seed {seed})");
            return;
        }
    }
}
