//! A host over the fake runtime and the memory store, spoken to through its node API.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conman::host::{self, HostMetrics};
use conman::node::{Address, Dialer};
use conman::runtime::fake::{Call, Fake};
use conman::store::Store;
use conman::store::memory::{Calls, Memory, Misbehaviour, Txns};
use conman::telemetry::operations::{Kind, Operations, Report, Stage};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::id::{Epoch, HostId, ReplId};
use model::keys;
use model::store::{Operation, Txn};
use model::timing::FAST;
use model::wire::node::{DrainReport, ExecAnswer, HostStatus, NodeRefusal};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

struct Host {
    fake: Fake,
    address: Address,
    stop: CancellationToken,
}

struct Fleet {
    store: Memory,
    directory: tempfile::TempDir,
}

fn repl(name: &str) -> ReplId {
    name.parse().unwrap()
}

impl Fleet {
    fn new() -> Self {
        Self {
            store: Memory::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    async fn put_spec(&self, name: &str, spec: Value) {
        let operation = Operation::Put {
            key: keys::spec(&repl(name)),
            value: spec.to_string(),
        };
        let txn = Txn {
            compares: vec![],
            operations: vec![operation],
        };
        self.store.txn(txn).await.unwrap();
    }

    fn host(&self, name: &str, fake: &Fake) -> Host {
        self.host_with(name, fake, self.store.clone())
    }

    /// A host whose way to the store can go wrong alone.
    fn host_with(&self, name: &str, fake: &Fake, store: Memory) -> Host {
        let address = Address::Unix(self.directory.path().join(format!("{name}.sock")));
        let config = host::Config {
            host: name.parse().unwrap(),
            address: address.clone(),
            capacity: 4,
            timing: FAST,
            boot_id: "boot".into(),
            drains: host::Drains::default(),
            notices: host::Notices::default(),
            dialer: Dialer::default(),
            operations: Operations::default(),
            fences: host::Fences::default(),
        };
        let stop = CancellationToken::new();
        let mut registry = prometheus_client::registry::Registry::default();
        tokio::spawn(host::serve(
            config,
            Arc::new(store),
            Arc::new(fake.clone()),
            HostMetrics::register(&mut registry),
            Arc::new(String::new),
            tokio::sync::watch::Sender::new(None),
            stop.clone(),
        ));
        Host {
            fake: fake.clone(),
            address,
            stop,
        }
    }

    /// Waits, by the store's own events, until this many hosts are registered.
    async fn registered(&self, count: usize) {
        use futures_util::StreamExt;
        let mut changes = self.store.watch(keys::HOSTS, model::id::Revision(1));
        while self.store.range(keys::HOSTS).await.unwrap().items.len() != count {
            changes.next().await.unwrap().unwrap();
        }
    }
}

impl Host {
    async fn call(&self, path: &str, body: Value) -> (u16, Bytes, http::Response<()>) {
        let stream = Dialer::default().connect(&self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let method = if body.is_null() { "GET" } else { "POST" };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let status = parts.status.as_u16();
        (status, bytes, http::Response::from_parts(parts, ()))
    }

    async fn start(&self, name: &str, epoch: Option<u64>) -> Result<u64, NodeRefusal> {
        let body = json!({"repl": name, "epoch": epoch, "kind": "start", "wait_ms": 5_000});
        let (status, bytes, response) = self.call("/node/v1/open", body).await;
        if status == 200 {
            let epoch = response.headers()["conman-epoch"].to_str().unwrap();
            return Ok(epoch.parse().unwrap());
        }
        Err(serde_json::from_slice(&bytes).unwrap())
    }

    async fn port(&self, name: &str, epoch: u64) -> TokioIo<hyper::upgrade::Upgraded> {
        let stream = Dialer::default().connect(&self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        let body = json!({"repl": name, "epoch": epoch, "kind": {"port": null}, "wait_ms": 5_000});
        let request = http::Request::post("/node/v1/open")
            .header("host", "node")
            .header("connection", "upgrade")
            .header("upgrade", "conman-session")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 101);
        TokioIo::new(hyper::upgrade::on(response).await.unwrap())
    }

    async fn drain(&self, request: Value) -> DrainReport {
        let (_, bytes, _) = self.call("/node/v1/drain", request).await;
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn status(&self) -> HostStatus {
        let (_, bytes, _) = self.call("/node/v1/status", Value::Null).await;
        serde_json::from_slice(&bytes).unwrap()
    }
}

fn server() -> Value {
    json!({"command": ["serve"], "port": 8000})
}

#[tokio::test]
async fn a_session_claims_starts_and_reaches_the_port() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let fake = Fake::new();
    fake.serve_with(|_, mut stream| {
        Box::pin(async move {
            let mut word = [0; 4];
            if stream.read_exact(&mut word).await.is_ok() {
                let _ = stream.write_all(&word).await;
            }
        })
    });
    let host = fleet.host("host-1", &fake);
    fleet.registered(1).await;
    let epoch = host.start("blue", None).await.unwrap();
    let mut session = host.port("blue", epoch).await;
    session.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    session.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    let refused = host.start("blue", Some(epoch - 1)).await.unwrap_err();
    assert_eq!(refused.refusal.code.as_str(), "not_owner");
    assert_eq!(refused.hint.unwrap().epoch, Epoch(epoch));
    let refused = host.start("nobody", None).await.unwrap_err();
    assert_eq!(refused.refusal.code.as_str(), "unknown_repl");
    let (_, bytes, _) = host
        .call(
            "/node/v1/exec",
            json!({"repl": "blue", "command": ["echo", "hi"], "timeout_ms": 1000}),
        )
        .await;
    let output: ExecAnswer = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((output.exit_code, output.stdout.trim()), (0, "hi"));
}

#[tokio::test]
async fn a_stop_answers_when_the_repl_is_free() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let host = fleet.host("host-1", &Fake::new());
    fleet.registered(1).await;
    let epoch = host.start("blue", None).await.unwrap();
    let body = json!({"repl": "blue", "epoch": epoch, "grace_ms": 0});
    let (status, _, _) = host.call("/node/v1/stop", body).await;
    assert_eq!(status, 200);
    assert!(host.fake.alive().is_empty());
    let owner = fleet.store.get(&keys::owner(&repl("blue"))).await.unwrap();
    assert_eq!(owner, None);
    assert!(host.start("blue", None).await.unwrap() > epoch);
}

/// A fleet whose only conman has ended and left blue alive, what its keeper holds, and blue's epoch.
async fn crashed_with_blue() -> (Fleet, Fake, u64) {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let fake = Fake::new();
    let host = fleet.host("host-1", &fake);
    fleet.registered(1).await;
    let epoch = host.start("blue", None).await.unwrap();
    host.stop.cancel();
    (fleet, fake.restarted(), epoch)
}

#[tokio::test]
async fn a_restarted_conman_adopts_what_its_keeper_holds() {
    let (fleet, fake, epoch) = crashed_with_blue().await;
    let host = fleet.host("host-1", &fake);
    assert_eq!(host_start_eventually(&host, "blue", epoch).await, epoch);
    assert_eq!(fake.alive().len(), 1);
    assert_eq!(host.status().await.containers.len(), 1);
}

/// The list takes as long to read as the store is away; meanwhile the keeper dies, and the next one holds nothing.
#[tokio::test]
async fn what_a_keeper_held_that_has_gone_since_is_not_adopted() {
    let (fleet, fake, epoch) = crashed_with_blue().await;
    let store = fleet.store.another();
    store.misbehave(Misbehaviour {
        calls: Calls::Hanging,
        ..Misbehaviour::default()
    });
    let host = fleet.host_with("host-1", &fake, store.clone());
    let times_asked = |fake: &Fake| {
        let calls = fake.calls();
        calls.iter().filter(|call| **call == Call::Adopt).count()
    };
    let asked = |times| move |fake: &Fake| times_asked(fake) == times;
    let before = times_asked(&fake);
    fake.until(asked(before + 1)).await;
    fake.lose_keeper();
    fake.connect_keeper();
    fake.until(asked(before + 2)).await;
    store.misbehave(Misbehaviour::default());
    // What had died is free again, and nobody is let into it.
    owner_is(&fleet.store, "blue", None).await;
    assert!(host.start("blue", None).await.unwrap() > epoch);
    assert_eq!(fake.alive().len(), 1);
}

/// The first connection may come before the new process listens.
async fn host_start_eventually(host: &Host, name: &str, epoch: u64) -> u64 {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while Dialer::default().connect(&host.address).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    host.start(name, Some(epoch)).await.unwrap()
}

#[tokio::test]
async fn a_drain_moves_everything_to_the_other_host() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    fleet.put_spec("red", server()).await;
    let one = fleet.host("host-1", &Fake::new());
    let two = fleet.host("host-2", &Fake::new());
    fleet.registered(2).await;
    let epoch = one.start("blue", None).await.unwrap();
    one.start("red", None).await.unwrap();
    let report = one.drain(json!({"grace_ms": 0})).await;
    assert_eq!((report.containers, report.handed_off), (2, 2));
    assert_eq!((report.started, report.unfinished), (2, 0));
    let ends = [
        report.closed_ms,
        report.told_ms,
        report.sent_ms,
        report.dead_ms,
        report.released_ms,
        report.started_ms,
    ];
    assert!(ends.iter().all(Option::is_some), "{report:?}");
    assert!(one.fake.alive().is_empty());
    two.fake.until(|fake| fake.alive().len() == 2).await;
    let refused = one.start("blue", Some(epoch)).await.unwrap_err();
    let hint = refused.hint.unwrap();
    assert_eq!(hint.host, Some("host-2".parse::<HostId>().unwrap()));
    assert_eq!(
        two.start("blue", Some(hint.epoch.0)).await.unwrap(),
        hint.epoch.0
    );
    let refused = one.start("red", None).await.unwrap_err();
    assert_eq!(refused.refusal.code.as_str(), "draining");
}

#[tokio::test]
async fn a_notice_empties_the_host() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let one = fleet.host("host-1", &Fake::new());
    let two = fleet.host("host-2", &Fake::new());
    fleet.registered(2).await;
    one.start("blue", None).await.unwrap();
    let (status, _, _) = one
        .call("/node/v1/notice", json!({"within_ms": 9_000}))
        .await;
    assert_eq!(status, 202);
    two.fake.until(|fake| fake.alive().len() == 1).await;
    assert!(one.fake.alive().is_empty());
    assert!(one.status().await.draining);
}

/// Waits, by the store's own events, until the repl's owner is this one, or nobody.
async fn owner_is(store: &Memory, name: &str, owner: Option<&str>) {
    use futures_util::StreamExt;
    let key = keys::owner(&repl(name));
    let mut changes = store.watch(&key, model::id::Revision(1));
    loop {
        let item = store.get(&key).await.unwrap();
        let found = item.map(|item| serde_json::from_str::<Value>(&item.value).unwrap());
        if found.as_ref().and_then(|owner| owner["host"].as_str()) == owner {
            return;
        }
        changes.next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_silent_store_holds_up_no_kill_and_the_report_comes_in_time() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let store = fleet.store.another();
    let one = fleet.host_with("host-1", &Fake::new(), store.clone());
    fleet.registered(1).await;
    one.start("blue", None).await.unwrap();
    store.misbehave(Misbehaviour {
        calls: Calls::Hanging,
        ..Misbehaviour::default()
    });
    let report = one
        .drain(json!({"cause": "preemption", "budget_ms": 1_000}))
        .await;
    assert!(one.fake.alive().is_empty());
    assert!(report.sent_ms.is_some() && report.dead_ms.is_some());
    assert_eq!((report.closed_ms, report.released_ms), (None, None));
    assert_eq!(report.unfinished, 1);
    store.misbehave(Misbehaviour::default());
    owner_is(&fleet.store, "blue", None).await;
}

#[tokio::test]
async fn a_hand_off_whose_answer_was_lost_is_not_lost() {
    let fleet = Fleet::new();
    fleet.put_spec("blue", server()).await;
    let store = fleet.store.another();
    let one = fleet.host_with("host-1", &Fake::new(), store.clone());
    let two = fleet.host("host-2", &Fake::new());
    fleet.registered(2).await;
    one.start("blue", None).await.unwrap();
    store.misbehave(Misbehaviour {
        txns: Txns::AckLost,
        ..Misbehaviour::default()
    });
    let mends = async {
        owner_is(&fleet.store, "blue", Some("host-2")).await;
        store.misbehave(Misbehaviour::default());
    };
    let (report, ()) = tokio::join!(one.drain(json!({"cause": "preemption"})), mends);
    assert_eq!((report.handed_off, report.started), (1, 1));
    assert_eq!(two.fake.alive().len(), 1);
}

#[tokio::test]
async fn those_with_users_start_first() {
    let fleet = Fleet::new();
    for name in ["blue", "green", "red"] {
        fleet.put_spec(name, server()).await;
    }
    let one = fleet.host("host-1", &Fake::new());
    fleet.registered(1).await;
    let mut epoch = 0;
    for name in ["blue", "green", "red"] {
        epoch = one.start(name, None).await.unwrap();
    }
    let two = fleet.host("host-2", &Fake::new());
    fleet.registered(2).await;
    let _user = one.port("red", epoch).await;
    let report = one.drain(json!({"cause": "preemption"})).await;
    assert_eq!(report.started, 3);
    let starts = two.fake.calls().into_iter().filter_map(|call| match call {
        Call::Start(id) => Some(id.repl.to_string()),
        _ => None,
    });
    assert_eq!(starts.collect::<Vec<_>>(), ["red", "blue", "green"]);
}

#[tokio::test]
async fn what_is_under_way_is_told_with_its_stage() {
    let fleet = Fleet::new();
    fleet.put_spec("a", json!({"command": ["serve"]})).await;
    let fake = Fake::new();
    fake.hold_starts();
    let host = fleet.host("h1", &fake);
    fleet.registered(1).await;
    let start = host.start("a", None);
    let look = async {
        fake.until(|fake| {
            fake.calls()
                .iter()
                .any(|call| matches!(call, Call::Start(_)))
        })
        .await;
        let (_, body, _) = host.call("/node/v1/operations", Value::Null).await;
        fake.open_starts();
        serde_json::from_slice::<Report>(&body).unwrap()
    };
    let (epoch, during) = tokio::join!(start, look);
    let subject = format!("a@{}", epoch.unwrap());
    let under_way = &during.operations[0];
    assert_eq!(
        (under_way.kind, &under_way.subject, under_way.stage),
        (Kind::Start, &subject, Stage::Runtime)
    );
    assert!(under_way.awaits.as_ref().unwrap().contains("runtime ["));
    let (_, body, _) = host.call("/node/v1/operations", Value::Null).await;
    let after: Report = serde_json::from_slice(&body).unwrap();
    assert_eq!(after.operations, []);
}
