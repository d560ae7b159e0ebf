//! HTTP from a user to a repl's own server and back.
//!
//! ```text
//!   request ──► pooled connection? ──► container ──► answer ──► body, or both ways after an upgrade
//!                    │ none, or closed before anything was sent
//!                    └──► open (parks, claims, follows the repl) ──► a new connection ──► container
//! ```
//!
//! A request that was never sent is sent again, always. One that was sent and got no answer is sent again only
//! if it may be (GET, HEAD, OPTIONS without a body), and once over a new connection: its container has most likely
//! just been moved.

use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use model::api::{Outcome, Refusal, RefusalCode, Side};
use model::id::{Epoch, HostId, ReplId};
use model::probe::is_probe;
use model::wire::node::{HostStatus, OpenKind};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::Gateway;
use super::access::Pass;
use super::aim::is_websocket;
use super::client_body::{self, ClientBody, Fate};
use super::door::{Guest, Standing};
use super::error::ApiError;
use super::frames;
use super::metrics::Reason;
use super::open::NoWay;
use super::pool::{Connection, Server};
use super::session_log::Attempt;

/// One attempt of a client to reach a repl. It is told and counted exactly once: by `end`, or, when the client
/// has gone away and nobody waits for the answer any more, by being dropped.
pub(super) struct Session<'a> {
    gateway: &'a Gateway,
    repl: ReplId,
    began: Instant,
    is_ended: bool,
}

impl<'a> Session<'a> {
    pub(super) fn begin(gateway: &'a Gateway, repl: ReplId) -> Self {
        Self {
            gateway,
            repl,
            began: Instant::now(),
            is_ended: false,
        }
    }

    pub(super) fn opened(self, host: HostId, epoch: Epoch) {
        self.end(Outcome::Ok, Reason::Opened, Some(host), Some(epoch));
    }

    pub(super) fn refused(self, no_way: &NoWay) {
        let outcome = match no_way.refusal.code.side() {
            // Nothing was asked of any container: neutral, like a client that goes away.
            Side::Client => Outcome::ClientAbort,
            Side::User => Outcome::UserFail,
            Side::Platform => Outcome::PlatformFail,
        };
        let reason = Reason::Refused(no_way.refusal.code);
        self.end(outcome, reason, no_way.host.clone(), no_way.epoch);
    }

    /// Nothing was asked of the repl: the client will come again.
    fn turned_away(self) {
        self.end(Outcome::ClientAbort, Reason::ClientGone, None, None);
    }

    fn end(mut self, outcome: Outcome, reason: Reason, host: Option<HostId>, epoch: Option<Epoch>) {
        self.tell(outcome, reason, host, epoch);
    }

    fn tell(
        &mut self,
        outcome: Outcome,
        reason: Reason,
        host: Option<HostId>,
        epoch: Option<Epoch>,
    ) {
        self.is_ended = true;
        let spent = self.began.elapsed();
        let log = if is_probe(&self.repl) {
            self.gateway.metrics.probed(outcome, reason);
            &self.gateway.probe_log
        } else {
            self.gateway.metrics.ended(outcome, reason, spent);
            &self.gateway.log
        };
        log.write(Attempt {
            time: now_text(),
            repl: self.repl.clone(),
            session: format!("{:012x}", self.gateway.next_session()),
            outcome,
            reason: reason.as_str(),
            host,
            epoch,
            attempt_ms: (spent.as_secs_f64() * 1e6).round() / 1e3,
        });
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.tell(Outcome::ClientAbort, Reason::ClientGone, None, None);
        }
    }
}

/// RFC 3339 UTC with microseconds.
fn now_text() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// Carries one request.
pub(super) async fn handle(
    gateway: &Gateway,
    server: Server,
    request: Request<Incoming>,
    guest: &Guest,
) -> Response {
    let session = Session::begin(gateway, server.repl.clone());
    let (mut parts, body) = request.into_parts();
    let access = &gateway.config.access;
    match access.admit(gateway, &server.repl, &mut parts, guest).await {
        Ok(Pass::Enter) => {}
        Ok(Pass::ComeAgain { location, cookie }) => {
            session.turned_away();
            let headers = [(header::LOCATION, location), (header::SET_COOKIE, cookie)];
            return (StatusCode::SEE_OTHER, headers).into_response();
        }
        Err(refusal) => {
            session.refused(&refusal.clone().into());
            return ApiError(refusal).into_response();
        }
    }
    let request = Request::from_parts(parts, body);
    match carry(gateway, &server, request, guest).await {
        Ok((response, host, epoch)) => {
            session.opened(host, epoch);
            response
        }
        Err(no_way) => {
            session.refused(&no_way);
            ApiError::from(no_way).into_response()
        }
    }
}

/// A request that may have to be sent more than once.
struct Outgoing {
    request: Request<Body>,
    /// What it is made of, if it may be sent again after an answer failed to come.
    again: Option<Parts>,
    client_upgrade: Option<ClientUpgrade>,
    body: Fate,
}

/// A client that wants to go on with another protocol.
struct ClientUpgrade {
    upgrade: OnUpgrade,
    /// Whether it asked as HTTP/2 does, where the answer is another one.
    is_extended_connect: bool,
}

async fn carry(
    gateway: &Gateway,
    server: &Server,
    request: Request<Incoming>,
    guest: &Guest,
) -> Result<(Response, HostId, Epoch), NoWay> {
    if let Some(bytes_max) = gateway.config.body_bytes_max
        && request.body().size_hint().lower() > bytes_max
    {
        return Err(client_body::too_large(bytes_max).into());
    }
    let Outgoing {
        mut request,
        mut again,
        client_upgrade,
        body,
    } = prepare(request, guest, gateway.config.body_bytes_max);
    let mut pooled = gateway.pool.take(server);
    loop {
        let (mut connection, was_kept) = match pooled.take() {
            Some(connection) => (connection, true),
            None => (connect(gateway, server).await?, false),
        };
        let (host, epoch) = (connection.host.clone(), connection.epoch);
        match connection.sender.try_send_request(request).await {
            Ok(answer) => {
                body.answered();
                let answer = finish(gateway, server, connection, answer, client_upgrade);
                return Ok((answer, host, epoch));
            }
            Err(mut error) => {
                request = match (error.take_message(), again.take()) {
                    (Some(unsent), parts) => {
                        again = parts;
                        unsent
                    }
                    (None, Some(parts)) => {
                        // A kept connection that breaks says nothing of the server: that does not count.
                        again = was_kept.then(|| parts.clone());
                        Request::from_parts(parts, Body::empty())
                    }
                    (None, None) => {
                        if let Some(refusal) = body.failure() {
                            return Err(NoWay {
                                refusal,
                                host: Some(host),
                                epoch: Some(epoch),
                            });
                        }
                        let why = error.error().to_string();
                        return Err(broken_off(gateway, &server.repl, host, epoch, &why).await);
                    }
                };
            }
        }
    }
}

/// Whose doing it was that a server broke off: the platform's if it has ended the container, or is about to;
/// else the user's own, who may have had it killed.
async fn broken_off(
    gateway: &Gateway,
    repl: &ReplId,
    host: HostId,
    epoch: Epoch,
    why: &str,
) -> NoWay {
    let hosts = gateway.fleet.now();
    let status = gateway.statuses(hosts.get(&host).into_iter()).await;
    let lives_on = |host: &HostStatus| !host.draining && host.keeper_pid.is_some();
    let refusal = if status.first().is_some_and(lives_on) {
        let message = format!("the server of {repl} broke off before it answered: {why}");
        Refusal::new(RefusalCode::UserClosed, message)
    } else {
        let message = format!(
            "{repl} was taken from {host} before it answered: it may have done the request"
        );
        Refusal::new(RefusalCode::Interrupted, message)
    };
    NoWay {
        refusal,
        host: Some(host),
        epoch: Some(epoch),
    }
}

async fn connect(gateway: &Gateway, server: &Server) -> Result<Connection, NoWay> {
    let way = gateway
        .open(&server.repl, &OpenKind::Port(server.port))
        .await?;
    let broken = |why: String| NoWay {
        refusal: Refusal::new(RefusalCode::HostUnreachable, why),
        host: Some(way.host.clone()),
        epoch: Some(way.opened.epoch),
    };
    let stream = way
        .opened
        .stream
        .ok_or_else(|| broken(format!("{} gave no stream", way.host)))?;
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let ended = gateway.fleet.ended(way.host.clone(), way.incarnation);
    tokio::spawn(async move {
        tokio::select! {
            carried = connection.with_upgrades() => if let Err(error) = carried {
                tracing::debug!(%error, "a connection to a container ended");
            },
            // Dropped with all that is under way on it: who waits for an answer learns that none comes.
            () = ended => {}
        }
    });
    Ok(Connection {
        sender,
        host: way.host,
        incarnation: way.incarnation,
        epoch: way.opened.epoch,
    })
}

fn prepare(mut request: Request<Incoming>, guest: &Guest, body_bytes_max: Option<u64>) -> Outgoing {
    let is_extended_connect = is_websocket(&request);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (mut parts, body) = request.into_parts();
    // It would be added to what goes to the container.
    parts.extensions.remove::<Protocol>();
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    let protocol = match parts.headers.get(header::UPGRADE) {
        _ if is_extended_connect => Some(HeaderValue::from_static("websocket")),
        given => given.cloned(),
    };
    let takes_trailers = takes_trailers(&parts.headers);
    forward(&mut parts.headers, guest);
    join_cookies(&mut parts.headers);
    if takes_trailers {
        parts
            .headers
            .insert(header::TE, HeaderValue::from_static("trailers"));
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    let client_upgrade = upgrade
        .filter(|_| protocol.is_some())
        .map(|upgrade| ClientUpgrade {
            upgrade,
            is_extended_connect,
        });
    if let Some(protocol) = protocol {
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    if is_extended_connect {
        parts.method = Method::GET;
        // Base64, which is a header's value.
        if let Ok(key) = HeaderValue::from_str(&generate_key()) {
            parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
        }
    }
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = path.clone().into();
    }
    parts.version = Version::HTTP_11;
    let is_bodiless = body.is_end_stream() || is_extended_connect;
    let may_repeat =
        matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && is_bodiless;
    let again = may_repeat.then(|| parts.clone());
    let (body, fate) = ClientBody::new(body, body_bytes_max);
    // What follows an upgrade is no body: HTTP/2 gives its bytes under the same stream.
    let body = if is_bodiless {
        Body::empty()
    } else {
        Body::new(body)
    };
    Outgoing {
        request: Request::from_parts(parts, body),
        again,
        client_upgrade,
        body: fate,
    }
}

fn finish(
    gateway: &Gateway,
    server: &Server,
    connection: Connection,
    mut answer: http::Response<Incoming>,
    client_upgrade: Option<ClientUpgrade>,
) -> Response {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let container_upgrade = hyper::upgrade::on(&mut answer);
        if let Some(client) = client_upgrade {
            let ended = gateway.fleet.ended(connection.host, connection.incarnation);
            let protocol = answer.headers().get(header::UPGRADE);
            let is_websocket =
                protocol.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"));
            let closing = gateway.endless.closing.clone().cancelled_owned();
            let over = async {
                tokio::select! {
                    () = ended => {}
                    () = closing => {}
                }
            };
            let joined = join(client.upgrade, container_upgrade, is_websocket, over);
            gateway.endless.tasks.spawn(joined);
            if client.is_extended_connect {
                *answer.status_mut() = StatusCode::OK;
                remove_hop_by_hop(answer.headers_mut());
                answer.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            }
        }
        return answer.map(|_| Body::empty());
    }
    remove_hop_by_hop(answer.headers_mut());
    gateway.pool.keep(server.clone(), connection);
    answer.map(Body::new)
}

/// Both ways, until both sides have ended, or the host has, or the gateway goes.
async fn join(
    client: OnUpgrade,
    container: OnUpgrade,
    is_websocket: bool,
    ended: impl Future<Output = ()>,
) {
    let (client, container) = match tokio::try_join!(client, container) {
        Ok((client, container)) => (TokioIo::new(client), TokioIo::new(container)),
        Err(error) => return tracing::debug!(%error, "an upgrade that did not come about"),
    };
    if is_websocket {
        return frames::join(client, container, ended).await;
    }
    let (mut client, mut container) = (client, container);
    tokio::select! {
        // How a session ends is the business of its two ends.
        _ = tokio::io::copy_bidirectional(&mut client, &mut container) => {}
        () = ended => {}
    }
}

/// What is between two neighbours only and must not be passed on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Whether who asks reads trailers, which it says of its own connection alone.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// HTTP/2 may send each cookie in a field of its own, HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut given = headers.get_all(header::COOKIE).iter();
    if given.nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // All of them were header values already.
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Who asks, and for what, as the container's server is told: what a client claims of itself is kept in front. A load balancer of
/// the fleet is believed how its client came.
fn forward(headers: &mut HeaderMap, guest: &Guest) {
    remove_hop_by_hop(headers);
    let address = guest.address.ip();
    let host = headers.get(header::HOST).cloned();
    let node = if address.is_ipv6() {
        format!("\"[{address}]\"")
    } else {
        address.to_string()
    };
    let said = headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
    let scheme = match (guest.standing, said) {
        (Standing::OfFleet, Some(b"https")) => "https",
        (Standing::OfFleet, _) => "http",
        _ if guest.is_secure => "https",
        _ => "http",
    };
    let mut forwarded = format!("for={node};proto={scheme}");
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        forwarded.push_str(&format!(";host=\"{host}\""));
    }
    append(headers, header::FORWARDED, &forwarded);
    append(headers, X_FORWARDED_FOR, &address.to_string());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, addition: &str) {
    let before = headers
        .get_all(&name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect::<Vec<_>>()
        .join(", ");
    let value = if before.is_empty() {
        addition.to_owned()
    } else {
        format!("{before}, {addition}")
    };
    // Both parts were header values already.
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}
