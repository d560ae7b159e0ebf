//! One HTTP request on a connection of its own: what the clients of the API and of Docker's engine have in common.

use bytes::Bytes;
use http::{Response, header, request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// The most that an answer may have, other than a stream.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What went wrong on the way, for people.
pub(crate) type ExchangeError = Box<dyn std::error::Error + Send + Sync>;

/// Sends a request with an optional JSON body; the answer, whatever its status, once its head is there.
pub(crate) async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: request::Builder,
    body: Option<&Value>,
) -> Result<Response<Incoming>, ExchangeError> {
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = request.body(Full::new(Bytes::from(body)))?;
    let stream = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Ends with the answer's body, or when that is dropped; what went wrong is seen there.
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// The whole of an answer.
pub(crate) async fn collect(body: Incoming) -> Result<Bytes, ExchangeError> {
    Ok(Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await?
        .to_bytes())
}

/// The whole of an answer as JSON; `null` for an empty one.
pub(crate) async fn collect_json<T: DeserializeOwned>(body: Incoming) -> Result<T, ExchangeError> {
    let body = collect(body).await?;
    let json: &[u8] = if body.is_empty() { b"null" } else { &body };
    Ok(serde_json::from_slice(json)?)
}
