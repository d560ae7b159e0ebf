//! What the store in memory does wrong on request.

use super::*;
use crate::store::memory::{Calls, Memory, Misbehaviour, Reads, Txns, Watches};

fn pair() -> (Memory, Arc<dyn Store>, Arc<dyn Store>) {
    let memory = Memory::new();
    let good = Arc::new(memory.another());
    (memory.clone(), Arc::new(memory), good)
}

fn increment() -> Txn {
    Txn {
        compares: vec![when("/h/a", Target::Modified, 1)],
        operations: vec![put("/h/a", "2")],
    }
}

#[tokio::test]
async fn unavailable_writes_nothing_and_is_one_handles_own() {
    let (switch, bad, good) = pair();
    switch.misbehave(Misbehaviour {
        calls: Calls::Unavailable,
        ..Misbehaviour::default()
    });
    assert!(matches!(
        bad.txn(Txn::default()).await,
        Err(StoreError::Unavailable(_))
    ));
    assert!(bad.range("").await.is_err());
    assert!(bad.watch("", Revision(1)).next().await.unwrap().is_err());
    assert_eq!(commit(&good, vec![], vec![put("/h/a", "1")]).await, 1);
    switch.misbehave(Misbehaviour::default());
    assert_eq!(list(&bad, "").await, ["/h/a=1 (1, 1)"]);
}

#[tokio::test]
async fn a_hanging_call_goes_on_when_the_switch_is_put_back() {
    let (switch, bad, good) = pair();
    switch.misbehave(Misbehaviour {
        calls: Calls::Hanging,
        ..Misbehaviour::default()
    });
    let mut txn = bad.txn(Txn {
        compares: vec![],
        operations: vec![put("/h/a", "1")],
    });
    assert!(futures_util::poll!(&mut txn).is_pending());
    assert!(list(&good, "").await.is_empty());
    switch.misbehave(Misbehaviour::default());
    assert_eq!(
        soon("the answer", txn).await,
        Ok(TxnOutcome::Committed(Revision(1)))
    );
}

#[tokio::test]
async fn frozen_reads_are_old_while_compares_are_not() {
    let (switch, bad, good) = pair();
    commit(&good, vec![], vec![put("/h/a", "1")]).await;
    switch.misbehave(Misbehaviour {
        reads: Reads::Frozen,
        ..Misbehaviour::default()
    });
    commit(&good, vec![], vec![put("/h/a", "2")]).await;
    assert_eq!(list(&bad, "").await, ["/h/a=1 (1, 1)"]);
    let by_what_was_read = vec![when("/h/a", Target::Modified, 1)];
    let current = reject(&bad, by_what_was_read, vec![delete("/h/a")]).await;
    assert_eq!(show(current[0].as_ref().unwrap()), "/h/a=2 (1, 2)");
    switch.misbehave(Misbehaviour::default());
    assert_eq!(list(&bad, "").await, ["/h/a=2 (1, 2)"]);
}

#[tokio::test]
async fn ambiguity_comes_in_three_kinds() {
    for (txns, at_once, later) in [
        (Txns::AckLost, "2", "2"),
        (Txns::RequestLost, "1", "1"),
        (Txns::Late, "1", "2"),
    ] {
        let (switch, bad, good) = pair();
        commit(&good, vec![], vec![put("/h/a", "1")]).await;
        switch.misbehave(Misbehaviour {
            txns,
            ..Misbehaviour::default()
        });
        let answer = bad.txn(increment()).await;
        assert!(matches!(answer, Err(StoreError::Ambiguous(_))), "{txns:?}");
        let value = good.get("/h/a").await.unwrap().unwrap().value;
        assert_eq!(value, at_once, "{txns:?}");
        switch.commit_late();
        let value = good.get("/h/a").await.unwrap().unwrap().value;
        assert_eq!(value, later, "{txns:?}");
    }
}

#[tokio::test]
async fn a_late_commit_still_compares() {
    let (switch, bad, good) = pair();
    commit(&good, vec![], vec![put("/h/a", "1")]).await;
    switch.misbehave(Misbehaviour {
        txns: Txns::Late,
        ..Misbehaviour::default()
    });
    bad.txn(increment()).await.unwrap_err();
    commit(&good, vec![], vec![put("/h/a", "other")]).await;
    assert!(matches!(
        switch.commit_late()[..],
        [TxnOutcome::Rejected { .. }]
    ));
    assert_eq!(list(&good, "").await, ["/h/a=other (1, 2)"]);
}

#[tokio::test]
async fn a_silent_watch_catches_up_and_a_dropping_one_does_not() {
    for (watches, expected) in [
        (
            Watches::Silent,
            ["/h/a=2 (1, 2)", "/h/a=3 (1, 3)"].as_slice(),
        ),
        (Watches::Dropped, &["/h/a=3 (1, 3)"]),
    ] {
        let (switch, bad, good) = pair();
        let mut watch = bad.watch("/h/", Revision(1));
        commit(&good, vec![], vec![put("/h/a", "1")]).await;
        assert_eq!(next(&mut watch).await, ["/h/a=1 (1, 1)"]);
        switch.misbehave(Misbehaviour {
            watches,
            ..Misbehaviour::default()
        });
        commit(&good, vec![], vec![put("/h/a", "2")]).await;
        assert!(futures_util::poll!(watch.next()).is_pending());
        switch.misbehave(Misbehaviour::default());
        commit(&good, vec![], vec![put("/h/a", "3")]).await;
        assert_eq!(next(&mut watch).await, expected, "{watches:?}");
    }
}
