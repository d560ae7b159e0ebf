//! What only the SQLite store does: files that are not its own, bounds, several processes.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use model::store::{Compare, Operation, Target};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::*;

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    (directory, path)
}

fn put(key: &str, value: &str) -> Txn {
    Txn {
        compares: vec![],
        operations: vec![Operation::Put {
            key: key.into(),
            value: value.into(),
        }],
    }
}

#[test]
fn sqlite_has_the_wal_fix() {
    assert!(rusqlite::version_number() >= 3_051_003);
}

#[tokio::test]
async fn keeps_everything_across_a_reopening() {
    let (_files, path) = place();
    let store = Sqlite::open(&path).unwrap();
    store.txn(put("/s/a", "1")).await.unwrap();
    drop(store);
    let store = Sqlite::open(&path).unwrap();
    let item = store.get("/s/a").await.unwrap().unwrap();
    assert_eq!((item.value.as_str(), item.modified), ("1", Revision(1)));
    assert_eq!(
        store.txn(put("/s/a", "2")).await,
        Ok(TxnOutcome::Committed(Revision(2)))
    );
}

#[test]
fn refuses_what_is_not_its_own_and_leaves_it_alone() {
    let (files, path) = place();
    let foreign = files.path().join("foreign.db");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    let newer = files.path().join("newer.db");
    drop(Sqlite::open(&newer).unwrap());
    Connection::open(&newer)
        .unwrap()
        .execute_batch("PRAGMA user_version = 2")
        .unwrap();
    std::fs::write(&path, "this is no database, but long enough to be one").unwrap();
    for (path, expected) in [
        (&path, "is not an SQLite file"),
        (&foreign, "is an SQLite file, but not a store of conman's"),
        (
            &newer,
            "is the store of a newer conman: its format is 2, this conman knows 1",
        ),
        (&files.path().to_owned(), "unable to open database file"),
        (&files.path().join("no/such/store.db"), "unable to open"),
    ] {
        let before = std::fs::read(path).ok();
        match Sqlite::open(path) {
            Err(StoreError::Fatal(text)) => {
                assert!(text.contains(expected), "{text}");
                assert!(text.contains(&*path.to_string_lossy()), "{text}");
            }
            other => panic!("{}: not refused: {other:?}", path.display()),
        }
        assert_eq!(std::fs::read(path).ok(), before);
        assert!(!path.with_file_name("foreign.db-bell").exists());
    }
}

#[tokio::test]
async fn bounds_its_history() {
    let (_files, path) = place();
    let store = Sqlite::open_with(path, 20).unwrap();
    for round in 1..=100 {
        store.txn(put("/b/a", &round.to_string())).await.unwrap();
    }
    let kept = store
        .read(|connection| {
            connection.query_row("SELECT count(*) FROM change", [], |row| {
                row.get::<_, i64>(0)
            })
        })
        .await
        .unwrap();
    assert!((20..=25).contains(&kept), "{kept} changes are kept");
    let mut behind = store.watch("/b/", Revision(1));
    assert!(matches!(
        behind.next().await,
        Some(Err(StoreError::Compacted { oldest })) if (76..=81).contains(&oldest.0)
    ));
}

#[tokio::test]
async fn commits_those_that_wait_together_each_at_its_own_revision() {
    let (_files, path) = place();
    let store = Sqlite::open(path).unwrap();
    let puts = (0..100).map(|key| store.txn(put(&format!("/r/{key}"), "1")));
    let outcomes = futures_util::future::join_all(puts).await;
    let mut revisions: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(TxnOutcome::Committed(revision)) => revision.0,
            other => panic!("{other:?}"),
        })
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_later_one_of_a_batch_sees_the_earlier() {
    let (_files, path) = place();
    let store = Sqlite::open(path).unwrap();
    let claim = || {
        store.txn(Txn {
            compares: vec![Compare {
                key: "/r/x".into(),
                target: Target::Modified,
                revision: Revision::ABSENT,
            }],
            ..put("/r/x", "mine")
        })
    };
    let (first, second) = futures_util::future::join(claim(), claim()).await;
    assert_eq!(first, Ok(TxnOutcome::Committed(Revision(1))));
    assert!(matches!(
        &second,
        Ok(TxnOutcome::Rejected { current }) if current[0].is_some()
    ));
}

#[tokio::test]
async fn a_dropped_caller_does_not_undo_the_commit() {
    let (_files, path) = place();
    let store = Sqlite::open(path).unwrap();
    let mut txn = store.txn(put("/r/x", "1"));
    assert!(futures_util::poll!(&mut txn).is_pending());
    drop(txn);
    let mut watch = store.watch("/r/", Revision(1));
    assert_eq!(watch.next().await.unwrap().unwrap()[0].key(), "/r/x");
}

#[tokio::test]
async fn its_threads_end_with_it() {
    let (_files, path) = place();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let store = Sqlite::open(path).unwrap();
    store.txn(put("/r/x", "1")).await.unwrap();
    assert_eq!(threads(), before + 4);
    drop(store);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while threads() > before {
        assert!(tokio::time::Instant::now() < deadline, "a thread is left");
        tokio::task::yield_now().await;
    }
}

/// Another process with the same store: this test binary, told to run only the test `role` below.
fn another_process(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("store::sqlite::tests::{role}"))
        .env("CONMAN_TEST_STORE", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn of_another_process() -> Option<Sqlite> {
    let path = std::env::var_os("CONMAN_TEST_STORE")?;
    Some(Sqlite::open(PathBuf::from(path)).unwrap())
}

#[tokio::test]
#[ignore = "a role for other tests"]
async fn role_increments() {
    let Some(store) = of_another_process() else {
        return;
    };
    for _ in 0..50 {
        increment(&store).await;
    }
}

async fn increment(store: &Sqlite) {
    loop {
        let item = store.get("/b/a").await.unwrap().unwrap();
        let next = item.value.parse::<u64>().unwrap() + 1;
        let compare = Compare {
            key: "/b/a".into(),
            target: Target::Modified,
            revision: item.modified,
        };
        let txn = Txn {
            compares: vec![compare],
            ..put("/b/a", &next.to_string())
        };
        if let TxnOutcome::Committed(_) = store.txn(txn).await.unwrap() {
            return;
        }
    }
}

#[tokio::test]
async fn several_processes_share_it() {
    let (_files, path) = place();
    let store = Sqlite::open(&path).unwrap();
    store.txn(put("/b/a", "0")).await.unwrap();
    let mut watch = store.watch("/b/", Revision(2));
    let mut processes: Vec<_> = (0..4)
        .map(|_| another_process("role_increments", &path))
        .collect();
    let mut seen = 0;
    while seen < 200 {
        for change in watch.next().await.unwrap().unwrap() {
            assert_eq!(change.revision(), Revision(seen + 2));
            seen += 1;
        }
    }
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(store.get("/b/a").await.unwrap().unwrap().value, "200");
}

#[test]
#[ignore = "a role for other tests"]
fn role_is_first_in_line() {
    let Some(store) = of_another_process() else {
        return;
    };
    let place = store.shared.bell.enter().unwrap();
    println!("first in line");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop(place);
}

/// Starts a process that is the first in line, and waits until it is. It goes on saying things.
fn first_in_line(path: &Path) -> (Child, impl Sized) {
    let mut process = another_process("role_is_first_in_line", path);
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("first in line")));
    (process, said)
}

#[tokio::test]
async fn a_stopped_writer_does_not_hold_up_the_others() {
    let (_files, path) = place();
    let store = Sqlite::open(&path).unwrap();
    let (mut first, _said) = first_in_line(&path);
    let pid = Pid::from_child(&first);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let committed = tokio::time::timeout(Duration::from_secs(2), store.txn(put("/b/a", "1")));
    assert!(committed.await.expect("held up").is_ok());
    assert_eq!(first.wait().unwrap().signal(), Some(9));
}

#[tokio::test]
async fn a_slow_writer_is_waited_for() {
    let (_files, path) = place();
    let store = Sqlite::open(&path).unwrap();
    let (mut first, _said) = first_in_line(&path);
    let mut txn = store.txn(put("/b/a", "1"));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut txn);
    assert!(early.await.is_err(), "did not wait in line");
    first.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(txn.await.is_ok());
    assert!(first.wait().unwrap().success());
}

/// The measurement of the module's claim; run with `--run-ignored only --no-capture`, in release.
#[tokio::test]
#[ignore = "a measurement"]
async fn latency() {
    let (_files, path) = place();
    let store = Sqlite::open(&path).unwrap();
    let mut single = Vec::new();
    for round in 0..200 {
        let sent = std::time::Instant::now();
        store.txn(put("/b/a", &round.to_string())).await.unwrap();
        single.push(sent.elapsed());
    }
    single.sort_unstable();
    println!("one at a time: p50 {:?} p99 {:?}", single[100], single[198]);
    let mut together = Vec::new();
    for round in 0..20 {
        let sent = std::time::Instant::now();
        let puts = (0..100).map(|key| store.txn(put(&format!("/r/{key}"), &round.to_string())));
        futures_util::future::join_all(puts).await;
        together.push(sent.elapsed());
    }
    together.sort_unstable();
    println!("100 at once: p50 {:?} max {:?}", together[10], together[19]);
    let far = Sqlite::open(&path).unwrap();
    let mut watch = far.watch(
        "/b/",
        Revision(store.range("").await.unwrap().revision.0 + 1),
    );
    let mut noticed = Vec::new();
    for round in 0..100 {
        store.txn(put("/b/a", &round.to_string())).await.unwrap();
        let committed = std::time::Instant::now();
        watch.next().await.unwrap().unwrap();
        noticed.push(committed.elapsed());
    }
    noticed.sort_unstable();
    println!(
        "from commit to watch, through the bell: p50 {:?} p99 {:?}",
        noticed[50], noticed[98]
    );
}
