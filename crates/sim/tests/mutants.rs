//! A rule whose removal nothing catches is not proven: the same exploration with one rule removed, which
//! must find a violation. Run by `scripts/mutants`, which builds the switches in.

#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(feature = "mutants")]

use model::timing::FAST;
use sim::checker::{Exploration, Start};
use stateright::{Checker, HasDiscoveries, Model};

/// Says what the checker finds with `CONMAN_MUTANT` removed; the script judges.
#[test]
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
        for (property, path) in checker.discoveries() {
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
