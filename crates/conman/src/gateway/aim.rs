//! Whom a request is for, by the name that it was sent to.
//!
//! ```text
//! <repl>.<domain>, <port>-<repl>.<domain> ──► a repl      the API's own names ──► the API      else ──► refused
//! ```

use http::{HeaderMap, Method, Request, header};
use hyper::ext::Protocol;
use model::api::{Refusal, RefusalCode};

use super::pool::Server;
use super::{Config, origin};

/// The most that all of a request's headers may have.
pub(super) const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aim {
    Repl(Server),
    Api,
}

pub(super) fn aim<B>(config: &Config, request: &Request<B>) -> Result<Aim, Refusal> {
    let headers = request.headers();
    if headers_bytes(headers) > HEADERS_BYTES_MAX {
        return Err(Refusal::new(
            RefusalCode::HeadersTooLarge,
            format!("the headers have more than {HEADERS_BYTES_MAX} bytes"),
        ));
    }
    if request.method() == Method::CONNECT && !is_websocket(request) {
        let message = "CONNECT is for WebSockets over HTTP/2 alone (RFC 8441)";
        return Err(Refusal::new(RefusalCode::MethodNotAllowed, message));
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

/// Whether a request opens a WebSocket as HTTP/2 does.
pub(super) fn is_websocket<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Whom a request is for: its target where that has a name, as in HTTP/2, else its one `Host`. Where it has both they are the same,
/// for whoever is behind us might believe the other.
fn host_of<B>(request: &Request<B>) -> Result<&str, Refusal> {
    let bad = |why| Err(Refusal::new(RefusalCode::BadRequest, why));
    let mut given = request.headers().get_all(header::HOST).iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return bad("the request has more than one Host header");
    }
    let first = first.map(|host| host.to_str());
    match (request.uri().authority(), first) {
        (Some(target), Some(Ok(host))) if !target.as_str().eq_ignore_ascii_case(host) => {
            bad("the request's target and its Host header are not the same")
        }
        (Some(target), _) => Ok(target.as_str()),
        (None, Some(Ok(host))) => Ok(host),
        _ => bad("the request has no Host header that can be read"),
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
    // The dot of a name that is complete.
    let name = name.strip_suffix('.').unwrap_or(name);
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
            ("blue.localhost.:80", "blue None"),
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
