//! The little of the node API that a supervisor asks of a host.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::wire::node::{DrainReport, DrainRequest};

use crate::node::Address;

/// Empties a host; comes back when the last of its repls is given up.
pub(in crate::cli) async fn drain(
    address: &Address,
    grace: Duration,
) -> anyhow::Result<DrainReport> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let body = serde_json::to_vec(&DrainRequest { grace_ms })?;
    let stream = address
        .connect()
        .await
        .with_context(|| format!("connect to {address}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post("/node/v1/drain")
        .header(header::HOST, "node")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await.context("ask to drain")?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .context("read the report")?
        .to_bytes();
    anyhow::ensure!(
        status.is_success(),
        "refused with {status}: {}",
        String::from_utf8_lossy(&body)
    );
    serde_json::from_slice(&body).context("read the report")
}
