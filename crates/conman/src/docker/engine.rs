//! The Engine API, as small as conman needs it: one connection per call, each call with its own patience.
//!
//! Paths have no version: every engine then answers in the newest version that it knows, and what is read here has
//! been the same since 1.24. (Docker's own client asks first, and newer engines refuse older numbers.)

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::DockerId;
use crate::exchange;

/// Where Debian's and Docker's own packages have the engine listen.
pub const SOCKET: &str = "unix:///var/run/docker.sock";

/// How an engine is reached: `unix:///path`, as in `DOCKER_HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineAddress(PathBuf);

/// An address that is not of this machine's engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the socket of an engine of this machine, as in unix:///var/run/docker.sock: its processes could \
     not be seen from here"
)]
pub struct BadAddress(String);

impl EngineAddress {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for EngineAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err(BadAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// Why a call has no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such socket.
    #[error("no Docker engine: {0} does not exist; is Docker installed, and DOCKER_HOST right?")]
    Absent(PathBuf),
    /// This user may not ask it.
    #[error("no permission for the Docker engine at {0}: run this as root")]
    Forbidden(PathBuf),
    /// The socket is there, and nobody listens.
    #[error("no Docker engine: nobody listens at {0}; is it running?")]
    NotListening(PathBuf),
    /// It is there and does not answer in time.
    #[error("the Docker engine does not answer: {0}")]
    Silent(String),
    /// It said no.
    #[error("the Docker engine refused ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its sentence.
        message: String,
    },
    /// The connection broke, or the answer is not an engine's.
    #[error("the Docker engine's answer broke off or is none: {0}")]
    Broken(String),
}

impl EngineError {
    /// Whether it is about something that does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::Refused { status: 404, .. })
    }
}

/// What `GET /containers/json` says of a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its names, each after a slash.
    #[serde(default)]
    pub names: Vec<String>,
    /// What it was made from.
    #[serde(default)]
    pub image: String,
    /// Where it stands: `running`, `paused`, `restarting`, `created`, `removing`, `exited`, `dead`.
    pub state: String,
    /// Its labels.
    #[serde(default, deserialize_with = "or_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What `GET /containers/{id}/json` says of a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspected {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// What the host does for it.
    pub host_config: HostConfig,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    /// The PID of its PID 1; 0 without one.
    pub pid: u32,
    /// How its program ended last.
    #[serde(default)]
    pub exit_code: i32,
}

/// The part of a container's `HostConfig` that conman reads and writes back.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// Whether the engine starts it again.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
}

/// Whether the engine starts a container again when it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// `no` or empty, `always`, `unless-stopped`, `on-failure`.
    #[serde(default)]
    pub name: String,
    /// For `on-failure`.
    #[serde(default)]
    pub maximum_retry_count: i64,
}

impl RestartPolicy {
    /// The policy that never starts it again.
    pub fn never() -> Self {
        Self {
            name: "no".to_owned(),
            maximum_retry_count: 0,
        }
    }

    /// Whether it is that one.
    pub fn is_never(&self) -> bool {
        matches!(self.name.as_str(), "" | "no")
    }
}

/// Docker writes an empty map as `null`.
fn or_empty<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A client of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    address: EngineAddress,
}

impl Engine {
    /// A client of the engine there.
    pub fn new(address: EngineAddress) -> Self {
        Self { address }
    }

    /// Where it is.
    pub fn address(&self) -> &EngineAddress {
        &self.address
    }

    async fn connect(&self) -> Result<UnixStream, EngineError> {
        let path = self.address.path();
        let stream = UnixStream::connect(path).await;
        stream.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::Absent(path.to_owned()),
            std::io::ErrorKind::PermissionDenied => EngineError::Forbidden(path.to_owned()),
            std::io::ErrorKind::ConnectionRefused => EngineError::NotListening(path.to_owned()),
            // So many calls wait at a stopped engine that the kernel takes no more.
            std::io::ErrorKind::WouldBlock => {
                EngineError::Silent(format!("its socket {} takes no more calls", path.display()))
            }
            _ => EngineError::Broken(format!("connect to {}: {error}", path.display())),
        })
    }

    /// The process that listens at its socket, for as long as it has done so itself and not had it from systemd.
    ///
    /// # Errors
    /// When it cannot be connected to.
    pub async fn listener_pid(&self) -> Result<u32, EngineError> {
        let stream = self.connect().await?;
        let peer = stream.peer_cred().map_err(broken)?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        pid.ok_or_else(|| EngineError::Broken("its process cannot be seen".to_owned()))
    }

    /// Sends a request with an optional JSON body and returns the answer once its head is there, if it is no
    /// refusal. For streams: [`Engine::call`] is for the rest.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, EngineError> {
        self.send_with(method, path, body, None).await
    }

    /// As [`Engine::send`], and takes the connection over for what follows.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn upgrade(&self, path: &str, body: &Value) -> Result<Upgraded, EngineError> {
        let response = self.send_with(Method::POST, path, Some(body), Some("tcp"));
        hyper::upgrade::on(response.await?).await.map_err(broken)
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        upgrade: Option<&str>,
    ) -> Result<Response<Incoming>, EngineError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "docker");
        if let Some(protocol) = upgrade {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, protocol);
        }
        let stream = self.connect().await?;
        let response = exchange::send(stream, request, body)
            .await
            .map_err(broken)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        // 304: it is so already.
        if status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = exchange::collect(response.into_body())
            .await
            .map_err(broken)?;
        Err(refused(status, &body))
    }

    /// A call with a JSON answer; `null` for an empty one. Silence for longer than `patience` is an error.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<T, EngineError> {
        let call = async {
            let response = self.send(method, path, body).await?;
            exchange::collect_json(response.into_body())
                .await
                .map_err(broken)
        };
        match tokio::time::timeout(patience, call).await {
            Ok(answer) => answer,
            Err(_) => Err(EngineError::Silent(format!(
                "no answer from {} within {} ms",
                self.address,
                patience.as_millis()
            ))),
        }
    }

    /// The containers that match, in any state that the filters allow.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn list(
        &self,
        filters: &BTreeMap<String, Vec<String>>,
        patience: Duration,
    ) -> Result<Vec<Listed>, EngineError> {
        let filters = encode(&json!(filters).to_string());
        let path = format!("/containers/json?all=1&filters={filters}");
        self.call(Method::GET, &path, None, patience).await
    }

    /// One container.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn inspect(&self, id: &str, patience: Duration) -> Result<Inspected, EngineError> {
        let path = format!("/containers/{id}/json");
        self.call(Method::GET, &path, None, patience).await
    }

    /// Changes whether a container is started again.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn set_restart_policy(
        &self,
        id: &DockerId,
        policy: &RestartPolicy,
        patience: Duration,
    ) -> Result<(), EngineError> {
        let path = format!("/containers/{id}/update");
        let body = json!({ "RestartPolicy": policy });
        self.call::<Value>(Method::POST, &path, Some(&body), patience)
            .await
            .map(drop)
    }

    /// Waits until the engine has recorded a container's end and cleaned up after it; gives its exit code. One that
    /// is gone has been cleaned up too: then there is none. By its id or its name.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn settled(&self, id: &str, patience: Duration) -> Result<Option<i32>, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Waited {
            status_code: i32,
        }
        let path = format!("/containers/{id}/wait?condition=not-running");
        let waited = self.call::<Waited>(Method::POST, &path, None, patience);
        match waited.await {
            Ok(waited) => Ok(Some(waited.status_code)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Percent-encodes what may not stand in a query.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn broken(error: impl fmt::Display) -> EngineError {
    EngineError::Broken(error.to_string())
}

fn refused(status: StatusCode, body: &[u8]) -> EngineError {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let message = match serde_json::from_slice(body) {
        Ok(Refusal { message }) => message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    EngineError::Refused {
        status: status.as_u16(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_unix_socket() {
        let address: EngineAddress = SOCKET.parse().unwrap();
        assert_eq!(address.path(), Path::new("/var/run/docker.sock"));
        assert_eq!(address.to_string(), SOCKET);
        for bad in ["", "unix://", "unix://x", "tcp://127.0.0.1:2375", "/a/b"] {
            assert!(bad.parse::<EngineAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_is_encoded() {
        assert_eq!(
            encode(r#"{"a":["b c"]}"#),
            "%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
        );
    }

    #[test]
    fn refusals_are_read_in_both_shapes() {
        let text = |body: &[u8]| refused(StatusCode::NOT_FOUND, body).to_string();
        assert_eq!(
            text(br#"{"message":"No such container: x"}"#),
            "the Docker engine refused (404): No such container: x"
        );
        assert_eq!(
            text(b"page not found"),
            "the Docker engine refused (404): page not found"
        );
        assert!(refused(StatusCode::NOT_FOUND, b"").is_not_found());
    }

    #[test]
    fn a_list_may_have_no_labels() {
        let listed: Listed =
            serde_json::from_str(r#"{"Id":"x","Names":["/a"],"State":"running","Labels":null}"#)
                .unwrap();
        assert!(listed.labels.is_empty());
    }

    #[tokio::test]
    async fn no_socket_no_listener_and_no_answer_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let engine = Engine::new(format!("unix://{}", path.display()).parse().unwrap());
        let ask = |engine: Engine| async move {
            engine
                .list(&BTreeMap::new(), Duration::from_millis(50))
                .await
                .unwrap_err()
        };
        assert!(matches!(ask(engine.clone()).await, EngineError::Absent(_)));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let silent = ask(engine.clone()).await;
        assert!(silent.to_string().contains("within 50 ms"), "{silent}");
        assert_eq!(engine.listener_pid().await.unwrap(), std::process::id());
        drop(listener);
        let refused = ask(engine).await;
        assert!(matches!(refused, EngineError::NotListening(_)), "{refused}");
    }
}
