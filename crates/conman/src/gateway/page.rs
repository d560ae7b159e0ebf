//! The console: a page for people, of the API's own origin, which the binary carries.
//!
//! The page's policy lets it load and ask nothing but this origin, and frame nothing but repls, each of which is an
//! origin of its own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, StatusCode, header};

use super::Gateway;

/// One file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    plain: &'static [u8],
    packed: &'static [u8],
}

#[cfg(console_built)]
macro_rules! file {
    ($path:literal, $name:literal, $content_type:literal) => {
        File {
            path: $path,
            content_type: $content_type,
            plain: include_bytes!(concat!(env!("BUILT_CONSOLE"), "/", $name)),
            packed: include_bytes!(concat!(env!("BUILT_CONSOLE"), "/", $name, ".gz")),
        }
    };
}

#[cfg(console_built)]
const FILES: &[File] = &[
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!(
        "/console.js",
        "console.js",
        "text/javascript; charset=utf-8"
    ),
    file!("/console.css", "console.css", "text/css; charset=utf-8"),
];
#[cfg(not(console_built))]
const FILES: &[File] = &[];

/// What stands at `/` in a binary that was built without the page.
const MISSING: &str = "This conman was built without its console. `make console` builds the page (it needs node and \
    npm); build conman again after it. The API is at /v1/openapi.json.\n";

/// The page's routes; none of them is an operation of the API.
pub(super) fn router() -> Router<Arc<Gateway>> {
    if FILES.is_empty() {
        let missing = async || (StatusCode::NOT_FOUND, MISSING);
        return Router::new().route("/", get(missing));
    }
    FILES.iter().fold(Router::new(), |router, file| {
        let answer = async |State(gateway): State<Arc<Gateway>>, asked: HeaderMap| {
            serve(file, &gateway.config.domain, &asked)
        };
        router.route(file.path, get(answer))
    })
}

fn serve(file: &'static File, domain: &str, asked: &HeaderMap) -> Response {
    let headers = [
        (header::CONTENT_TYPE, file.content_type.to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy(domain)),
        // Another version of the binary has another page under the same names.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::VARY, "accept-encoding".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    if takes_gzip(asked) {
        let packed: [(HeaderName, &str); 1] = [(header::CONTENT_ENCODING, "gzip")];
        return (headers, packed, file.packed).into_response();
    }
    (headers, file.plain).into_response()
}

/// What the page may do. The terminal lays itself out by style elements that it makes, hence the one exception;
/// scripts have none.
fn policy(domain: &str) -> String {
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; \
         frame-src http://*.{domain}:* https://*.{domain}:*; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
}

fn takes_gzip(asked: &HeaderMap) -> bool {
    let encodings = asked.get_all(header::ACCEPT_ENCODING).iter();
    encodings
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|encoding| {
            let (name, weight) = encoding.split_once(';').unwrap_or((encoding, ""));
            name.trim() == "gzip" && !matches!(weight.trim(), "q=0" | "q=0.0")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_is_packed_goes_only_to_who_takes_it() {
        for (accepted, expected) in [
            ("gzip, deflate, br", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
        ] {
            let mut asked = HeaderMap::new();
            asked.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            assert_eq!(takes_gzip(&asked), expected, "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn scripts_come_from_this_origin_alone_and_frames_from_repls_alone() {
        let policy = policy("repl.example");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "));
        assert!(policy.contains("frame-src http://*.repl.example:* https://*.repl.example:*;"));
    }
}
