//! The store: etcd's semantics and nothing more, behind a trait that names no implementation.
//!
//! *Safety rests on committed compare-and-swap transactions alone.* A range may be stale and a watch may
//! lag; a transaction's compares are checked against the newest state, always.
//!
//! Implementations: `sqlite` (embedded, shared by the processes of one machine), `memory` (tests and the
//! simulator, can be told to misbehave). All pass `contract`.
//!
//! A transaction that changes nothing (no operation, or deletes of absent keys only) is committed at the
//! revision that the store already has, as in etcd.

#[cfg(test)]
mod contract;
pub mod memory;
pub mod sqlite;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
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

/// What every implementation checks before it looks at a transaction: that no key is written twice.
fn check_txn(txn: &Txn) -> Result<(), StoreError> {
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
