//! What hosts say to the store: how long it takes, what is lost of it, and what is committed.

use std::time::Duration;

use model::host::{Effect, Event, Ownership};
use model::id::Revision;
use model::keys;
use model::lease::LeaseEffect;
use model::time::BootTime;
use model::timing::STORE_RETRY;

use super::plan::{Fault, assumed};
use super::queue::{Answering, Happening};
use super::random::nanoseconds;
use super::{Fleet, STALENESS_MAX};
use crate::client::{self, Client, Reads};

fn is_beat(effect: &Effect) -> bool {
    matches!(effect, Effect::Lease(LeaseEffect::Renew { .. }))
}

impl Fleet {
    pub(super) fn draw(&mut self, host: u32, (least, most): (Duration, Duration)) -> u64 {
        let node = &mut self.nodes[host as usize];
        node.draws += 1;
        let purpose = [u64::from(host), 3, node.draws];
        self.chance.between(least, most, &purpose)
    }

    pub(super) fn network(&mut self, host: u32) -> u64 {
        self.draw(host, assumed::NETWORK)
    }

    /// How long a request takes to the store, and its answer back. A beat draws by its time, not in a row.
    fn ways(&mut self, host: u32, effect: &Effect, sent: BootTime) -> (u64, u64) {
        let store = if self.is_wrong(Fault::SlowLeader) {
            assumed::STORE_SLOW
        } else {
            assumed::STORE
        };
        if is_beat(effect) {
            let purpose = |which| [u64::from(host), 4, sent.0, which];
            let (least, most) = store;
            let to = self.chance.between(least, most, &purpose(0));
            let (least, most) = assumed::NETWORK;
            return (to, self.chance.between(least, most, &purpose(1)));
        }
        (self.draw(host, store), self.network(host))
    }

    // ---- the store ----

    pub(super) fn send(&mut self, host: u32, effect: Effect, sent: BootTime) {
        let (to, back) = self.ways(host, &effect, sent);
        let node = &self.nodes[host as usize];
        // A beat that is made up for was sent in the past.
        let world = node.world_time(sent).min(self.now);
        let arrives = world + to;
        if is_beat(&effect) && arrives <= self.now && world < self.now {
            return self.beat_at_once(host, &effect, sent, (arrives, back));
        }
        let effect = Box::new(effect);
        let lost_at = self.now.max(world + nanoseconds(assumed::STORE_PATIENCE));
        if !node.says() || self.is_wrong(Fault::StoreOutage) {
            return self.plan_loss(host, &effect, lost_at);
        }
        if self.is_wrong(Fault::LateCommit) && client::answer_lost(&effect).is_some() {
            self.plan_loss(host, &effect, lost_at);
            let late = self.draw(host, (Duration::ZERO, Duration::from_secs(2)));
            return self.plan_at_store(host, lost_at + late, effect, sent, Answering::Lost);
        }
        let at = arrives.max(self.now);
        self.plan_at_store(host, at, effect, sent, Answering::Comes);
    }

    /// What the host's present life has sent gets to the store at this time.
    fn plan_at_store(
        &mut self,
        host: u32,
        at: u64,
        effect: Box<Effect>,
        sent: BootTime,
        answer: Answering,
    ) {
        let life = self.nodes[host as usize].life;
        self.queue.plan(
            at,
            Happening::AtStore {
                host,
                life,
                effect,
                sent,
                answer,
            },
        );
    }

    /// The last of the skipped beats: it was committed before what happens now.
    fn beat_at_once(&mut self, host: u32, effect: &Effect, sent: BootTime, (at, back): (u64, u64)) {
        let done = self.commit(host, effect, sent, client::FRESH);
        self.nodes[host as usize].beaten_at = at;
        for event in done.events {
            if at + back > self.now {
                self.plan_tell(host, at + back, event);
            } else {
                let local = self.nodes[host as usize].clock(at + back);
                self.step(host, event, local);
            }
        }
    }

    /// Nothing comes back: who can do without an answer is told so, and all else is asked again.
    fn plan_loss(&mut self, host: u32, effect: &Effect, at: u64) {
        if let Some(lost) = client::answer_lost(effect) {
            self.plan_tell(host, at, lost);
            return;
        }
        let again = at + nanoseconds(STORE_RETRY);
        let sent = self.nodes[host as usize].clock(again);
        let effect = Box::new(effect.clone());
        self.plan_at_store(host, again, effect, sent, Answering::Comes);
    }

    pub(super) fn at_store(
        &mut self,
        host: u32,
        life: u32,
        effect: Effect,
        sent: BootTime,
        answer: Answering,
    ) {
        self.touch(host);
        let node = &self.nodes[host as usize];
        let is_old = node.life != life;
        if is_old && !client::is_of_store(&effect) {
            return;
        }
        if self.is_wrong(Fault::StoreOutage) || (!node.says() && answer == Answering::Comes) {
            if !is_old && answer == Answering::Comes {
                self.plan_loss(
                    host,
                    &effect,
                    self.now + nanoseconds(assumed::STORE_PATIENCE),
                );
            }
            return;
        }
        let reads = self.reads(host, &effect);
        let done = self.commit(host, &effect, sent, reads);
        if is_old || answer == Answering::Lost {
            return;
        }
        if !self.nodes[host as usize].hears() {
            let at = self.now + nanoseconds(assumed::STORE_PATIENCE);
            return self.plan_loss(host, &effect, at);
        }
        let (_, back) = self.ways(host, &effect, sent);
        for event in done.events {
            self.plan_tell(host, self.now + back, event);
        }
        for (heir, repls) in done.heirs {
            if let Some(heir) = self.number_of(&heir) {
                let way = back + self.network(host);
                let count = u32::try_from(repls.len()).unwrap_or(u32::MAX);
                self.plan_tell(heir, self.now + way, Event::HandedOff { repls });
                let heard = Event::HeardOf {
                    count,
                    started: count,
                };
                let started = self.now + way + nanoseconds(assumed::START.1);
                self.plan_tell(host, started, heard);
            }
        }
    }

    fn reads(&mut self, host: u32, effect: &Effect) -> (Reads, usize) {
        if is_beat(effect) || !self.is_wrong(Fault::StaleRead) {
            return client::FRESH;
        }
        let drawn = self.draw(host, (Duration::ZERO, Duration::from_secs(1))) as usize;
        let reads = if drawn.is_multiple_of(2) {
            Reads::Whole
        } else {
            Reads::Torn
        };
        (reads, drawn / 2 % STALENESS_MAX)
    }

    /// Does at the store what a host has sent, and keeps the books of the fleet.
    fn commit(
        &mut self,
        host: u32,
        effect: &Effect,
        sent: BootTime,
        reads: (Reads, usize),
    ) -> client::Done {
        let before = self.store.revision();
        let node = &mut self.nodes[host as usize];
        let mut client = Client {
            store: &mut self.store,
            me: &node.id,
            capacity: self.plan.capacity,
            beat: &mut node.beat,
            joined: &mut node.joined,
            nonces: &mut self.nonces,
        };
        let mut done = match effect {
            // By the fleet's own list of what there may be: nobody goes through a million owners for it.
            Effect::ReadClaims { incarnation } => {
                let read = client.claims_view(reads.1);
                let items = node
                    .owned
                    .iter()
                    .filter_map(|repl| read.get(&keys::owner(repl)));
                let claims = items.filter_map(|item| client.claim_of(item, *incarnation));
                Event::Claims {
                    incarnation: *incarnation,
                    claims: claims.collect(),
                }
                .into()
            }
            effect => client.perform(effect, sent, reads).unwrap_or_default(),
        };
        let is_beat = is_beat(effect);
        for _ in before.0..self.store.revision().0 {
            self.wrote(is_beat);
        }
        // A join and a confirmation write a beat too: who looks from here on must not take it for an older one.
        let writes_beat = matches!(
            effect,
            Effect::Lease(LeaseEffect::Join) | Effect::Confirm { .. } | Effect::Ask { .. }
        );
        if is_beat || (writes_beat && self.has_beaten_since(host, before)) {
            self.nodes[host as usize].beaten_at = self.now;
        }
        for event in &mut done.events {
            self.note(host, event);
        }
        for (heir, repls) in &done.heirs {
            if let Some(heir) = self.number_of(heir) {
                let owned = repls.iter().map(|(repl, _)| repl.clone());
                self.nodes[heir as usize].owned.extend(owned);
            }
        }
        if matches!(
            effect,
            Effect::Lease(LeaseEffect::Join) | Effect::SayDraining { .. }
        ) {
            self.hosts_changed(host);
        }
        done
    }

    /// Whether its beat was written after this revision.
    fn has_beaten_since(&self, host: u32, before: Revision) -> bool {
        let key = keys::beat(&self.nodes[host as usize].id);
        let item = self.store.now();
        item.get(&key).is_some_and(|item| item.modified > before)
    }

    /// What a host is told changes what the fleet knows of it.
    fn note(&mut self, host: u32, event: &mut Event) {
        match event {
            Event::Claimed {
                repl,
                ownership: Ownership::Mine { .. },
            } => {
                self.nodes[host as usize].owned.insert(repl.clone());
            }
            Event::Departed { departed } => {
                for (id, _) in departed {
                    self.nodes[host as usize].owned.remove(&id.repl);
                }
            }
            Event::Targets { targets } => {
                for target in targets {
                    if let Some(heir) = self.number_of(&target.host) {
                        let carries = self.nodes[heir as usize].host.containers().len();
                        let carries = u32::try_from(carries).unwrap_or(u32::MAX);
                        target.room = target.room.saturating_sub(carries);
                    }
                }
            }
            _ => {}
        }
    }
}
