//! The prober's rules: which repls are synthetic, whose they are, and how long one was out of reach.
//!
//! ```text
//!   host joins ──► probed, once a second ──► host gone: probed on, wherever its repl is by now ──► KEEP ──► removed
//!                     ▲                                    │
//!                     └──── back, or active again: brought home ◄┘
//! ```
//!
//! A host's probe is a repl like every other, and survives its host as every other does: that is what it is there to
//! show. Its name alone says whose it is, so that placement needs nothing but the name to keep it at home.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{HostId, NAME_LENGTH_MAX, ReplId};
use crate::keys::{Host, HostState};
use crate::rendezvous::rendezvous;
use crate::time::BootTime;

/// What the names of probes begin with, and of no other repl.
pub const PREFIX: &str = "conman-probe-";

/// How often each probe is opened.
pub const EVERY: Duration = Duration::from_secs(1);

/// How long the probe of a host that is gone is kept: hosts that are started again come back by then.
pub const KEEP: Duration = Duration::from_secs(60);

/// The probe of a host.
pub fn repl_of(host: &HostId) -> ReplId {
    let name = match PREFIX.len() + host.as_str().len() <= NAME_LENGTH_MAX {
        true => format!("{PREFIX}{host}"),
        false => format!("{PREFIX}{:016x}", rendezvous(PREFIX, host.as_str())),
    };
    // A prefix and a name, or a number: always a name.
    name.parse()
        .unwrap_or_else(|error| unreachable!("{name}: {error}"))
}

/// Whether a repl is a probe.
pub fn is_probe(repl: &ReplId) -> bool {
    repl.as_str().starts_with(PREFIX)
}

/// One probe's attempts: what is not answered goes on until something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    since: Option<BootTime>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempted {
    /// The container answered.
    Reached,
    /// The platform did not get there.
    Failed,
    /// The probe's own program, or its image, does not work: that says nothing of the platform.
    Unusable,
}

impl Reach {
    /// Takes an attempt. Where it reached the container, says for how long nobody could: from the beginning of the
    /// first attempt that was not answered, or of this one, to its answer.
    pub fn step(
        &mut self,
        attempted: Attempted,
        began: BootTime,
        ended: BootTime,
    ) -> Option<Duration> {
        let since = *self.since.get_or_insert(began);
        if attempted == Attempted::Failed {
            return None;
        }
        self.since = None;
        (attempted == Attempted::Reached).then(|| ended.since(since))
    }
}

/// What is to be done about a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open the host's probe from now on.
    Begin(HostId),
    /// Do so no longer.
    End(HostId),
    /// The host takes repls: if its probe is elsewhere, end it there.
    BringHome(HostId),
    /// Nobody's host any more: remove the repl.
    Remove(ReplId),
}

/// Which probes one gateway opens.
#[derive(Debug)]
pub struct Roster {
    prober: String,
    hosts_max: usize,
    active: BTreeMap<HostId, bool>,
    probed: BTreeSet<HostId>,
    /// Probes whose hosts are gone, since when.
    left: BTreeMap<ReplId, BootTime>,
}

impl Roster {
    /// Of the gateway of this name, which opens no more than so many.
    pub fn new(prober: String, hosts_max: usize) -> Self {
        Self {
            prober,
            hosts_max,
            active: BTreeMap::new(),
            probed: BTreeSet::new(),
            left: BTreeMap::new(),
        }
    }

    /// Takes what is known of the hosts, and the probes that the store has.
    pub fn hosts(
        &mut self,
        hosts: &BTreeMap<HostId, Host>,
        stored: impl IntoIterator<Item = ReplId>,
        now: BootTime,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let active: BTreeMap<HostId, bool> = hosts
            .values()
            .map(|host| (host.id.clone(), host.record.state == HostState::Active))
            .collect();
        let at_home: BTreeSet<ReplId> = active.keys().map(repl_of).collect();
        let gone = self.probed.iter().filter(|host| !active.contains_key(host));
        for repl in gone.map(repl_of).chain(stored) {
            self.left.entry(repl).or_insert(now);
        }
        self.left.retain(|repl, _| !at_home.contains(repl));
        let chosen = self.choose(&active);
        for host in &chosen {
            if self.probed.insert(host.clone()) {
                effects.push(Effect::Begin(host.clone()));
            }
            let was_active = self.active.get(host) == Some(&true);
            if active[host] && !was_active {
                effects.push(Effect::BringHome(host.clone()));
            }
        }
        let others = self.probed.iter().filter(|host| active.contains_key(host));
        let others: Vec<HostId> = others
            .filter(|host| !chosen.contains(host))
            .cloned()
            .collect();
        for host in others {
            self.probed.remove(&host);
            effects.push(Effect::End(host));
        }
        self.active = active;
        effects
    }

    /// The hosts that rank first for this gateway: each gateway takes others, and the loss of one moves few.
    fn choose(&self, hosts: &BTreeMap<HostId, bool>) -> BTreeSet<HostId> {
        let mut ranked: Vec<&HostId> = hosts.keys().collect();
        ranked.sort_by_key(|host| std::cmp::Reverse(rendezvous(&self.prober, host.as_str())));
        ranked.into_iter().take(self.hosts_max).cloned().collect()
    }

    /// When [`Roster::tick`] has something to do.
    pub fn wakeup(&self) -> Option<BootTime> {
        self.left.values().min().map(|since| since.plus(KEEP))
    }

    /// Lets go of what nobody came back for.
    pub fn tick(&mut self, now: BootTime) -> Vec<Effect> {
        let over = |since: &BootTime| now.since(*since) >= KEEP;
        let gone: Vec<ReplId> = self
            .left
            .iter()
            .filter(|(_, since)| over(since))
            .map(|(repl, _)| repl.clone())
            .collect();
        let mut effects = Vec::new();
        for repl in gone {
            self.left.remove(&repl);
            let host = self.probed.iter().find(|host| repl_of(host) == repl);
            if let Some(host) = host.cloned() {
                self.probed.remove(&host);
                effects.push(Effect::End(host));
            }
            effects.push(Effect::Remove(repl));
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostId {
        text.parse().unwrap()
    }

    fn hosts(states: &[(&str, HostState)]) -> BTreeMap<HostId, Host> {
        let host = |(id, state): &(&str, HostState)| (name(id), Host::example(id, *state));
        states.iter().map(host).collect()
    }

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    #[test]
    fn every_host_has_a_probe_of_its_own_whose_name_says_so() {
        assert_eq!(repl_of(&name("host-1")).as_str(), "conman-probe-host-1");
        let long = "a".repeat(NAME_LENGTH_MAX - 1);
        let names = [format!("{long}b"), format!("{long}c")].map(|host| repl_of(&name(&host)));
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(is_probe));
        assert!(!is_probe(&"conman".parse().unwrap()));
    }

    #[test]
    fn time_out_of_reach_is_from_the_first_attempt_without_an_answer_to_the_next_answer() {
        let mut reach = Reach::default();
        let second = Duration::from_secs(1);
        assert_eq!(
            reach.step(Attempted::Reached, at(0), at(1)),
            Some(second),
            "its own time alone"
        );
        assert_eq!(reach.step(Attempted::Failed, at(2), at(3)), None);
        assert_eq!(reach.step(Attempted::Failed, at(3), at(4)), None);
        let stuck = reach.step(Attempted::Reached, at(4), at(7));
        assert_eq!(stuck, Some(second * 5));
        assert_eq!(reach.step(Attempted::Failed, at(8), at(9)), None);
        let unusable = reach.step(Attempted::Unusable, at(9), at(10));
        assert_eq!(
            unusable, None,
            "whose program is broken was not out of reach"
        );
        assert_eq!(
            reach.step(Attempted::Reached, at(11), at(12)),
            Some(second),
            "and what was before it counts no more"
        );
    }

    #[test]
    fn the_probe_of_a_lost_host_is_opened_on_and_brought_home_when_it_is_back() {
        use Effect::{Begin, BringHome};
        use HostState::{Active, Draining};
        let mut roster = Roster::new("gateway".into(), 10);
        let (a, b) = (name("a"), name("b"));
        let both = hosts(&[("a", Active), ("b", Draining)]);
        let effects = roster.hosts(&both, [], at(0));
        assert_eq!(
            effects,
            [Begin(a.clone()), BringHome(a.clone()), Begin(b.clone())]
        );
        // Lost: nothing ends.
        let one = hosts(&[("b", Draining)]);
        assert_eq!(roster.hosts(&one, [], at(10)), []);
        assert_eq!(roster.wakeup(), Some(at(70)));
        assert_eq!(roster.tick(at(69)), []);
        let both = hosts(&[("a", Active), ("b", Active)]);
        let effects = roster.hosts(&both, [], at(69));
        assert_eq!(effects, [BringHome(a), BringHome(b)]);
        assert_eq!(roster.wakeup(), None);
    }

    #[test]
    fn what_nobody_comes_back_for_is_removed_also_what_was_there_before_this_gateway() {
        let mut roster = Roster::new("gateway".into(), 10);
        let active = hosts(&[("a", HostState::Active)]);
        let before = repl_of(&name("long-gone"));
        let stored = [before.clone(), repl_of(&name("a"))];
        roster.hosts(&active, stored, at(0));
        assert_eq!(roster.tick(at(60)), [Effect::Remove(before)]);
        roster.hosts(&BTreeMap::new(), [], at(100));
        let removed = Effect::Remove(repl_of(&name("a")));
        assert_eq!(roster.tick(at(160)), [Effect::End(name("a")), removed]);
        assert_eq!(roster.wakeup(), None);
    }

    #[test]
    fn a_gateway_of_a_large_fleet_opens_some_and_every_host_is_some_gateway_s() {
        let names: Vec<String> = (0..200).map(|number| format!("host-{number}")).collect();
        let states: Vec<(&str, HostState)> = names
            .iter()
            .map(|name| (name.as_str(), HostState::Active))
            .collect();
        let fleet = hosts(&states);
        let mut covered = BTreeSet::new();
        for gateway in &names {
            let mut roster = Roster::new(gateway.clone(), 16);
            let effects = roster.hosts(&fleet, [], at(0));
            let begun = effects.into_iter().filter_map(|effect| match effect {
                Effect::Begin(host) => Some(host),
                _ => None,
            });
            let begun: Vec<HostId> = begun.collect();
            assert_eq!(begun.len(), 16);
            covered.extend(begun);
        }
        assert_eq!(covered.len(), 200);
    }
}
