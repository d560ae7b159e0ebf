//! The store: etcd's semantics and nothing more, behind a trait that names no implementation.
//!
//! *Safety rests on committed compare-and-swap transactions alone.* A range may be stale and a watch may
//! lag; a transaction's compares are checked against the newest state, always.
//!
//! Implementations: `sqlite` (embedded, shared by the processes of one machine), `etcd` (a fleet of machines),
//! `memory` (tests and the simulator, can be told to misbehave). All pass `contract`.
//!
//! A transaction that changes nothing (no operation, or deletes of absent keys only) is committed at the
//! revision that the store already has, as in etcd.

#[cfg(test)]
mod contract;
#[cfg(test)]
mod differential;
pub mod etcd;
pub mod memory;
pub mod reach;
#[cfg(test)]
mod relative;
pub mod sqlite;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::departure::TXN_OPERATIONS_MAX;
use model::id::Revision;
pub use model::store::{
    Change, Compare, KeyValue, Operation, Range, StoreError, Target, Txn, TxnOutcome,
};

/// A key-value store on a global revision.
pub trait Store: Send + Sync + 'static {
    /// All keys that start with `prefix` (a whole key is a prefix of itself: callers who want one key
    /// compare), at one revision.
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>>;

    /// One key.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>>;

    /// Checks and writes, atomically and durably. Dropping the future does not undo the commit.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>>;

    /// The changes of keys that start with `prefix`, from revision `from` (inclusive) on, in order, each
    /// once, those of one transaction together. Ends after an error; range and watch again.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>>;
}

/// The most bytes of one transaction: etcd's `--max-request-bytes` when nothing is said, less what its messages and a
/// fleet's prefix add to keys and values.
const TXN_BYTES_MAX: usize = 1_500_000 - 2 * TXN_OPERATIONS_MAX * PREFIX_BYTES_MAX;

/// The longest prefix of a fleet's keys.
pub const PREFIX_BYTES_MAX: usize = 128;

/// What every implementation checks before it looks at a transaction, so that what works on one works on all: that no
/// key is written twice, and that etcd would take it.
fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    let (compares, operations) = (txn.compares.len(), txn.operations.len());
    if compares.max(operations) > TXN_OPERATIONS_MAX {
        return Err(StoreError::Fatal(format!(
            "a transaction has {compares} compares and {operations} operations, and may have {TXN_OPERATIONS_MAX}"
        )));
    }
    let written = txn.operations.iter().map(|operation| match operation {
        Operation::Put { key, value } => key.len() + value.len(),
        Operation::Delete { key } => key.len(),
    });
    // A compared key is in the compare, and in the read that follows when it does not hold.
    let compared = txn.compares.iter().map(|compare| 2 * compare.key.len());
    let bytes: usize = written.chain(compared).sum();
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::Fatal(format!(
            "a transaction has {bytes} bytes, and may have {TXN_BYTES_MAX}"
        )));
    }
    let mut written = std::collections::HashSet::new();
    for operation in &txn.operations {
        let (Operation::Put { key, .. } | Operation::Delete { key }) = operation;
        if !written.insert(key) {
            return Err(StoreError::Fatal(format!(
                "a transaction writes the key {key:?} twice"
            )));
        }
    }
    Ok(())
}
