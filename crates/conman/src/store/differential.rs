//! The same random traces on memory, SQLite and a real etcd: every outcome, every read and every watch must agree.
//!
//! Short in every test run. `CONMAN_TEST_DIFFERENTIAL_CASES` asks for more traces, `CONMAN_TEST_SEED` for others; a
//! trace that fails is shrunk and printed with its seed. Without an etcd (see `scripts/etcd`) the other two are compared.

use std::sync::Arc;

use futures_util::stream::StreamExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use super::etcd::tests::Shared;
use super::memory::Memory;
use super::sqlite::Sqlite;
use super::*;

const KEYS: [&str; 6] = ["/b/a", "/h/a", "/h/b", "/r/x", "/r/y", "/s/x"];

/// What a compare is compared with.
#[derive(Debug, Clone, Copy)]
enum Against {
    /// The key's revision at that moment.
    Now,
    /// Absence.
    Absent,
    /// Any revision up to that moment, most of them somebody else's.
    Any(u64),
}

#[derive(Debug, Clone)]
struct Step {
    compares: Vec<(usize, Target, Against)>,
    puts: Vec<(usize, u8)>,
    deletes: Vec<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let target = prop_oneof![Just(Target::Create), Just(Target::Modified)];
    let against = prop_oneof![
        6 => Just(Against::Now),
        1 => Just(Against::Absent),
        1 => any::<u64>().prop_map(Against::Any),
    ];
    let compares = prop::collection::vec((key(), target, against), 0..3);
    let puts = prop::collection::vec((key(), any::<u8>()), 0..3);
    let deletes = prop::collection::vec(key(), 0..2);
    (compares, puts, deletes).prop_map(|(compares, puts, deletes)| Step {
        compares,
        puts,
        deletes,
    })
}

/// The step as a transaction, by what the reference has.
async fn resolve(step: &Step, reference: &Memory) -> Txn {
    let range = reference.range("").await.unwrap();
    let compares = step.compares.iter().map(|&(key, target, against)| {
        let found = range.items.iter().find(|item| item.key == KEYS[key]);
        let revision = match against {
            Against::Now => found.map_or(Revision::ABSENT, |item| match target {
                Target::Create => item.create,
                Target::Modified => item.modified,
            }),
            Against::Absent => Revision::ABSENT,
            Against::Any(number) => Revision(number % (range.revision.0 + 1)),
        };
        Compare {
            key: KEYS[key].to_owned(),
            target,
            revision,
        }
    });
    let puts = step.puts.iter().map(|&(key, value)| Operation::Put {
        key: KEYS[key].to_owned(),
        value: value.to_string(),
    });
    let deletes = step.deletes.iter().map(|&key| Operation::Delete {
        key: KEYS[key].to_owned(),
    });
    Txn {
        compares: compares.collect(),
        operations: puts.chain(deletes).collect(),
    }
}

/// Everything that happened up to a revision at which something did, by a watch.
async fn history(store: &dyn Store, prefix: &str, last: Revision) -> Vec<Change> {
    let mut watch = store.watch(prefix, Revision(1));
    let mut changes = Vec::new();
    while changes
        .last()
        .is_none_or(|change: &Change| change.revision() < last)
    {
        changes.extend(watch.next().await.unwrap().unwrap());
    }
    changes
}

async fn agree(steps: &[Step]) -> Result<(), TestCaseError> {
    let files = tempfile::tempdir().unwrap();
    let reference = Memory::new();
    let mut others: Vec<(&str, Arc<dyn Store>)> = vec![(
        "sqlite",
        Arc::new(Sqlite::open(files.path().join("store.db")).unwrap()),
    )];
    let etcd = Shared::take().await;
    if let Some(etcd) = &etcd {
        others.push(("etcd", Arc::new(etcd.another())));
    }
    for step in steps {
        let txn = resolve(step, &reference).await;
        let expected = reference.txn(txn.clone()).await;
        for (name, store) in &others {
            let outcome = store.txn(txn.clone()).await;
            prop_assert_eq!(&outcome, &expected, "{} on {:?}", name, &txn);
        }
    }
    // The end of what the watches below are to see.
    let end = Txn {
        compares: vec![],
        operations: vec![Operation::Put {
            key: "/r/last".to_owned(),
            value: String::new(),
        }],
    };
    let TxnOutcome::Committed(revision) = reference.txn(end.clone()).await.unwrap() else {
        unreachable!("it compares nothing");
    };
    for (name, store) in &others {
        store.txn(end.clone()).await.unwrap();
        for prefix in ["", "/h/", "/r/", "/r/x"] {
            let expected = reference.range(prefix).await.unwrap();
            prop_assert_eq!(&store.range(prefix).await.unwrap(), &expected, "{}", name);
        }
        for prefix in ["", "/r/"] {
            let expected = history(&reference, prefix, revision).await;
            let seen = history(&**store, prefix, revision).await;
            prop_assert_eq!(seen, expected, "{}", name);
        }
    }
    Ok(())
}

fn number_from(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn the_stores_agree() {
    let cases = number_from("CONMAN_TEST_DIFFERENTIAL_CASES", 16);
    let seed = number_from("CONMAN_TEST_SEED", 1);
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let traces = prop::collection::vec(step(), 1..40);
    let agreed = TestRunner::new(config).run(&traces, |steps| runtime.block_on(agree(&steps)));
    if let Err(failure) = agreed {
        panic!("with the seed {seed}: {failure}");
    }
}
