//! One host's way to the store: the effects that go there, as `conman::host` carries them out.

use model::api::{Refusal, RefusalCode};
use model::departure::{self, Departure, Heir, Left};
use model::host::container::Target;
use model::host::{Claim, Effect, Event, Ownership};
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId, Revision};
use model::keys::{self, HostRecord, HostState, OwnerRecord};
use model::lease::{LeaseEffect, LeaseEvent};
use model::mutant::{CLAIMS_SINCE_JOIN, removed};
use model::observer::Seen;
use model::store::KeyValue;
use model::time::BootTime;

use crate::store::{Store, View};

/// Whether a claim's reads see one point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reads {
    /// They do.
    Whole,
    /// What is read first is fresh, and the rest is not.
    Torn,
}

/// A read of the present.
pub const FRESH: (Reads, usize) = (Reads::Whole, 0);

/// What a host has at the store for one effect.
#[derive(Debug)]
pub struct Client<'a> {
    /// The store.
    pub store: &'a mut Store,
    /// Whose client.
    pub me: &'a HostId,
    /// How many containers the host carries.
    pub capacity: u32,
    /// The host's last beat.
    pub beat: &'a mut u64,
    /// The store's revision when the host joined.
    pub joined: &'a mut Revision,
    /// The last nonce that anybody drew: tells two claims apart.
    pub nonces: &'a mut u64,
}

/// What came of an effect.
#[derive(Debug, Default)]
pub struct Done {
    /// The host is told this.
    pub events: Vec<Event>,
    /// These are told by the host that they were handed this.
    pub heirs: Vec<(HostId, Vec<(ReplId, Epoch)>)>,
}

impl From<Event> for Done {
    fn from(event: Event) -> Self {
        Self {
            events: vec![event],
            heirs: vec![],
        }
    }
}

impl Client<'_> {
    /// Does an effect that goes to the store; `None` if it does not. Reads see the store as it was so many changes ago.
    pub fn perform(
        &mut self,
        effect: &Effect,
        sent: BootTime,
        (reads, staleness): (Reads, usize),
    ) -> Option<Done> {
        Some(match effect {
            Effect::Lease(LeaseEffect::Join) => self.join(sent).into(),
            Effect::Lease(LeaseEffect::Renew { incarnation }) => {
                let beat = self.next_beat();
                let event = match self.store.commit(&keys::renew(self.me, *incarnation, beat)) {
                    Some(_) => LeaseEvent::RenewAcked { sent },
                    None => LeaseEvent::RenewRejected,
                };
                Event::Lease(event).into()
            }
            Effect::ReadClaims { incarnation } => {
                let owners = self.claims_view(staleness).range(keys::OWNERS);
                let claims = owners.filter_map(|item| self.claim_of(item, *incarnation));
                Event::Claims {
                    incarnation: *incarnation,
                    claims: claims.collect(),
                }
                .into()
            }
            Effect::Ask { repl, incarnation } => Event::Asked {
                repl: repl.clone(),
                ownership: self.ask(repl, *incarnation, staleness),
            }
            .into(),
            Effect::Claim { repl, incarnation } => Event::Claimed {
                repl: repl.clone(),
                ownership: self.claim(repl, *incarnation, (reads, staleness)),
            }
            .into(),
            Effect::Confirm { repls, incarnation } => Done {
                events: self.confirm(repls, *incarnation),
                heirs: vec![],
            },
            Effect::Depart { departures } => self.depart(departures.clone()),
            Effect::ReadTargets => {
                let targets = self.targets(staleness);
                Event::Targets { targets }.into()
            }
            Effect::SayDraining { draining } => self.say_draining(*draining),
            _ => return None,
        })
    }

    /// The store as it was so many changes ago, but not before the host joined: as the driver reads claims.
    pub fn claims_view(&self, staleness: usize) -> View<'_> {
        let since = self.store.revision().0.saturating_sub(self.joined.0);
        let most = usize::try_from(since).unwrap_or(usize::MAX);
        if removed(CLAIMS_SINCE_JOIN) {
            return self.store.read(staleness);
        }
        self.store.read(staleness.min(most))
    }

    fn next_beat(&mut self) -> String {
        *self.beat += 1;
        self.beat.to_string()
    }

    fn record(&self, state: HostState) -> String {
        encode(&HostRecord {
            address: "unix:/nowhere".to_owned(),
            boot_id: String::new(),
            state,
            capacity: self.capacity,
            process: 1,
        })
    }

    fn registration(&self) -> Option<Incarnation> {
        let item = self.store.now().get(&keys::host(self.me))?;
        Some(Incarnation(item.create.0))
    }

    fn join(&mut self, sent: BootTime) -> Event {
        let (record, beat) = (self.record(HostState::Active), self.next_beat());
        let resumed = self.registration();
        let txn = match resumed {
            Some(mine) => keys::resume(self.me, mine, record, beat),
            None => keys::register(self.me, record, beat),
        };
        Event::Lease(match self.store.commit(&txn) {
            Some(revision) => {
                *self.joined = revision;
                LeaseEvent::Joined {
                    incarnation: resumed.unwrap_or(Incarnation(revision.0)),
                    sent,
                }
            }
            None => LeaseEvent::JoinFailed,
        })
    }

    fn say_draining(&mut self, is_draining: bool) -> Done {
        let state = if is_draining {
            HostState::Draining
        } else {
            HostState::Active
        };
        if let Some(mine) = self.registration() {
            let record = self.record(state);
            self.store.commit(&keys::update_host(self.me, mine, record));
        }
        if is_draining {
            Event::SaidDraining.into()
        } else {
            Done::default()
        }
    }

    /// The claim that an owner's key is, if it is one of this registration.
    pub fn claim_of(&self, item: &KeyValue, mine: Incarnation) -> Option<Claim> {
        let owner = keys::read_owner(item, decode).ok()?;
        let is_mine = owner.record.host == *self.me && owner.record.incarnation == mine;
        is_mine.then_some(Claim {
            id: ContainerId {
                repl: owner.repl,
                epoch: owner.epoch,
            },
            idle_timeout: None,
        })
    }

    fn confirm(&mut self, repls: &[(ReplId, Epoch)], mine: Incarnation) -> Vec<Event> {
        let beat = self.next_beat();
        let txn = keys::confirm(repls, self.me, mine, beat);
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
        self.store.commit(&txn);
        asked
    }

    fn ask(&mut self, repl: &ReplId, mine: Incarnation, staleness: usize) -> Ownership {
        let item = self.store.read(staleness).get(&keys::owner(repl));
        let Some(claim) = item.and_then(|item| self.claim_of(item, mine)) else {
            return Ownership::NotMine(None);
        };
        let epoch = claim.id.epoch;
        let beat = self.next_beat();
        let txn = keys::confirm(&[(repl.clone(), epoch)], self.me, mine, beat);
        match self.store.commit(&txn) {
            Some(_) => Ownership::Mine { epoch },
            None => Ownership::NotMine(None),
        }
    }

    fn claim(
        &mut self,
        repl: &ReplId,
        mine: Incarnation,
        (reads, staleness): (Reads, usize),
    ) -> Ownership {
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
            return self.ask(repl, mine, staleness);
        };
        let record = owner_record(self.me, mine, *self.nonces);
        *self.nonces += 1;
        let txn = keys::claim(repl, free, create(&keys::spec(repl)), self.me, mine, record);
        match self.store.commit(&txn) {
            Some(revision) => Ownership::Mine {
                epoch: Epoch(revision.0),
            },
            None => Ownership::NotMine(None),
        }
    }

    /// In batches, and those that were rejected for another's sake again.
    fn depart(&mut self, departures: Vec<(ContainerId, Option<Target>)>) -> Done {
        let nonces = *self.nonces..;
        *self.nonces += departures.len() as u64;
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
        let mut done = Done::default();
        for mut batch in departure::split(departures.collect()) {
            while !batch.is_empty() {
                let txn = departure::transaction(&batch);
                if let Some(revision) = self.store.commit(&txn) {
                    let epoch = Epoch(revision.0);
                    departed.extend(batch.drain(..).map(|one| done.left(one, epoch)));
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
        done.events = vec![Event::Departed { departed }];
        done
    }

    fn targets(&self, staleness: usize) -> Vec<Target> {
        let hosts = self.store.read(staleness).range(keys::HOSTS);
        hosts
            .filter_map(|item| keys::read_host(item, decode).ok())
            .filter(|host| host.id != *self.me && host.record.state == HostState::Active)
            .map(|host| Target {
                room: host.record.capacity,
                incarnation: host.incarnation,
                host: host.id,
            })
            .collect()
    }
}

impl Done {
    fn left(&mut self, departure: Departure, epoch: Epoch) -> (ContainerId, Left) {
        let Some(heir) = departure.heir else {
            return (departure.id, Left::Released);
        };
        let entry = (departure.id.repl.clone(), epoch);
        match self.heirs.iter_mut().find(|(host, _)| *host == heir.host) {
            Some((_, repls)) => repls.push(entry),
            None => self.heirs.push((heir.host, vec![entry])),
        }
        (departure.id, Left::HandedOff(epoch))
    }
}

/// The hosts and their beats, as an observer reads them.
pub fn seen(view: View<'_>) -> Vec<Seen> {
    let hosts = view.range(keys::HOSTS);
    hosts.filter_map(|item| seen_host(view, item)).collect()
}

/// One host and its beat.
pub fn seen_host(view: View<'_>, item: &KeyValue) -> Option<Seen> {
    let host: HostId = item.key.strip_prefix(keys::HOSTS)?.parse().ok()?;
    let beat = view.get(&keys::beat(&host));
    Some(Seen {
        beat: beat.map_or(Revision::ABSENT, |beat| beat.modified),
        incarnation: Incarnation(item.create.0),
        host,
    })
}

/// Whether an effect is a transaction at the store.
pub fn is_of_store(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Lease(LeaseEffect::Renew { .. } | LeaseEffect::Join)
            | Effect::Ask { .. }
            | Effect::Claim { .. }
            | Effect::Confirm { .. }
            | Effect::Depart { .. }
    )
}

/// What a host is told when the answer to an effect is lost; `None` where it would go on asking.
pub fn answer_lost(effect: &Effect) -> Option<Event> {
    Some(match effect {
        Effect::Lease(LeaseEffect::Renew { .. }) => Event::Lease(LeaseEvent::RenewFailed),
        Effect::Lease(LeaseEffect::Join) => Event::Lease(LeaseEvent::JoinFailed),
        Effect::Claim { repl, .. } => Event::Claimed {
            repl: repl.clone(),
            ownership: failed(),
        },
        Effect::Ask { repl, .. } => Event::Asked {
            repl: repl.clone(),
            ownership: failed(),
        },
        _ => return None,
    })
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
pub fn decode<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}
