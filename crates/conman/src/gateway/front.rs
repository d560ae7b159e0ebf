//! The listening socket: who is meant by a request, and what a client may send at the most.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use futures_util::future::FutureExt;
use http::{HeaderMap, Request, header};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use model::api::{Refusal, RefusalCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::error::ApiError;
use super::pool::Server;
use super::{Config, Gateway, Stop, api, origin, proxy};
use crate::node::{Arrival, Stream};

/// The most that all of a request's headers may have.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// What the parser reads at the most: above the limit, so that the refusal is ours and says so.
const HEADERS_BUFFER_BYTES: usize = 4 * HEADERS_BYTES_MAX;
/// How long a client may take to send its headers.
const HEADERS_PATIENCE: Duration = Duration::from_secs(15);
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

impl Guests {
    fn admit(
        &self,
        gateway: &Arc<Gateway>,
        router: &Router,
        stream: TcpStream,
        client: SocketAddr,
        stop: &Stop,
    ) {
        let (gateway, router, stop) = (gateway.clone(), router.clone(), stop.asked.clone());
        let unanswered = self.unanswered.clone();
        self.clients.spawn(serve_client(
            gateway, router, stream, client, unanswered, stop,
        ));
    }

    /// Nobody who was let in is sent away without an answer. Sessions without an end (shells, WebSockets) would hold
    /// this up for ever: they have their moment.
    async fn leave(self, stop: &Stop) {
        self.unanswered.close();
        tokio::select! {
            () = self.unanswered.wait() => {}
            () = stop.over.cancelled() => {}
        }
        self.clients.close();
        let _ = tokio::time::timeout(STOP_GRACE, self.clients.wait()).await;
    }
}

pub(super) async fn serve(gateway: Arc<Gateway>, listener: TcpListener, stop: Stop) {
    let router = api::router(gateway.clone());
    let guests = Guests::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.asked.cancelled() => break,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: some are given back as sessions end.
                tracing::warn!(%error, "accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        guests.admit(&gateway, &router, stream, client, &stop);
    }
    // Whom the kernel has let in already would be cut off by the listener's end.
    for _ in 0..BACKLOG_MAX {
        let Some(Ok((stream, client))) = listener.accept().now_or_never() else {
            break;
        };
        guests.admit(&gateway, &router, stream, client, &stop);
    }
    drop(listener);
    guests.leave(&stop).await;
}

async fn serve_client(
    gateway: Arc<Gateway>,
    router: Router,
    stream: TcpStream,
    client: SocketAddr,
    unanswered: TaskTracker,
    stop: CancellationToken,
) {
    let newcomer = unanswered.token();
    // Without it small answers wait for the client's acknowledgement of earlier ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a client that is gone already");
        return;
    }
    let stream = match &gateway.config.identity {
        None => Arrival::Plain(Stream::Tcp(stream)),
        Some(identity) => Arrival::Tls(stream, Arc::clone(identity)),
    };
    let stream = match stream.admit().await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a client without a certificate of the fleet"),
    };
    serve_stream(
        gateway,
        router,
        stream,
        client,
        (newcomer, unanswered),
        stop,
    )
    .await;
}

/// Serves one client who has been let in. `unanswered` counts its requests until each has its answer; `newcomer`, a token of that, is
/// held until the client goes, or the gateway stops and the client's first request is here.
pub(super) async fn serve_stream(
    gateway: Arc<Gateway>,
    router: Router,
    stream: Stream,
    client: SocketAddr,
    (newcomer, unanswered): (TaskTrackerToken, TaskTracker),
    stop: CancellationToken,
) {
    let asked = CancellationToken::new();
    let first_asked = asked.clone();
    let service = service_fn(move |request| {
        let (gateway, router) = (gateway.clone(), router.clone());
        let waits = unanswered.token();
        asked.cancel();
        async move {
            let _waits = waits;
            Ok::<_, Infallible>(match aim(&gateway.config, &request) {
                Ok(Aim::Repl(server)) => proxy::handle(&gateway, server, request, client).await,
                Ok(Aim::Api) => {
                    let answered = TowerToHyperService::new(router).call(request).await;
                    let mut response = answered.unwrap_or_else(|never| match never {});
                    origin::seclude(response.headers_mut());
                    response
                }
                Err(refusal) => ApiError(refusal).into_response(),
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_PATIENCE)
        .max_buf_size(HEADERS_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = may_go(stop, first_asked) => {
            drop(newcomer);
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Until a client's connection may be closed where it is idle: the gateway stops, and the request that the client connected for,
/// which may be on its way, is here.
async fn may_go(stop: CancellationToken, asked: CancellationToken) {
    stop.cancelled().await;
    let _ = tokio::time::timeout(STOP_GRACE, asked.cancelled()).await;
}

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Aim {
    Repl(Server),
    Api,
}

fn aim(config: &Config, request: &Request<Incoming>) -> Result<Aim, Refusal> {
    let headers = request.headers();
    if headers_bytes(headers) > HEADERS_BYTES_MAX {
        return Err(Refusal::new(
            RefusalCode::HeadersTooLarge,
            format!("the headers have more than {HEADERS_BYTES_MAX} bytes"),
        ));
    }
    let host = host_of(request)?;
    let name = name_of(host);
    let aim = aim_at(&config.domain, &name)?;
    if aim == Aim::Api {
        let is_own = origin::is_own_name(&name, &config.domain, &config.api_names);
        if !is_own && !is_for_any_name(request.uri().path()) {
            return Err(origin::unknown_name(&name));
        }
        origin::check(host, request.method(), headers)?;
    }
    Ok(aim)
}

/// Whoever balances the load or scrapes asks by a machine's name, and what it is told names nobody.
fn is_for_any_name(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Whom a request is for, by its one `Host`.
fn host_of(request: &Request<Incoming>) -> Result<&str, Refusal> {
    let mut given = request.headers().get_all(header::HOST).iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return Err(Refusal::new(
            RefusalCode::BadRequest,
            "the request has more than one Host header",
        ));
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.as_str());
    }
    match first.map(|host| host.to_str()) {
        Some(Ok(host)) => Ok(host),
        _ => Err(Refusal::new(
            RefusalCode::BadRequest,
            "the request has no Host header that can be read",
        )),
    }
}

/// A host without its port, in lower case.
fn name_of(host: &str) -> String {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    name.to_ascii_lowercase()
}

fn aim_at(domain: &str, name: &str) -> Result<Aim, Refusal> {
    let Some(label) = name
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'))
    else {
        return Ok(Aim::Api);
    };
    let (port, repl) = split_port(label);
    match repl.parse() {
        Ok(repl) => Ok(Aim::Repl(Server { repl, port })),
        Err(error) => Err(Refusal::new(
            RefusalCode::BadId,
            format!("{repl:?} is no repl's name: {error}"),
        )),
    }
}

/// Splits `<port>-<repl>`. A name that looks so is never a repl's own: `PUT` refuses it.
pub(super) fn split_port(label: &str) -> (Option<u16>, &str) {
    match label.split_once('-') {
        Some((port, repl)) if !port.starts_with('0') => match port.parse::<u16>() {
            Ok(port) => (Some(port), repl),
            Err(_) => (None, label),
        },
        _ => (None, label),
    }
}

fn headers_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

/// A client's answer that says that something is not there.
pub(super) fn not_found(path: &str) -> Response {
    ApiError(Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {path} here"),
    ))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aimed(host: &str) -> String {
        match aim_at("localhost", &name_of(host)) {
            Ok(Aim::Api) => "api".to_owned(),
            Ok(Aim::Repl(server)) => format!("{} {:?}", server.repl, server.port),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_host_name_leads_to_a_repl_or_to_the_api() {
        for (host, expected) in [
            ("blue.localhost:8080", "blue None"),
            ("blue.localhost", "blue None"),
            ("BLUE.LocalHost:80", "blue None"),
            ("8001-blue.localhost:8080", "blue Some(8001)"),
            ("0-blue.localhost", "0-blue None"),
            ("70000-blue.localhost", "70000-blue None"),
            ("localhost:8080", "api"),
            ("127.0.0.1:8080", "api"),
            ("[::1]:8080", "api"),
            ("example.com", "api"),
        ] {
            assert_eq!(aimed(host), expected, "{host}");
        }
        assert_eq!(
            aimed("a.b.localhost"),
            "\"a.b\" is no repl's name: a name has only a-z, 0-9 and '-', not '.'"
        );
    }
}
