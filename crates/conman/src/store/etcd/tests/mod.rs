//! etcd itself: what the contract needs of one that others use too, and members of our own that go wrong.
//!
//! `scripts/etcd run` starts the first and says where it is; without it these tests pass without testing.

mod cluster;
mod faults;

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::store::Operation;
use crate::store::relative::Relative;

/// The etcd that `scripts/etcd run` has started, with nobody else's writes in it while this is held.
pub(in crate::store) struct Shared {
    options: Options,
    base: Revision,
    _lock: File,
}

impl Shared {
    pub(in crate::store) async fn take() -> Option<Self> {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        let (Some(urls), Ok(lock)) = (urls(), std::env::var("CONMAN_TEST_ETCD_LOCK")) else {
            eprintln!("no etcd: not tested; `make test` starts one");
            return None;
        };
        let lock = File::open(lock).unwrap();
        // Blocks: nothing else is to be done meanwhile.
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        let mut options = options(urls);
        options.prefix = format!("/test-{}-{number}", std::process::id());
        let base = Etcd::open(options.clone()).unwrap();
        let base = base.range("").await.unwrap().revision;
        Some(Self {
            options,
            base,
            _lock: lock,
        })
    }

    /// A handle that counts revisions from the taking of the etcd.
    pub(in crate::store) fn another(&self) -> Relative<Etcd> {
        Relative::new(Etcd::open(self.options.clone()).unwrap(), self.base)
    }
}

impl Relative<Etcd> {
    /// Forgets the history up to the revision.
    pub(in crate::store) async fn compact(&self, revision: Revision) {
        let (_, endpoint) = self.inner().shared.preferred();
        let revision = translate::number(self.outer(revision));
        endpoint.compact(revision).await.unwrap();
    }
}

fn urls() -> Option<Vec<String>> {
    let urls = std::env::var("CONMAN_TEST_ETCD").ok()?;
    Some(urls.split(',').map(str::to_owned).collect())
}

fn options(endpoints: Vec<String>) -> Options {
    Options {
        endpoints,
        prefix: "/fleet".to_owned(),
        credentials: None,
        tls: None,
    }
}

fn put(key: &str, value: &str) -> Txn {
    Txn {
        compares: vec![],
        operations: vec![Operation::Put {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
    }
}

fn delete(key: &str) -> Txn {
    Txn {
        compares: vec![],
        operations: vec![Operation::Delete {
            key: key.to_owned(),
        }],
    }
}

/// The next change of a watch, in words.
async fn next(watch: &mut BoxStream<'static, Result<Vec<Change>, StoreError>>) -> String {
    let batch = tokio::time::timeout(std::time::Duration::from_secs(30), watch.next());
    match batch.await.expect("nothing came").expect("the watch ended") {
        Ok(changes) => changes
            .iter()
            .map(|change| match change {
                Change::Put(item) => format!("{}={}", item.key, item.value),
                Change::Delete { key, .. } => format!("{key} deleted"),
            })
            .collect::<Vec<_>>()
            .join(" "),
        Err(error) => error.to_string(),
    }
}

/// What a history that was cut right at a deletion does to a watch from there: etcd 3.4 forgets that
/// deletion without a word, and would leave a host in every gateway's list for ever.
#[tokio::test]
async fn a_deletion_at_the_cut_is_never_silently_lost() {
    let Some(shared) = Shared::take().await else {
        return;
    };
    let store = shared.another();
    store.txn(put("/h/a", "1")).await.unwrap();
    store.txn(delete("/h/a")).await.unwrap();
    store.compact(Revision(2)).await;
    store.txn(put("/h/b", "1")).await.unwrap();
    let mut watch = store.watch("/h/", Revision(2));
    let told = next(&mut watch).await;
    assert_eq!(told, "the store's history before revision 3 is gone");
    let mut watch = store.watch("/h/", Revision(3));
    assert_eq!(next(&mut watch).await, "/h/b=1");
}
