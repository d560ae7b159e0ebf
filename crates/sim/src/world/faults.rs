//! What whoever drives the world may do: hold back, lose, stop, crash, drain, and let go again.

use std::time::Duration;

use super::machine::{self, Conman, Keeper, Pending};
use super::{Users, World};
use crate::client::Reads;
use model::host::{Death, DrainOrder, Event};
use model::id::{ContainerId, Epoch, ReplId, Ticket};
use model::keys;

impl World {
    pub(super) fn open(&mut self, number: usize, repl: ReplId, epoch: Option<Epoch>) {
        let ticket = self.ticket();
        self.asked.insert(ticket, (repl.clone(), epoch));
        let open = Event::Open {
            ticket,
            repl,
            epoch,
        };
        self.machines[number].pending.push(Pending::Tell(open));
    }

    /// A session comes that holds this machine for the one to claim a repl.
    pub fn open_free(&mut self, number: usize, repl: usize) {
        let repl = self.repls[repl].clone();
        self.open(number, repl, None);
    }

    /// A machine's observer sees the beats of now, and no later ones, until it is thawed.
    pub fn freeze(&mut self, number: usize) {
        self.machines[number].sees = Some(self.store.now().clone());
    }

    /// It sees the present again.
    pub fn thaw(&mut self, number: usize) {
        self.machines[number].sees = None;
    }

    /// A session comes that holds this machine for the owner whom the store names, if it names any.
    pub fn open_owned(&mut self, number: usize, repl: usize) {
        if let Some(id) = self.owned(repl) {
            self.open_at(number, &id);
        }
    }

    /// Somebody who knows the owner's epoch wants a repl's container ended here.
    pub fn stop(&mut self, number: usize, repl: usize, grace: Duration) {
        if let Some(ContainerId { repl, epoch }) = self.owned(repl) {
            let stop = Event::Stop {
                ticket: self.ticket(),
                repl,
                epoch,
                grace,
            };
            self.machines[number].pending.push(Pending::Tell(stop));
        }
    }

    fn owned(&self, repl: usize) -> Option<ContainerId> {
        let repl = self.repls[repl].clone();
        let item = self.store.now().get(&keys::owner(&repl))?;
        let epoch = Epoch(item.modified.0);
        Some(ContainerId { repl, epoch })
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// A session comes that holds this machine for the owner at an epoch that was there once.
    pub fn open_at(&mut self, number: usize, id: &ContainerId) {
        self.open(number, id.repl.clone(), Some(id.epoch));
    }

    /// Every container that was ever started.
    pub fn started(&self) -> impl Iterator<Item = &ContainerId> {
        self.started.iter()
    }

    /// Carries out one thing that is under way, whichever it is of those that can get on.
    pub fn run_any(&mut self, number: usize, which: usize, reads: (Reads, usize)) {
        let machine = &self.machines[number];
        let can = |place: &usize| {
            machine.conman == Conman::Running || !machine.pending[*place].is_conmans()
        };
        let places: Vec<usize> = (0..machine.pending.len()).filter(can).collect();
        if places.is_empty() {
            return;
        }
        let mut place = places[which % places.len()];
        if machine.pending[place].is_of_keeper() {
            let first = machine.pending.iter().position(Pending::is_of_keeper);
            place = first.unwrap_or(place);
        }
        self.run(number, place, reads);
    }

    /// The answer to one thing that is under way is lost, if it is of the kind that can be, and conman runs.
    pub fn lose_any(&mut self, number: usize, which: usize) {
        let machine = &self.machines[number];
        if machine.conman == Conman::Running && !machine.pending.is_empty() {
            self.lose_answer(number, which % machine.pending.len());
        }
    }

    /// Holds back what is under way, until [`World::let_go`], and what may not overtake it.
    pub fn hold(&mut self, number: usize, place: usize) {
        let machine = &mut self.machines[number];
        let pending = machine.pending.remove(place);
        let holds_channel = pending.is_of_keeper();
        machine.held.push(pending);
        if holds_channel {
            let behind = machine.pending.extract_if(.., |it| it.is_of_keeper());
            machine.held.extend(behind);
        }
    }

    /// Lets go what was held back; of a keeper's channel, what is first there.
    pub fn let_go(&mut self, number: usize, place: usize) {
        let machine = &mut self.machines[number];
        let first = machine.held.iter().position(Pending::is_of_keeper);
        let place = match first {
            Some(first) if machine.held[place].is_of_keeper() => first,
            _ => place,
        };
        let pending = machine.held.remove(place);
        machine.pending.insert(0, pending);
    }

    /// A keeper comes or goes: told after what its channel holds already.
    fn tell_of_keeper(&mut self, number: usize, event: Event) {
        let machine = &mut self.machines[number];
        let is_held = machine.held.iter().any(Pending::is_of_keeper);
        let waiting = if is_held {
            &mut machine.held
        } else {
            &mut machine.pending
        };
        waiting.push(Pending::Tell(event));
    }

    /// Stops conman. What it has sent to the store is committed now, or when it goes on; it reads the answers then.
    pub fn pause(&mut self, number: usize, is_sent: bool) {
        if is_sent {
            let answers = self.perform_sent(number).into_iter().map(Pending::Tell);
            self.machines[number].pending.extend(answers);
        }
        self.machines[number].conman = Conman::Paused;
    }

    /// Lets a stopped conman go on.
    pub fn resume(&mut self, number: usize) {
        self.machines[number].conman = Conman::Running;
    }

    /// Conman dies and comes back. What it had sent is committed, or lost.
    pub fn crash(&mut self, number: usize, is_sent: bool) {
        if is_sent {
            self.perform_sent(number);
        }
        let timing = self.timing;
        let machine = &mut self.machines[number];
        // Deaths go on without it, and nobody is told of them: the next conman asks.
        machine.pending.retain(|pending| !pending.is_conmans());
        machine.held.retain(|pending| !pending.is_conmans());
        machine.host = model::host::Host::new(machine.id.clone(), machine::CAPACITY, timing);
        machine.observer = model::observer::Observer::new(machine.id.clone(), timing);
        machine.conman = Conman::Running;
        self.keeper_connects(number);
    }

    /// Kills the keeper; its containers die with it, and its supervisor starts the next one.
    pub fn kill_keeper(&mut self, number: usize) {
        self.keeper_dies(number);
        self.start_keeper(number);
    }

    /// The keeper dies, and its containers with it.
    pub fn keeper_dies(&mut self, number: usize) {
        if let Some(keeper) = &self.machines[number].keeper {
            for id in keeper.alive.clone() {
                self.dies(number, &id, Death::WithKeeper);
            }
            let machine = &mut self.machines[number];
            machine.keeper = None;
            machine.pending.retain(|pending| pending.is_conmans());
            self.tell_of_keeper(number, Event::KeeperLost);
        }
    }

    /// Starts a keeper where there is none.
    pub fn start_keeper(&mut self, number: usize) {
        if self.machines[number].keeper.is_none() {
            self.machines[number].keeper = Some(Keeper::default());
            self.keeper_connects(number);
        }
    }

    fn keeper_connects(&mut self, number: usize) {
        let now = self.machines[number].clock(self.now);
        if let Some(keeper) = &self.machines[number].keeper {
            let running = keeper.alive.iter().map(|id| (id.clone(), now)).collect();
            self.tell_of_keeper(number, Event::Keeper { running });
        }
    }

    /// An operator, or a notice, empties the machine.
    pub fn drain(&mut self, number: usize, grace: Duration) {
        let ticket = self.ticket();
        let order = DrainOrder {
            grace,
            budget: None,
        };
        let drain = Event::Drain { ticket, order };
        self.machines[number].pending.push(Pending::Tell(drain));
    }

    /// The machine takes repls again.
    pub fn undrain(&mut self, number: usize) {
        let undrain = Pending::Tell(Event::Undrain);
        self.machines[number].pending.push(undrain);
    }

    /// A machine's observer reads the beats as they were so many changes ago.
    pub fn observe_stale(&mut self, number: usize, staleness: usize) {
        if self.machines[number].conman == Conman::Running {
            self.observe(number, staleness);
        }
    }

    /// A container's program ends by itself.
    pub fn exit(&mut self, number: usize) {
        let keeper = self.machines[number].keeper.as_ref();
        if let Some(id) = keeper.and_then(|keeper| keeper.alive.first().cloned()) {
            self.dies(number, &id, Death::Program);
        }
    }

    /// Everything that was held back, stopped or drained is so no longer, every machine has a keeper, and users
    /// want their repls.
    pub fn heal(&mut self) {
        self.set_users(Users::Want);
        for number in 0..self.machines.len() {
            // Each goes before what was let go earlier: the last first.
            while let Some(last) = self.machines[number].held.pop() {
                self.machines[number].pending.insert(0, last);
            }
            self.resume(number);
            self.thaw(number);
            self.start_keeper(number);
            self.undrain(number);
        }
    }
}
