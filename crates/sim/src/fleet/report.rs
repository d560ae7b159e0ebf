//! What came out of a simulation.

use std::collections::BTreeMap;

use model::stuck::{Class, Ended};

use super::plan::Fault;

/// What must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two containers of one repl were alive, the second on this host.
    TwoAlive(String),
    /// A container was started at or below an epoch that had one before.
    EpochTwice(String),
    /// A session for one epoch was let into the container of another.
    WrongContainer(String),
    /// Long after everything had gone right again, so many users still waited.
    NeverBack(u64),
}

/// Durations, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Durations(Vec<u64>);

impl Durations {
    pub(super) fn add(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds / 1_000);
    }

    /// Those of both.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that this share of them does not exceed, in milliseconds; `None` without any.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        let value = sorted.get(rank.max(1) - 1)?;
        Some(*value as f64 / 1e3)
    }
}

/// What users and the store saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// How long the world went on.
    pub simulated_seconds: f64,
    /// How many hosts there were for that long.
    pub host_seconds: f64,
    /// What must never happen. Empty, or the protocol is wrong.
    pub violations: Vec<Violation>,
    /// From the loss of a container until its user was in the next one, by what it was lost to.
    pub failover: BTreeMap<&'static str, Durations>,
    /// Episodes of users who were refused more than once, by class.
    pub stuck: BTreeMap<Class, u64>,
    /// Users who were refused once.
    pub blips: u64,
    /// Containers that were started.
    pub starts: u64,
    /// Registrations that observers ended.
    pub thefts: u64,
    /// Leases that were lost.
    pub fences: u64,
    /// Leases that were lost while nothing was wrong.
    pub false_fences: u64,
    /// The longest outage of the store in which no lease was lost.
    pub outage_survived_ms: f64,
    /// Transactions that the store committed.
    pub store_writes: u64,
    /// The most that it committed within one second, in one cell.
    pub store_writes_peak: u64,
    /// How often each fault came.
    pub faults: BTreeMap<&'static str, u64>,
    /// Times that a container went on for a moment on a machine that the hypervisor had paused past its deadline, when
    /// another was there already: the window that remains.
    pub pause_windows: u64,
    /// What the loss of a zone cost: from its loss until each user was back.
    pub zone: Durations,
    /// Everything that happened, in a number.
    pub trace: u64,
    /// What was gone through.
    pub events: u64,
}

impl Report {
    pub(super) fn ended(&mut self, ended: &Ended) {
        if ended.is_blip() {
            self.blips += 1;
        } else {
            *self.stuck.entry(ended.class()).or_default() += 1;
        }
    }

    /// All failovers, whatever they came from.
    pub fn all_failovers(&self) -> Durations {
        let mut all = Durations::default();
        for durations in self.failover.values() {
            all.extend(durations);
        }
        all
    }

    /// Of a fault that no fault is meant to have: what never came.
    pub fn never_came(&self) -> Vec<&'static str> {
        let names = Fault::ALL.iter().map(|fault| fault.name());
        names
            .filter(|name| !self.faults.contains_key(name))
            .collect()
    }

    /// Adds another cell's, or another seed's.
    pub fn merge(&mut self, other: Self) {
        self.simulated_seconds = self.simulated_seconds.max(other.simulated_seconds);
        self.host_seconds += other.host_seconds;
        self.violations.extend(other.violations);
        for (cause, durations) in &other.failover {
            self.failover.entry(cause).or_default().extend(durations);
        }
        for (class, count) in other.stuck {
            *self.stuck.entry(class).or_default() += count;
        }
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        self.blips += other.blips;
        self.starts += other.starts;
        self.thefts += other.thefts;
        self.fences += other.fences;
        self.false_fences += other.false_fences;
        self.outage_survived_ms = self.outage_survived_ms.max(other.outage_survived_ms);
        self.store_writes += other.store_writes;
        self.store_writes_peak = self.store_writes_peak.max(other.store_writes_peak);
        self.pause_windows += other.pause_windows;
        self.zone.extend(&other.zone);
        self.trace = super::random::mix(self.trace ^ other.trace);
        self.events += other.events;
    }
}
