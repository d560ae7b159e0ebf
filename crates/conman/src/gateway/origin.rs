//! Whether a request to the API may come from where it says that it comes from.
//!
//! ```text
//! Host ──► one of the API's own names? ──no──► unknown_name
//!            │ yes
//! Origin, Sec-Fetch-Site ──► a page of this very origin, or no page at all? ──no──► cross_origin
//! ```
//!
//! A browser sends a request wherever any page wants it sent, and what runs in a repl serves pages. A page that is
//! not ours must not be able to start, enter or end anything: neither from its own origin, which the browser names,
//! nor from a name of its own that it has made lead to this machine (DNS rebinding), for then the browser takes the
//! page for one of ours. Programs that are no browsers name no origin and are not concerned.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use model::api::{Refusal, RefusalCode};

/// Whether a name is the API's: an address, `localhost`, the domain itself, or one that it was given. An address can
/// be no name of somebody else's.
pub(super) fn is_own_name(name: &str, domain: &str, given: &[String]) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name == domain
        || given.iter().any(|given| given.eq_ignore_ascii_case(name))
}

/// A name that leads here and is neither the API's nor a repl's.
pub(super) fn unknown_name(name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::UnknownName,
        format!(
            "{name:?} is neither a name of this API nor of a repl: use its address or localhost, or have api_names list it"
        ),
    )
}

/// Refuses what a page of another origin has its browser send to the API at `host`.
pub(super) fn check(host: &str, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let foreign = |who: &str| {
        let message = format!(
            "a page of another origin than {host} ({who}) may not use the API; whoever balances the load must hand on \
             the Host header as it is"
        );
        Err(Refusal::new(RefusalCode::CrossOrigin, message))
    };
    if is_followed_link(method, headers) {
        return Ok(());
    }
    for origin in headers.get_all(header::ORIGIN) {
        if !origin.to_str().is_ok_and(|origin| is_same(origin, host)) {
            return foreign(&String::from_utf8_lossy(origin.as_bytes()));
        }
    }
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(site) => foreign(&String::from_utf8_lossy(site)),
    }
}

/// Whether somebody only goes to a page: its answer is shown to that person and to no other page.
fn is_followed_link(method: &Method, headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    matches!(*method, Method::GET | Method::HEAD)
        && mode == Some(b"navigate")
        && !headers.contains_key(header::UPGRADE)
        && !headers.contains_key(header::ORIGIN)
}

/// Whether an origin is that of what is served at `host`. TLS may end before us, so the scheme is the origin's word.
fn is_same(origin: &str, host: &str) -> bool {
    let (Ok(origin), Ok(host)) = (origin.parse::<Uri>(), host.parse::<Authority>()) else {
        return false;
    };
    let port = match origin.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let place = |authority: &Authority| {
        let port = authority.port_u16().unwrap_or(port);
        (authority.host().to_ascii_lowercase(), port)
    };
    origin.authority().map(place) == Some(place(&host))
}

/// Says to browsers what an answer of the API is not: part of any other page, a script, or anything but the type
/// that it says. Some of what the API answers was written by users.
pub(super) fn seclude(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'; sandbox",
        ),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            header::HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(host: &str, method: &str, headers: &[(&'static str, &str)]) -> &'static str {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let method = method.parse().unwrap();
        check(host, &method, &headers).map_or_else(|refusal| refusal.code.as_str(), |()| "ok")
    }

    #[test]
    fn only_the_same_scheme_name_and_port_are_the_same_origin() {
        for (origin, host, expected) in [
            ("http://localhost:8080", "localhost:8080", "ok"),
            ("http://LOCALHOST:8080", "localhost:8080", "ok"),
            ("http://[::1]:8080", "[::1]:8080", "ok"),
            ("http://fleet.example", "fleet.example", "ok"),
            ("http://fleet.example", "fleet.example:80", "ok"),
            ("https://fleet.example", "fleet.example", "ok"),
            ("https://fleet.example", "fleet.example:443", "ok"),
            ("https://fleet.example", "fleet.example:80", "cross_origin"),
            ("http://localhost:8081", "localhost:8080", "cross_origin"),
            ("http://127.0.0.1:8080", "localhost:8080", "cross_origin"),
            ("http://a.localhost:8080", "localhost:8080", "cross_origin"),
            ("ftp://localhost:8080", "localhost:8080", "cross_origin"),
            ("null", "localhost:8080", "cross_origin"),
            ("null", "null", "cross_origin"),
            ("", "localhost:8080", "cross_origin"),
        ] {
            let found = verdict(host, "POST", &[("origin", origin)]);
            assert_eq!(found, expected, "{origin} at {host}");
        }
    }

    #[test]
    fn a_browser_may_go_to_a_page_from_anywhere_and_do_nothing_else() {
        let cross = ("sec-fetch-site", "cross-site");
        let navigate = ("sec-fetch-mode", "navigate");
        let foreign = ("origin", "http://a.localhost");
        for (method, headers, expected) in [
            ("GET", &[][..], "ok"),
            ("POST", &[], "ok"),
            ("POST", &[("sec-fetch-site", "same-origin")], "ok"),
            ("POST", &[("sec-fetch-site", "none")], "ok"),
            ("POST", &[("sec-fetch-site", "same-site")], "cross_origin"),
            ("POST", &[cross], "cross_origin"),
            ("GET", &[cross], "cross_origin"),
            ("GET", &[cross, navigate], "ok"),
            ("POST", &[cross, navigate], "cross_origin"),
            ("GET", &[cross, navigate, foreign], "cross_origin"),
            (
                "GET",
                &[cross, navigate, ("upgrade", "websocket")],
                "cross_origin",
            ),
        ] {
            let found = verdict("localhost", method, headers);
            assert_eq!(found, expected, "{method} {headers:?}");
        }
        let ours = ("origin", "http://localhost");
        assert_eq!(
            verdict("localhost", "POST", &[ours, foreign]),
            "cross_origin"
        );
    }

    #[test]
    fn an_address_cannot_be_rebound_and_a_name_must_be_ours() {
        let given = ["Fleet.example".to_owned()];
        for (name, expected) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("localhost", true),
            ("repl.example", true),
            ("fleet.example", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(
                is_own_name(name, "repl.example", &given),
                expected,
                "{name}"
            );
        }
    }
}
