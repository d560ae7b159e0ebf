//! How repls leave a host: in batches, one at the store at a time, the next gathering meanwhile. Of two hundred
//! deaths within some milliseconds the first leaves at once, and the others in a few transactions.

use std::collections::BTreeSet;

use super::container::After;
use super::{Effect, Host};
use crate::departure::Left;
use crate::id::ContainerId;
use crate::wire::node::OwnerHint;

/// The dead that are not given up yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Leaving {
    /// At the store.
    sent: BTreeSet<ContainerId>,
    /// To go with the next batch.
    waiting: Vec<ContainerId>,
}

impl Leaving {
    pub(super) fn push(&mut self, id: ContainerId) {
        self.waiting.push(id);
    }
}

impl Host {
    /// Sends the next batch if none is at the store, those that had users first.
    pub(super) fn send_leaving(&mut self, out: &mut Vec<Effect>) {
        if !self.leaving.sent.is_empty() {
            return;
        }
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
    pub(super) fn departed(&mut self, departed: Vec<(ContainerId, Left)>, out: &mut Vec<Effect>) {
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
                    self.leaving.push(id);
                }
                (Left::Released | Left::HandedOff(_) | Left::HeirGone, _) => {
                    self.gone(&id, None, out);
                }
            }
        }
    }
}
