//! The API's client, as small as the command line needs it: one connection per request, no retries.
//!
//! An answer outside 2xx is [`ClientError::Refused`] with the API's own code; a server that cannot be
//! connected to is [`ClientError::Unreachable`]. The two are apart because a caller branches on them.

mod tls;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::{Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::exchange;
use crate::node::Stream;

/// Why a request has no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0:?} is not the address of a conman, as in http://127.0.0.1:8080")]
    BadUrl(String),
    /// Nobody listens there.
    #[error("{url} cannot be reached: {reason}; is `conman up` running, and CONMAN_URL right?")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// What is to be shown there, or trusted, is of no use.
    #[error("{0}")]
    BadCredentials(String),
    /// The API said no.
    #[error("{message} ({code})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's code, or `http_…` when the answer is not the API's.
        code: String,
        /// The API's sentence.
        message: String,
    },
    /// The connection broke, or the answer is not what the API answers.
    #[error("the answer broke off or is not of this API: {0}")]
    Broken(String),
}

/// Where the API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiUrl {
    /// `http://host:port`.
    Http(String),
    /// `https://host:port`.
    Https(String),
    /// `unix:/path`: the socket that a gateway has for its own machine.
    Unix(PathBuf),
}

/// What a client shows, and whom it trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The API's key.
    pub api_key: Option<String>,
    /// Who signs the API's certificate; `None` for those whom this machine trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key, where the API wants one of the fleet.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl FromStr for ApiUrl {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(bad())
            };
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let (Some(authority), "/", None) = (uri.authority(), uri.path(), uri.query()) else {
            return Err(bad());
        };
        let place = |port| {
            let port = authority.port_u16().unwrap_or(port);
            format!("{}:{port}", authority.host())
        };
        match uri.scheme_str() {
            _ if authority.host().is_empty() => Err(bad()),
            Some("http") => Ok(Self::Http(place(80))),
            Some("https") => Ok(Self::Https(place(443))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiUrl::Http(authority) => write!(f, "http://{authority}"),
            ApiUrl::Https(authority) => write!(f, "https://{authority}"),
            ApiUrl::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The body of a refusal.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Debug, Deserialize)]
struct RefusalBody {
    code: String,
    message: String,
}

/// A terminal's or any other WebSocket to the API.
pub type Socket = WebSocketStream<Stream>;

/// A client of one API.
#[derive(Debug, Clone)]
pub struct Client {
    url: ApiUrl,
    credentials: Credentials,
}

impl Client {
    /// A client of the API there.
    pub fn new(url: ApiUrl) -> Self {
        Self::with(url, Credentials::default())
    }

    /// One that shows who it is.
    pub fn with(url: ApiUrl, credentials: Credentials) -> Self {
        Self { url, credentials }
    }

    /// Where it is.
    pub fn url(&self) -> &ApiUrl {
        &self.url
    }

    /// The name under which the API is asked.
    fn authority(&self) -> &str {
        match &self.url {
            ApiUrl::Http(authority) | ApiUrl::Https(authority) => authority,
            ApiUrl::Unix(_) => "localhost",
        }
    }

    async fn connect(&self) -> Result<Stream, ClientError> {
        let tls = match &self.url {
            ApiUrl::Https(_) => {
                Some(tls::connector(&self.credentials).map_err(ClientError::BadCredentials)?)
            }
            _ => None,
        };
        let connect = async {
            let stream = match &self.url {
                ApiUrl::Unix(path) => return Ok(Stream::Unix(UnixStream::connect(path).await?)),
                ApiUrl::Http(authority) | ApiUrl::Https(authority) => {
                    TcpStream::connect(authority).await?
                }
            };
            stream.set_nodelay(true)?;
            match tls {
                None => Ok(Stream::Tcp(stream)),
                Some(tls) => tls::connect(&tls, self.authority(), stream).await,
            }
        };
        connect.await.map_err(|error| ClientError::Unreachable {
            url: self.url.to_string(),
            reason: error.to_string(),
        })
    }

    /// Sends a request with an optional JSON body and returns the answer once its head is there, if it is
    /// of 2xx.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.authority())
            .header(
                header::USER_AGENT,
                concat!("conman/", env!("CARGO_PKG_VERSION")),
            );
        let request = match &self.credentials.api_key {
            Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        };
        let stream = self.connect().await?;
        let response = exchange::send(stream, request, body)
            .await
            .map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = exchange::collect(response.into_body())
            .await
            .map_err(broken)?;
        Err(refused(status, &body))
    }

    /// [`Client::send`], and the whole answer as JSON; `null` for an empty one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body).await?;
        exchange::collect_json(response.into_body())
            .await
            .map_err(broken)
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn socket(&self, path: &str) -> Result<Socket, ClientError> {
        let mut request = format!("ws://{}{path}", self.authority())
            .into_client_request()
            .map_err(broken)?;
        if let Some(key) = &self.credentials.api_key {
            let key = format!("Bearer {key}").parse().map_err(broken)?;
            request.headers_mut().insert(header::AUTHORIZATION, key);
        }
        let stream = self.connect().await?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(refused(response.status(), body))
            }
            Err(error) => Err(broken(error)),
        }
    }
}

fn broken(error: impl fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(Refusal { error }) => ClientError::Refused {
            status: status.as_u16(),
            code: error.code,
            message: error.message,
        },
        Err(_) => ClientError::Refused {
            status: status.as_u16(),
            code: format!("http_{}", status.as_u16()),
            message: status.canonical_reason().unwrap_or("refused").to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_is_http_with_a_host_and_nothing_after_it() {
        let url = |text: &str| text.parse::<ApiUrl>().map(|url| url.to_string());
        assert_eq!(
            url("http://127.0.0.1:8080").unwrap(),
            "http://127.0.0.1:8080"
        );
        assert_eq!(
            url("http://fleet.example/").unwrap(),
            "http://fleet.example:80"
        );
        assert_eq!(url("http://[::1]:1").unwrap(), "http://[::1]:1");
        assert_eq!(url("https://a").unwrap(), "https://a:443");
        assert_eq!(url("unix:/run/a").unwrap(), "unix:/run/a");
        for bad in [
            "",
            "127.0.0.1:8080",
            "ftp://a",
            "unix:a",
            "http://",
            "http://a/b",
            "http://a?b",
        ] {
            assert!(matches!(url(bad), Err(ClientError::BadUrl(_))), "{bad}");
        }
    }

    /// A server that answers the one request that it gets with these bytes.
    async fn answering(answer: &'static str) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        Client::new(url.parse().unwrap())
    }

    async fn get(client: &Client) -> Result<serde_json::Value, ClientError> {
        client.call(Method::GET, "/v1/repls", None).await
    }

    #[tokio::test]
    async fn tells_a_refusal_from_an_answer() {
        let client = answering("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[1,2,3]").await;
        assert_eq!(get(&client).await.unwrap(), serde_json::json!([1, 2, 3]));
        let client = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(get(&client).await.unwrap(), serde_json::Value::Null);
        let client = answering(
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n\
             {\"error\":{\"code\":\"unknown_repl\",\"message\":\"no repl\",\"side\":\"client\"}}",
        )
        .await;
        let error = get(&client).await.unwrap_err();
        assert_eq!(error.to_string(), "no repl (unknown_repl)");
        let client = answering("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        let error = get(&client).await.unwrap_err();
        assert_eq!(error.to_string(), "Bad Gateway (http_502)");
    }

    #[tokio::test]
    async fn tells_a_broken_answer_from_none() {
        let client = answering("HTTP/1.1 200 OK\r\ncontent-length: 70\r\n\r\n[1,2").await;
        assert!(matches!(get(&client).await, Err(ClientError::Broken(_))));
        let client = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<ok>").await;
        assert!(matches!(get(&client).await, Err(ClientError::Broken(_))));
        // The answering server is gone, and its port with it.
        assert!(matches!(
            get(&client).await,
            Err(ClientError::Unreachable { .. })
        ));
    }
}
