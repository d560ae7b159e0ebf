//! How repls leave a host: in batches, one at the store at a time, the next gathering meanwhile. In a drain the first
//! batch gathers for a moment too: of two hundred deaths within some milliseconds, those with users leave first.

use std::collections::BTreeSet;

use super::container::After;
use super::{Effect, Host};
use crate::departure::Left;
use crate::id::ContainerId;
use crate::time::BootTime;
use crate::timing::DRAIN_GATHER;
use crate::wire::node::OwnerHint;

/// The dead that are not given up yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Leaving {
    /// At the store.
    sent: BTreeSet<ContainerId>,
    /// To go with the next batch.
    waiting: Vec<ContainerId>,
    /// Since when the first of them waits.
    since: Option<BootTime>,
}

impl Leaving {
    pub(super) fn push(&mut self, id: ContainerId, now: BootTime) {
        self.waiting.push(id);
        self.since.get_or_insert(now);
    }

    /// Until when those that wait in a drain may be joined by others; `None` if they wait for the store.
    pub(super) fn gathers_until(&self) -> Option<BootTime> {
        let since = self.since.filter(|_| self.sent.is_empty())?;
        Some(since.plus(DRAIN_GATHER))
    }
}

impl Host {
    /// Sends the next batch if none is at the store, those that had users first.
    pub(super) fn send_leaving(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let is_full = match self.leaving.gathers_until() {
            Some(until) => now >= until || !self.expects_deaths(),
            None => false,
        };
        if !is_full {
            return;
        }
        self.leaving.since = None;
        let mut waiting = std::mem::take(&mut self.leaving.waiting);
        if let Some(drain) = &self.drain {
            waiting.sort_by_key(|id| drain.rank(&id.repl));
        }
        let mut departures = vec![];
        for id in waiting {
            let Some(container) = self.container(&id) else {
                continue;
            };
            match container.after.clone() {
                After::Release => departures.push((id, None)),
                After::HandOff(target) => departures.push((id, Some(target))),
                After::Abandon => self.gone(&id, None, out),
            }
        }
        if !departures.is_empty() {
            self.leaving.sent = departures.iter().map(|(id, _)| id.clone()).collect();
            out.push(Effect::Depart { departures });
        }
    }

    /// What the store made of some of a batch.
    pub(super) fn departed(
        &mut self,
        departed: Vec<(ContainerId, Left)>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        for (id, left) in departed {
            self.leaving.sent.remove(&id);
            let Some(container) = self.container(&id) else {
                continue;
            };
            match (left, container.after.clone()) {
                (Left::HandedOff(epoch), After::HandOff(target)) => {
                    let hint = OwnerHint {
                        host: Some(target.host),
                        epoch,
                    };
                    self.gone(&id, Some(hint), out);
                }
                (Left::HeirGone, After::HandOff(_) | After::Release) => {
                    container.after = After::Release;
                    self.leaving.push(id, now);
                }
                (Left::Released | Left::HandedOff(_) | Left::HeirGone, _) => {
                    self.gone(&id, None, out);
                }
            }
        }
    }
}
