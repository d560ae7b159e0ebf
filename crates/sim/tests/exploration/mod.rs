//! Every schedule within a budget of faults, by stateright.
//!
//! The usual course ([`World::next`]) is one path. At each step of it the schedule may deviate: what comes next is held back,
//! its answer lost, its read stale; between two points in time a conman is stopped or crashes, a keeper dies, a machine is
//! drained, a user comes with an epoch of the past. Each deviation costs one of the budget; letting go what was held, and
//! resuming what was stopped, costs nothing, so that they may come at any later time. This bounds what is explored by how
//! much goes wrong at once, and leaves nothing out within that bound.

use std::hash::Hash;
use std::time::Duration;

use model::id::ContainerId;
use model::timing::{CLOCK_DRIFT_PPM_MAX, Timing};
use stateright::{Model, Property};

use sim::client::Reads;
use sim::world::{Conman, Users, Violation, World};

/// What is explored.
#[derive(Debug, Clone)]
pub(crate) struct Exploration {
    /// The fleet's timings.
    pub(crate) timing: Timing,
    /// How many machines.
    pub(crate) machines: usize,
    /// How many repls.
    pub(crate) repls: usize,
    /// How many deviations one schedule has at the most.
    pub(crate) faults: u8,
    /// How long a schedule is, in milliseconds.
    pub(crate) length_ms: u64,
    /// What it begins with.
    pub(crate) start: Start,
}

/// What a schedule begins with. All machines are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Every repl has its container.
    Running,
    /// No repl has one, and none is wanted but by a user of the schedule's.
    Free,
    /// The first machine was emptied, and takes repls again.
    AfterDrain,
    /// The first machine was silent, was robbed, and is back.
    AfterTheft,
}

impl Start {
    /// Each of them.
    #[allow(dead_code, reason = "one of the two tests names each start by itself")]
    pub(crate) const ALL: [Start; 4] = [
        Start::Running,
        Start::Free,
        Start::AfterDrain,
        Start::AfterTheft,
    ];
}

/// The world, and what may still go wrong in it.
#[derive(Debug, Clone, PartialEq, Hash)]
pub(crate) struct State {
    /// The world.
    pub(crate) world: World,
    faults_left: u8,
    end: u64,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// The usual.
    Next,
    /// What would come next is held back.
    Hold,
    /// What would come next is committed, and its answer lost.
    LoseAnswer,
    /// What would come next reads the store as it was so many changes ago, all of it or only in part.
    ReadStale(Reads, u8),
    /// A machine's observer sees no later beats than those of now.
    Freeze(usize),
    /// A conman is stopped; what it had sent to the store is committed now, or only later.
    Pause(usize, bool),
    /// A conman crashes; what it had sent to the store is committed, or lost.
    Crash(usize, bool),
    /// A keeper dies.
    KillKeeper(usize),
    /// A machine is drained.
    Drain(usize),
    /// The program of a machine's first container ends.
    Exit(usize),
    /// A session comes that holds a machine for the owner of this container.
    OpenAt(usize, ContainerId),
    /// A session comes that holds a machine for the one to claim a repl.
    OpenFree(usize, usize),
    /// What was held back on a machine goes on.
    LetGo(usize, usize),
    /// A stopped conman goes on.
    Resume(usize),
    /// An observer sees the present again.
    Thaw(usize),
}

/// How far back stale reads go.
const STALENESS_MAX: u8 = 3;

impl Exploration {
    /// Three clocks as far apart as is allowed, in each order: who is robbed and who robs must not matter.
    fn rates_ppm(&self) -> Vec<Vec<u64>> {
        let half = CLOCK_DRIFT_PPM_MAX / 2;
        let rates = [1_000_000 - half, 1_000_000, 1_000_000 + half];
        let rotated = |by: usize| {
            let rates = rates.iter().cycle().skip(by);
            rates.take(self.machines).copied().collect()
        };
        (0..rates.len()).map(rotated).collect()
    }

    fn begin(&self, rates_ppm: &[u64]) -> State {
        let mut world = World::new(self.timing, rates_ppm, self.repls, STALENESS_MAX.into());
        let renewals = 2 * self.timing.renew.as_millis() as u64;
        if self.start == Start::Free {
            world.set_users(Users::Sleep);
        }
        world.settle(renewals);
        match self.start {
            Start::Running | Start::Free => {}
            Start::AfterDrain => {
                world.drain(0, Duration::ZERO);
                world.settle(renewals);
                world.heal();
                world.settle(renewals);
            }
            Start::AfterTheft => {
                world.pause(0, false);
                world.settle(2 * self.timing.steal.as_millis() as u64);
                world.heal();
                world.settle(renewals);
            }
        }
        let end = world.now() + self.length_ms * 1_000_000;
        State {
            world,
            faults_left: self.faults,
            end,
        }
    }

    fn deviations(&self, world: &World, actions: &mut Vec<Action>) {
        if world.head().is_some() {
            actions.extend([Action::Hold, Action::LoseAnswer]);
            for by in 1..=STALENESS_MAX {
                actions.push(Action::ReadStale(Reads::Whole, by));
                actions.push(Action::ReadStale(Reads::Torn, by));
            }
        }
        for (number, machine) in world.machines().iter().enumerate() {
            let is_next = world.head().is_none_or(|(next, _)| next == number);
            if machine.conman() == Conman::Running && is_next {
                for is_sent in [false, true] {
                    actions.push(Action::Pause(number, is_sent));
                    actions.push(Action::Crash(number, is_sent));
                }
                actions.push(Action::KillKeeper(number));
            }
            if world.head().is_none() {
                actions.push(Action::Drain(number));
                actions.push(Action::Exit(number));
                actions.push(Action::Freeze(number));
                actions.extend((0..self.repls).map(|repl| Action::OpenFree(number, repl)));
                let past = world.started().map(|id| Action::OpenAt(number, id.clone()));
                actions.extend(past);
            }
        }
    }
}

impl Model for Exploration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let rates = self.rates_ppm();
        rates.iter().map(|rates| self.begin(rates)).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.world.now() >= state.end {
            return;
        }
        actions.push(Action::Next);
        if state.faults_left > 0 {
            self.deviations(&state.world, actions);
        }
        // Later is as good as now, as long as nothing else happens: time is what makes a difference.
        if state.world.head().is_none() {
            for (number, machine) in state.world.machines().iter().enumerate() {
                actions.extend((0..machine.held()).map(|place| Action::LetGo(number, place)));
                if machine.conman() == Conman::Paused {
                    actions.push(Action::Resume(number));
                }
                if machine.is_frozen() {
                    actions.push(Action::Thaw(number));
                }
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let world = &mut next.world;
        let is_free = matches!(
            action,
            Action::Next | Action::LetGo(..) | Action::Resume(_) | Action::Thaw(_)
        );
        match action {
            Action::Next => world.next(),
            Action::Hold => {
                let (machine, place) = world.head()?;
                world.hold(machine, place);
            }
            Action::LoseAnswer => {
                let (machine, place) = world.head()?;
                if !world.lose_answer(machine, place) {
                    return None;
                }
            }
            Action::ReadStale(reads, by) => {
                let (machine, place) = world.head()?;
                if !world.reads(machine, place) {
                    return None;
                }
                world.run(machine, place, (reads, by.into()));
            }
            Action::Freeze(machine) => world.freeze(machine),
            Action::OpenFree(machine, repl) => world.open_free(machine, repl),
            Action::Thaw(machine) => world.thaw(machine),
            Action::Pause(machine, is_sent) => world.pause(machine, is_sent),
            Action::Crash(machine, is_sent) => world.crash(machine, is_sent),
            Action::KillKeeper(machine) => world.kill_keeper(machine),
            Action::Drain(machine) => world.drain(machine, Duration::ZERO),
            Action::Exit(machine) => world.exit(machine),
            Action::OpenAt(machine, id) => world.open_at(machine, &id),
            Action::LetGo(machine, place) => world.let_go(machine, place),
            Action::Resume(machine) => world.resume(machine),
        }
        next.faults_left -= u8::from(!is_free);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn none(state: &State, is_it: impl Fn(&Violation) -> bool) -> bool {
            !state.world.violations().iter().any(is_it)
        }
        vec![
            Property::always("never two alive", |_, state| {
                none(state, |it| matches!(it, Violation::TwoAlive(_)))
            }),
            Property::always("never an epoch twice", |_, state| {
                none(state, |it| matches!(it, Violation::EpochTwice(_)))
            }),
            Property::always("never into another's container", |_, state| {
                none(state, |it| matches!(it, Violation::WrongContainer(_)))
            }),
            Property::always(
                "a free repl can be had again",
                |model: &Exploration, state: &State| {
                    state.world.now() < state.end || comes_back(model, &state.world)
                },
            ),
        ]
    }
}

/// Whether every repl has a container again once nothing goes wrong any more.
fn comes_back(exploration: &Exploration, world: &World) -> bool {
    if world.alive() == exploration.repls {
        return true;
    }
    let mut world = world.clone();
    world.heal();
    // The silence of a host, its theft, and what waits for both; twice, for good measure.
    let patience = 2 * (exploration.timing.hold + exploration.timing.steal);
    let end = world.now() + patience.as_nanos() as u64;
    while world.now() < end && world.alive() < exploration.repls {
        world.next();
    }
    world.alive() == exploration.repls
}
