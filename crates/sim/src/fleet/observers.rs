//! Who watches whom. In production every host reads all beats and watches all others; here a host is watched only while its
//! beats may stop, and only by those whose word counts.
//!
//! That is the same: an observer's patience begins anew with each beat, so that what it saw before the last one does not
//! matter; and whether it is its turn to rob a host depends on those alone who rank before it for that host.
//! Left out: an observer that comes in because one before it has died begins its patience then, later than it would have.

use std::collections::BTreeMap;

use model::id::{HostId, Incarnation, Revision};
use model::keys;
use model::observer::{Observer, Seen};
use model::rendezvous::rendezvous;
use model::time::RawTime;
use model::timing::{OBSERVE_EVERY, OBSERVERS_PER_HOST};

use super::node::Machine;
use super::plan::{Beats, Fault};
use super::queue::Happening;
use super::random::nanoseconds;
use super::{Fleet, STALENESS_MAX};
use crate::client;
use crate::store::View;

/// How many of those who rank first for a host are looked through: that all of them are gone at once is not to be expected.
const RANKED: usize = 16;

/// A host that is watched.
#[derive(Debug)]
pub(super) struct Watching {
    ranked: Vec<u32>,
    observers: BTreeMap<u32, Observer>,
}

impl Fleet {
    /// From here on this host's observers are gone through, each time that they look.
    pub(super) fn watch(&mut self, host: u32) {
        if self.watching.contains_key(&host) {
            return;
        }
        self.touch(host);
        let id = &self.nodes[host as usize].id;
        let mut weights: Vec<(u64, u32)> = (0..self.plan.hosts)
            .filter(|other| *other != host)
            .map(|other| {
                let other_id = self.nodes[other as usize].id.as_str();
                (rendezvous(id.as_str(), other_id), other)
            })
            .collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        let watching = Watching {
            ranked: weights.into_iter().take(RANKED).map(|it| it.1).collect(),
            observers: BTreeMap::new(),
        };
        self.watching.insert(host, watching);
        // The look that first showed its last beat.
        let seen_at = self.look_after(host, self.nodes[host as usize].beaten_at);
        self.look(host, seen_at.min(self.now));
        let next = self.look_after(host, self.now + 1);
        self.queue.plan(next, Happening::Observe { host });
    }

    fn look_after(&self, host: u32, at: u64) -> u64 {
        let every = nanoseconds(OBSERVE_EVERY);
        let phase = self.chance.draw(&[u64::from(host), 6]) % every;
        at.saturating_sub(phase).div_ceil(every) * every + phase
    }

    pub(super) fn observe(&mut self, host: u32) {
        if !self.watching.contains_key(&host) {
            return;
        }
        if !self.is_registered(host) || self.is_well(host) {
            self.watching.remove(&host);
            return;
        }
        self.look(host, self.now);
        let next = self.look_after(host, self.now + 1);
        self.queue.plan(next, Happening::Observe { host });
    }

    /// Whether its beats cannot stop.
    fn is_well(&self, host: u32) -> bool {
        let node = &self.nodes[host as usize];
        self.wrong.is_empty()
            && node.wrong.is_empty()
            && node.is_running()
            && node.keeper.is_some()
            && node.host.is_ready(node.clock(self.now))
    }

    /// One look of each observer whose word may count.
    fn look(&mut self, host: u32, at: u64) {
        let Some(mut watching) = self.watching.remove(&host) else {
            return;
        };
        let stale = self.is_wrong(Fault::StaleRead);
        let drawn = self.chance.draw(&[u64::from(host), 7, at]) as usize;
        let staleness = if stale { drawn % STALENESS_MAX } else { 0 };
        let view = self.store.read(staleness);
        let mut seen: Vec<Seen> = self.seen(view, host).into_iter().collect();
        let (mut beating, mut thefts) = (0, vec![]);
        for observer in &watching.ranked {
            let node = &self.nodes[*observer as usize];
            if self.can_rob(*observer) {
                let machine = watching.observers.entry(*observer);
                let machine =
                    machine.or_insert_with(|| Observer::new(node.id.clone(), self.plan.timing));
                let received = RawTime(node.clock(at).0);
                let robbed = machine.step(&seen, received).into_iter();
                thefts.extend(robbed.filter(|it| it.seen.host == self.nodes[host as usize].id));
                beating += usize::from(!self.watching.contains_key(observer));
            }
            if beating == OBSERVERS_PER_HOST {
                break;
            }
            seen.extend(self.seen(view, *observer));
        }
        self.watching.insert(host, watching);
        for theft in thefts {
            let Seen {
                host: robbed,
                incarnation,
                beat,
            } = theft.seen;
            let steal = keys::steal(&robbed, incarnation, beat);
            if self.store.commit(&steal).is_some() {
                self.wrote(false);
                self.report.thefts += 1;
                self.trace(3, host.into());
                self.hosts_changed(host);
            }
        }
    }

    /// Whether it runs, reaches the store and holds its own lease: as the driver has it.
    fn can_rob(&self, observer: u32) -> bool {
        let node = &self.nodes[observer as usize];
        let holds = || {
            node.host
                .lease()
                .incarnation(node.clock(self.now))
                .is_some()
        };
        node.is_running()
            && node.says()
            && node.hears()
            && !self.is_wrong(Fault::StoreOutage)
            && (node.quiet_since.is_some() || holds())
    }

    /// One host as a read shows it. The beats of one that nobody goes through come and go by its clock.
    fn seen(&self, view: View<'_>, host: u32) -> Option<Seen> {
        let node = &self.nodes[host as usize];
        let item = view.get(&keys::host(&node.id))?;
        let is_unwatched = self.plan.beats == Beats::Skipped && node.machine == Machine::Up;
        if is_unwatched && node.quiet_since.is_some() {
            let beats = node.clock(self.now).0 / nanoseconds(self.plan.timing.renew);
            return Some(Seen {
                host: HostId::clone(&node.id),
                incarnation: Incarnation(item.create.0),
                beat: Revision(u64::MAX / 2 + beats),
            });
        }
        client::seen_host(view, item)
    }
}
