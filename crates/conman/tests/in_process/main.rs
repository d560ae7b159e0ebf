//! A gateway over two hosts in one process: fake containers, memory store, real sockets.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conman::gateway::{self, GatewayMetrics};
use conman::host::{self, HostMetrics};
use conman::node::Address;
use conman::runtime::fake::Fake;
use conman::store::Store;
use conman::store::memory::Memory;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::keys;
use model::timing::FAST;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

struct Fleet {
    address: std::net::SocketAddr,
    directory: tempfile::TempDir,
    fakes: Vec<Fake>,
    _stop: DropGuard,
}

/// Answers every request with its own container's name.
fn serving() -> Fake {
    let fake = Fake::new();
    fake.serve_with(|id, mut stream| {
        Box::pin(async move {
            let mut seen = Vec::new();
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                seen.extend_from_slice(&buffer[..length]);
                if seen.ends_with(b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&seen).into_owned();
                    seen.clear();
                    let body = format!("{id}\n{head}");
                    let length = body.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
    });
    fake
}

impl Fleet {
    async fn start(hosts: usize) -> Self {
        let store = Memory::new();
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let mut fakes = vec![];
        for number in 1..=hosts {
            let fake = serving();
            let path = directory.path().join(format!("host-{number}.sock"));
            let config = host::Config {
                host: format!("host-{number}").parse().unwrap(),
                address: Address::Unix(path),
                capacity: 4,
                timing: FAST,
                boot_id: "boot".into(),
            };
            let mut registry = Registry::default();
            let metrics = HostMetrics::register(&mut registry);
            let render: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(move || {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
                text
            });
            tokio::spawn(host::serve(
                config,
                Arc::new(store.clone()),
                Arc::new(fake.clone()),
                metrics,
                render,
                stop.clone(),
            ));
            fakes.push(fake);
        }
        use futures_util::StreamExt;
        let mut changes = store.watch(keys::HOSTS, model::id::Revision(1));
        while store.range(keys::HOSTS).await.unwrap().items.len() < hosts {
            changes.next().await.unwrap().unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        let config = gateway::Config {
            domain: "localhost".into(),
            park: Duration::from_secs(5),
            session_log: Some(directory.path().join("sessions.ndjson")),
            preemptor: None,
        };
        let metrics = GatewayMetrics::register(&mut registry);
        let render: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(move || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        });
        tokio::spawn(gateway::serve(
            config,
            Arc::new(store),
            listener,
            metrics,
            render,
            stop.clone(),
        ));
        Self {
            address,
            directory,
            fakes,
            _stop: stop.drop_guard(),
        }
    }

    async fn send(&self, method: &str, host: &str, path: &str, body: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn api(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, body) = self.send(method, "localhost", path, &body).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn create(&self, name: &str) {
        let spec = json!({"command": ["serve"], "port": 8000});
        let (status, answer) = self.api("PUT", &format!("/v1/repls/{name}"), spec).await;
        assert_eq!(status, 201, "{answer}");
    }

    fn alive(&self) -> usize {
        self.fakes.iter().map(|fake| fake.alive().len()).sum()
    }
}

#[tokio::test]
async fn a_request_starts_its_repl_and_is_answered_by_it() {
    let fleet = Fleet::start(2).await;
    fleet.create("blue").await;
    let (status, body) = fleet.send("GET", "blue.localhost", "/x?y=1", "").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with("blue@"), "{body}");
    assert!(body.contains("GET /x?y=1 HTTP/1.1"), "{body}");
    assert!(body.contains("x-forwarded-for: 127.0.0.1"), "{body}");
    let (_, again) = fleet.send("GET", "blue.localhost", "/", "").await;
    assert_eq!(body.lines().next(), again.lines().next());
    assert_eq!(fleet.alive(), 1);
    let (status, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!((status, &repl["state"]), (200, &json!("running")));
    let (status, _) = fleet.api("DELETE", "/v1/repls/blue", Value::Null).await;
    assert_eq!((status, fleet.alive()), (204, 0));
    let (status, error) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("unknown_repl"))
    );
    let log = std::fs::read_to_string(fleet.directory.path().join("sessions.ndjson")).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["repl"], &line["outcome"]),
        (&json!("blue"), &json!("ok"))
    );
    let (status, page) = fleet.send("GET", "localhost", "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("conman_sessions_total{outcome=\"ok\",reason=\"opened\"} 2"),
        "{page}"
    );
}

#[tokio::test]
async fn a_drain_moves_a_repl_under_its_users() {
    let fleet = Fleet::start(2).await;
    fleet.create("blue").await;
    fleet.send("GET", "blue.localhost", "/", "").await;
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    let host = repl["host"].as_str().unwrap().to_owned();
    let path = format!("/v1/hosts/{host}/drain?grace=0s");
    let (status, report) = fleet.api("POST", &path, Value::Null).await;
    assert_eq!(
        (status, &report["handed_off"]),
        (200, &json!(1)),
        "{report}"
    );
    let (status, body) = fleet.send("GET", "blue.localhost", "/", "").await;
    assert_eq!(status, 200, "{body}");
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_ne!(repl["host"].as_str().unwrap(), host);
    let (_, hosts) = fleet.api("GET", "/v1/hosts", Value::Null).await;
    let states: Vec<_> = hosts["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["state"])
        .collect();
    assert!(states.contains(&&json!("draining")) && states.contains(&&json!("active")));
}
