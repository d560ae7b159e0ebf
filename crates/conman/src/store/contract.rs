//! What every store must do, run on each of them. Two handles stand for two processes.

mod misbehaviour;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, BoxFuture};
use futures_util::stream::{BoxStream, StreamExt};
use model::id::Revision;

use super::memory::Memory;
use super::sqlite::Sqlite;
use super::*;

/// One store under test.
struct Fixture {
    near: Arc<dyn Store>,
    far: Arc<dyn Store>,
    compact: Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What must be there for as long as the store is.
    _held: Option<Box<dyn std::any::Any>>,
}

fn memory() -> Fixture {
    let near = Memory::new();
    let compacted = near.clone();
    Fixture {
        far: Arc::new(near.another()),
        near: Arc::new(near),
        compact: Box::new(move |oldest| {
            compacted.compact(oldest);
            Box::pin(future::ready(()))
        }),
        _held: None,
    }
}

fn sqlite() -> Fixture {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("store.db");
    let near = Sqlite::open(&path).unwrap();
    let compacted = near.clone();
    Fixture {
        near: Arc::new(near),
        far: Arc::new(Sqlite::open(&path).unwrap()),
        compact: Box::new(move |oldest| {
            let store = compacted.clone();
            Box::pin(async move { store.compact(oldest).await.unwrap() })
        }),
        _held: Some(Box::new(files)),
    }
}

async fn etcd() -> Option<Fixture> {
    let shared = etcd::tests::Shared::take().await?;
    let compacted = shared.another();
    Some(Fixture {
        near: Arc::new(shared.another()),
        far: Arc::new(shared.another()),
        compact: Box::new(move |oldest| {
            let store = compacted.clone();
            // etcd's history is cut behind the revision that it is told.
            Box::pin(async move { store.compact(Revision(oldest.0 - 1)).await })
        }),
        _held: Some(Box::new(shared)),
    })
}

macro_rules! contract {
    ($($rule:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $rule() { super::$rule(super::sqlite()).await; })*
        }
        mod on_memory {
            $(#[tokio::test] async fn $rule() { super::$rule(super::memory()).await; })*
        }
        mod on_etcd {
            $(#[tokio::test] async fn $rule() {
                if let Some(store) = super::etcd().await {
                    super::$rule(store).await;
                }
            })*
        }
    };
}

contract!(
    is_empty_at_first,
    keeps_create_and_mod_revisions,
    rejects_and_says_what_it_saw,
    compares_create_apart_from_modified,
    writes_one_transaction_at_one_revision,
    spends_no_revision_on_nothing,
    refuses_a_key_written_twice,
    takes_what_is_allowed_and_refuses_more,
    ranges_over_many_pages,
    ranges_by_prefix_in_order,
    never_loses_an_increment,
    lets_one_claimer_win,
    watches_history_and_then_the_present,
    watches_from_the_future,
    watches_only_its_prefix,
    tells_a_watch_that_is_behind,
    joins_range_and_watch_without_a_gap,
);

fn put(key: &str, value: &str) -> Operation {
    Operation::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn delete(key: &str) -> Operation {
    Operation::Delete { key: key.into() }
}

fn when(key: &str, target: Target, revision: u64) -> Compare {
    Compare {
        key: key.into(),
        target,
        revision: Revision(revision),
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

async fn commit(store: &Arc<dyn Store>, compares: Vec<Compare>, operations: Vec<Operation>) -> u64 {
    let txn = Txn {
        compares,
        operations,
    };
    match soon("a commit", store.txn(txn)).await {
        Ok(TxnOutcome::Committed(revision)) => revision.0,
        other => panic!("not committed: {other:?}"),
    }
}

async fn reject(
    store: &Arc<dyn Store>,
    compares: Vec<Compare>,
    operations: Vec<Operation>,
) -> Vec<Option<KeyValue>> {
    let txn = Txn {
        compares,
        operations,
    };
    match soon("a rejection", store.txn(txn)).await {
        Ok(TxnOutcome::Rejected { current }) => current,
        other => panic!("not rejected: {other:?}"),
    }
}

/// `key=value (create, modified)` of each item.
async fn list(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let range = soon("a range", store.range(prefix)).await.unwrap();
    range.items.iter().map(show).collect()
}

fn show(item: &KeyValue) -> String {
    let KeyValue {
        key,
        value,
        create,
        modified,
    } = item;
    format!("{key}={value} ({create}, {modified})")
}

type Watch = BoxStream<'static, Result<Vec<Change>, StoreError>>;

/// The next batch, in words.
async fn next(watch: &mut Watch) -> Vec<String> {
    let batch = soon("a change", watch.next()).await;
    let changes = batch.expect("the watch ended").expect("the watch failed");
    changes
        .iter()
        .map(|change| match change {
            Change::Put(item) => show(item),
            Change::Delete { key, revision } => format!("{key} deleted ({revision})"),
        })
        .collect()
}

async fn is_empty_at_first(store: Fixture) {
    let range = store.near.range("").await.unwrap();
    assert_eq!(range.revision, Revision(0));
    assert!(range.items.is_empty());
    assert_eq!(store.far.get("/h/a").await.unwrap(), None);
}

async fn keeps_create_and_mod_revisions(store: Fixture) {
    assert_eq!(commit(&store.near, vec![], vec![put("/h/a", "1")]).await, 1);
    assert_eq!(commit(&store.far, vec![], vec![put("/h/a", "2")]).await, 2);
    assert_eq!(list(&store.near, "/h/").await, ["/h/a=2 (1, 2)"]);
    assert_eq!(commit(&store.near, vec![], vec![delete("/h/a")]).await, 3);
    assert!(list(&store.far, "/h/").await.is_empty());
    assert_eq!(commit(&store.far, vec![], vec![put("/h/a", "3")]).await, 4);
    let item = store.near.get("/h/a").await.unwrap().unwrap();
    assert_eq!(show(&item), "/h/a=3 (4, 4)");
    assert_eq!(store.near.get("/h/").await.unwrap(), None);
}

async fn rejects_and_says_what_it_saw(store: Fixture) {
    commit(&store.near, vec![], vec![put("/h/a", "1")]).await;
    let compares = vec![
        when("/h/a", Target::Modified, 1),
        when("/h/b", Target::Create, 1),
        when("/h/a", Target::Create, 0),
    ];
    let current = reject(&store.far, compares, vec![put("/h/c", "1"), delete("/h/a")]).await;
    let seen: Vec<_> = current.iter().map(|item| item.as_ref().map(show)).collect();
    assert_eq!(
        seen,
        [
            Some("/h/a=1 (1, 1)".into()),
            None,
            Some("/h/a=1 (1, 1)".into())
        ]
    );
    assert_eq!(list(&store.near, "").await, ["/h/a=1 (1, 1)"]);
    assert_eq!(store.near.range("").await.unwrap().revision, Revision(1));
}

async fn compares_create_apart_from_modified(store: Fixture) {
    let absent = || vec![when("/h/a", Target::Create, 0)];
    commit(&store.near, absent(), vec![put("/h/a", "1")]).await;
    reject(&store.near, absent(), vec![put("/h/a", "again")]).await;
    let stands = || vec![when("/h/a", Target::Create, 1)];
    commit(&store.far, stands(), vec![put("/h/a", "2")]).await;
    commit(&store.far, stands(), vec![put("/h/a", "3")]).await;
    let unchanged = vec![when("/h/a", Target::Modified, 2)];
    reject(&store.near, unchanged, vec![delete("/h/a")]).await;
    let unchanged = vec![when("/h/a", Target::Modified, 3)];
    commit(&store.near, unchanged, vec![delete("/h/a")]).await;
    commit(&store.near, absent(), vec![put("/h/a", "4")]).await;
    reject(&store.near, stands(), vec![put("/h/a", "5")]).await;
}

async fn writes_one_transaction_at_one_revision(store: Fixture) {
    let operations = vec![put("/h/a", "1"), put("/b/a", "0")];
    assert_eq!(commit(&store.near, vec![], operations).await, 1);
    let operations = vec![delete("/h/a"), put("/b/a", "1"), put("/b/c", "0")];
    assert_eq!(commit(&store.far, vec![], operations).await, 2);
    assert_eq!(
        list(&store.near, "").await,
        ["/b/a=1 (1, 2)", "/b/c=0 (2, 2)"]
    );
}

async fn spends_no_revision_on_nothing(store: Fixture) {
    commit(&store.near, vec![], vec![put("/h/a", "1")]).await;
    assert_eq!(commit(&store.near, vec![], vec![]).await, 1);
    assert_eq!(commit(&store.far, vec![], vec![delete("/h/b")]).await, 1);
    let stands = vec![when("/h/a", Target::Create, 1)];
    assert_eq!(commit(&store.far, stands, vec![]).await, 1);
    assert_eq!(commit(&store.far, vec![], vec![put("/h/a", "1")]).await, 2);
}

async fn refuses_a_key_written_twice(store: Fixture) {
    let txn = Txn {
        compares: vec![],
        operations: vec![put("/h/a", "1"), delete("/h/a")],
    };
    assert!(matches!(
        store.near.txn(txn).await,
        Err(StoreError::Fatal(_))
    ));
    assert_eq!(store.near.range("").await.unwrap().revision, Revision(0));
}

async fn takes_what_is_allowed_and_refuses_more(store: Fixture) {
    let keys: Vec<_> = (0..TXN_OPERATIONS_MAX)
        .map(|key| format!("/r/{key:03}"))
        .collect();
    let absent = || {
        keys.iter()
            .map(|key| when(key, Target::Modified, 0))
            .collect::<Vec<_>>()
    };
    let puts: Vec<_> = keys.iter().map(|key| put(key, "1")).collect();
    assert_eq!(commit(&store.near, absent(), puts.clone()).await, 1);
    let current = reject(&store.far, absent(), puts.clone()).await;
    assert!(current.iter().all(Option::is_some));
    let refused = async |txn| match store.near.txn(txn).await {
        Err(StoreError::Fatal(why)) => why,
        other => panic!("not refused: {other:?}"),
    };
    let one_more = Txn {
        compares: vec![],
        operations: [puts, vec![put("/r/more", "1")]].concat(),
    };
    assert_eq!(
        refused(one_more).await,
        "a transaction has 0 compares and 129 operations, and may have 128"
    );
    let value = "v".repeat(TXN_BYTES_MAX - "/s/a".len());
    commit(&store.near, vec![], vec![put("/s/a", &value)]).await;
    let read = store.far.get("/s/a").await.unwrap().unwrap();
    assert_eq!(read.value.len(), value.len());
    let larger = Txn {
        compares: vec![],
        operations: vec![put("/s/b", &value), delete("/s/c")],
    };
    assert!(refused(larger).await.contains("bytes, and may have"));
}

async fn ranges_over_many_pages(store: Fixture) {
    let keys: Vec<_> = (0..2_001).map(|key| format!("/r/{key:05}")).collect();
    for batch in keys.chunks(TXN_OPERATIONS_MAX) {
        let puts = batch.iter().map(|key| put(key, "v")).collect();
        commit(&store.near, vec![], puts).await;
    }
    let range = store.far.range("/r/").await.unwrap();
    let found: Vec<_> = range.items.iter().map(|item| &item.key).collect();
    assert!(found.iter().copied().eq(keys.iter()));
    assert_eq!(range.revision, Revision(16));
}

async fn ranges_by_prefix_in_order(store: Fixture) {
    let keys = [
        "/r/b",
        "/s/a",
        "/r/a",
        "/r/",
        "/r/a-1",
        "/r0",
        "/q/z",
        "/r/\u{10ffff}",
    ];
    for key in keys {
        commit(&store.near, vec![], vec![put(key, "v")]).await;
    }
    let range = store.far.range("/r/").await.unwrap();
    let found: Vec<_> = range.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(found, ["/r/", "/r/a", "/r/a-1", "/r/b", "/r/\u{10ffff}"]);
    assert_eq!(range.revision, Revision(keys.len() as u64));
    assert_eq!(store.far.range("").await.unwrap().items.len(), keys.len());
    // The wildcards of SQL are ordinary characters here.
    assert!(store.far.range("/%/").await.unwrap().items.is_empty());
    assert!(store.far.range("/_/").await.unwrap().items.is_empty());
}

async fn never_loses_an_increment(store: Fixture) {
    commit(&store.near, vec![], vec![put("/b/a", "0")]).await;
    let increment = |store: Arc<dyn Store>| async move {
        loop {
            let item = store.get("/b/a").await.unwrap().unwrap();
            let count: u64 = item.value.parse().unwrap();
            let txn = Txn {
                compares: vec![when("/b/a", Target::Modified, item.modified.0)],
                operations: vec![put("/b/a", &(count + 1).to_string())],
            };
            if let TxnOutcome::Committed(_) = store.txn(txn).await.unwrap() {
                return;
            }
        }
    };
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            if task % 2 == 0 {
                &store.near
            } else {
                &store.far
            }
        })
        .map(|store| tokio::spawn(increment(Arc::clone(store))))
        .collect();
    for task in tasks {
        soon("an increment", task).await.unwrap();
    }
    assert_eq!(list(&store.far, "/b/").await, ["/b/a=16 (1, 17)"]);
}

async fn lets_one_claimer_win(store: Fixture) {
    let claims = (0..20).map(|claimer: u32| {
        let side = if claimer.is_multiple_of(2) {
            &store.near
        } else {
            &store.far
        };
        side.txn(Txn {
            compares: vec![when("/r/x", Target::Modified, 0)],
            operations: vec![put("/r/x", &claimer.to_string())],
        })
    });
    let outcomes = soon("the claims", future::join_all(claims)).await;
    let won =
        |outcome: &&Result<TxnOutcome, StoreError>| matches!(outcome, Ok(TxnOutcome::Committed(_)));
    assert_eq!(outcomes.iter().filter(won).count(), 1);
    assert!(outcomes.iter().all(Result::is_ok));
    let owner = store.near.get("/r/x").await.unwrap().unwrap();
    let winner = outcomes.iter().position(|outcome| won(&outcome)).unwrap();
    assert_eq!(owner.value, winner.to_string());
}

async fn watches_history_and_then_the_present(store: Fixture) {
    commit(&store.near, vec![], vec![put("/h/a", "1")]).await;
    commit(
        &store.near,
        vec![],
        vec![put("/h/a", "2"), put("/h/b", "1")],
    )
    .await;
    commit(&store.near, vec![], vec![delete("/h/a")]).await;
    let mut watch = store.far.watch("/h/", Revision(2));
    assert_eq!(
        next(&mut watch).await,
        ["/h/a=2 (1, 2)", "/h/b=1 (2, 2)", "/h/a deleted (3)"]
    );
    // From the other handle, which for a real store is another process.
    let (changes, _) = future::join(
        next(&mut watch),
        commit(&store.near, vec![], vec![put("/h/c", "1"), delete("/h/b")]),
    )
    .await;
    assert_eq!(changes, ["/h/c=1 (4, 4)", "/h/b deleted (4)"]);
    // And from its own.
    let (changes, _) = future::join(
        next(&mut watch),
        commit(&store.far, vec![], vec![put("/h/c", "2")]),
    )
    .await;
    assert_eq!(changes, ["/h/c=2 (4, 5)"]);
}

async fn watches_from_the_future(store: Fixture) {
    let mut watch = store.near.watch("/h/", Revision(3));
    for value in ["1", "2", "3"] {
        commit(&store.far, vec![], vec![put("/h/a", value)]).await;
    }
    assert_eq!(next(&mut watch).await, ["/h/a=3 (1, 3)"]);
}

async fn watches_only_its_prefix(store: Fixture) {
    let mut watch = store.near.watch("/h/", Revision(1));
    commit(&store.far, vec![], vec![put("/b/a", "1"), put("/h0", "1")]).await;
    commit(&store.far, vec![], vec![delete("/b/a"), put("/h/a", "1")]).await;
    assert_eq!(next(&mut watch).await, ["/h/a=1 (2, 2)"]);
}

async fn tells_a_watch_that_is_behind(store: Fixture) {
    for value in ["1", "2", "3", "4"] {
        commit(&store.near, vec![], vec![put("/h/a", value)]).await;
    }
    (store.compact)(Revision(3)).await;
    let mut behind = store.far.watch("/h/", Revision(2));
    match soon("the end", behind.next()).await {
        Some(Err(StoreError::Compacted { oldest })) => assert_eq!(oldest, Revision(3)),
        other => panic!("not told: {other:?}"),
    }
    assert!(soon("the end", behind.next()).await.is_none());
    let mut just = store.far.watch("/h/", Revision(3));
    assert_eq!(next(&mut just).await, ["/h/a=3 (1, 3)", "/h/a=4 (1, 4)"]);
    // The state itself is not history.
    assert_eq!(list(&store.far, "").await, ["/h/a=4 (1, 4)"]);
    (store.compact)(Revision(5)).await;
    let mut present = store.near.watch("/h/", Revision(5));
    commit(&store.far, vec![], vec![put("/h/a", "5")]).await;
    assert_eq!(next(&mut present).await, ["/h/a=5 (1, 5)"]);
}

async fn joins_range_and_watch_without_a_gap(store: Fixture) {
    let writer = Arc::clone(&store.far);
    let writing = tokio::spawn(async move {
        for round in 0..40 {
            let key = format!("/r/{}", round % 7);
            let operation = if round % 3 == 2 {
                delete(&key)
            } else {
                put(&key, &round.to_string())
            };
            let outcome = writer.txn(Txn {
                compares: vec![],
                operations: vec![operation, put("/r/last", &round.to_string())],
            });
            outcome.await.unwrap();
        }
    });
    let range = store.near.range("/r/").await.unwrap();
    let mut watch = store.near.watch("/r/", Revision(range.revision.0 + 1));
    let mut view: BTreeMap<_, _> = range
        .items
        .into_iter()
        .map(|item| (item.key.clone(), item))
        .collect();
    let mut seen = range.revision;
    while view.get("/r/last").is_none_or(|item| item.value != "39") {
        let batch = soon("a change", watch.next()).await.unwrap().unwrap();
        for change in batch {
            assert!(change.revision() >= seen, "out of order: {change:?}");
            seen = change.revision();
            match change {
                Change::Put(item) => view.insert(item.key.clone(), item),
                Change::Delete { key, .. } => view.remove(&key),
            };
        }
    }
    writing.await.unwrap();
    let end: Vec<_> = view.into_values().collect();
    assert_eq!(end, store.near.range("/r/").await.unwrap().items);
}
