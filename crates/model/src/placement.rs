//! Which host gets a new container.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{HostId, ReplId};
use crate::keys::{Host, HostState};
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
    /// rendezvous. Counts the container as placed, so that many at once spread.
    pub fn place<'a>(
        &mut self,
        hosts: &'a BTreeMap<HostId, Host>,
        repl: &ReplId,
        unwilling: &BTreeSet<HostId>,
    ) -> Option<&'a Host> {
        let chosen = hosts
            .values()
            .filter(|host| host.record.state == HostState::Active && !unwilling.contains(&host.id))
            .min_by_key(|host| {
                let weight = rendezvous(repl.as_str(), host.id.as_str());
                (self.of(&host.id), std::cmp::Reverse(weight))
            })?;
        *self.0.entry(chosen.id.clone()).or_insert(0) += 1;
        Some(chosen)
    }
}
