//! What a router knows of one repl, and what it remembers of those that nobody asks for now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::NoWay;
use crate::id::{Epoch, HostId, Incarnation, ReplId, Ticket};
use crate::mutant::{NOTHING_BELOW_HIGHEST, removed};
use crate::time::BootTime;
use crate::timing::{REROUTE_PAUSE_MAX, REROUTE_PAUSE_MIN};

/// Where a repl's sessions are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) host: HostId,
    pub(super) incarnation: Incarnation,
    /// The owner's epoch; `None` where the host is to claim the repl.
    pub(super) epoch: Option<Epoch>,
}

/// How far the search for the repl's container has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// The store must be asked.
    Unknown,
    /// The store is being asked, once for all sessions.
    Resolving,
    /// There is a host to ask.
    Led(Lead),
}

/// One repl that sessions want to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) stage: Stage,
    /// Counts the leads, so that answers to asks by an earlier one are told apart.
    pub(super) generation: u32,
    /// The highest epoch that was seen: nothing is ever routed below it.
    pub(super) highest: Epoch,
    /// How many sessions there are, waiting or asking.
    pub(super) sessions: usize,
    /// Those that wait for the next lead.
    pub(super) waiting: BTreeSet<Ticket>,
    /// Nobody is asked before.
    pub(super) not_before: BootTime,
    pause: Duration,
    /// Who denied what last.
    pub(super) denied: Option<(HostId, Option<Epoch>)>,
    /// Hosts that would not take it.
    pub(super) unwilling: BTreeSet<HostId>,
    /// The last answer that says why, for the deadline's sentence.
    pub(super) last: Option<NoWay>,
}

impl Route {
    pub(super) fn new(remembered: Option<Remembered>) -> Self {
        let (highest, lead) = remembered.map_or((Epoch(0), None), |it| (it.highest, it.lead));
        Self {
            stage: lead.map_or(Stage::Unknown, Stage::Led),
            generation: 0,
            highest,
            sessions: 0,
            waiting: BTreeSet::new(),
            not_before: BootTime(0),
            pause: REROUTE_PAUSE_MIN,
            denied: None,
            unwilling: BTreeSet::new(),
            last: None,
        }
    }

    /// Sends the sessions to a host from now on, unless its epoch is below one that was seen.
    pub(super) fn lead_to(&mut self, host: HostId, incarnation: Incarnation, epoch: Option<Epoch>) {
        if epoch.is_some_and(|epoch| epoch < self.highest) && !removed(NOTHING_BELOW_HIGHEST) {
            self.stage = Stage::Unknown;
            return;
        }
        self.highest = epoch.unwrap_or(self.highest);
        self.generation += 1;
        self.stage = Stage::Led(Lead {
            host,
            incarnation,
            epoch,
        });
    }

    /// Asks nobody for a while, each time longer: the store and the hosts are not of one mind yet.
    pub(super) fn pause(&mut self, now: BootTime) {
        self.stage = Stage::Unknown;
        self.not_before = now.plus(self.pause);
        self.pause = (self.pause * 2).min(REROUTE_PAUSE_MAX);
    }

    /// It was reached: what went wrong before is past.
    pub(super) fn calm(&mut self) {
        self.not_before = BootTime(0);
        self.pause = REROUTE_PAUSE_MIN;
        self.denied = None;
        self.unwilling.clear();
        self.last = None;
    }
}

/// What is remembered of a repl without sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) highest: Epoch,
    pub(super) lead: Option<Lead>,
}

/// How many repls without sessions are remembered at the least: about 100 bytes each. What is forgotten costs a read of
/// the store.
const REMEMBERED_MIN: usize = 100_000;

/// The repls without sessions, in two generations: once the young are many, the old are forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    young: BTreeMap<ReplId, Remembered>,
    old: BTreeMap<ReplId, Remembered>,
}

impl Memory {
    pub(super) fn take(&mut self, repl: &ReplId) -> Option<Remembered> {
        let old = self.old.remove(repl);
        self.young.remove(repl).or(old)
    }

    pub(super) fn keep(&mut self, repl: ReplId, route: Route) {
        let lead = match route.stage {
            Stage::Led(lead) if lead.epoch.is_some() => Some(lead),
            _ => None,
        };
        if lead.is_none() && route.highest == Epoch(0) {
            return;
        }
        if self.young.len() >= REMEMBERED_MIN {
            self.old = std::mem::take(&mut self.young);
        }
        let highest = route.highest;
        self.young.insert(repl, Remembered { highest, lead });
    }
}

/// Something that does not answer: tried again by one at a time, ever less often, while everybody else waits for what that
/// one finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outage<Probe> {
    pub(super) retry_at: BootTime,
    pause: Duration,
    probe: Option<Probe>,
    /// Whose sessions wait for it.
    pub(super) parked: BTreeSet<ReplId>,
}

impl<Probe: PartialEq> Outage<Probe> {
    pub(super) fn begin(now: BootTime) -> Self {
        Self {
            retry_at: now.plus(REROUTE_PAUSE_MIN),
            pause: REROUTE_PAUSE_MIN,
            probe: None,
            parked: BTreeSet::new(),
        }
    }

    /// Somebody has met it: if that was the probe, the next one comes later.
    pub(super) fn met(&mut self, by: &Probe, now: BootTime) {
        if self.probe.as_ref() == Some(by) {
            self.probe = None;
            self.pause = (self.pause * 2).min(REROUTE_PAUSE_MAX);
            self.retry_at = now.plus(self.pause);
        }
    }

    /// Whether the probe has gone away without finding anything.
    pub(super) fn lost(&mut self, probe: &Probe) -> bool {
        self.probe.take_if(|known| known == probe).is_some()
    }

    /// Whether this one may try. If not, its repl waits: for the probe, or for the time that comes back.
    pub(super) fn admit(
        &mut self,
        probe: Probe,
        repl: &ReplId,
        now: BootTime,
    ) -> Result<(), Option<BootTime>> {
        if self.probe.is_none() && now >= self.retry_at {
            self.probe = Some(probe);
            return Ok(());
        }
        self.parked.insert(repl.clone());
        Err(self.probe.is_none().then_some(self.retry_at))
    }
}
