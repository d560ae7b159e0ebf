//! The fleet's changes, health, metrics, and this API's own description.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{Method, header};
use model::api::{Refusal, RefusalCode};
use model::keys;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, STATUS_PATIENCE, Shared, query, store_error};
use crate::gateway::node_client::{self, NodeError};
use crate::gateway::{document, events};
use crate::telemetry::exposition;
use crate::telemetry::operations::{FleetReport, Report};

/// Follows everything that changes on the fleet: first what there is, then every change.
///
/// Server-sent events; each one's data is a JSON object with a `type` (`host`, `host_gone`, `draining`,
/// `container`, `gone`) and the `host`.
#[utoipa::path(
    get, path = "/v1/events", tag = "fleet", operation_id = "events",
    responses((
        status = 200, description = "The events, without end",
        body = String, content_type = "text/event-stream",
    )),
)]
pub(in crate::gateway) async fn follow(State(gateway): Shared) -> Response {
    events::stream(gateway)
}

/// Whether this process lives.
#[utoipa::path(
    get, path = "/healthz", tag = "health", operation_id = "health",
    responses((
        status = 200, description = "It does",
        body = String, content_type = "text/plain; charset=utf-8",
    )),
)]
pub(in crate::gateway) async fn health() -> &'static str {
    "ok\n"
}

/// Whether sessions are accepted: the store answers, and a host is registered.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "ready",
    responses((
        status = 200, description = "They are",
        body = String, content_type = "text/plain; charset=utf-8",
    )),
)]
pub(in crate::gateway) async fn ready(State(gateway): Shared) -> Answer {
    gateway
        .store
        .get(keys::HOSTS)
        .await
        .map_err(|error| store_error(&error))?;
    if gateway.fleet.now().is_empty() {
        return Err(Refusal::new(RefusalCode::NoHost, "no host is registered").into());
    }
    Ok("ready\n".into_response())
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "fleet", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)),
)]
pub(in crate::gateway) async fn openapi() -> Response {
    axum::Json(document::document()).into_response()
}

/// How many of the worst are shown to who does not say.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct StuckQuery {
    /// How many of the worst open episodes to list.
    #[serde(default = "worst_default")]
    #[param(default = 10)]
    worst: usize,
}

const fn worst_default() -> usize {
    10
}

/// Who is stuck: the worst open episodes, and what was counted so far.
#[utoipa::path(
    get, path = "/v1/stuck", tag = "health", operation_id = "stuck", params(StuckQuery),
    responses((status = 200, description = "What the tracker knows now", body = serde_json::Value)),
)]
pub(in crate::gateway) async fn stuck(
    State(gateway): Shared,
    wanted: Result<Query<StuckQuery>, QueryRejection>,
) -> Answer {
    let StuckQuery { worst } = query(wanted)?;
    Ok(axum::Json((gateway.config.stuck)(worst)).into_response())
}

/// What is under way on repls, here and on every host: each operation with its stage, its age, and its deadline.
#[utoipa::path(
    get, path = "/debug/operations", tag = "health", operation_id = "operations",
    responses((status = 200, description = "Everything that is under way", body = FleetReport)),
)]
pub(in crate::gateway) async fn operations(State(gateway): Shared) -> axum::Json<FleetReport> {
    let fleet = gateway.fleet.now();
    let dialer = &gateway.config.dialer;
    let asked = fleet.values().map(|host| async move {
        let path = "/node/v1/operations";
        let answer = node_client::call::<Report>(dialer, host, Method::GET, path, None::<&()>);
        let answer = tokio::time::timeout(STATUS_PATIENCE, answer).await;
        answer.ok().and_then(Result::ok).ok_or(&host.id)
    });
    let mut all = FleetReport {
        processes: vec![Report::take(None, &gateway.config.operations)],
        unreachable: vec![],
    };
    for answer in futures_util::future::join_all(asked).await {
        match answer {
            Ok(report) => all.processes.push(report),
            Err(silent) => all.unreachable.push(silent.to_string()),
        }
    }
    axum::Json(all)
}

/// The metrics of this gateway and of every host that answers, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((
        status = 200, description = "The page",
        body = String, content_type = "text/plain; version=0.0.4; charset=utf-8",
    )),
)]
pub(in crate::gateway) async fn metrics(State(gateway): Shared) -> Response {
    let fleet = gateway.fleet.now();
    let dialer = &gateway.config.dialer;
    let asked = fleet.values().map(|host| async move {
        let text = async {
            let path = "/node/v1/metrics";
            let stream = node_client::stream(dialer, host, Method::GET, path, None::<&()>).await?;
            let bytes = http_body_util::BodyExt::collect(stream.body)
                .await?
                .to_bytes();
            Ok::<_, NodeError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tokio::time::timeout(STATUS_PATIENCE, text)
            .await
            .ok()?
            .ok()?;
        Some((host.id.to_string(), text))
    });
    let parts: Vec<(String, String)> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    let text = exposition::merge(&(gateway.render_metrics)(), &parts);
    let headers = [(header::CONTENT_TYPE, exposition::CONTENT_TYPE)];
    (headers, text).into_response()
}
