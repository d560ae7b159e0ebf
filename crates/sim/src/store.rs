//! A store that keeps some of its past, so that reads can be stale. Beats change all the time: only what else changes makes a
//! past of its own.

use std::collections::{BTreeMap, VecDeque};

use model::id::Revision;
use model::keys::BEATS;
use model::store::{Compare, KeyValue, Operation, Target, Txn};

/// The keys at one revision.
pub type Keys = BTreeMap<String, KeyValue>;

/// etcd's semantics on plain maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    revision: Revision,
    now: Keys,
    past: VecDeque<Keys>,
    past_max: usize,
}

impl Store {
    /// An empty store that can be read as it was up to `past_max` changes ago.
    pub fn new(past_max: usize) -> Self {
        Self {
            revision: Revision(0),
            now: Keys::new(),
            past: VecDeque::new(),
            past_max,
        }
    }

    /// The keys as they are.
    pub fn now(&self) -> &Keys {
        &self.now
    }

    /// The keys as they were before the last `staleness` changes, or as long ago as is known.
    pub fn read(&self, staleness: usize) -> &Keys {
        match staleness.min(self.past.len()) {
            0 => &self.now,
            staleness => &self.past[self.past.len() - staleness],
        }
    }

    /// Whether one condition of a transaction holds.
    pub fn holds(&self, compare: &Compare) -> bool {
        let item = self.now.get(&compare.key);
        let revision = item.map_or(Revision::ABSENT, |item| match compare.target {
            Target::Create => item.create,
            Target::Modified => item.modified,
        });
        revision == compare.revision
    }

    /// Commits, or says with `None` that a compare did not hold.
    pub fn commit(&mut self, txn: &Txn) -> Option<Revision> {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return None;
        }
        let is_beat = |operation: &Operation| {
            let (Operation::Put { key, .. } | Operation::Delete { key }) = operation;
            key.starts_with(BEATS)
        };
        if self.past_max > 0 && !txn.operations.iter().all(is_beat) {
            self.past.push_back(self.now.clone());
            if self.past.len() > self.past_max {
                self.past.pop_front();
            }
        }
        let revision = Revision(self.revision.0 + 1);
        self.revision = revision;
        for operation in &txn.operations {
            match operation {
                Operation::Put { key, value } => {
                    let create = self.now.get(key).map_or(revision, |item| item.create);
                    let item = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create,
                        modified: revision,
                    };
                    self.now.insert(key.clone(), item);
                }
                Operation::Delete { key } => {
                    self.now.remove(key);
                }
            }
        }
        Some(revision)
    }
}
