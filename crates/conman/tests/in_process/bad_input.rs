//! Whatever a client sends, it is told what is wrong, and nothing is left half-made.

use std::time::Duration;

use conman::store::memory::{Calls, Misbehaviour};
use serde_json::{Value, json};

use crate::fleet::{Fleet, Setup, request, text};

/// A refusal as one line: status, code, side, sentence. Anything else fails the test.
async fn refusal(
    fleet: &Fleet,
    asked: http::Request<http_body_util::Full<bytes::Bytes>>,
) -> String {
    let answer = fleet.request(asked).await;
    let status = answer.status().as_u16();
    let retry = answer.headers().contains_key("retry-after");
    let body = text(answer).await;
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status} {body}"));
    let error = &body["error"];
    assert_eq!(error["retryable"], json!(retry));
    assert_eq!(error["side"] == json!("platform"), retry);
    let word = |name: &str| error[name].as_str().unwrap().to_owned();
    format!(
        "{status} {} ({}): {}",
        word("code"),
        word("side"),
        word("message")
    )
}

async fn refused(fleet: &Fleet, method: &str, host: &str, path: &str, body: &str) -> String {
    refusal(fleet, request(method, host, path, body)).await
}

/// One line for each of the requests to the API.
async fn all_refused(fleet: &Fleet, requests: &[(&str, &str, &str)]) -> String {
    let mut lines = vec![];
    for (method, path, body) in requests {
        lines.push(refused(fleet, method, "localhost", path, body).await);
    }
    lines.join("\n")
}

fn impatient() -> Setup {
    Setup {
        hosts: 1,
        park: Duration::from_millis(300),
        ..Setup::default()
    }
}

#[tokio::test]
async fn names_that_are_none() {
    let fleet = Fleet::start(1).await;
    let long = "a".repeat(51);
    let mut lines = vec![];
    for (method, host, path) in [
        ("GET", "localhost", "/v1/repls/nobody"),
        ("POST", "localhost", "/v1/repls/nobody/start"),
        ("POST", "localhost", "/v1/repls/nobody/kill"),
        ("POST", "localhost", "/v1/repls/nobody/destroy"),
        ("DELETE", "localhost", "/v1/repls/nobody"),
        ("GET", "localhost", "/v1/repls/nobody/logs"),
        ("GET", "nobody.localhost", "/"),
        ("GET", "8000-nobody.localhost", "/"),
        ("GET", "localhost", "/v1/repls/Bad_Name"),
        ("GET", "localhost", "/v1/repls/-edge"),
        ("GET", "localhost", "/v1/repls/%ff"),
        ("GET", "localhost", &format!("/v1/repls/{long}")),
        ("GET", "bad_name.localhost", "/"),
        ("GET", ".localhost", "/"),
        ("GET", "a.b.localhost", "/"),
        ("POST", "localhost", "/v1/hosts/nobody/drain"),
        ("POST", "localhost", "/v1/hosts/nobody/undrain"),
        ("POST", "localhost", "/v1/hosts/nobody/preempt"),
        ("POST", "localhost", "/v1/hosts/host-1/preempt"),
        ("POST", "localhost", "/v1/hosts/no_body/drain"),
    ] {
        lines.push(refused(&fleet, method, host, path, "").await);
    }
    let spec = json!({"command": ["serve"]}).to_string();
    lines.push(refused(&fleet, "PUT", "localhost", "/v1/repls/8000-blue", &spec).await);
    let exec = json!({"command": ["true"]}).to_string();
    lines.push(refused(&fleet, "POST", "localhost", "/v1/repls/nobody/exec", &exec).await);
    insta::assert_snapshot!(lines.join("\n"), @r#"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    400 bad_id (client): "Bad_Name": a name has only a-z, 0-9 and '-', not 'B'
    400 bad_id (client): "-edge": a name starts and ends with a letter or a digit
    400 bad_id (client): Invalid UTF-8 in `id`
    400 bad_id (client): "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": a name has at most 50 characters, this one has 51
    400 bad_id (client): "bad_name" is no repl's name: a name has only a-z, 0-9 and '-', not '_'
    400 bad_id (client): "" is no repl's name: a name must not be empty
    400 bad_id (client): "a.b" is no repl's name: a name has only a-z, 0-9 and '-', not '.'
    404 unknown_host (client): there is no host "nobody"
    404 unknown_host (client): there is no host "nobody"
    404 unknown_host (client): there is no host "nobody"
    400 bad_request (client): only `conman up` can play the loss of a host: it has started its processes
    400 bad_id (client): "no_body": a name has only a-z, 0-9 and '-', not '_'
    400 bad_id (client): "8000-blue" would be read as a port and a name in a host name
    404 unknown_repl (client): there is no repl "nobody"
    "#);
    fleet.assert_nothing_half_made().await;
    // No container was asked: neither side has failed.
    for attempt in fleet.session_log().await {
        assert_eq!(attempt["outcome"], json!("client_abort"), "{attempt}");
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_taken() {
    let fleet = Fleet::start(1).await;
    let nul = json!({"command": ["a\0b"]}).to_string();
    let put = |body: &'static str| ("PUT", "/v1/repls/blue", body);
    let lines = all_refused(
        &fleet,
        &[
            put(""),
            put("{\"command\":"),
            put("[]"),
            put("{}"),
            put(r#"{"command": []}"#),
            put(r#"{"command": [""]}"#),
            put(r#"{"command": "serve"}"#),
            put(r#"{"command": ["serve"], "colour": "blue"}"#),
            put(r#"{"command": ["serve"], "port": 0}"#),
            put(r#"{"command": ["serve"], "port": 65536}"#),
            put(r#"{"command": ["serve"], "port": "80"}"#),
            put(r#"{"command": ["serve"], "image": "dir:relative"}"#),
            put(r#"{"command": ["serve"], "image": "dir:/a/../b"}"#),
            put(r#"{"command": ["serve"], "limits": {"memory_bytes": 1}}"#),
            put(r#"{"command": ["serve"], "limits": {"pids": 1}}"#),
            put(r#"{"command": ["serve"], "limits": {"pids": -1}}"#),
            put(r#"{"command": ["serve"], "limits": {"cpu_millis": 9}}"#),
            put(r#"{"command": ["serve"], "limits": {"disk": 9}}"#),
            put(r#"{"command": ["serve"], "env": {"A=B": "c"}}"#),
            put(r#"{"command": ["serve"], "idle_timeout_seconds": 0}"#),
            ("PUT", "/v1/repls/blue", &nul),
            ("POST", "/v1/repls/blue/exec", "{}"),
            ("POST", "/v1/repls/blue/exec", r#"{"command": []}"#),
            (
                "POST",
                "/v1/repls/blue/exec",
                r#"{"command": ["true"], "tty": true}"#,
            ),
        ],
    )
    .await;
    insta::assert_snapshot!(lines, @r#"
    400 bad_json (client): the body: EOF while parsing a value at line 1 column 0
    400 bad_json (client): the body: EOF while parsing a value at line 1 column 11
    422 bad_spec (client): the spec: must be a JSON object
    422 bad_spec (client): missing field `command`
    422 bad_spec (client): command: must name a program
    422 bad_spec (client): command: must name a program
    422 bad_spec (client): command: invalid type: string "serve", expected a sequence
    422 bad_spec (client): unknown field `colour`, expected one of `image`, `command`, `env`, `port`, `limits`, `idle_timeout_seconds`, `visibility`
    422 bad_spec (client): port: must be 1 to 65535
    422 bad_spec (client): port: invalid value: integer `65536`, expected u16
    422 bad_spec (client): port: invalid type: string "80", expected u16
    422 bad_spec (client): image: "dir:relative" is neither "host", "dir:/absolute/path" nor "docker:reference"
    422 bad_spec (client): image: "dir:/a/../b" is neither "host", "dir:/absolute/path" nor "docker:reference"
    422 bad_spec (client): limits.memory_bytes: 1 is outside 4194304 to 17592186044416
    422 bad_spec (client): limits.pids: 1 is outside 2 to 4194304
    422 bad_spec (client): limits.pids: invalid value: integer `-1`, expected u32
    422 bad_spec (client): limits.cpu_millis: 9 is outside 10 to 1024000
    422 bad_spec (client): unknown field `disk`, expected one of `memory_bytes`, `cpu_millis`, `pids`
    422 bad_spec (client): env: "A=B" is not a variable's name
    422 bad_spec (client): idle_timeout_seconds: must be at least 1
    422 bad_spec (client): command: must not contain a NUL byte
    400 bad_json (client): the body: missing field `command` at line 1 column 2
    400 bad_request (client): command: must name a program
    400 bad_json (client): the body: unknown field `tty`, expected one of `command`, `stdin`, `timeout_ms` at line 1 column 27
    "#);
    let (status, _) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!(status, 404);
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn requests_that_are_too_large() {
    let fleet = Fleet::start(1).await;
    for mebibytes in [1, 4, 12] {
        let body = " ".repeat((mebibytes << 20) + 1);
        let line = refused(&fleet, "PUT", "localhost", "/v1/repls/blue", &body).await;
        assert_eq!(
            line,
            "413 body_too_large (client): the body has more than 1048576 bytes"
        );
    }
    for host in ["localhost", "blue.localhost"] {
        let mut large = request("GET", host, "/", "");
        let value = "x".repeat(70_000).parse().unwrap();
        large.headers_mut().insert("x-large", value);
        assert_eq!(
            refusal(&fleet, large).await,
            "431 headers_too_large (client): the headers have more than 65536 bytes"
        );
    }
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn requests_that_nobody_takes() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let lines = all_refused(
        &fleet,
        &[
            ("GET", "/nothing", ""),
            ("GET", "/v1/nothing", ""),
            ("GET", "/v1/repls/blue/more", ""),
            ("PATCH", "/v1/repls/blue", ""),
            ("POST", "/v1/repls", ""),
            ("GET", "/v1/repls/blue/kill", ""),
            ("POST", "/healthz", ""),
            ("POST", "/v1/repls/blue/destroy?grace=soon", ""),
            ("POST", "/v1/repls/blue/destroy?grace=-1s", ""),
            ("POST", "/v1/repls/blue/destroy?grce=5s", ""),
            ("GET", "/v1/repls/blue/logs?follow=maybe", ""),
            ("GET", "/v1/repls/blue/logs?fallow=true", ""),
            ("GET", "/v1/repls/blue/shell", ""),
            ("GET", "/v1/repls/blue/shell?columns=wide", ""),
        ],
    )
    .await;
    insta::assert_snapshot!(lines, @r#"
    404 not_found (client): there is no /nothing here
    404 not_found (client): there is no /v1/nothing here
    404 not_found (client): there is no /v1/repls/blue/more here
    405 method_not_allowed (client): /v1/repls/blue does not take PATCH
    405 method_not_allowed (client): /v1/repls does not take POST
    405 method_not_allowed (client): /v1/repls/blue/kill does not take GET
    405 method_not_allowed (client): /healthz does not take POST
    400 bad_request (client): grace: `soon` is no duration: write it like 10m, 90s, 1h30m or 250ms
    400 bad_request (client): grace: `-1s` is no duration: write it like 10m, 90s, 1h30m or 250ms
    400 bad_request (client): the query: grce: unknown field `grce`, expected `grace`
    400 bad_request (client): the query: follow: provided string was not `true` or `false`
    400 bad_request (client): the query: fallow: unknown field `fallow`, expected `follow`
    400 bad_request (client): a shell is a WebSocket: Connection header did not include 'upgrade'
    400 bad_request (client): the query: columns: invalid digit found in string
    "#);
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn another_spec_waits_until_the_container_is_gone() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    fleet.send("GET", "blue.localhost", "/", "").await;
    let other = json!({"command": ["serve"], "port": 9000});
    insta::assert_snapshot!(
        refused(&fleet, "PUT", "localhost", "/v1/repls/blue", &other.to_string()).await,
        @r#"409 spec_conflict (client): blue runs with another spec: kill or destroy it first"#
    );
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!((&repl["spec"]["port"], fleet.alive()), (&json!(8000), 1));
    fleet.api("POST", "/v1/repls/blue/kill", Value::Null).await;
    let (status, repl) = fleet.api("PUT", "/v1/repls/blue", other).await;
    assert_eq!((status, &repl["spec"]["port"]), (200, &json!(9000)));
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn specs_that_do_not_work_are_the_users_failure() {
    let fleet = Fleet::start_with(Setup {
        port_ready: Duration::from_millis(50),
        ..Setup::default()
    })
    .await;
    let serve = |field: &str, value: Value| {
        let mut spec = json!({"command": ["serve"], "port": 8000});
        spec[field] = value;
        spec
    };
    let mut lines = vec![];
    for (name, spec) in [
        ("no-command", serve("command", json!(["missing-program"]))),
        ("no-image", serve("image", json!("dir:/nowhere/at/all"))),
        ("exits", serve("command", json!(["exit", "3"]))),
        ("deaf", serve("env", json!({}))),
        ("portless", json!({"command": ["serve"]})),
    ] {
        fleet.create_with(name, spec).await;
        for fake in &fleet.fakes {
            fake.set_deaf(&name.parse().unwrap(), name == "deaf");
        }
        lines.push(refused(&fleet, "GET", &format!("{name}.localhost"), "/", "").await);
    }
    // Which revision a claim gets depends on the renewals meanwhile.
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"@\d+", "@EPOCH");
    let _bound = settings.bind_to_scope();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    422 command_not_found (user): "missing-program" does not exist in the container, or is not executable
    422 image_not_found (user): image dir:/nowhere/at/all does not exist
    502 exited_at_once (user): the program of exits ended as soon as it had started
    502 port_not_listening (user): nothing listens on port 8000 in the container of deaf@EPOCH
    422 no_port (user): the spec of portless names no port
    "#);
    // Two of them run, and serve nothing: that is what was asked for.
    assert_eq!(fleet.alive(), 2);
    for name in ["deaf", "portless"] {
        fleet
            .api("POST", &format!("/v1/repls/{name}/kill"), Value::Null)
            .await;
    }
    fleet.assert_nothing_half_made().await;
    let log = fleet.session_log().await;
    assert_eq!(log.len(), 5);
    for attempt in log {
        assert_eq!(attempt["outcome"], json!("user_fail"), "{attempt}");
    }
}

#[tokio::test]
async fn a_full_fleet_says_so_at_the_deadline() {
    let fleet = Fleet::start_with(Setup {
        capacity: 1,
        ..impatient()
    })
    .await;
    fleet.create("blue").await;
    fleet.create("red").await;
    let (status, _) = fleet.send("GET", "blue.localhost", "/", "").await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(refused(&fleet, "GET", "red.localhost", "/", "").await, @r#"503 no_capacity (platform): red was not reached within 0.3 s: host-1 carries its 1 containers"#);
    assert_eq!(fleet.alive(), 1);
    fleet.api("DELETE", "/v1/repls/blue", Value::Null).await;
    let (status, _) = fleet.send("GET", "red.localhost", "/", "").await;
    assert_eq!(status, 200);
    fleet.api("DELETE", "/v1/repls/red", Value::Null).await;
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn a_fleet_without_hosts_says_so_at_the_deadline() {
    let fleet = Fleet::start_with(Setup {
        hosts: 0,
        ..impatient()
    })
    .await;
    fleet.create("blue").await;
    let lines = [
        refused(&fleet, "GET", "blue.localhost", "/", "").await,
        refused(&fleet, "POST", "localhost", "/v1/repls/blue/start", "").await,
        refused(&fleet, "GET", "localhost", "/readyz", "").await,
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    503 no_host (platform): blue was not reached within 0.3 s: no host takes new repls at the moment
    503 no_host (platform): blue was not reached within 0.3 s: no host takes new repls at the moment
    503 no_host (platform): no host is registered
    "#);
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn without_the_store_nothing_is_promised() {
    let fleet = Fleet::start_with(impatient()).await;
    fleet.create("blue").await;
    fleet.gateway_store.misbehave(Misbehaviour {
        calls: Calls::Unavailable,
        ..Misbehaviour::default()
    });
    let spec = json!({"command": ["serve"]}).to_string();
    let mut lines = vec![refused(&fleet, "GET", "blue.localhost", "/", "").await];
    lines.push(
        all_refused(
            &fleet,
            &[
                ("GET", "/v1/repls", ""),
                ("GET", "/v1/repls/blue", ""),
                ("PUT", "/v1/repls/red", &spec),
                ("DELETE", "/v1/repls/blue", ""),
                ("POST", "/v1/repls/blue/start", ""),
                ("GET", "/readyz", ""),
            ],
        )
        .await,
    );
    insta::assert_snapshot!(lines.join("\n"), @r#"
    503 store_unavailable (platform): blue was not reached within 0.3 s: the store is unavailable: told to be unavailable
    503 store_unavailable (platform): the store is unavailable: told to be unavailable
    503 store_unavailable (platform): the store is unavailable: told to be unavailable
    503 store_unavailable (platform): the store is unavailable: told to be unavailable
    503 store_unavailable (platform): the store is unavailable: told to be unavailable
    503 store_unavailable (platform): blue was not reached within 0.3 s: the store is unavailable: told to be unavailable
    503 store_unavailable (platform): the store is unavailable: told to be unavailable
    "#);
    fleet.gateway_store.misbehave(Misbehaviour::default());
    let (_, repls) = fleet.api("GET", "/v1/repls", Value::Null).await;
    assert_eq!(repls["repls"].as_array().unwrap().len(), 1);
    fleet.assert_nothing_half_made().await;
}
