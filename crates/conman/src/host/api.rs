//! The node API: `model::wire::node` over HTTP/1.1.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use model::api::{Refusal, RefusalCode};
use model::host::Answer;
use model::id::{ContainerId, Epoch, ReplId};
use model::timing::{OVERRUN_STUCK_AFTER, PARK_MAX};
use model::wire::node::{
    DrainRequest, ExecAnswer, ExecRequest, HandedOff, NodeEvent, NodeRefusal, NoticeRequest,
    OPEN_EPOCH, OPEN_LOAD, OpenKind, OpenRequest, Prepare, StopRequest, UPGRADE,
    UPGRADE_DESCRIPTOR,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::effects::Effects;
use super::live::Live;
use super::notice::Caller;
use super::session::{self, Joined};
use super::{Config, Handle, shell, tail};
use crate::node::Listener;
use crate::runtime::{Exec, Exit, Runtime};
use crate::telemetry::operations::{Kind, Report, Stage};

/// Everything that a request needs.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) config: Config,
    pub(super) effects: Effects,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) handle: Handle,
    pub(super) caller: Caller,
    pub(super) render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// How long a request's headers may take: peers are on the same network, or not peers.
const HEADERS_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn serve(listener: Listener, node: Node) {
    let service = TowerToHyperService::new(router(node));
    loop {
        let arrival = match listener.accept().await {
            Ok(arrival) => arrival,
            Err(error) => {
                // Out of descriptors, most likely: some are given back as sessions end.
                tracing::warn!(%error, "accept a node's connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let stream = match arrival.admit().await {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%error, "one who is no node"),
            };
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_PATIENCE)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a node's connection ended");
            }
        });
    }
}

fn router(node: Node) -> Router {
    Router::new()
        .route("/node/v1/open", post(open))
        .route("/node/v1/exec", post(exec))
        .route("/node/v1/logs/{repl}", get(logs))
        .route("/node/v1/stop", post(stop))
        .route("/node/v1/prepare", post(prepare))
        .route("/node/v1/handed-off", post(handed_off))
        .route("/node/v1/drain", post(drain))
        .route("/node/v1/undrain", post(undrain))
        .route("/node/v1/notice", post(notice))
        .route("/node/v1/status", get(status))
        .route("/node/v1/events", get(events))
        .route("/node/v1/metrics", get(metrics))
        .route("/node/v1/operations", get(operations))
        .with_state(node)
}

/// A refusal on its way out.
struct Refused(NodeRefusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(NodeRefusal {
            refusal,
            hint: None,
        })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.refusal.code.status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self.0)).into_response()
    }
}

/// A JSON body whose errors are refusals like all others.
struct Json<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let bytes = bytes::Bytes::from_request(request, state)
            .await
            .map_err(|error| Refusal::new(RefusalCode::BadRequest, error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map(Json)
            .map_err(|error| Refusal::new(RefusalCode::BadJson, error.to_string()).into())
    }
}

impl Node {
    /// Has the repl's container running, within `wait`.
    async fn run(
        &self,
        repl: &ReplId,
        epoch: Option<Epoch>,
        wait: Duration,
    ) -> Result<(Arc<Live>, Epoch), Refused> {
        let opened = tokio::time::timeout(wait, self.handle.open(repl.clone(), epoch)).await;
        match opened {
            Ok(Answer::Opened { epoch }) => {
                let id = ContainerId {
                    repl: repl.clone(),
                    epoch,
                };
                Ok((session::find(&self.handle, &id)?, epoch))
            }
            Ok(Answer::Refused(refused)) => Err(Refused(refused)),
            Ok(Answer::Stopped | Answer::Drained(_)) => Err(Refused::from(Refusal::new(
                RefusalCode::Internal,
                "an answer to another question",
            ))),
            Err(_) => Err(Refused::from(Refusal::new(
                RefusalCode::ParkTimeout,
                format!("{repl} did not run within {} ms", wait.as_millis()),
            ))),
        }
    }
}

async fn open(State(node): State<Node>, mut request: Request) -> Result<Response, Refused> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let mut offered = request.headers().get_all(header::UPGRADE).iter();
    let takes_descriptors = offered.any(|offered| offered == UPGRADE_DESCRIPTOR);
    let mut protocol = UPGRADE;
    let Json(asked): Json<OpenRequest> = Json::from_request(request, &()).await?;
    let wait = Duration::from_millis(asked.wait_ms);
    let deadline = tokio::time::Instant::now() + wait;
    let (live, epoch) = node.run(&asked.repl, asked.epoch, wait).await?;
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    let need_upgrade = || {
        Refusal::new(
            RefusalCode::BadRequest,
            format!("a session needs \"Upgrade: {UPGRADE}\""),
        )
    };
    let joined = Joined::new(&node.handle, live.running.id.clone());
    let status = match asked.kind {
        OpenKind::Start => StatusCode::OK,
        OpenKind::Port(port) => {
            let port = port.or(live.spec.port).ok_or_else(|| {
                let message = format!("the spec of {} names no port", asked.repl);
                Refusal::new(RefusalCode::NoPort, message)
            })?;
            let upgrade = upgrade.ok_or_else(need_upgrade)?;
            let stream = session::dial(
                &*node.runtime,
                &live,
                port,
                node.config.timing.port_ready,
                left,
            )
            .await?;
            if takes_descriptors {
                protocol = UPGRADE_DESCRIPTOR;
                tokio::spawn(session::hand_out(upgrade, stream, joined));
            } else {
                tokio::spawn(session::carry(upgrade, stream, joined));
            }
            StatusCode::SWITCHING_PROTOCOLS
        }
        OpenKind::Shell { columns, rows } => {
            let upgrade = upgrade.ok_or_else(need_upgrade)?;
            let shell = match shell::join(&*node.runtime, &live, columns, rows).await {
                Ok(shell) => shell,
                Err(refusal) => return Err(session::ending(&live, refusal).await.into()),
            };
            tokio::spawn(async move {
                match upgrade.await {
                    Ok(upgraded) => shell.serve(upgraded, live, columns, rows, joined).await,
                    Err(error) => tracing::debug!(%error, "a shell's gateway went away"),
                }
            });
            StatusCode::SWITCHING_PROTOCOLS
        }
    };
    let mut response = status.into_response();
    let headers = response.headers_mut();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    }
    headers.insert(OPEN_EPOCH, HeaderValue::from(epoch.0));
    let load = *node.handle.live.count.borrow();
    headers.insert(OPEN_LOAD, HeaderValue::from(load));
    Ok(response)
}

async fn exec(
    State(node): State<Node>,
    Json(asked): Json<ExecRequest>,
) -> Result<Response, Refused> {
    let timeout = Duration::from_millis(asked.timeout_ms);
    let patience = PARK_MAX + timeout + OVERRUN_STUCK_AFTER;
    let operation = (node.config.operations).begin(Kind::Exec, &asked.repl, patience);
    match operation.run(exec_within(&node, asked, timeout)).await {
        Ok(answer) => answer,
        Err(given_up) => Err(Refusal::from(given_up).into()),
    }
}

async fn exec_within(
    node: &Node,
    asked: ExecRequest,
    timeout: Duration,
) -> Result<Response, Refused> {
    let running = node.run(&asked.repl, asked.epoch, PARK_MAX);
    let (live, epoch) = Stage::Runtime.of(running).await?;
    let _joined = Joined::new(&node.handle, live.running.id.clone());
    let exec = Exec {
        command: asked.command,
        timeout,
        stdin: asked.stdin.into_bytes(),
    };
    let output = Stage::Program.of(node.runtime.exec(&live.running.id, exec));
    let output = match output.await {
        Ok(output) => output,
        Err(refusal) => return Err(session::ending(&live, refusal).await.into()),
    };
    let exit_code = match output.exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
        Exit::Unknown => {
            let message = format!("the container of {} ended under the command", asked.repl);
            return Err(Refusal::new(RefusalCode::Interrupted, message).into());
        }
    };
    let answer = ExecAnswer {
        exit_code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        truncated: output.truncated,
    };
    let headers = [(OPEN_EPOCH, HeaderValue::from(epoch.0))];
    Ok((headers, axum::Json(answer)).into_response())
}

#[derive(Debug, Deserialize)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
    /// Whose output, if not that of the container that runs, or else of the last one.
    epoch: Option<u64>,
}

async fn logs(
    State(node): State<Node>,
    Path(repl): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refused> {
    let repl: ReplId = repl
        .parse()
        .map_err(|error| Refusal::new(RefusalCode::BadId, format!("{repl:?}: {error}")))?;
    let live = node.handle.live.of_repl(&repl);
    let id = match (query.epoch, &live) {
        (Some(epoch), _) => ContainerId {
            repl,
            epoch: Epoch(epoch),
        },
        (None, Some(live)) => live.running.id.clone(),
        (None, None) => node.runtime.newest_logs(&repl).ok_or_else(|| {
            let message = format!("{repl} has had no container on this host");
            Refusal::new(RefusalCode::NotRunning, message)
        })?,
    };
    let epoch = id.epoch;
    let gone = live
        .filter(|live| live.running.id == id && query.follow)
        .map(|live| live.gone.clone());
    let (pieces, stream) = mpsc::channel(4);
    tokio::spawn(tail::send(node.runtime.clone(), id, gone, pieces));
    let headers = [(OPEN_EPOCH, HeaderValue::from(epoch.0))];
    Ok((headers, Body::from_stream(ReceiverStream::new(stream))).into_response())
}

async fn stop(
    State(node): State<Node>,
    Json(asked): Json<StopRequest>,
) -> Result<Response, Refused> {
    let grace = Duration::from_millis(asked.grace_ms);
    match node.handle.stop(asked.repl, asked.epoch, grace).await {
        Answer::Refused(refused) => Err(Refused(refused)),
        _ => Ok(StatusCode::OK.into_response()),
    }
}

async fn prepare(State(node): State<Node>, Json(message): Json<Prepare>) -> Response {
    node.effects.prepare(message.repls).await;
    axum::Json(()).into_response()
}

async fn handed_off(State(node): State<Node>, Json(message): Json<HandedOff>) -> Response {
    axum::Json(node.handle.handed_off(message).await).into_response()
}

async fn drain(
    State(node): State<Node>,
    Json(asked): Json<DrainRequest>,
) -> Result<Response, Refused> {
    match node.handle.drain(node.config.drains.order(&asked)).await {
        Answer::Drained(report) => {
            tracing::info!(?report, "drained");
            Ok(axum::Json(report).into_response())
        }
        Answer::Refused(refused) => Err(Refused(refused)),
        _ => Ok(StatusCode::OK.into_response()),
    }
}

async fn notice(State(node): State<Node>, Json(given): Json<NoticeRequest>) -> StatusCode {
    node.caller.call(given.within_ms.map(Duration::from_millis));
    StatusCode::ACCEPTED
}

async fn undrain(State(node): State<Node>) -> StatusCode {
    node.handle.send(model::host::Event::Undrain);
    StatusCode::OK
}

async fn status(State(node): State<Node>) -> Result<Response, Refused> {
    let status = node.handle.status().await;
    let status = status
        .ok_or_else(|| Refusal::new(RefusalCode::Internal, "the host is stopping".to_owned()))?;
    Ok(axum::Json(status).into_response())
}

async fn metrics(State(node): State<Node>) -> String {
    (node.render_metrics)()
}

async fn operations(State(node): State<Node>) -> axum::Json<Report> {
    let host = node.config.host.to_string();
    axum::Json(Report::take(Some(host), &node.config.operations))
}

async fn events(State(node): State<Node>) -> Response {
    let (lines, stream) = mpsc::channel(16);
    tokio::spawn(follow(node, lines));
    let stream = ReceiverStream::new(stream).map(Ok::<_, std::convert::Infallible>);
    Body::from_stream(stream).into_response()
}

/// First everything that is there, then every change; everything anew for one that could not keep up.
async fn follow(node: Node, lines: mpsc::Sender<bytes::Bytes>) {
    let mut changes = node.handle.events.subscribe();
    loop {
        let Some(status) = node.handle.status().await else {
            return;
        };
        let draining = NodeEvent::Draining {
            draining: status.draining,
        };
        let all = status.containers.into_iter().map(NodeEvent::Container);
        for event in std::iter::once(draining).chain(all) {
            if lines.send(line(&event)).await.is_err() {
                return;
            }
        }
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = lines.closed() => return,
            };
            match change {
                Ok(event) => {
                    if lines.send(line(&event)).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn line(event: &NodeEvent) -> bytes::Bytes {
    // Plain values: there is nothing in them that JSON cannot say.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
