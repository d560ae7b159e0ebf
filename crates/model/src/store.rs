//! The values of the store: keys on a global revision, transactions of compares and operations.
//!
//! These are etcd's semantics and nothing more (DESIGN.md, "Store"). The trait that carries them out
//! is `conman::store::Store`; the simulator has its own.

use serde::{Deserialize, Serialize};

use crate::id::Revision;

/// One key with its value and the revisions at which it was created and last written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key, for example `/r/blue-fox`.
    pub key: String,
    /// The value: JSON text in every key of conman.
    pub value: String,
    /// The revision at which the key last came into being.
    pub create: Revision,
    /// The revision at which the value was last written.
    pub modified: Revision,
}

/// What a [`Compare`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The key's create revision.
    Create,
    /// The key's mod revision.
    Modified,
}

/// One condition of a transaction: the key's create or mod revision equals `revision`
/// ([`Revision::ABSENT`] for a key that must not exist).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Whose revision.
    pub key: String,
    /// Which of its revisions.
    pub target: Target,
    /// What it must equal.
    pub revision: Revision,
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Writes the key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: String,
    },
    /// Deletes the key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

/// All operations happen at one new revision if every compare holds, and none otherwise. A key occurs
/// in at most one operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The writes.
    pub operations: Vec<Operation>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Every compare held; the writes carry this revision.
    Committed(Revision),
    /// A compare did not hold; nothing was written.
    Rejected {
        /// The current state of each compared key, in the order of the compares, read in the same
        /// transaction; `None` where the key is absent.
        current: Vec<Option<KeyValue>>,
    },
}

/// The keys under one prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The store's revision at the read: a watch from `revision + 1` misses nothing.
    pub revision: Revision,
    /// The keys in ascending order.
    pub items: Vec<KeyValue>,
}

/// One change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The key was created or written.
    Put(KeyValue),
    /// The key was deleted at this revision.
    Delete {
        /// The key.
        key: String,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(item) => &item.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(item) => item.modified,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// Why the store did not answer. What a caller may conclude differs: that is why these are apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written, and the store cannot be reached now. Try again later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The transaction may or may not have been, or may yet be, committed. Read before acting.
    #[error("the store did not say whether the transaction was committed: {0}")]
    Ambiguous(String),
    /// A watch cannot go on from the asked revision, for the history before it is gone: range again.
    #[error("the store's history before revision {oldest} is gone")]
    Compacted {
        /// The oldest revision that a watch may start from.
        oldest: Revision,
    },
    /// The store is unusable: not a store of ours, of a newer version, damaged.
    #[error("the store cannot be used: {0}")]
    Fatal(String),
}
