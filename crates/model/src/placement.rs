//! Which host gets a new container.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{HostId, ReplId};
use crate::keys::{Host, HostState};
use crate::probe;
use crate::rendezvous::rendezvous;

/// How many containers each host carries, as far as somebody knows: a hint, for hosts refuse what they cannot carry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loads(BTreeMap<HostId, u32>);

impl Loads {
    /// What a host said that it carries.
    pub fn set(&mut self, host: &HostId, containers: u32) {
        self.0.insert(host.clone(), containers);
    }

    /// Forgets the hosts that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&HostId) -> bool) {
        self.0.retain(|host, _| is_there(host));
    }

    fn of(&self, host: &HostId) -> u32 {
        self.0.get(host).copied().unwrap_or(0)
    }

    /// The host for a new container: the least loaded of those that take any and are not in `unwilling`, ties by
    /// rendezvous. A host's probe goes to its host, if that takes it. Counts the container as placed, so that many at
    /// once spread.
    pub fn place<'a>(
        &mut self,
        hosts: &'a BTreeMap<HostId, Host>,
        repl: &ReplId,
        unwilling: &BTreeSet<HostId>,
    ) -> Option<&'a Host> {
        let is_probe = probe::is_probe(repl);
        let chosen = hosts
            .values()
            .filter(|host| host.record.state == HostState::Active && !unwilling.contains(&host.id))
            .min_by_key(|host| {
                let is_away = !is_probe || probe::repl_of(&host.id) != *repl;
                let weight = rendezvous(repl.as_str(), host.id.as_str());
                (is_away, self.of(&host.id), std::cmp::Reverse(weight))
            })?;
        *self.0.entry(chosen.id.clone()).or_insert(0) += 1;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_placed_at_home_and_elsewhere_only_while_its_host_takes_nothing() {
        let host = |name: &str, state| {
            let host = Host::example(name, state);
            (host.id.clone(), host)
        };
        let (idle, full): (HostId, HostId) = ("idle".parse().unwrap(), "full".parse().unwrap());
        let active = [
            host("idle", HostState::Active),
            host("full", HostState::Active),
        ];
        let hosts = BTreeMap::from(active);
        let mut loads = Loads::default();
        loads.set(&full, 100);
        let mut place = |hosts: &BTreeMap<HostId, Host>, repl: &ReplId, unwilling: &[&HostId]| {
            let unwilling = unwilling.iter().map(|host| (*host).clone()).collect();
            loads
                .place(hosts, repl, &unwilling)
                .map(|host| host.id.clone())
        };
        let probe = probe::repl_of(&full);
        assert_eq!(place(&hosts, &probe, &[]), Some(full.clone()));
        assert_eq!(
            place(&hosts, &"a-user-s".parse().unwrap(), &[]),
            Some(idle.clone())
        );
        assert_eq!(place(&hosts, &probe, &[&full]), Some(idle.clone()));
        let drained = [
            host("idle", HostState::Active),
            host("full", HostState::Draining),
        ];
        assert_eq!(place(&BTreeMap::from(drained), &probe, &[]), Some(idle));
    }
}
