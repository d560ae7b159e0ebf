//! Members that are stopped, killed and restarted, and an etcd that asks who one is.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::Cluster;
use super::*;
use crate::store::{Compare, Target};

/// A write that spends its compare, as a release does.
fn swap(item: &KeyValue, value: &str) -> Txn {
    Txn {
        compares: vec![Compare {
            key: item.key.clone(),
            target: Target::Modified,
            revision: item.modified,
        }],
        ..put(&item.key, value)
    }
}

#[tokio::test]
async fn a_silent_member_costs_a_hedge_and_then_nothing() {
    let Some(cluster) = Cluster::start(3).await else {
        return;
    };
    let silent = cluster.follower().await;
    let store = cluster.store(silent);
    store.txn(put("/r/x", "1")).await.unwrap();
    let item = store.get("/r/x").await.unwrap().unwrap();
    cluster.members[silent].signal(Signal::STOP);

    // A read and a write that spends its compare are answered by another.
    let asked = Instant::now();
    assert_eq!(store.get("/r/x").await.unwrap().unwrap(), item);
    assert!(asked.elapsed() >= STORE_HEDGE_AFTER);
    store.shared.preferred.store(silent, Ordering::Relaxed);
    let outcome = store.txn(swap(&item, "2")).await.unwrap();
    let TxnOutcome::Committed(revision) = outcome else {
        panic!("{outcome:?}");
    };
    // From then on nobody asks the silent one first.
    assert_ne!(store.shared.preferred().0, silent);
    store.txn(put("/b/h", "1")).await.unwrap();

    // A write that may not be repeated is not: whoever gives up on it does not know, and the next goes elsewhere.
    store.shared.preferred.store(silent, Ordering::Relaxed);
    let renewal = tokio::time::timeout(Duration::from_secs(1), store.txn(put("/b/h", "2")));
    assert!(renewal.await.is_err(), "it was sent twice");
    store.txn(put("/b/h", "3")).await.unwrap();

    // The silent one's copy of the swap arrives now, and changes nothing.
    cluster.members[silent].signal(Signal::CONT);
    let late = cluster.store(silent);
    late.txn(put("/r/y", "1")).await.unwrap();
    let item = late.get("/r/x").await.unwrap().unwrap();
    assert_eq!((item.value.as_str(), item.modified), ("2", revision));
}

#[tokio::test]
async fn a_watch_goes_on_when_its_member_is_killed_or_silent() {
    let Some(mut cluster) = Cluster::start(3).await else {
        return;
    };
    let watched = cluster.leader().await;
    let store = cluster.store(watched);
    let writer = cluster.store((watched + 1) % 3);
    let mut watch = store.watch("/h/", Revision(1));
    writer.txn(put("/h/a", "1")).await.unwrap();
    assert_eq!(next(&mut watch).await, "/h/a=1");
    // The leader is killed: others elect, and the watch goes on with each change once.
    cluster.members[watched].kill();
    write_until_taken(&writer, "/h/a", "2").await;
    assert_eq!(next(&mut watch).await, "/h/a=2");
    cluster.restart(watched).await;
    // Its next member falls silent, and closes nothing.
    let (silent, _) = store.shared.preferred();
    let writer = cluster.store((silent + 1) % 3);
    cluster.members[silent].signal(Signal::STOP);
    write_until_taken(&writer, "/h/a", "3").await;
    assert_eq!(next(&mut watch).await, "/h/a=3");
    cluster.members[silent].signal(Signal::CONT);
}

/// Writes through an election: each try is refused or in doubt until there is a leader.
async fn write_until_taken(store: &Etcd, key: &str, value: &str) {
    let item = loop {
        if let Ok(Some(item)) = store.get(key).await {
            break item;
        }
    };
    let txn = swap(&item, value);
    while !matches!(
        store.txn(txn.clone()).await,
        Ok(TxnOutcome::Rejected { .. })
    ) {
        // Rejected: an earlier try was committed.
    }
}

#[tokio::test]
async fn an_etcd_that_is_away_is_unavailable_and_comes_back() {
    let Some(mut cluster) = Cluster::start(1).await else {
        return;
    };
    let store = cluster.store(0);
    store.txn(put("/h/a", "1")).await.unwrap();
    cluster.members[0].kill();
    // The connection that was open may break under the first of them.
    let _ = store.txn(put("/h/a", "2")).await;
    let refused = store.txn(put("/h/a", "3")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    let unread = store.range("").await.unwrap_err();
    assert!(matches!(unread, StoreError::Unavailable(_)), "{unread}");
    cluster.restart(0).await;
    store.txn(put("/h/a", "4")).await.unwrap();
}

fn etcdctl(url: &str, arguments: &[&str]) {
    let done = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url])
        .args(arguments)
        .output()
        .unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

#[tokio::test]
async fn a_user_has_a_password_and_a_token_that_ends() {
    let Some(mut cluster) = Cluster::start(1).await else {
        return;
    };
    let url = cluster.members[0].url();
    etcdctl(&url, &["user", "add", "root:of-all"]);
    etcdctl(&url, &["user", "grant-role", "root", "root"]);
    etcdctl(&url, &["user", "add", "conman:secret"]);
    etcdctl(&url, &["role", "add", "fleet"]);
    let grant = [
        "role",
        "grant-permission",
        "fleet",
        "--prefix=true",
        "readwrite",
    ];
    etcdctl(&url, &[&grant[..], &["/fleet/"]].concat());
    etcdctl(&url, &["user", "grant-role", "conman", "fleet"]);
    etcdctl(&url, &["auth", "enable"]);
    let open = |user: Option<(&str, &str)>, prefix: &str| {
        let mut options = cluster.options();
        options.prefix = prefix.to_owned();
        options.credentials = user.map(|(user, password)| Credentials {
            user: user.to_owned(),
            password: password.to_owned(),
        });
        Etcd::open(options).unwrap()
    };
    for (user, prefix, expected) in [
        (None, "/fleet", "etcdserver: user name is empty"),
        (
            Some(("conman", "wrong")),
            "/fleet",
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        (
            Some(("conman", "secret")),
            "/other",
            "etcdserver: permission denied",
        ),
    ] {
        let error = open(user, prefix).txn(put("/h/a", "1")).await.unwrap_err();
        let expected = format!("the store cannot be used: {url}: {expected}");
        assert_eq!(error.to_string(), expected);
        let mut watch = open(user, prefix).watch("/h/", Revision(1));
        let told = next(&mut watch).await;
        assert!(told.starts_with("the store cannot be used"), "{told}");
    }
    let store = open(Some(("conman", "secret")), "/fleet");
    store.txn(put("/h/a", "1")).await.unwrap();
    let mut watch = store.watch("/h/", Revision(1));
    assert_eq!(next(&mut watch).await, "/h/a=1");
    // Tokens are kept in memory: with the process they are gone.
    cluster.restart(0).await;
    store.txn(put("/h/a", "2")).await.unwrap();
    assert_eq!(next(&mut watch).await, "/h/a=2");
}
