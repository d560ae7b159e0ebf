//! A store, some machines, and users who want their repls: the worst that the assumptions allow.
//!
//! By default everything happens at once and in order ([`World::next`]); whoever drives the world makes it go wrong
//! by holding things back, losing answers, stopping, crashing. What is assumed, and nothing more:
//!
//! - Clocks differ in rate, by at most [`model::timing::CLOCK_DRIFT_PPM_MAX`].
//! - A kernel kills at the deadline, and takes up to [`KILL_BOUND`] until the last process is dead. Here it always does.
//! - A transaction is committed whole or not, checks the newest state, and may be committed at any time after it was
//!   sent, with its answer lost.
//!
//! Observers are as quick as can be: they see each beat at its commit, and act at the first moment that they may.

mod drive;
mod faults;
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

pub use self::machine::{Conman, Keeper, Machine, Pending};
use crate::client::{self, FRESH, Reads};
use crate::store::Store;
use model::host::{Answer, Death, Effect, Event};
use model::id::{ContainerId, Epoch, HostId, ReplId, Revision, Ticket};
use model::keys;
use model::store::{Operation, Txn};
use model::timing::{KILL_BOUND, Timing};

/// What must never happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Two containers of one repl are alive.
    TwoAlive(ReplId),
    /// A container was started at an epoch that had one before.
    EpochTwice(ContainerId),
    /// A session for one epoch was let into the container of another.
    WrongContainer(ContainerId),
}

/// Whether users open each repl that has no container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Users {
    /// At once.
    Want,
    /// Not now.
    Sleep,
}

/// The world.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Nanoseconds.
    now: u64,
    timing: Timing,
    store: Store,
    machines: Vec<Machine>,
    repls: Vec<ReplId>,
    started: BTreeSet<ContainerId>,
    /// Sessions that wait, and the epoch that each came for.
    asked: BTreeMap<Ticket, (ReplId, Option<Epoch>)>,
    next_ticket: u64,
    /// Tells two claims apart.
    nonces: u64,
    /// When each repl was last asked for: a user tries again only after time has passed.
    opened: BTreeMap<ReplId, u64>,
    /// Whether users want their repls by themselves.
    users: Users,
    violations: Vec<Violation>,
}

impl Hash for World {
    /// Everything that decides what can happen from here on. A host is hashed by its text: its report has numbers that
    /// cannot be hashed.
    fn hash<H: Hasher>(&self, state: &mut H) {
        struct Text<'a, H>(&'a mut H);
        impl<H: Hasher> std::fmt::Write for Text<'_, H> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        let _ = std::fmt::Write::write_fmt(&mut Text(state), format_args!("{self:?}"));
    }
}

impl World {
    /// `rates_ppm` has one machine's clock rate each. Machines are up, nothing is registered.
    pub fn new(timing: Timing, rates_ppm: &[u64], repls: usize, past_max: usize) -> Self {
        let mut store = Store::new(past_max);
        let repls: Vec<ReplId> = (0..repls)
            .map(|number| {
                format!("repl-{number}")
                    .parse()
                    .unwrap_or_else(|_| unreachable!())
            })
            .collect();
        let put = |repl| Operation::Put {
            key: keys::spec(repl),
            value: "{}".to_owned(),
        };
        store.commit(&Txn {
            compares: vec![],
            operations: repls.iter().map(put).collect(),
        });
        let machines = rates_ppm.iter().enumerate();
        let machines = machines.map(|(number, rate)| Machine::new(number, *rate, timing));
        let mut world = Self {
            now: 0,
            timing,
            store,
            machines: machines.collect(),
            repls,
            started: BTreeSet::new(),
            asked: BTreeMap::new(),
            next_ticket: 0,
            nonces: 0,
            opened: BTreeMap::new(),
            users: Users::Want,
            violations: vec![],
        };
        for number in 0..world.machines.len() {
            world.start_keeper(number);
        }
        world
    }

    /// Nanoseconds since the world's beginning.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What happened that must never happen.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Whether the store has a registration of this machine.
    pub fn is_registered(&self, number: usize) -> bool {
        let key = keys::host(&self.machines[number].id);
        self.store.now().contains_key(&key)
    }

    /// How many machines have a lease, a keeper, and know what they own.
    pub fn ready(&self) -> usize {
        let machines = 0..self.machines.len();
        machines.filter(|number| self.is_ready(*number)).count()
    }

    /// How much is under way on a machine.
    pub fn pending(&self, number: usize) -> usize {
        self.machines[number].pending.len()
    }

    /// Where a departure is under way, and which machine is the heir of its first repl.
    pub fn departure(&self, number: usize) -> Option<(usize, Option<usize>)> {
        let pending = self.machines[number].pending.iter().enumerate();
        pending
            .filter_map(|(place, pending)| match pending {
                Pending::Do(Effect::Depart { departures }, _) => {
                    let heir = departures.first()?.1.as_ref();
                    Some((place, heir.and_then(|heir| self.find(&heir.host))))
                }
                _ => None,
            })
            .next()
    }

    /// How many repls have a container.
    pub fn alive(&self) -> usize {
        let is_alive = |repl: &&ReplId| self.containers_of(repl) > 0;
        self.repls.iter().filter(is_alive).count()
    }

    fn containers_of(&self, repl: &ReplId) -> usize {
        let keepers = self
            .machines
            .iter()
            .filter_map(|machine| machine.keeper.as_ref());
        keepers
            .flat_map(|keeper| &keeper.alive)
            .filter(|id| id.repl == *repl)
            .count()
    }

    // ---- what happens by itself ----

    /// The machine and the place of what happens next, unless time is what comes next.
    pub fn head(&self) -> Option<(usize, usize)> {
        let next = |(number, machine): (usize, &Machine)| Some((number, machine.next_pending()?));
        self.machines.iter().enumerate().find_map(next)
    }

    /// One step of the usual course: what is under way, in order; then users, who want their repls; then time.
    pub fn next(&mut self) {
        match self.head() {
            Some((machine, place)) => self.run(machine, place, FRESH),
            None if self.users_open() => {}
            None => self.pass_time(self.now + self.timing.hold.as_nanos() as u64),
        }
    }

    /// Whether users open what has no container, from now on.
    pub fn set_users(&mut self, users: Users) {
        self.users = users;
    }

    /// Lets the usual course go on for a while.
    pub fn settle(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds * 1_000_000;
        while self.now < end {
            self.next();
        }
    }

    /// Users want every repl that has no container and was not asked for at this very time: as a gateway does, from its
    /// owner, or from the host with least if it is free.
    fn users_open(&mut self) -> bool {
        if self.users == Users::Sleep {
            return false;
        }
        let wanted = self.repls.iter().find(|repl| {
            self.opened.get(*repl) != Some(&self.now) && self.containers_of(repl) == 0
        });
        let Some(repl) = wanted.cloned() else {
            return false;
        };
        self.opened.insert(repl.clone(), self.now);
        let owner = self.live_owner(&repl);
        let host = match &owner {
            Some(owner) => self.find(&owner.record.host),
            None => (0..self.machines.len())
                .filter(|number| self.is_ready(*number))
                .min_by_key(|number| self.machines[*number].host.containers().len()),
        };
        if let Some(host) = host {
            self.open(host, repl, owner.map(|owner| owner.epoch));
        }
        true
    }

    /// Whether a machine has a lease and a keeper, knows what it owns, and takes more.
    pub fn is_ready(&self, number: usize) -> bool {
        let machine = &self.machines[number];
        machine.conman == Conman::Running
            && !machine.host.is_draining()
            && machine.host.is_ready(machine.clock(self.now))
    }

    fn live_owner(&self, repl: &ReplId) -> Option<keys::Owner> {
        let item = self.store.now().get(&keys::owner(repl))?;
        let owner = keys::read_owner(item, client::decode).ok()?;
        let host = self.store.now().get(&keys::host(&owner.record.host));
        let create = host.map_or(Revision::ABSENT, |item| item.create);
        keys::freedom(Some(&owner), create)
            .is_none()
            .then_some(owner)
    }

    /// Time passes, and nothing that is under way gets on: kernels kill, and whoever runs is woken.
    pub fn advance(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds * 1_000_000;
        while self.now < end {
            let before = self.now;
            self.pass_time(end);
            if self.now == before {
                // What is due waits for what does not get on.
                self.now = end.min(before + 1_000_000);
            }
        }
    }

    /// Time goes to the next point at which anything is due on any machine, and no further than `end`.
    fn pass_time(&mut self, end: u64) {
        let mut due = end;
        for machine in &self.machines {
            if machine.conman == Conman::Running {
                let wakeup = machine.host.wakeup().map(|at| machine.world_time(at.0));
                let theft = machine.observer.due().map(|at| machine.world_time(at.0));
                due = due.min(wakeup.unwrap_or(due)).min(theft.unwrap_or(due));
            }
            due = due.min(kernel_kills(machine).unwrap_or(due));
        }
        // What is due now, or was due when its conman was stopped, is done below.
        self.now = due.max(self.now);
        for number in 0..self.machines.len() {
            let machine = &self.machines[number];
            if kernel_kills(machine).is_some_and(|at| at <= self.now) {
                self.keeper_dies(number);
            }
            let machine = &self.machines[number];
            if machine.conman == Conman::Running {
                let clock = machine.clock(self.now);
                if machine.host.wakeup().is_some_and(|at| at <= clock) {
                    self.tell(number, Event::Tick);
                }
                self.observe(number, 0);
            }
        }
    }

    fn tell(&mut self, number: usize, event: Event) {
        let machine = &mut self.machines[number];
        let now = machine.clock(self.now);
        for effect in machine.host.step(event, now) {
            match effect {
                Effect::Kill { ids } => {
                    let dying = ids.into_iter().map(Pending::Die);
                    self.machines[number].pending.extend(dying);
                }
                Effect::Answer { ticket, answer } => self.answered(ticket, &answer),
                Effect::Changed { .. } | Effect::Cleanup { .. } | Effect::Reached { .. } => {}
                other => self.machines[number].pending.push(Pending::Do(other, now)),
            }
        }
    }

    fn answered(&mut self, ticket: Ticket, answer: &Answer) {
        let Some((repl, wanted)) = self.asked.remove(&ticket) else {
            return;
        };
        if let Answer::Opened { epoch } = answer
            && wanted.is_some_and(|wanted| wanted != *epoch)
        {
            let id = ContainerId {
                repl,
                epoch: *epoch,
            };
            self.violations.push(Violation::WrongContainer(id));
        }
    }

    /// Carries out one thing that is under way. Reads of the store see it as it was so many changes ago.
    pub fn run(&mut self, number: usize, place: usize, reads: (Reads, usize)) {
        match self.machines[number].pending.remove(place) {
            Pending::Tell(event) => self.tell(number, event),
            Pending::Die(id) => self.dies(number, &id, Death::Program),
            Pending::Do(effect, sent) => {
                let results = self.perform(number, effect, sent, reads);
                let results = results.into_iter().map(Pending::Tell);
                self.machines[number].pending.extend(results);
            }
        }
    }

    fn dies(&mut self, number: usize, id: &ContainerId, death: Death) {
        let machine = &mut self.machines[number];
        let keeper = machine.keeper.as_mut();
        if keeper.is_some_and(|keeper| keeper.alive.remove(id)) {
            let id = id.clone();
            machine
                .pending
                .push(Pending::Tell(Event::Dead { id, death }));
        }
    }

    fn lives(&mut self, id: &ContainerId) {
        if !self.started.insert(id.clone()) {
            self.violations.push(Violation::EpochTwice(id.clone()));
        }
        if self.containers_of(&id.repl) > 1 {
            self.violations.push(Violation::TwoAlive(id.repl.clone()));
        }
    }

    fn find(&self, host: &HostId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == *host)
    }
}

/// When the kernel is done with what the keeper's deadline kills, on the world's clock: as late as is allowed.
fn kernel_kills(machine: &Machine) -> Option<u64> {
    let deadline = machine.keeper.as_ref()?.book.deadline()?;
    Some(machine.world_time(deadline.plus(KILL_BOUND).0))
}
