//! Watching other hosts, and stealing from the silent ones.
//!
//! Each host is observed by [`OBSERVERS_PER_HOST`] others, picked by rendezvous hashing over the hosts
//! that still beat, so that nobody has to agree on anything and not everybody acts at once.
//!
//! The rule: a host may be robbed only after the *same* beat has been seen for `T_STEAL`, counted
//! from the *receipt* of the read that showed it first. The theft itself is a compare-and-swap on that very
//! beat: one late beat, and it fails. Times are on the observer's CLOCK_MONOTONIC_RAW.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{HostId, Incarnation, Revision};
use crate::mutant::{STEAL_AFTER_SAME_BEAT, STEAL_DRIFT, STEAL_WAITS, removed};
use crate::rendezvous::rendezvous;
use crate::time::RawTime;
use crate::timing::{KILL_BOUND, OBSERVERS_PER_HOST, Timing};

/// One host as a read of the store showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who.
    pub host: HostId,
    /// Its registration.
    pub incarnation: Incarnation,
    /// The mod revision of its beat; [`Revision::ABSENT`] if it has none.
    pub beat: Revision,
}

/// A theft that the rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theft {
    /// Whose registration is deleted, compared with what is in here.
    pub seen: Seen,
    /// For how long the same beat had been seen.
    pub silent_for: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    incarnation: Incarnation,
    beat: Revision,
    since: RawTime,
}

/// What one host knows of the beats of those it observes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observer {
    me: HostId,
    steal: Duration,
    watched: BTreeMap<HostId, Watched>,
}

impl Observer {
    /// Knows nothing yet.
    pub fn new(me: HostId, timing: Timing) -> Self {
        Self {
            me,
            steal: patience(timing),
            watched: BTreeMap::new(),
        }
    }

    /// When the rule allows a theft at the earliest, if nothing beats until then.
    pub fn due(&self) -> Option<RawTime> {
        let since = self.watched.values().map(|watched| watched.since).min()?;
        Some(since.plus(self.steal))
    }

    /// Takes one read of the hosts, received at `received`, and says whom to rob.
    pub fn step(&mut self, hosts: &[Seen], received: RawTime) -> Vec<Theft> {
        let before = std::mem::take(&mut self.watched);
        for seen in hosts.iter().filter(|seen| seen.host != self.me) {
            let since = match before.get(&seen.host) {
                Some(known)
                    if known.incarnation == seen.incarnation
                        && (known.beat == seen.beat || removed(STEAL_AFTER_SAME_BEAT)) =>
                {
                    known.since
                }
                _ => received,
            };
            let watched = Watched {
                incarnation: seen.incarnation,
                beat: seen.beat,
                since,
            };
            self.watched.insert(seen.host.clone(), watched);
        }
        self.watched
            .iter()
            .filter(|(host, watched)| {
                self.is_silent(watched, received) && self.is_my_turn(host, received)
            })
            .map(|(host, watched)| Theft {
                seen: Seen {
                    host: host.clone(),
                    incarnation: watched.incarnation,
                    beat: watched.beat,
                },
                silent_for: received.since(watched.since),
            })
            .collect()
    }

    fn is_silent(&self, watched: &Watched, now: RawTime) -> bool {
        now.since(watched.since) >= self.steal
    }

    /// Whether this host is among the first observers of `silent`. Hosts that are silent themselves do not
    /// count, or the loss of a zone could take all three observers of a host and leave nobody to act.
    fn is_my_turn(&self, silent: &HostId, now: RawTime) -> bool {
        let mine = rendezvous(silent.as_str(), self.me.as_str());
        let better = self
            .watched
            .iter()
            .filter(|(other, watched)| *other != silent && !self.is_silent(watched, now))
            .filter(|(other, _)| rendezvous(silent.as_str(), other.as_str()) > mine)
            .count();
        better < OBSERVERS_PER_HOST
    }
}

/// T_STEAL.
fn patience(timing: Timing) -> Duration {
    if removed(STEAL_WAITS) {
        timing.hold
    } else if removed(STEAL_DRIFT) {
        timing.hold + KILL_BOUND
    } else {
        timing.steal
    }
}
