//! The API's client, as small as the command line needs it: one connection per request, no retries.
//!
//! An answer outside 2xx is [`ClientError::Refused`] with the API's own code; a server that cannot be
//! connected to is [`ClientError::Unreachable`]. The two are apart because a caller branches on them.

use std::fmt;
use std::str::FromStr;

use http::{Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::exchange;

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
pub struct ApiUrl {
    authority: String,
}

impl FromStr for ApiUrl {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        match (uri.scheme_str(), uri.authority(), uri.path(), uri.query()) {
            (Some("http"), Some(authority), "/", None) if !authority.host().is_empty() => {
                let port = authority.port_u16().unwrap_or(80);
                Ok(Self {
                    authority: format!("{}:{port}", authority.host()),
                })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
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
pub type Socket = WebSocketStream<TcpStream>;

/// A client of one API.
#[derive(Debug, Clone)]
pub struct Client {
    url: ApiUrl,
}

impl Client {
    /// A client of the API there.
    pub fn new(url: ApiUrl) -> Self {
        Self { url }
    }

    /// Where it is.
    pub fn url(&self) -> &ApiUrl {
        &self.url
    }

    async fn connect(&self) -> Result<TcpStream, ClientError> {
        let connect = async {
            let stream = TcpStream::connect(&self.url.authority).await?;
            stream.set_nodelay(true)?;
            std::io::Result::Ok(stream)
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
            .header(header::HOST, &self.url.authority)
            .header(
                header::USER_AGENT,
                concat!("conman/", env!("CARGO_PKG_VERSION")),
            );
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
        let request = format!("ws://{}{path}", self.url.authority)
            .into_client_request()
            .map_err(broken)?;
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
        for bad in [
            "",
            "127.0.0.1:8080",
            "https://a",
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
