//! A fleet in one process, and what a client does with it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conman::gateway::{self, Door, GatewayMetrics};
use conman::host::{self, HostMetrics};
use conman::node::{Address, Dialer};
use conman::runtime::fake::Fake;
use conman::store::Store;
use conman::store::memory::Memory;
use conman::telemetry::operations::Operations;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use model::id::{ContainerId, Revision};
use model::keys;
use model::timing::{FAST, Timing};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What every wait in these tests ends by.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Fleet {
    pub(crate) address: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) fakes: Vec<Fake>,
    /// The test's own handle on the store: it behaves.
    pub(crate) store: Memory,
    /// The gateway's handle: may be told to misbehave.
    pub(crate) gateway_store: Memory,
    pub(crate) gateway_stop: gateway::Stop,
    gateway: tokio::task::JoinHandle<anyhow::Result<()>>,
    _stop: DropGuard,
}

/// What a fleet is made of.
pub(crate) struct Setup {
    pub(crate) hosts: usize,
    pub(crate) capacity: u32,
    pub(crate) park: Duration,
    pub(crate) port_ready: Duration,
    /// What is another than usual at the gateway.
    pub(crate) gateway: Box<dyn FnOnce(&mut gateway::Config) + Send>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            hosts: 2,
            capacity: 4,
            park: Duration::from_secs(5),
            port_ready: FAST.port_ready,
            gateway: Box::new(|_| {}),
        }
    }
}

fn render(registry: Registry) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    })
}

/// Answers every request with its own container's name and the request's head.
async fn answer_with_the_head(id: ContainerId, mut stream: TcpStream) {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..length]);
        if seen.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen).into_owned();
            seen.clear();
            let body = format!("{id}\n{head}");
            let length = body.len();
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            if !head.starts_with("HEAD ") {
                answer.push_str(&body);
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

impl Fleet {
    pub(crate) async fn start(hosts: usize) -> Self {
        let setup = Setup {
            hosts,
            ..Setup::default()
        };
        Self::start_with(setup).await
    }

    pub(crate) async fn start_with(setup: Setup) -> Self {
        let store = Memory::new();
        let gateway_store = store.another();
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let fakes: Vec<Fake> = (1..=setup.hosts)
            .map(|number| start_host(&store, directory.path(), number, &setup, &stop))
            .collect();
        let mut changes = store.watch(keys::HOSTS, Revision(1));
        while store.range(keys::HOSTS).await.unwrap().items.len() < setup.hosts {
            changes.next().await.unwrap().unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        let mut config = gateway::Config {
            domain: "localhost".into(),
            api_names: vec!["fleet.example".into()],
            park: setup.park,
            session_log: Some(directory.path().join("sessions.ndjson")),
            stuck: Arc::new(|worst| serde_json::json!({ "worst": worst })),
            prober: None,
            preemptor: None,
            dialer: Dialer::default(),
            operations: Operations::default(),
            door: Door::default(),
            socket: None,
            access: Arc::default(),
            body_bytes_max: None,
        };
        (setup.gateway)(&mut config);
        let metrics = GatewayMetrics::register(&mut registry);
        let gateway_stop = gateway::Stop::default();
        let gateway = tokio::spawn(gateway::serve(
            config,
            Arc::new(gateway_store.clone()),
            listener,
            metrics,
            render(registry),
            gateway_stop.clone(),
        ));
        Self {
            address,
            directory,
            fakes,
            store,
            gateway_store,
            gateway_stop,
            gateway,
            _stop: stop.drop_guard(),
        }
    }

    /// A connection of a client.
    pub(crate) async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(crate) async fn request(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> http::Response<Incoming> {
        let mut sender = self.connect().await;
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        answer.expect("an answer in time").unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        host: &str,
        path: &str,
        body: &str,
    ) -> (u16, String) {
        let answer = self.request(request(method, host, path, body)).await;
        let status = answer.status().as_u16();
        (status, text(answer).await)
    }

    pub(crate) async fn api(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, body) = self.send(method, "localhost", path, &body).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    pub(crate) async fn create(&self, name: &str) {
        let spec = json!({"command": ["serve"], "port": 8000});
        self.create_with(name, spec).await;
    }

    pub(crate) async fn create_with(&self, name: &str, spec: Value) {
        let (status, answer) = self.api("PUT", &format!("/v1/repls/{name}"), spec).await;
        assert_eq!(status, 201, "{answer}");
    }

    pub(crate) fn alive(&self) -> usize {
        self.fakes.iter().map(|fake| fake.alive().len()).sum()
    }

    /// The value of one of the gateway's own series.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = self.send("GET", "localhost", "/metrics", "").await;
        let line = page.lines().find(|line| {
            line.strip_prefix(series)
                .is_some_and(|rest| rest.starts_with(' '))
        })?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Waits until nobody owns any repl, and asserts that nothing is alive or waits for anything.
    pub(crate) async fn assert_nothing_half_made(&self) {
        let free = async {
            let mut changes = self.store.watch(keys::OWNERS, Revision(1));
            while !self
                .store
                .range(keys::OWNERS)
                .await
                .unwrap()
                .items
                .is_empty()
            {
                changes.next().await.unwrap().unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, free)
            .await
            .expect("every repl is free");
        assert_eq!(self.alive(), 0);
        assert_eq!(self.metric("conman_sessions_parked").await, Some(0.0));
    }

    pub(crate) fn has_gateway_ended(&self) -> bool {
        self.gateway.is_finished()
    }

    /// Stops the gateway, which ends its log, and reads the log.
    pub(crate) async fn session_log(self) -> Vec<Value> {
        self.gateway_stop.ask(Duration::ZERO);
        tokio::time::timeout(PATIENCE, self.gateway)
            .await
            .expect("the gateway stops")
            .unwrap()
            .unwrap();
        let log = std::fs::read_to_string(self.directory.path().join("sessions.ndjson")).unwrap();
        log.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn start_host(
    store: &Memory,
    directory: &Path,
    number: usize,
    setup: &Setup,
    stop: &CancellationToken,
) -> Fake {
    let fake = Fake::new();
    fake.serve_with(|id, stream| Box::pin(answer_with_the_head(id, stream)));
    let config = host::Config {
        host: format!("host-{number}").parse().unwrap(),
        address: Address::Unix(directory.join(format!("host-{number}.sock"))),
        capacity: setup.capacity,
        timing: Timing {
            port_ready: setup.port_ready,
            ..FAST
        },
        boot_id: "boot".into(),
        drains: host::Drains::default(),
        notices: host::Notices::default(),
        dialer: Dialer::default(),
        operations: Operations::default(),
        fences: host::Fences::default(),
    };
    let mut registry = Registry::default();
    let metrics = HostMetrics::register(&mut registry);
    tokio::spawn(host::serve(
        config,
        Arc::new(store.another()),
        Arc::new(fake.clone()),
        metrics,
        render(registry),
        tokio::sync::watch::Sender::new(None),
        stop.clone(),
    ));
    fake
}

pub(crate) fn request(
    method: &str,
    host: &str,
    path: &str,
    body: &str,
) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap()
}

pub(crate) async fn text(answer: http::Response<Incoming>) -> String {
    let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
    let bytes = body.expect("a body in time").unwrap().to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}
