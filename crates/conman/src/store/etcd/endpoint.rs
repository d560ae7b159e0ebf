//! One endpoint of etcd: a connection that is made when it is needed, a token where a user is configured, and each
//! failure sorted by what it says about the request.
//!
//! ```text
//! call ─► token? ─► unary call ─► answer
//!             ▲          └─► invalid token: refused before anything was done ─► a new token, once more
//!             └── authenticate
//! ```

use std::error::Error;
use std::sync::Arc;

use http::uri::PathAndQuery;
use model::timing::STORE_CONNECT_MAX;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig};
use tonic::{Code, ConnectError, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::race::Failure;
use super::wire;
use crate::telemetry::locks::{Guard, Mutex};

/// etcd answers a range of large values whole; a page of [`super::PAGE_KEYS_MAX`] of the largest is below this.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Who conman is to etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

type Token = MetadataValue<Ascii>;

pub(super) struct Endpoint {
    uri: String,
    channel: Channel,
    credentials: Option<Arc<Credentials>>,
    token: Mutex<Option<Token>>,
}

impl Endpoint {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A sentence that says why this can be no endpoint, or what is wrong with the certificates.
    pub(super) fn new(
        uri: &str,
        tls: Option<ClientTlsConfig>,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Self, String> {
        let in_words = |error: tonic::transport::Error| format!("{uri}: {}", causes(&error));
        let mut endpoint = Channel::from_shared(uri.to_owned())
            .map_err(|error| format!("{uri}: {error}"))?
            .connect_timeout(STORE_CONNECT_MAX)
            .tcp_nodelay(true);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).map_err(in_words)?;
        }
        Ok(Self {
            uri: uri.to_owned(),
            channel: endpoint.connect_lazy(),
            credentials,
            token: Mutex::new("token for etcd", None),
        })
    }

    pub(super) async fn range(
        &self,
        request: wire::RangeRequest,
    ) -> Result<wire::RangeResponse, Failure> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    pub(super) async fn txn(
        &self,
        request: wire::TxnRequest,
    ) -> Result<wire::TxnResponse, Failure> {
        self.call("/etcdserverpb.KV/Txn", request).await
    }

    /// For tests: forgets the history before a revision.
    #[cfg(test)]
    pub(super) async fn compact(&self, revision: i64) -> Result<(), Failure> {
        let physical = true;
        let request = wire::CompactionRequest { revision, physical };
        let path = "/etcdserverpb.KV/Compact";
        let wire::CompactionResponse {} = self.call(path, request).await?;
        Ok(())
    }

    /// Opens a stream of watches, with its first order; the sender takes more.
    pub(super) async fn watch(
        &self,
        first: wire::WatchRequest,
    ) -> Result<
        (
            mpsc::Sender<wire::WatchRequest>,
            Streaming<wire::WatchResponse>,
        ),
        Failure,
    > {
        // The first order must be there before the stream is: etcd answers nothing without one.
        let (sender, orders) = mpsc::channel(2);
        let _ = sender.try_send(first);
        let request = self.request(ReceiverStream::new(orders)).await?;
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::default();
        let answer = grpc.streaming(request, path, codec).await;
        let answer = answer.map_err(|status| self.failed(&status))?;
        Ok((sender, answer.into_inner()))
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut is_token_fresh = false;
        loop {
            let request = self.request(message.clone()).await?;
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(path);
            match grpc.unary(request, path, codec).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // etcd looks at tokens before it does anything. A token ends with time and with a restart.
                Err(status) if is_old_token(&status) && !is_token_fresh => {
                    self.forget_token();
                    is_token_fresh = true;
                }
                Err(status) => return Err(self.failed(&status)),
            }
        }
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Failure> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        match grpc.ready().await {
            Ok(()) => Ok(grpc),
            Err(error) => Err(Failure::NotDone(format!(
                "{}: {}",
                self.uri,
                causes(&error)
            ))),
        }
    }

    async fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        // A member that has lost its leader says so at once, instead of letting us wait.
        let leader = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", leader);
        if let Some(token) = self.token().await? {
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }

    async fn token(&self) -> Result<Option<Token>, Failure> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        let known = self.known_token().clone();
        if known.is_some() {
            return Ok(known);
        }
        let request = Request::new(wire::AuthenticateRequest {
            name: credentials.user.clone(),
            password: credentials.password.clone(),
        });
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
        let codec = ProstCodec::<_, wire::AuthenticateResponse>::default();
        let answer = match grpc.unary(request, path, codec).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                // What was to be sent with the token has not been, whatever became of this.
                return Err(match self.failed(&status) {
                    Failure::Lost(why) => Failure::NotDone(why),
                    other => other,
                });
            }
        };
        let token = Token::try_from(answer.token)
            .map_err(|_| Failure::Hopeless(format!("{}: its token is no text", self.uri)))?;
        *self.known_token() = Some(token.clone());
        Ok(Some(token))
    }

    fn known_token(&self) -> Guard<'_, Option<Token>> {
        self.token.lock()
    }

    pub(super) fn forget_token(&self) {
        *self.known_token() = None;
    }

    pub(super) fn failed(&self, status: &Status) -> Failure {
        let Self { uri, .. } = self;
        match sort(status) {
            Failure::NotDone(why) => Failure::NotDone(format!("{uri}: {why}")),
            Failure::Lost(why) => Failure::Lost(format!("{uri}: {why}")),
            Failure::Hopeless(why) => Failure::Hopeless(format!("{uri}: {why}")),
        }
    }
}

fn is_old_token(status: &Status) -> bool {
    matches!(
        status.message(),
        "etcdserver: invalid auth token" | "etcdserver: revision of auth store is old"
    )
}

/// What a status says about the request. Whatever is not known to be harmless counts as lost.
fn sort(status: &Status) -> Failure {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Failure::NotDone(causes(error));
        }
        cause = error.source();
    }
    let message = match status.source() {
        Some(source) => causes(source),
        None => status.message().to_owned(),
    };
    match (status.code(), status.message()) {
        // Both are said before a request is proposed to the others.
        (_, "etcdserver: no leader" | "etcdserver: too many requests") => Failure::NotDone(message),
        _ if is_old_token(status) => Failure::NotDone(message),
        // Of the request or of who sends it, or the disk is full: nothing is done, here and anywhere.
        (
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::Unimplemented,
            _,
        ) => Failure::Hopeless(message),
        _ => Failure::Lost(message),
    }
}

/// An error with all its causes, in one line.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some say their cause in their own text.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_before_a_proposal_is_not_done() {
        let sorted = |code, message: &str| sort(&Status::new(code, message));
        for (code, message) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
        ] {
            let failure = sorted(code, message);
            assert!(matches!(failure, Failure::NotDone(_)), "{message}");
        }
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "h2 protocol error"),
            (Code::Cancelled, "operation was canceled"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
        ] {
            let failure = sorted(code, message);
            assert!(matches!(failure, Failure::Lost(_)), "{message}");
        }
        for (code, message) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
        ] {
            let failure = sorted(code, message);
            assert!(matches!(failure, Failure::Hopeless(_)), "{message}");
        }
    }

    #[tokio::test]
    async fn what_could_not_be_sent_was_not_done() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let endpoint = Endpoint::new(&format!("http://{address}"), None, None).unwrap();
        let failure = endpoint.txn(wire::TxnRequest::default()).await.unwrap_err();
        let Failure::NotDone(why) = failure else {
            panic!("{failure:?}");
        };
        assert!(why.contains("Connection refused"), "{why}");
    }

    #[tokio::test]
    async fn what_was_cut_off_may_have_been_done() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let cut_off = tokio::spawn(async move {
            use tokio::io::AsyncReadExt;
            let (mut stream, _) = listener.accept().await.unwrap();
            // The preface of HTTP/2 and the first frames: the connection stands.
            stream.read_exact(&mut [0; 24]).await.unwrap();
        });
        let endpoint = Endpoint::new(&uri, None, None).unwrap();
        let failure = endpoint.txn(wire::TxnRequest::default()).await.unwrap_err();
        assert!(matches!(failure, Failure::Lost(_)), "{failure:?}");
        cut_off.await.unwrap();
    }
}
