//! Where a node is, and how to get there: the addresses of the node API.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The address of a node: `unix:/path` or `tcp:host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// A TCP host and port.
    Tcp(String),
}

/// A text that is no node's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"unix:/path\" nor \"tcp:host:port\"")]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(("tcp", place)) if place.contains(':') => Ok(Address::Tcp(place.to_owned())),
            _ => Err(BadAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

impl Address {
    /// Connects.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn connect(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            Address::Tcp(place) => {
                let stream = TcpStream::connect(place).await?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }

    /// Listens; a Unix socket's path is replaced.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn listen(&self) -> std::io::Result<Listener> {
        Ok(match self {
            Address::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {}
                }
                Listener::Unix(UnixListener::bind(path)?)
            }
            Address::Tcp(place) => Listener::Tcp(TcpListener::bind(place).await?),
        })
    }
}

/// Asks a server at an address one thing over a connection of its own, and reads the answer to its end.
///
/// # Errors
/// When it cannot be reached, or breaks off.
pub async fn ask(
    address: &Address,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Bytes>> {
    let stream = address
        .connect()
        .await
        .with_context(|| format!("connect to {address}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer: nobody else has the sender. What went wrong with it is said there.
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

/// The most that is read of an answer to [`ask`].
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Asks a node over its API, which speaks JSON.
///
/// # Errors
/// As [`ask`]'s, and when it refuses or answers something else.
pub async fn ask_json<T: DeserializeOwned>(
    address: &Address,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let request = Request::post(path)
        .header(header::HOST, "node")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let answer = ask(address, request).await?;
    anyhow::ensure!(
        answer.status().is_success(),
        "refused with {}: {}",
        answer.status(),
        String::from_utf8_lossy(answer.body())
    );
    serde_json::from_slice(answer.body()).context("read the answer")
}

/// A listening node.
#[derive(Debug)]
pub enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On a TCP port.
    Tcp(TcpListener),
}

impl Listener {
    /// Takes the next connection.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Listener::Unix(listener) => Stream::Unix(listener.accept().await?.0),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// A connection to or from a node.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

macro_rules! on_either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Unix($stream) => $call,
            Stream::Tcp($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
