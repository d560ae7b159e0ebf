//! Who may do what: tokens for repls, keys for the API, and how often.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use conman::gateway::{Access, AccessOptions, TokenKeys, new_api_key, new_token_secret};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::fleet::{Fleet, Setup, request, text};

/// The keys of a test, in files.
struct Keys {
    _directory: tempfile::TempDir,
    tokens: PathBuf,
    api: PathBuf,
    api_key: String,
}

impl Keys {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (tokens, api) = (
            directory.path().join("tokens"),
            directory.path().join("api"),
        );
        let api_key = new_api_key().unwrap();
        std::fs::write(
            &tokens,
            format!("k1 HS256 {}\n", new_token_secret().unwrap()),
        )
        .unwrap();
        std::fs::write(&api, format!("ann {api_key}\n")).unwrap();
        Self {
            _directory: directory,
            tokens,
            api,
            api_key,
        }
    }

    fn token(&self, repl: &str, seconds: i64) -> String {
        let keys = TokenKeys::read(&self.tokens).unwrap();
        let expires = jiff::Timestamp::now().as_second() + seconds;
        keys.issue("alice", &repl.parse().unwrap(), expires)
            .unwrap()
    }
}

async fn guarded(options: AccessOptions) -> Fleet {
    let access = Arc::new(Access::open(options).unwrap());
    let setup = Setup {
        hosts: 1,
        gateway: Box::new(move |config| config.access = access),
        ..Setup::default()
    };
    Fleet::start_with(setup).await
}

async fn with_tokens(keys: &Keys) -> Fleet {
    guarded(AccessOptions {
        token_keys: Some(keys.tokens.clone()),
        ..AccessOptions::default()
    })
    .await
}

/// A visit to blue, with these headers.
fn visit(path: &str, headers: &[(&'static str, &str)]) -> http::Request<Full<Bytes>> {
    let mut asked = request("GET", "blue.localhost", path, "");
    for (name, value) in headers {
        asked.headers_mut().append(*name, value.parse().unwrap());
    }
    asked
}

async fn code(answer: http::Response<Incoming>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_str(&text(answer).await).unwrap();
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn a_private_repl_is_for_who_has_a_token_for_it() {
    let keys = Keys::new();
    let fleet = with_tokens(&keys).await;
    fleet.create("blue").await;
    let token = keys.token("blue", 60);
    let bearer = format!("Bearer {token}");

    let answer = fleet.request(visit("/", &[])).await;
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    assert_eq!(code(answer).await, refused(401, "unauthorized"));
    // Nobody learns which repls there are.
    let unknown = fleet
        .request(request("GET", "green.localhost", "/", ""))
        .await;
    assert_eq!(code(unknown).await, refused(401, "unauthorized"));
    let other = format!("Bearer {}", keys.token("green", 60));
    let answer = fleet
        .request(visit("/", &[("authorization", &other)]))
        .await;
    assert_eq!(code(answer).await, refused(403, "forbidden"));
    let old = format!("Bearer {}", keys.token("blue", -60));
    let answer = fleet.request(visit("/", &[("authorization", &old)])).await;
    assert_eq!(code(answer).await, refused(401, "unauthorized"));
    assert_eq!(
        fleet.alive(),
        0,
        "nobody has been let in, and nothing started"
    );

    let query = format!("/a?b=1&conman_token={token}&c");
    let cookie = format!("a=1; conman_token={token}; b=2");
    for (path, headers, target, cookies) in [
        ("/a", vec![("authorization", bearer.as_str())], "/a", None),
        (
            "/a",
            vec![("cookie", cookie.as_str())],
            "/a",
            Some("cookie: a=1; b=2"),
        ),
        (query.as_str(), vec![], "/a?b=1&c", None),
    ] {
        let forged = [("x-conman-user", "root"), ("x-conman-role", "root")];
        let headers = [&headers[..], &forged[..]].concat();
        let answer = fleet.request(visit(path, &headers)).await;
        assert_eq!(answer.status(), 200, "{path}");
        // The fake says what has come to it.
        let seen = text(answer).await;
        assert!(seen.contains(&format!("GET {target} HTTP/1.1")), "{seen}");
        assert!(seen.contains("x-conman-user: alice"), "{seen}");
        assert!(!seen.contains(&token) && !seen.contains("root"), "{seen}");
        assert_eq!(
            seen.lines().find(|line| line.starts_with("cookie")),
            cookies,
            "{seen}"
        );
    }
}

#[tokio::test]
async fn a_browser_that_comes_by_a_link_goes_on_with_a_cookie() {
    let keys = Keys::new();
    let fleet = with_tokens(&keys).await;
    fleet.create("blue").await;
    let token = keys.token("blue", 60);
    let path = format!("/a?conman_token={token}&b=1");
    let answer = fleet
        .request(visit(&path, &[("sec-fetch-mode", "navigate")]))
        .await;
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.headers()["location"], "/a?b=1");
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    let (cookie, rest) = cookie.split_once(';').unwrap();
    assert!(rest.contains("HttpOnly"), "{rest}");
    // As long as its token, of which the request itself has used up a part.
    let (_, age) = rest.split_once("Max-Age=").unwrap();
    assert!((1..=60).contains(&age.parse::<u32>().unwrap()), "{rest}");
    let answer = fleet.request(visit("/a?b=1", &[("cookie", cookie)])).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_public_repl_is_for_everybody_and_may_become_private_while_it_runs() {
    let keys = Keys::new();
    let fleet = with_tokens(&keys).await;
    let spec = json!({"command": ["serve"], "port": 8000, "visibility": "public"});
    fleet.create_with("blue", spec).await;
    // What is the repl's own business is passed on.
    let own = [("authorization", "Bearer its-own"), ("cookie", "conman=1")];
    let answer = fleet.request(visit("/", &own)).await;
    assert_eq!(answer.status(), 200);
    let seen = text(answer).await;
    assert!(seen.contains("authorization: Bearer its-own"), "{seen}");
    assert!(seen.contains("cookie: conman=1"), "{seen}");
    assert!(!seen.contains("x-conman-user"), "{seen}");
    let private = json!({"command": ["serve"], "port": 8000});
    let (status, answer) = fleet.api("PUT", "/v1/repls/blue", private).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(fleet.alive(), 1);
    let answer = fleet.request(visit("/", &[])).await;
    assert_eq!(code(answer).await, refused(401, "unauthorized"));
}

#[tokio::test]
async fn the_api_is_for_who_has_a_key() {
    let keys = Keys::new();
    let fleet = guarded(AccessOptions {
        api_keys: Some(keys.api.clone()),
        ..AccessOptions::default()
    })
    .await;
    let ask = async |method: &str, path: &str, headers: &[(&'static str, &str)], body: &str| {
        let mut asked = request(method, "localhost", path, body);
        for (name, value) in headers {
            asked.headers_mut().append(*name, value.parse().unwrap());
        }
        fleet.request(asked).await
    };
    for path in [
        "/v1/repls",
        "/v1/events",
        "/metrics",
        "/debug/operations",
        "/nothing",
    ] {
        let answer = ask("GET", path, &[], "").await;
        assert_eq!(code(answer).await, refused(401, "unauthorized"), "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask("GET", path, &[], "").await.status(), 200, "{path}");
    }
    let wrong = format!("Bearer {}", new_api_key().unwrap());
    let answer = ask("GET", "/v1/repls", &[("authorization", &wrong)], "").await;
    assert_eq!(code(answer).await, refused(401, "unauthorized"));
    let right = format!("Bearer {}", keys.api_key);
    let answer = ask("GET", "/v1/repls", &[("authorization", &right)], "").await;
    assert_eq!(answer.status(), 200);
    // A browser shows its key once.
    let body = json!({"key": "guessed"}).to_string();
    let answer = ask("POST", "/v1/login", &[], &body).await;
    assert_eq!(code(answer).await, refused(401, "unauthorized"));
    let body = json!({"key": keys.api_key}).to_string();
    let answer = ask("POST", "/v1/login", &[], &body).await;
    assert_eq!(answer.status(), 204);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let answer = ask("GET", "/v1/repls", &[("cookie", cookie)], "").await;
    assert_eq!(answer.status(), 200);
    let answer = ask("DELETE", "/v1/login", &[("cookie", cookie)], "").await;
    assert!(
        answer.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    // Sessions are another matter.
    let spec = json!({"command": ["serve"], "port": 8000}).to_string();
    let answer = ask("PUT", "/v1/repls/blue", &[("authorization", &right)], &spec).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(fleet.request(visit("/", &[])).await.status(), 200);
}

#[tokio::test]
async fn who_asks_too_often_is_told_to_wait() {
    let keys = Keys::new();
    let fleet = guarded(AccessOptions {
        token_keys: Some(keys.tokens.clone()),
        user_rate: NonZeroU32::new(3),
        ..AccessOptions::default()
    })
    .await;
    fleet.create("blue").await;
    let bearer = format!("Bearer {}", keys.token("blue", 60));
    let headers = [("authorization", bearer.as_str())];
    let mut refusals = 0;
    for _ in 0..10 {
        let answer = fleet.request(visit("/", &headers)).await;
        if answer.status() != 200 {
            assert_eq!(answer.headers()["retry-after"], "1");
            assert_eq!(code(answer).await, refused(429, "rate_limited"));
            refusals += 1;
        }
    }
    assert!(refusals > 0);
    // They are no failures of the platform's.
    let log = fleet.session_log().await;
    let limited = log.iter().filter(|line| line["reason"] == "rate_limited");
    let outcomes: Vec<&Value> = limited.map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, vec!["client_abort"; refusals]);
}
