//! The effects, as `conman::host` carries them out against a real store and a real keeper.

use super::{Pending, World};
use model::api::{Refusal, RefusalCode};
use model::departure::{self, Departure, Heir, Left};
use model::host::container::Target;
use model::host::{Claim, Effect, Event, Ownership};
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId, Revision};
use model::keys::{self, HostRecord, HostState, OwnerRecord};
use model::lease::{LeaseEffect, LeaseEvent};
use model::observer::Seen;
use model::store::KeyValue;
use model::time::BootTime;

/// Whether a claim's reads see one point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reads {
    /// They do.
    Whole,
    /// What is read first is fresh, and the rest is not.
    Torn,
}

/// A read of the present.
pub(super) const FRESH: (Reads, usize) = (Reads::Whole, 0);

impl World {
    /// Does what an effect says; its results come back.
    pub(super) fn perform(
        &mut self,
        number: usize,
        effect: Effect,
        sent: BootTime,
        (reads, staleness): (Reads, usize),
    ) -> Vec<Event> {
        let me = self.machines[number].id.clone();
        match effect {
            Effect::Lease(LeaseEffect::Join) => vec![self.join(number, &me, sent)],
            Effect::Lease(LeaseEffect::Renew { incarnation }) => {
                let beat = self.next_beat(number);
                let committed = self.commit(&keys::renew(&me, incarnation, beat));
                let event = match committed {
                    Some(_) => LeaseEvent::RenewAcked { sent },
                    None => LeaseEvent::RenewRejected,
                };
                vec![Event::Lease(event)]
            }
            Effect::Lease(LeaseEffect::Arm { deadline }) => {
                let now = self.machines[number].clock(self.now);
                if let Some(keeper) = &mut self.machines[number].keeper {
                    // A refusal is the keeper's: what it armed before holds.
                    let _ = keeper.book.arm(now, deadline);
                }
                vec![]
            }
            Effect::ReadClaims { incarnation } => {
                let claims = self.claims(&me, incarnation, staleness);
                vec![Event::Claims {
                    incarnation,
                    claims,
                }]
            }
            Effect::Ask { repl, incarnation } => {
                let ownership = self.ask(number, &repl, incarnation, staleness);
                vec![Event::Asked { repl, ownership }]
            }
            Effect::Claim { repl, incarnation } => {
                let ownership = self.claim(number, &repl, incarnation, (reads, staleness));
                vec![Event::Claimed { repl, ownership }]
            }
            Effect::Confirm { repls, incarnation } => self.confirm(number, &repls, incarnation),
            Effect::Start { id } => vec![self.start(number, id)],
            Effect::Depart { departures } => self.depart(departures),
            Effect::ReadTargets => {
                let targets = self.targets(&me);
                vec![Event::Targets { targets }]
            }
            Effect::Prepare { .. } => vec![Event::Told],
            Effect::SayDraining { .. } => vec![Event::SaidDraining],
            Effect::Lease(LeaseEffect::Fence { .. })
            | Effect::Terminate { .. }
            | Effect::Kill { .. }
            | Effect::Cleanup { .. }
            | Effect::Reached { .. }
            | Effect::Answer { .. }
            | Effect::Changed { .. } => vec![],
        }
    }

    /// What conman has sent to the store is committed; nobody is told.
    pub(super) fn perform_sent(&mut self, number: usize) {
        let is_sent = |pending: &mut Pending| matches!(pending, Pending::Do(effect, _) if is_of_store(effect));
        let pending = &mut self.machines[number].pending;
        let sent: Vec<Pending> = pending.extract_if(.., is_sent).collect();
        for pending in sent {
            if let Pending::Do(effect, sent) = pending {
                self.perform(number, effect, sent, FRESH);
            }
        }
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
        let lost = match &self.machines[number].pending[place] {
            Pending::Do(Effect::Lease(LeaseEffect::Renew { .. }), _) => {
                Event::Lease(LeaseEvent::RenewFailed)
            }
            Pending::Do(Effect::Lease(LeaseEffect::Join), _) => {
                Event::Lease(LeaseEvent::JoinFailed)
            }
            Pending::Do(Effect::Claim { repl, .. }, _) => Event::Claimed {
                repl: repl.clone(),
                ownership: failed(),
            },
            Pending::Do(Effect::Ask { repl, .. }, _) => Event::Asked {
                repl: repl.clone(),
                ownership: failed(),
            },
            _ => return false,
        };
        if let Pending::Do(effect, sent) = self.machines[number].pending.remove(place) {
            self.perform(number, effect, sent, FRESH);
        }
        self.machines[number].pending.push(Pending::Tell(lost));
        true
    }

    /// Commits, and lets every observer see it.
    fn commit(&mut self, txn: &model::store::Txn) -> Option<Revision> {
        let committed = self.store.commit(txn);
        if committed.is_some() {
            for number in 0..self.machines.len() {
                if self.machines[number].conman == super::Conman::Running {
                    self.look(number);
                }
            }
        }
        committed
    }

    fn next_beat(&mut self, number: usize) -> String {
        self.machines[number].beat += 1;
        self.machines[number].beat.to_string()
    }

    fn join(&mut self, number: usize, me: &HostId, sent: BootTime) -> Event {
        let record = encode(&HostRecord {
            address: "unix:/nowhere".to_owned(),
            boot_id: String::new(),
            state: HostState::Active,
            capacity: super::machine::CAPACITY,
            process: 1,
        });
        let beat = self.next_beat(number);
        let read = self.store.now().get(&keys::host(me));
        let (txn, resumed) = match read.map(|item| Incarnation(item.create.0)) {
            Some(mine) => (keys::resume(me, mine, record, beat), Some(mine)),
            None => (keys::register(me, record, beat), None),
        };
        let event = match self.commit(&txn) {
            Some(revision) => LeaseEvent::Joined {
                incarnation: resumed.unwrap_or(Incarnation(revision.0)),
                sent,
            },
            None => LeaseEvent::JoinFailed,
        };
        Event::Lease(event)
    }

    fn claims(&self, me: &HostId, mine: Incarnation, staleness: usize) -> Vec<Claim> {
        let items = self.store.read(staleness).values();
        items
            .filter_map(|item| keys::read_owner(item, decode).ok())
            .filter(|owner| owner.record.host == *me && owner.record.incarnation == mine)
            .map(|owner| Claim {
                id: ContainerId {
                    repl: owner.repl,
                    epoch: owner.epoch,
                },
                idle_timeout: None,
            })
            .collect()
    }

    fn confirm(
        &mut self,
        number: usize,
        repls: &[(ReplId, Epoch)],
        mine: Incarnation,
    ) -> Vec<Event> {
        let (me, beat) = (self.machines[number].id.clone(), self.next_beat(number));
        let txn = keys::confirm(repls, &me, mine, beat);
        let held: Vec<bool> = txn.compares.iter().map(|it| self.store.holds(it)).collect();
        let asked = repls.iter().zip(held.iter().skip(1));
        let asked = asked.map(|((repl, epoch), is_mine)| Event::Asked {
            repl: repl.clone(),
            ownership: if held[0] && *is_mine {
                Ownership::Mine { epoch: *epoch }
            } else {
                Ownership::NotMine(None)
            },
        });
        let asked = asked.collect();
        self.commit(&txn);
        asked
    }

    fn ask(
        &mut self,
        number: usize,
        repl: &ReplId,
        mine: Incarnation,
        staleness: usize,
    ) -> Ownership {
        let me = self.machines[number].id.clone();
        let item = self.store.read(staleness).get(&keys::owner(repl));
        let owner = item.and_then(|item| keys::read_owner(item, decode).ok());
        let Some(owner) =
            owner.filter(|owner| owner.record.host == me && owner.record.incarnation == mine)
        else {
            return Ownership::NotMine(None);
        };
        let beat = self.next_beat(number);
        let txn = keys::confirm(&[(repl.clone(), owner.epoch)], &me, mine, beat);
        match self.commit(&txn) {
            Some(_) => Ownership::Mine { epoch: owner.epoch },
            None => Ownership::NotMine(None),
        }
    }

    fn claim(
        &mut self,
        number: usize,
        repl: &ReplId,
        mine: Incarnation,
        (reads, staleness): (Reads, usize),
    ) -> Ownership {
        let me = self.machines[number].id.clone();
        let read = self.store.read(staleness);
        let create = |key: &String| read.get(key).map_or(Revision::ABSENT, |item| item.create);
        // Two reads may go to two members of the store: the owner is read before its host, and fresh.
        let owner = match reads {
            Reads::Torn => self.store.now().get(&keys::owner(repl)),
            Reads::Whole => read.get(&keys::owner(repl)),
        };
        let owner = owner.and_then(|item| keys::read_owner(item, decode).ok());
        let host_create = owner.as_ref().map_or(Revision::ABSENT, |owner| {
            create(&keys::host(&owner.record.host))
        });
        let Some(free) = keys::freedom(owner.as_ref(), host_create) else {
            return self.ask(number, repl, mine, staleness);
        };
        let record = owner_record(&me, mine, self.nonces);
        self.nonces += 1;
        let txn = keys::claim(repl, free, create(&keys::spec(repl)), &me, mine, record);
        match self.commit(&txn) {
            Some(revision) => Ownership::Mine {
                epoch: Epoch(revision.0),
            },
            None => Ownership::NotMine(None),
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

    /// In batches, and those that were rejected for another's sake again.
    fn depart(&mut self, departures: Vec<(ContainerId, Option<Target>)>) -> Vec<Event> {
        let nonces = self.nonces..;
        self.nonces += departures.len() as u64;
        let departures = departures.into_iter().zip(nonces);
        let departures = departures.map(|((id, target), nonce)| Departure {
            id,
            heir: target.map(|target| Heir {
                record: owner_record(&target.host, target.incarnation, nonce),
                host: target.host,
                incarnation: target.incarnation,
            }),
        });
        let mut departed = vec![];
        for mut batch in departure::split(departures.collect()) {
            while !batch.is_empty() {
                let txn = departure::transaction(&batch);
                if let Some(revision) = self.commit(&txn) {
                    departed.extend(batch.drain(..).map(|one| self.left(one, revision)));
                } else {
                    let current = txn.compares.iter();
                    let current: Vec<Option<KeyValue>> = current
                        .map(|compare| self.store.now().get(&compare.key).cloned())
                        .collect();
                    let (known, again) = departure::judge(batch, &current);
                    departed.extend(known.into_iter().map(|(one, left)| (one.id, left)));
                    batch = again;
                }
            }
        }
        vec![Event::Departed { departed }]
    }

    fn left(&mut self, departure: Departure, revision: Revision) -> (ContainerId, Left) {
        let Some(heir) = departure.heir else {
            return (departure.id, Left::Released);
        };
        let epoch = Epoch(revision.0);
        if let Some(heir) = self.find(&heir.host) {
            let repls = vec![(departure.id.repl.clone(), epoch)];
            let told = Pending::Tell(Event::HandedOff { repls });
            self.machines[heir].pending.push(told);
        }
        (departure.id, Left::HandedOff(epoch))
    }

    fn targets(&self, me: &HostId) -> Vec<Target> {
        let others = self.machines.iter().filter(|machine| machine.id != *me);
        let target = |machine: &super::Machine| {
            let item = self.store.now().get(&keys::host(&machine.id))?;
            Some(Target {
                host: machine.id.clone(),
                incarnation: Incarnation(item.create.0),
                room: super::machine::CAPACITY,
            })
        };
        others.filter_map(target).collect()
    }

    // ---- observation ----

    /// Looks at the beats, and robs whom the rule allows.
    pub(super) fn observe(&mut self, number: usize) {
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
        for theft in self.look(number) {
            let seen = theft.seen;
            self.commit(&keys::steal(&seen.host, seen.incarnation, seen.beat));
        }
    }

    fn look(&mut self, number: usize) -> Vec<model::observer::Theft> {
        let read = self.machines[number]
            .sees
            .as_ref()
            .unwrap_or(self.store.now());
        let seen = |(key, item): (&String, &KeyValue)| {
            let host: HostId = key.strip_prefix(keys::HOSTS)?.parse().ok()?;
            let beat = read.get(&keys::beat(&host));
            Some(Seen {
                beat: beat.map_or(Revision::ABSENT, |beat| beat.modified),
                incarnation: Incarnation(item.create.0),
                host,
            })
        };
        let hosts = read.range(keys::HOSTS.to_owned()..);
        let seen: Vec<Seen> = hosts.map_while(seen).collect();
        let now = self.machines[number].raw_clock(self.now);
        self.machines[number].observer.step(&seen, now)
    }
}

fn is_of_store(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Lease(LeaseEffect::Renew { .. } | LeaseEffect::Join)
            | Effect::Ask { .. }
            | Effect::Claim { .. }
            | Effect::Confirm { .. }
            | Effect::Depart { .. }
    )
}

fn failed() -> Ownership {
    Ownership::Failed(Refusal::new(RefusalCode::StoreUnavailable, "no answer"))
}

fn owner_record(host: &HostId, incarnation: Incarnation, nonce: u64) -> String {
    encode(&OwnerRecord {
        host: host.clone(),
        incarnation,
        nonce,
    })
}

fn encode(record: &impl serde::Serialize) -> String {
    // Plain structs: there is nothing in them that JSON cannot say.
    serde_json::to_string(record).unwrap_or_default()
}

/// Reads a value of the store; `None` if it is not of this shape.
pub(super) fn decode<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}
