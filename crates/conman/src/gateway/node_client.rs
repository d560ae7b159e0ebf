//! Speaking to a host's node API.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use model::api::{Refusal, RefusalCode};
use model::id::{Epoch, HostId};
use model::keys::Host;
use model::wire::node::{
    NodeRefusal, OPEN_EPOCH, OPEN_LOAD, OpenKind, OpenRequest, UPGRADE, UPGRADE_DESCRIPTOR,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::session_stream::SessionStream;
use crate::node::{Address, Dialer};

/// Why a host gave nothing.
#[derive(Debug)]
pub(super) enum NodeError {
    /// It said no.
    Refused(Box<NodeRefusal>),
    /// It was not reached, or broke off: nobody knows.
    Unreachable(String),
}

impl NodeError {
    /// The refusal that a client is told.
    pub(super) fn into_refusal(self, host: &HostId) -> Refusal {
        match self {
            NodeError::Refused(refused) => refused.refusal,
            NodeError::Unreachable(why) => Refusal::new(
                RefusalCode::HostUnreachable,
                format!("{host} cannot be reached: {why}"),
            ),
        }
    }
}

impl From<hyper::Error> for NodeError {
    fn from(error: hyper::Error) -> Self {
        NodeError::Unreachable(error.to_string())
    }
}

/// A way into a container.
pub(super) struct Opened {
    pub(super) epoch: Epoch,
    /// How many containers the host carries.
    pub(super) load: Option<u32>,
    /// The session's bytes; `None` for `OpenKind::Start`.
    pub(super) stream: Option<SessionStream>,
}

async fn connect(dialer: &Dialer, host: &Host) -> Result<SendRequest<Full<Bytes>>, NodeError> {
    let address: Address = host
        .record
        .address
        .parse()
        .map_err(|error| NodeError::Unreachable(format!("{error}")))?;
    let stream = dialer
        .connect(&address)
        .await
        .map_err(|error| NodeError::Unreachable(error.to_string()))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

fn request(
    host: &Host,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, NodeError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host.id.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| NodeError::Unreachable(error.to_string()))
}

fn encode(body: &impl Serialize) -> Bytes {
    // The node API's bodies are plain values.
    serde_json::to_vec(body).unwrap_or_default().into()
}

async fn refused(body: Incoming) -> NodeError {
    match body.collect().await {
        Ok(body) => match serde_json::from_slice(&body.to_bytes()) {
            Ok(refusal) => NodeError::Refused(Box::new(refusal)),
            Err(error) => NodeError::Unreachable(format!("a refusal that is none: {error}")),
        },
        Err(error) => error.into(),
    }
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Asks for a way into a repl's container.
pub(super) async fn open(
    dialer: &Dialer,
    host: &Host,
    ask: &OpenRequest,
) -> Result<Opened, NodeError> {
    let mut sender = connect(dialer, host).await?;
    let mut request = request(host, Method::POST, "/node/v1/open", encode(ask))?;
    let headers = request.headers_mut();
    headers.insert(
        header::CONNECTION,
        http::HeaderValue::from_static("upgrade"),
    );
    let is_here = host.record.address.starts_with("unix:");
    if is_here && matches!(ask.kind, OpenKind::Port(_)) {
        // One that does not know this takes the other.
        let offered = http::HeaderValue::from_static(UPGRADE_DESCRIPTOR);
        headers.append(header::UPGRADE, offered);
    }
    headers.append(header::UPGRADE, http::HeaderValue::from_static(UPGRADE));
    let answer = sender.send_request(request).await?;
    let (epoch, load) = (
        number(answer.headers(), OPEN_EPOCH),
        number(answer.headers(), OPEN_LOAD),
    );
    let no_epoch = || NodeError::Unreachable("an answer without an epoch".to_owned());
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let chosen = answer.headers().get(header::UPGRADE);
            let is_descriptor = chosen.is_some_and(|it| it == UPGRADE_DESCRIPTOR);
            let upgraded = hyper::upgrade::on(answer).await?;
            let stream = if is_descriptor {
                let taken = SessionStream::direct(upgraded).await;
                taken.map_err(|error| NodeError::Unreachable(error.to_string()))?
            } else {
                SessionStream::through(upgraded)
            };
            Ok(Opened {
                epoch: Epoch(epoch.ok_or_else(no_epoch)?),
                load,
                stream: Some(stream),
            })
        }
        StatusCode::OK => Ok(Opened {
            epoch: Epoch(epoch.ok_or_else(no_epoch)?),
            load,
            stream: None,
        }),
        _ => Err(refused(answer.into_body()).await),
    }
}

/// One call of the node API with a JSON answer.
pub(super) async fn call<T: DeserializeOwned>(
    dialer: &Dialer,
    host: &Host,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, NodeError> {
    let body = stream(dialer, host, method, path, body).await?.body;
    let bytes = body.collect().await?.to_bytes();
    let bytes = if bytes.is_empty() {
        Bytes::from_static(b"null")
    } else {
        bytes
    };
    serde_json::from_slice(&bytes).map_err(|error| NodeError::Unreachable(error.to_string()))
}

/// Bytes that a host sends.
pub(super) struct Stream {
    /// Of which container, where that is said.
    pub(super) epoch: Option<Epoch>,
    pub(super) body: Incoming,
}

/// One call of the node API whose answer is a stream of bytes.
pub(super) async fn stream(
    dialer: &Dialer,
    host: &Host,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<Stream, NodeError> {
    let mut sender = connect(dialer, host).await?;
    let body = body.map_or_else(Bytes::new, encode);
    let answer = sender
        .send_request(request(host, method, path, body)?)
        .await?;
    if answer.status().is_success() {
        Ok(Stream {
            epoch: number(answer.headers(), OPEN_EPOCH).map(Epoch),
            body: answer.into_body(),
        })
    } else {
        Err(refused(answer.into_body()).await)
    }
}
