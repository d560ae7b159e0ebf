//! What runs in a repl serves pages: none of them may use the API through a browser that also reaches that.

use http::header::HeaderName;
use serde_json::{Value, json};

use crate::fleet::{Fleet, request, text};

/// Sends one request with these headers besides, and gives the status and the code of a refusal.
async fn ask(fleet: &Fleet, line: (&str, &str, &str), headers: &[(&str, &str)]) -> (u16, Value) {
    let (method, host, path) = line;
    let body = if method == "PUT" {
        json!({"command": ["serve"], "port": 8000}).to_string()
    } else {
        String::new()
    };
    let mut asked = request(method, host, path, &body);
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let answer = fleet.request(asked).await;
    let status = answer.status().as_u16();
    if status == 101 {
        return (status, Value::Null);
    }
    let body: Value = serde_json::from_str(&text(answer).await).unwrap_or_default();
    (status, body["error"]["code"].clone())
}

const SOCKET: &[(&str, &str)] = &[
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
];

#[tokio::test]
async fn a_page_from_a_repl_can_neither_change_anything_nor_open_a_terminal() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let here = "localhost:8080";
    let from_repl = ("origin", "http://evil.localhost:8080");
    for line in [
        ("PUT", here, "/v1/repls/red"),
        ("DELETE", here, "/v1/repls/blue"),
        ("POST", here, "/v1/repls/blue/exec"),
        ("POST", here, "/v1/hosts/host-1/drain"),
        ("GET", here, "/v1/repls/blue/shell"),
        ("GET", here, "/v1/repls"),
        ("GET", here, "/metrics"),
        // Where there is nothing, nothing is said of that either.
        ("POST", here, "/nothing"),
    ] {
        for foreign in [
            from_repl,
            ("origin", "null"),
            ("sec-fetch-site", "same-site"),
        ] {
            let headers = [SOCKET, &[foreign]].concat();
            let found = ask(&fleet, line, &headers).await;
            assert_eq!(found, (403, json!("cross_origin")), "{line:?} {foreign:?}");
        }
    }
    // Nothing of it was done.
    let (_, repls) = fleet.api("GET", "/v1/repls", Value::Null).await;
    assert_eq!(repls["repls"][0]["id"], json!("blue"));
    assert_eq!(repls["repls"][0]["state"], json!("free"));
    assert_eq!(repls["repls"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_console_and_what_is_no_page_may_do_everything() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let console = [
        ("origin", "http://localhost:8080"),
        ("sec-fetch-site", "same-origin"),
    ];
    let shell = ("GET", "localhost:8080", "/v1/repls/blue/shell");
    let headers = [SOCKET, &console].concat();
    assert_eq!(ask(&fleet, shell, &headers).await.0, 101);
    assert_eq!(ask(&fleet, shell, SOCKET).await.0, 101);
    let kill = ("POST", "localhost:8080", "/v1/repls/blue/kill");
    assert_eq!(ask(&fleet, kill, &console).await, (200, Value::Null));
    assert_eq!(ask(&fleet, kill, &[]).await, (200, Value::Null));
    // A link to it may be followed from anywhere.
    let followed = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
    ];
    let page = ("GET", "localhost:8080", "/v1/repls");
    assert_eq!(ask(&fleet, page, &followed).await, (200, Value::Null));
}

#[tokio::test]
async fn a_repls_own_pages_are_none_of_the_apis_business() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let headers = [
        ("origin", "http://other.example"),
        ("sec-fetch-site", "cross-site"),
    ];
    let page = ("GET", "blue.localhost", "/");
    assert_eq!(ask(&fleet, page, &headers).await, (200, Value::Null));
}

#[tokio::test]
async fn a_name_that_somebody_else_leads_here_is_not_the_apis() {
    let fleet = Fleet::start(1).await;
    for (host, expected) in [
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("localhost", 200),
        ("LOCALHOST", 200),
        ("fleet.example", 200),
    ] {
        let found = ask(&fleet, ("GET", host, "/v1/repls"), &[]).await;
        assert_eq!(found, (expected, Value::Null), "{host}");
    }
    for host in ["evil.example:8080", "xlocalhost", "127.0.0.1.evil.example"] {
        for path in ["/", "/v1/repls"] {
            let found = ask(&fleet, ("GET", host, path), &[]).await;
            assert_eq!(found, (421, json!("unknown_name")), "{host}{path}");
        }
        // Whoever balances the load or scrapes asks by a name of its own.
        for path in ["/healthz", "/metrics"] {
            let found = ask(&fleet, ("GET", host, path), &[]).await;
            assert_eq!(found, (200, Value::Null), "{host}{path}");
        }
    }
    let (_, refusal) = fleet.send("GET", "evil.example", "/v1/repls", "").await;
    insta::assert_snapshot!(refusal, @r#"{"error":{"code":"unknown_name","message":"\"evil.example\" is neither a name of this API nor of a repl: use its address or localhost, or have api_names list it","side":"client","retryable":false}}"#);
}

#[tokio::test]
async fn what_users_wrote_is_no_part_of_any_page_when_the_api_tells_it() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let answer = fleet
        .request(request("GET", "localhost", "/v1/repls/blue/logs", ""))
        .await;
    let headers = answer.headers();
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert_eq!(
        policy,
        "default-src 'none'; frame-ancestors 'none'; sandbox"
    );
    // A repl's answers are as its own server made them.
    let answer = fleet
        .request(request("GET", "blue.localhost", "/", ""))
        .await;
    assert!(!answer.headers().contains_key("content-security-policy"));
}
