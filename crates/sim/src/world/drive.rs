//! The effects of one machine, done against the world's store and its keeper.

use super::{Conman, Pending, World};
use crate::client::{self, Client, FRESH, Reads};
use crate::store::View;
use model::api::{Refusal, RefusalCode};
use model::host::{Effect, Event};
use model::id::ContainerId;
use model::keys;
use model::lease::LeaseEffect;
use model::observer::Theft;
use model::store::Txn;
use model::time::BootTime;

impl World {
    /// Does what an effect says; its results come back.
    pub(super) fn perform(
        &mut self,
        number: usize,
        effect: Effect,
        sent: BootTime,
        reads: (Reads, usize),
    ) -> Vec<Event> {
        match effect {
            Effect::Lease(LeaseEffect::Arm { deadline }) => {
                let now = self.machines[number].clock(self.now);
                if let Some(keeper) = &mut self.machines[number].keeper {
                    // A refusal is the keeper's: what it armed before holds.
                    let _ = keeper.book.arm(now, deadline);
                }
                vec![]
            }
            Effect::Start { id } => vec![self.start(number, id)],
            Effect::Prepare { .. } => vec![Event::Told],
            effect => self.perform_at_store(number, &effect, sent, reads),
        }
    }

    fn perform_at_store(
        &mut self,
        number: usize,
        effect: &Effect,
        sent: BootTime,
        reads: (Reads, usize),
    ) -> Vec<Event> {
        let before = self.store.revision();
        let machine = &mut self.machines[number];
        let mut client = Client {
            store: &mut self.store,
            me: &machine.id,
            capacity: super::machine::CAPACITY,
            beat: &mut machine.beat,
            joined: &mut machine.joined,
            nonces: &mut self.nonces,
        };
        let done = client.perform(effect, sent, reads).unwrap_or_default();
        if self.store.revision() != before {
            self.all_look();
        }
        for (heir, repls) in done.heirs {
            if let Some(heir) = self.find(&heir) {
                let told = Pending::Tell(Event::HandedOff { repls });
                self.machines[heir].pending.push(told);
            }
        }
        done.events
    }

    /// What conman has sent to the store is committed. The answers come back.
    pub(super) fn perform_sent(&mut self, number: usize) -> Vec<Event> {
        let is_sent = |pending: &mut Pending| matches!(pending, Pending::Do(effect, _) if client::is_of_store(effect));
        let pending = &mut self.machines[number].pending;
        let sent: Vec<Pending> = pending.extract_if(.., is_sent).collect();
        let mut answers = vec![];
        for pending in sent {
            if let Pending::Do(effect, sent) = pending {
                answers.extend(self.perform(number, effect, sent, FRESH));
            }
        }
        answers
    }

    /// Whether what is under way reads the store.
    pub fn reads(&self, number: usize, place: usize) -> bool {
        let reads = |effect: &Effect| {
            matches!(
                effect,
                Effect::Ask { .. } | Effect::Claim { .. } | Effect::ReadClaims { .. }
            )
        };
        matches!(&self.machines[number].pending[place], Pending::Do(effect, _) if reads(effect))
    }

    /// The transaction of what is under way is committed, and its answer lost. Whether there was one.
    pub fn lose_answer(&mut self, number: usize, place: usize) -> bool {
        let Pending::Do(effect, _) = &self.machines[number].pending[place] else {
            return false;
        };
        let Some(lost) = client::answer_lost(effect) else {
            return false;
        };
        if let Pending::Do(effect, sent) = self.machines[number].pending.remove(place) {
            self.perform(number, effect, sent, FRESH);
        }
        self.machines[number].pending.push(Pending::Tell(lost));
        true
    }

    /// Every observer that runs sees what was committed.
    fn all_look(&mut self) {
        for number in 0..self.machines.len() {
            if self.machines[number].conman == Conman::Running {
                self.look(number, 0);
            }
        }
    }

    fn start(&mut self, number: usize, id: ContainerId) -> Event {
        let now = self.machines[number].clock(self.now);
        let admitted = match &mut self.machines[number].keeper {
            Some(keeper) => keeper
                .book
                .admit(now, &id)
                .map_err(|refused| refused.message),
            None => Err("no keeper".to_owned()),
        };
        if let Err(message) = admitted {
            let refusal = Refusal::new(RefusalCode::StartFailed, message);
            return Event::StartFailed { id, refusal };
        }
        if let Some(keeper) = &mut self.machines[number].keeper {
            keeper.alive.insert(id.clone());
        }
        self.lives(&id);
        Event::Started {
            id,
            idle_timeout: None,
        }
    }

    // ---- observation ----

    /// Looks at the beats as they were so many changes ago, and robs whom the rule allows.
    pub(super) fn observe(&mut self, number: usize, staleness: usize) {
        // As the driver has it: a host that may have been robbed itself robs nobody.
        let machine = &self.machines[number];
        if machine
            .host
            .lease()
            .incarnation(machine.clock(self.now))
            .is_none()
        {
            return;
        }
        for theft in self.look(number, staleness) {
            let seen = theft.seen;
            self.commit(&keys::steal(&seen.host, seen.incarnation, seen.beat));
        }
    }

    fn commit(&mut self, txn: &Txn) {
        if self.store.commit(txn).is_some() {
            self.all_look();
        }
    }

    fn look(&mut self, number: usize, staleness: usize) -> Vec<Theft> {
        let machine = &mut self.machines[number];
        let view = match &machine.sees {
            Some(keys) => View::of(keys),
            None => self.store.read(staleness),
        };
        let now = machine.raw_clock(self.now);
        machine.observer.step(&client::seen(view), now)
    }
}
