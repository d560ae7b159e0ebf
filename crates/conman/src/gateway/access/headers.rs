//! Where in a request it stands who somebody is, and taking it out of there.

use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use model::api::{Refusal, RefusalCode};

/// What stands in `Authorization: Bearer …`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| rest.trim_start())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .map(str::trim)
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    cookies(headers)
        .filter_map(|cookie| cookie.split_once('='))
        .find_map(|(found, value)| (found == name).then_some(value))
}

/// Takes a cookie out, and leaves the others.
pub(super) fn take_cookie(parts: &mut Parts, name: &str) -> Option<String> {
    let taken = cookie(&parts.headers, name)?.to_owned();
    let is_other = |text: &&str| text.split_once('=').is_none_or(|(found, _)| found != name);
    let others: Vec<&str> = cookies(&parts.headers).filter(is_other).collect();
    let others = others.join("; ");
    parts.headers.remove(header::COOKIE);
    // They were header values already.
    if let Ok(others) = HeaderValue::from_str(&others)
        && !others.is_empty()
    {
        parts.headers.insert(header::COOKIE, others);
    }
    Some(taken)
}

/// Takes a parameter out of the query, and leaves the others as they are.
pub(super) fn take_query(parts: &mut Parts, name: &str) -> Option<String> {
    let query = parts.uri.query()?;
    let value = |pair: &str| {
        let (found, value) = pair.split_once('=')?;
        (found == name).then(|| value.to_owned())
    };
    let taken = query.split('&').find_map(value)?;
    let others: Vec<&str> = query
        .split('&')
        .filter(|pair| value(pair).is_none())
        .collect();
    let path = parts.uri.path();
    let rest = if others.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", others.join("&"))
    };
    let mut uri = parts.uri.clone().into_parts();
    // A part of what was a path and a query already.
    uri.path_and_query = Some(rest.parse::<PathAndQuery>().ok()?);
    parts.uri = Uri::from_parts(uri).ok()?;
    Some(taken)
}

/// Whether a person goes to a page, in a browser.
pub(super) fn is_page(parts: &Parts) -> bool {
    let mode = parts.headers.get("sec-fetch-mode");
    parts.method == Method::GET && mode.is_some_and(|mode| mode.as_bytes() == b"navigate")
}

/// Where the request went, without what was taken out of it. On this very origin: two slashes would begin a name.
pub(super) fn location(parts: &Parts) -> Result<HeaderValue, Refusal> {
    let rest = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = format!("/{}", rest.trim_start_matches('/'));
    value(&rest)
}

/// A cookie of this host alone, which no script reads.
pub(super) fn set_cookie(
    (name, text): (&str, &str),
    same_site: &str,
    seconds: i64,
    is_secure: bool,
) -> Result<HeaderValue, Refusal> {
    let secure = if is_secure { "; Secure" } else { "" };
    let age = Duration::from_secs(seconds.max(0).unsigned_abs()).as_secs();
    value(&format!(
        "{name}={text}; Path=/; HttpOnly; SameSite={same_site}; Max-Age={age}{secure}"
    ))
}

fn value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text)
        .map_err(|_| Refusal::new(RefusalCode::BadRequest, "the target cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, cookies: &[&str]) -> Parts {
        let mut request = http::Request::get(uri);
        for cookie in cookies {
            request = request.header(header::COOKIE, *cookie);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_cookie_is_taken_from_among_others() {
        for (given, taken, left) in [
            (&["a=1; t=x; b=2"][..], Some("x"), Some("a=1; b=2")),
            (&["t=x"], Some("x"), None),
            (&["a=1", "t=x"], Some("x"), Some("a=1")),
            (&["t=x; t=y; a=1"], Some("x"), Some("a=1")),
            (&["a=1; tt=x"], None, Some("a=1; tt=x")),
            (&[], None, None),
        ] {
            let mut parts = request("/", given);
            assert_eq!(take_cookie(&mut parts, "t").as_deref(), taken, "{given:?}");
            let rest = parts.headers.get(header::COOKIE);
            assert_eq!(rest.map(|it| it.to_str().unwrap()), left, "{given:?}");
        }
    }

    #[test]
    fn a_parameter_is_taken_and_the_rest_stays_as_it_is() {
        for (uri, taken, left) in [
            ("/a?t=x", Some("x"), "/a"),
            ("/a?b=%20&t=x&c", Some("x"), "/a?b=%20&c"),
            ("/a?t=x&t=y", Some("x"), "/a"),
            ("/a?tt=x", None, "/a?tt=x"),
            ("/a", None, "/a"),
            ("http://h/a?t=x", Some("x"), "http://h/a"),
        ] {
            let mut parts = request(uri, &[]);
            assert_eq!(take_query(&mut parts, "t").as_deref(), taken, "{uri}");
            assert_eq!(parts.uri.to_string(), left, "{uri}");
        }
    }

    #[test]
    fn nobody_is_sent_to_another_origin() {
        let parts = request("//evil.example/a?b", &[]);
        assert_eq!(location(&parts).unwrap(), "/evil.example/a?b");
    }
}
