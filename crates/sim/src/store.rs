//! A store that knows what it held some changes ago, so that reads can be stale. Beats change all the time: only what else
//! changes makes a past of its own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use model::id::Revision;
use model::keys::BEATS;
use model::store::{Compare, KeyValue, Operation, Target, Txn};

/// The keys at one revision.
pub type Keys = BTreeMap<String, KeyValue>;

/// What one change, and the beats until the next, wrote over; `None` for a key that was absent.
type Undo = BTreeMap<String, Option<KeyValue>>;

/// etcd's semantics on plain maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    revision: Revision,
    now: Keys,
    past: VecDeque<Undo>,
    past_max: usize,
}

/// The store as one read shows it: the present, or as it was before some of the last changes.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    now: &'a Keys,
    past: Option<&'a VecDeque<Undo>>,
    staleness: usize,
}

impl<'a> View<'a> {
    /// Of keys that have no past.
    pub fn of(keys: &'a Keys) -> Self {
        Self {
            now: keys,
            past: None,
            staleness: 0,
        }
    }

    /// What has been written over since, the oldest first.
    fn undone(&self) -> impl DoubleEndedIterator<Item = &'a Undo> + use<'a> {
        let (past, staleness) = (self.past, self.staleness);
        let undone = past.map(|past| past.range(past.len() - staleness..));
        undone.into_iter().flatten()
    }

    /// One key.
    pub fn get(&self, key: &str) -> Option<&'a KeyValue> {
        match self.undone().find_map(|undo| undo.get(key)) {
            Some(before) => before.as_ref(),
            None => self.now.get(key),
        }
    }

    /// All keys that begin with `prefix`, in their order.
    pub fn range(&self, prefix: &str) -> impl Iterator<Item = &'a KeyValue> + use<'a> {
        let mut found: BTreeMap<&str, Option<&KeyValue>> = from(self.now, prefix)
            .map(|(key, item)| (key.as_str(), Some(item)))
            .collect();
        for undo in self.undone().rev() {
            found.extend(from(undo, prefix).map(|(key, item)| (key.as_str(), item.as_ref())));
        }
        found.into_values().flatten()
    }
}

fn from<'a, V>(
    keys: &'a BTreeMap<String, V>,
    prefix: &str,
) -> impl Iterator<Item = (&'a String, &'a V)> {
    let range = keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
    range.take_while(move |(key, _)| key.starts_with(prefix))
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

    /// The revision of the last commit.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The keys as they were before the last `staleness` changes, or as long ago as is known.
    pub fn read(&self, staleness: usize) -> View<'_> {
        View {
            now: &self.now,
            past: Some(&self.past),
            staleness: staleness.min(self.past.len()),
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
            self.past.push_back(Undo::new());
            if self.past.len() > self.past_max {
                self.past.pop_front();
            }
        }
        let revision = Revision(self.revision.0 + 1);
        self.revision = revision;
        for operation in &txn.operations {
            let (key, before) = match operation {
                Operation::Put { key, value } => {
                    let create = self.now.get(key).map_or(revision, |item| item.create);
                    let item = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create,
                        modified: revision,
                    };
                    (key, self.now.insert(key.clone(), item))
                }
                Operation::Delete { key } => (key, self.now.remove(key)),
            };
            if let Some(undo) = self.past.back_mut() {
                undo.entry(key.clone()).or_insert(before);
            }
        }
        Some(revision)
    }
}
