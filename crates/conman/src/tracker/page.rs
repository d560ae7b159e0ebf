//! What `conman stuck serve` answers: one page to scrape, the worst as JSON, its health.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::owner::Tracker;
use crate::telemetry::{exposition, rendering};

/// How many of the worst are shown, unless told otherwise.
pub const WORST_DEFAULT: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    worst: Option<usize>,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    tracker: Tracker,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut registry = Registry::default();
    registry.register_collector(tracker.collector());
    let render = rendering(registry);
    let metrics = move || async move {
        let headers = [(header::CONTENT_TYPE, exposition::CONTENT_TYPE)];
        (headers, exposition::merge(&render(), &[])).into_response()
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/stuck", get(worst))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(tracker);
    let serving = axum::serve(listener, router);
    serving.with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn worst(State(tracker): State<Tracker>, Query(wanted): Query<Wanted>) -> Response {
    let worst = wanted.worst.unwrap_or(WORST_DEFAULT);
    axum::Json(tracker.view().json(worst)).into_response()
}

/// Ready is who has read every log that can be read up to its end.
async fn ready(State(tracker): State<Tracker>) -> Response {
    let behind = tracker.view().behind();
    if behind.is_empty() {
        return "ready\n".into_response();
    }
    let text = format!("not read to the end: {}\n", behind.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
