//! Where a node is, and how to get there: the addresses of the node API.

mod descriptor;
mod identity;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsStream;

pub(crate) use self::descriptor::{give as give_descriptor, take as take_descriptor};
pub(crate) use self::identity::certificates;
pub use self::identity::{Files, Identity, IdentityError};

/// The address of a node: `unix:/path`, `tls:host:port` or `tcp:host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// A TCP host and port.
    Tcp(String),
    /// A TCP host and port where both sides show a certificate of the fleet.
    Tls(String),
}

/// A text that is no node's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not \"unix:/path\", \"tls:host:port\" or \"tcp:host:port\"")]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(("tcp", place)) if place.contains(':') => Ok(Address::Tcp(place.to_owned())),
            Some(("tls", place)) if place.contains(':') => Ok(Address::Tls(place.to_owned())),
            _ => Err(BadAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(place) => write!(f, "tcp:{place}"),
            Address::Tls(place) => write!(f, "tls:{place}"),
        }
    }
}

/// The way to other nodes: with a certificate to show, where this one has one.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    identity: Option<Arc<Identity>>,
}

impl Dialer {
    /// Without an identity, only `unix:` and `tcp:` addresses can be reached.
    pub fn new(identity: Option<Arc<Identity>>) -> Self {
        Self { identity }
    }

    /// Connects.
    ///
    /// # Errors
    /// The operating system's, and when one of the two sides does not take the other's certificate.
    pub async fn connect(&self, address: &Address) -> io::Result<Stream> {
        let tcp = async |place: &str| {
            let stream = TcpStream::connect(place).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok(stream)
        };
        Ok(match address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            Address::Tcp(place) => Stream::Tcp(tcp(place).await?),
            Address::Tls(place) => {
                let identity = self.identity()?;
                let connected = identity.connect(host_of(place), tcp(place).await?);
                let connected = tokio::time::timeout(HANDSHAKE_MAX, connected).await;
                Stream::Tls(Box::new(connected.map_err(io::Error::from)??))
            }
        })
    }

    /// Listens; a Unix socket's path is replaced.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn listen(&self, address: &Address) -> io::Result<Listener> {
        Ok(match address {
            Address::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {}
                }
                Listener::Unix(UnixListener::bind(path)?)
            }
            Address::Tcp(place) => Listener::Tcp(TcpListener::bind(place).await?),
            Address::Tls(place) => {
                let identity = Arc::clone(self.identity()?);
                Listener::Tls(TcpListener::bind(place).await?, identity)
            }
        })
    }

    fn identity(&self) -> io::Result<&Arc<Identity>> {
        let missing =
            || io::Error::other("this node has no certificate to show (node_certificate)");
        self.identity.as_ref().ok_or_else(missing)
    }
}

/// A name or an address without its port, and without the brackets of IPv6.
pub(crate) fn host_of(place: &str) -> &str {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// How long the two sides of a connection may take to show who they are.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Asks a server at an address one thing over a connection of its own, and reads the answer to its end.
///
/// # Errors
/// When it cannot be reached, or breaks off.
pub async fn ask(
    dialer: &Dialer,
    address: &Address,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Bytes>> {
    let stream = dialer
        .connect(address)
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
    dialer: &Dialer,
    address: &Address,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let request = Request::post(path)
        .header(header::HOST, "node")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let answer = ask(dialer, address, request).await?;
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
    /// On a TCP port, for those who show a certificate.
    Tls(TcpListener, Arc<Identity>),
}

/// A connection that was taken, before anybody has shown anything.
#[derive(Debug)]
pub enum Arrival {
    /// Nothing is to be shown.
    Plain(Stream),
    /// A certificate is.
    Tls(TcpStream, Arc<Identity>),
}

impl Listener {
    /// Takes the next connection. What is to be shown comes later, so that one who shows nothing holds up nobody.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let tcp = async |listener: &TcpListener| {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            io::Result::Ok(stream)
        };
        Ok(match self {
            Listener::Unix(listener) => Arrival::Plain(Stream::Unix(listener.accept().await?.0)),
            Listener::Tcp(listener) => Arrival::Plain(Stream::Tcp(tcp(listener).await?)),
            Listener::Tls(listener, identity) => {
                Arrival::Tls(tcp(listener).await?, Arc::clone(identity))
            }
        })
    }
}

impl Arrival {
    /// Has it show what is to be shown.
    ///
    /// # Errors
    /// When it does not, in time.
    pub async fn admit(self) -> io::Result<Stream> {
        match self {
            Arrival::Plain(stream) => Ok(stream),
            Arrival::Tls(stream, identity) => {
                let shown = tokio::time::timeout(HANDSHAKE_MAX, identity.accept(stream)).await;
                Ok(Stream::Tls(Box::new(shown.map_err(io::Error::from)??)))
            }
        }
    }
}

/// A connection to or from a node.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, both sides known.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! on_either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Unix($stream) => $call,
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
