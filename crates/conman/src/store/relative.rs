//! For tests: a store whose revisions are counted from one of another's. 0, which stands for an absent key, stays 0.

use futures_util::stream::StreamExt;

use super::*;

/// A store on top of another.
#[derive(Debug, Clone)]
pub(super) struct Relative<S> {
    inner: S,
    base: Revision,
}

impl<S> Relative<S> {
    /// Revision 1 is the one after `base`.
    pub(super) fn new(inner: S, base: Revision) -> Self {
        Self { inner, base }
    }

    pub(super) fn inner(&self) -> &S {
        &self.inner
    }

    pub(super) fn outer(&self, revision: Revision) -> Revision {
        match revision {
            Revision::ABSENT => revision,
            Revision(number) => Revision(number + self.base.0),
        }
    }
}

fn relative(base: Revision, revision: Revision) -> Revision {
    Revision(revision.0.saturating_sub(base.0))
}

fn item(base: Revision, item: KeyValue) -> KeyValue {
    KeyValue {
        create: relative(base, item.create),
        modified: relative(base, item.modified),
        ..item
    }
}

fn error(base: Revision, error: StoreError) -> StoreError {
    match error {
        StoreError::Compacted { oldest } => StoreError::Compacted {
            oldest: relative(base, oldest),
        },
        other => other,
    }
}

fn change(base: Revision, change: Change) -> Change {
    match change {
        Change::Put(written) => Change::Put(item(base, written)),
        Change::Delete { key, revision } => Change::Delete {
            key,
            revision: relative(base, revision),
        },
    }
}

impl<S: Store> Store for Relative<S> {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let range = self.inner.range(&prefix).await?;
            let items = range.items.into_iter();
            Ok(Range {
                revision: relative(self.base, range.revision),
                items: items.map(|found| item(self.base, found)).collect(),
            })
        })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let found = self.inner.get(&key).await?;
            Ok(found.map(|found| item(self.base, found)))
        })
    }

    fn txn(&self, mut txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        for compare in &mut txn.compares {
            compare.revision = self.outer(compare.revision);
        }
        Box::pin(async move {
            Ok(match self.inner.txn(txn).await? {
                TxnOutcome::Committed(revision) => {
                    TxnOutcome::Committed(relative(self.base, revision))
                }
                TxnOutcome::Rejected { current } => TxnOutcome::Rejected {
                    current: current
                        .into_iter()
                        .map(|found| found.map(|found| item(self.base, found)))
                        .collect(),
                },
            })
        })
    }

    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        let base = self.base;
        let batches = self.inner.watch(prefix, self.outer(from));
        Box::pin(batches.map(move |batch| match batch {
            Ok(changes) => Ok(changes.into_iter().map(|one| change(base, one)).collect()),
            Err(why) => Err(error(base, why)),
        }))
    }
}
