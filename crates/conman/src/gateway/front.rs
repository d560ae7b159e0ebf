//! The listening socket: who is meant by a request, and what a client may send at the most.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::{IntoResponse, Response};
use futures_util::future::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use model::api::{Refusal, RefusalCode};
use model::time::milliseconds;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::aim::{Aim, HEADERS_BYTES_MAX, aim};
use super::door::Guest;
use super::error::ApiError;
use super::{Endless, Gateway, Stop, access, api, origin, proxy};
use crate::node::Stream;

/// What the parser reads of headers at the most: above the limit, so that the refusal is ours and says so.
const HEADERS_BUFFER_BYTES: usize = 4 * HEADERS_BYTES_MAX;
/// How long a client may take to send its headers, also from the end of one request to the next on its connection.
const HEADERS_PATIENCE: Duration = Duration::from_secs(15);
/// How long a client may be here before it asks for anything.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// After how long without a request an HTTP/2 connection takes no more of them.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long a client may let an answer, or a session's bytes, wait without reading any of it.
const READER_PATIENCE: Duration = Duration::from_secs(60);
/// How many requests one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 256;
/// How often an HTTP/2 client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long what needs no answer any more may take once the gateway stops: bodies, and sessions without an end.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// How many connections at the most wait to be accepted.
const BACKLOG_MAX: usize = 4_096;

/// Who is here, to be waited for when the gateway stops.
#[derive(Default)]
struct Guests {
    /// The connections.
    clients: TaskTracker,
    /// The requests that have no answer yet, and the connections that have had no request yet.
    unanswered: TaskTracker,
}

/// Who comes in, and by which way.
enum Arrival {
    Door(TcpStream, SocketAddr),
    Machine(UnixStream),
}

impl Guests {
    fn admit(&self, gateway: &Arc<Gateway>, router: &Router, arrival: Arrival, stop: &Stop) {
        let (gateway, router, stop) = (gateway.clone(), router.clone(), stop.asked.clone());
        let unanswered = self.unanswered.clone();
        self.clients
            .spawn(serve_client(gateway, router, arrival, unanswered, stop));
    }

    /// Nobody who was let in is sent away without an answer. Sessions without an end (shells, WebSockets) would hold
    /// this up for ever: they are told to connect again.
    async fn leave(self, endless: &Endless, stop: &Stop) {
        self.unanswered.close();
        tokio::select! {
            () = self.unanswered.wait() => {}
            () = stop.over.cancelled() => {}
        }
        endless.closing.cancel();
        endless.tasks.close();
        self.clients.close();
        let all = futures_util::future::join(self.clients.wait(), endless.tasks.wait());
        let _ = tokio::time::timeout(STOP_GRACE, all).await;
    }
}

pub(super) async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    socket: Option<UnixListener>,
    stop: Stop,
) {
    let router = api::router(gateway.clone());
    let guests = Guests::default();
    let from_machine = async || match &socket {
        Some(socket) => socket.accept().await,
        None => std::future::pending().await,
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, from)| Arrival::Door(stream, from)),
            accepted = from_machine() => accepted.map(|(stream, _)| Arrival::Machine(stream)),
            () = stop.asked.cancelled() => break,
        };
        let arrival = match accepted {
            Ok(arrival) => arrival,
            Err(error) => {
                // Out of descriptors, most likely: some are given back as sessions end.
                tracing::warn!(%error, "accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        guests.admit(&gateway, &router, arrival, &stop);
    }
    // Whom the kernel has let in already would be cut off by the listener's end.
    for _ in 0..BACKLOG_MAX {
        let Some(Ok((stream, from))) = listener.accept().now_or_never() else {
            break;
        };
        guests.admit(&gateway, &router, Arrival::Door(stream, from), &stop);
    }
    drop(listener);
    guests.leave(&gateway.endless, &stop).await;
}

async fn serve_client(
    gateway: Arc<Gateway>,
    router: Router,
    arrival: Arrival,
    unanswered: TaskTracker,
    stop: CancellationToken,
) {
    let newcomer = unanswered.token();
    let admitted = match arrival {
        Arrival::Door(stream, from) => gateway.config.door.admit(stream, from).await,
        Arrival::Machine(stream) => Ok((Stream::Unix(stream), Guest::of_machine())),
    };
    let (stream, guest) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return tracing::debug!(%error, "a client that does not come in"),
    };
    serve_stream(gateway, router, stream, guest, (newcomer, unanswered), stop).await;
}

/// Serves one client who has been let in. `unanswered` counts its requests until each has its answer; `newcomer`, a token of that, is
/// held until the client goes, or the gateway stops and the client's first request is here.
pub(super) async fn serve_stream(
    gateway: Arc<Gateway>,
    router: Router,
    stream: Stream,
    guest: Guest,
    (newcomer, unanswered): (TaskTrackerToken, TaskTracker),
    stop: CancellationToken,
) {
    let asked = CancellationToken::new();
    let first_asked = asked.clone();
    let presence = Arc::new(Presence::new());
    let seen = Arc::clone(&presence);
    let guest = Arc::new(guest);
    let service = service_fn(move |request| {
        let (gateway, router, guest) = (gateway.clone(), router.clone(), guest.clone());
        let waits = unanswered.token();
        asked.cancel();
        seen.note();
        async move {
            let _waits = waits;
            Ok::<_, Infallible>(answer(&gateway, router, request, &guest).await)
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(READER_PATIENCE));
    let server = server();
    let connection = server.serve_connection_with_upgrades(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = may_go(stop, first_asked.clone()) => {
            drop(newcomer);
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = presence.idle() => {
            // One that has never asked anything may be one that only holds the connection.
            if !first_asked.is_cancelled() {
                return;
            }
            drop(newcomer);
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// What a client may send, and how slowly.
fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_PATIENCE)
        .max_buf_size(HEADERS_BUFFER_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADERS_BUFFER_BYTES as u32)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        // WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol();
    server
}

/// When a client has last asked for anything.
struct Presence {
    came: Instant,
    /// Milliseconds since it came.
    last_asked: AtomicU64,
}

impl Presence {
    fn new() -> Self {
        Self {
            came: Instant::now(),
            last_asked: AtomicU64::new(0),
        }
    }

    fn note(&self) {
        let now = milliseconds(self.came.elapsed()).max(1);
        self.last_asked.store(now, Ordering::Relaxed);
    }

    /// Until the client has asked for nothing for so long that its connection may be closed. What is under way is not idle
    /// to whoever waits for it: it is only that nothing new will be taken.
    async fn idle(&self) {
        loop {
            let due = match self.last_asked.load(Ordering::Relaxed) {
                0 => self.came + FIRST_PATIENCE,
                last => self.came + Duration::from_millis(last) + IDLE_MAX,
            };
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

async fn answer(
    gateway: &Arc<Gateway>,
    router: Router,
    request: Request<Incoming>,
    guest: &Arc<Guest>,
) -> Response {
    match aim(&gateway.config, &request) {
        Ok(Aim::Repl(server)) => proxy::handle(gateway, server, request, guest).await,
        Ok(Aim::Api) => {
            let mut response = answer_api(gateway, router, request, guest).await;
            origin::seclude(response.headers_mut());
            response
        }
        Err(refusal) => ApiError(refusal).into_response(),
    }
}

async fn answer_api(
    gateway: &Gateway,
    router: Router,
    request: Request<Incoming>,
    guest: &Arc<Guest>,
) -> Response {
    let (mut parts, body) = request.into_parts();
    if !access::is_for_anybody(&parts.method, parts.uri.path())
        && let Err(refusal) = gateway.config.access.check_api(&parts.headers, guest)
    {
        return ApiError(refusal).into_response();
    }
    parts.extensions.insert(Arc::clone(guest));
    let request = Request::from_parts(parts, body);
    let answered = TowerToHyperService::new(router).call(request).await;
    answered.unwrap_or_else(|never| match never {})
}

/// Until a client's connection may be closed where it is idle: the gateway stops, and the request that the client connected for,
/// which may be on its way, is here.
async fn may_go(stop: CancellationToken, asked: CancellationToken) {
    stop.cancelled().await;
    let _ = tokio::time::timeout(STOP_GRACE, asked.cancelled()).await;
}

/// A client's answer that says that something is not there.
pub(super) fn not_found(path: &str) -> Response {
    ApiError(Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {path} here"),
    ))
    .into_response()
}
