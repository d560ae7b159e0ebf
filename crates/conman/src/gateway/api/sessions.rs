//! Into a repl's container: commands, output, the shared terminal.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use http::{Method, header};
use hyper::body::Incoming;
use model::api::{Refusal, RefusalCode};
use model::id::{Epoch, ReplId, Revision};
use model::time::milliseconds;
use model::wire::node::{ExecAnswer, ExecRequest, OpenKind};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{Answer, Id, ReplPath, STATUS_PATIENCE, Shared, query};
use crate::gateway::Gateway;
use crate::gateway::document::ExecAnswerSchema;
use crate::gateway::error::Json;
use crate::gateway::node_client;
use crate::gateway::open::NoWay;
use crate::gateway::proxy::Session;
use crate::gateway::shell::{self, Size};

/// How long a command may take that names no time of its own.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// A command to run in a container.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Exec)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct ExecBody {
    /// The program and its arguments.
    #[schema(min_items = 1)]
    command: Vec<String>,
    /// What it reads from standard input.
    #[serde(default)]
    stdin: String,
    /// How long it may take; 60,000 if absent.
    timeout_ms: Option<u64>,
}

/// Runs a command in a repl's container, starting it if need be.
#[utoipa::path(
    post, path = "/v1/repls/{id}/exec", tag = "sessions", operation_id = "exec",
    params(ReplPath), request_body = ExecBody,
    responses((status = 200, description = "It has ended", body = ExecAnswerSchema)),
)]
pub(in crate::gateway) async fn exec(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    Json(body): Json<ExecBody>,
) -> Answer {
    if body.command.is_empty() {
        return Err(Refusal::new(RefusalCode::BadRequest, "command: must name a program").into());
    }
    let default_ms = milliseconds(EXEC_TIMEOUT);
    let session = Session::begin(&gateway, id.clone());
    let mut ask = ExecRequest {
        repl: id,
        epoch: None,
        command: body.command,
        stdin: body.stdin,
        timeout_ms: body.timeout_ms.unwrap_or(default_ms),
    };
    let deadline = Instant::now() + gateway.config.park;
    loop {
        let way = match gateway.open(&ask.repl, &OpenKind::Start).await {
            Ok(way) => way,
            Err(no_way) => {
                session.refused(&no_way);
                return Err(no_way.into());
            }
        };
        ask.epoch = Some(way.opened.epoch);
        let Some(host) = gateway.fleet.now().get(&way.host).cloned() else {
            continue;
        };
        let answered = gateway.ask::<ExecAnswer>(&host, "/node/v1/exec", Some(&ask));
        let error = match answered.await {
            Ok(answer) => {
                session.opened(way.host, way.opened.epoch);
                return Ok(axum::Json(answer).into_response());
            }
            Err(error) => error,
        };
        let no_way = NoWay {
            refusal: error.into_refusal(&way.host),
            host: Some(way.host),
            epoch: Some(way.opened.epoch),
        };
        // Not the owner: the container ended before the command began. Its next one is asked.
        if no_way.refusal.code != RefusalCode::NotOwner || Instant::now() >= deadline {
            session.refused(&no_way);
            return Err(no_way.into());
        }
    }
}

/// How a container's output is read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct LogsQuery {
    /// Whether to go on with what is written from now on, until the container ends.
    #[serde(default)]
    follow: bool,
}

/// What a repl's container has written to its output; of a repl that has none now, what its last one has.
///
/// Empty if nothing was written, or nothing of it is kept any more.
#[utoipa::path(
    get, path = "/v1/repls/{id}/logs", tag = "sessions", operation_id = "logs",
    params(ReplPath, LogsQuery),
    responses((
        status = 200, description = "The output, both streams as they came",
        body = String, content_type = "text/plain; charset=utf-8",
    )),
)]
pub(in crate::gateway) async fn logs(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    wanted: Result<Query<LogsQuery>, QueryRejection>,
) -> Answer {
    let follow = query(wanted)?.follow;
    let (_, item) = gateway.spec(&id).await?;
    let body = match gateway.live_owner(&id).await? {
        Some((owner, host)) => {
            let path = format!("/node/v1/logs/{id}?epoch={}&follow={follow}", owner.epoch);
            let output = node_client::stream(
                &gateway.config.dialer,
                &host,
                Method::GET,
                &path,
                None::<&()>,
            )
            .await;
            let output = output.map_err(|error| error.into_refusal(&host.id))?;
            Body::new(output.body)
        }
        None => last_output(&gateway, &id, item.create)
            .await
            .map_or_else(Body::empty, Body::new),
    };
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, body).into_response())
}

/// What the last container of a repl that has none now has written, if a host that can be asked still has it.
/// Nobody keeps in mind where that was, so all are asked, and the newest counts; not that of an earlier repl of
/// the same name, which was there before this one was created.
async fn last_output(gateway: &Gateway, id: &ReplId, created: Revision) -> Option<Incoming> {
    let hosts = gateway.fleet.now();
    let path = format!("/node/v1/logs/{id}");
    let asked = hosts.values().map(|host| {
        let asked = node_client::stream(
            &gateway.config.dialer,
            host,
            Method::GET,
            &path,
            None::<&()>,
        );
        tokio::time::timeout(STATUS_PATIENCE, asked)
    });
    let answered = futures_util::future::join_all(asked).await;
    let outputs = answered.into_iter().flatten().flatten();
    let newest = outputs
        .filter(|output| output.epoch > Some(Epoch(created.0)))
        .max_by_key(|output| output.epoch)?;
    Some(newest.body)
}

/// Joins a repl's shared terminal, starting its container if need be.
///
/// A WebSocket. Binary frames are the terminal's bytes both ways; text frames are JSON: the client sends
/// `{"type":"resize","columns":C,"rows":R}`, and is sent notices, among them `moved` when the container has come
/// up on another host: the WebSocket stays open through that.
#[utoipa::path(
    get, path = "/v1/repls/{id}/shell", tag = "sessions", operation_id = "shell",
    params(ReplPath, Size),
    responses((status = 101, description = "The terminal, as a WebSocket")),
)]
pub(in crate::gateway) async fn open_shell(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    size: Result<Query<Size>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let size = query(size)?;
    let upgrade = upgrade.map_err(|error| {
        let message = format!("a shell is a WebSocket: {error}");
        Refusal::new(RefusalCode::BadRequest, message)
    })?;
    let terminal = shell::open(&gateway, &id, size).await?;
    Ok(upgrade.on_upgrade(move |client| shell::serve(gateway, id, size, terminal, client)))
}
