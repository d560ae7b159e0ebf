//! The document is true: its operations exist, and their real answers are as it says.

use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE, request, text};
use crate::schema;

async fn document(fleet: &Fleet) -> Value {
    let (status, document) = fleet.api("GET", "/v1/openapi.json", Value::Null).await;
    assert_eq!(status, 200);
    document
}

/// Sends one operation's request and holds its answer to the document; gives its status and body.
async fn call(
    fleet: &Fleet,
    document: &Value,
    method: &str,
    template: &str,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let operation = &document["paths"][template][method.to_lowercase()];
    let place = format!("{method} {path}");
    assert!(operation.is_object(), "{place} is not documented");
    if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema") {
        let faults = schema::faults(document, schema, &body);
        assert_eq!(faults, Vec::<String>::new(), "{place}: its body");
    }
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = fleet
        .request(request(method, "localhost", path, &body))
        .await;
    let status = answer.status().as_u16();
    let documented = &operation["responses"][status.to_string()];
    assert!(
        documented.is_object(),
        "{place}: {status} is not documented"
    );
    let Some(content) = documented["content"].as_object() else {
        assert_eq!(text(answer).await, "", "{place}");
        return (status, Value::Null);
    };
    let kind = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    // The parameters of a type are written with and without a space.
    let plain = |kind: &str| kind.replace(' ', "");
    let (_, content) = content
        .iter()
        .find(|(documented, _)| plain(documented) == plain(&kind))
        .unwrap_or_else(|| panic!("{place}: {kind} is not documented"));
    if kind == "text/event-stream" {
        let first = tokio::time::timeout(PATIENCE, answer.into_body().frame()).await;
        let first = first.unwrap().unwrap().unwrap().into_data().unwrap();
        assert!(first.starts_with(b"event: "), "{first:?}");
        return (status, Value::Null);
    }
    let body = text(answer).await;
    let value = if kind == "application/json" {
        serde_json::from_str(&body).unwrap()
    } else {
        Value::String(body)
    };
    let faults = schema::faults(document, &content["schema"], &value);
    assert_eq!(faults, Vec::<String>::new(), "{place}: {value}");
    (status, value)
}

#[tokio::test]
async fn every_documented_operation_is_there() {
    let fleet = Fleet::start(1).await;
    let document = document(&fleet).await;
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let path = path.replace("{id}", "nobody");
            let answer = fleet
                .request(request(&method, "localhost", &path, ""))
                .await;
            let status = answer.status().as_u16();
            operations += 1;
            assert_ne!(status, 405, "{method} {path}");
            if status == 404 {
                let answer = text(answer).await;
                assert!(
                    !answer.contains("\"not_found\""),
                    "{method} {path}: {answer}"
                );
            }
        }
    }
    assert_eq!(operations, 23);
}

#[tokio::test]
async fn real_answers_are_as_documented() {
    let fleet = Fleet::start(2).await;
    let document = document(&fleet).await;
    let call = async |method: &str, template: &str, path: &str, body: Value| {
        call(&fleet, &document, method, template, path, body).await
    };
    let one = "/v1/repls/{id}";
    let spec = json!({
        "image": "host", "command": ["serve"], "env": {"A": "b"}, "port": 8000,
        "limits": {"memory_bytes": 64 << 20, "cpu_millis": 500, "pids": 20},
        "idle_timeout_seconds": 60,
    });
    let mut statuses = vec![];
    for (method, path, body) in [
        ("PUT", "", spec.clone()),
        ("PUT", "", spec.clone()),
        ("GET", "", Value::Null),
        ("POST", "/start", Value::Null),
        ("GET", "", Value::Null),
        ("PUT", "", json!({"command": ["other"]})),
        (
            "POST",
            "/exec",
            json!({"command": ["echo", "x"], "stdin": "", "timeout_ms": 1000}),
        ),
        (
            "POST",
            "/exec",
            json!({"command": ["sleep", "9"], "timeout_ms": 10}),
        ),
        ("POST", "/exec", json!({"command": ["missing"]})),
        ("GET", "/logs", Value::Null),
        ("GET", "/logs?follow=false", Value::Null),
        ("GET", "/shell", Value::Null),
        ("POST", "/kill", Value::Null),
        ("POST", "/start", Value::Null),
        ("POST", "/destroy?grace=5s", Value::Null),
        ("POST", "/destroy?grace=soon", Value::Null),
        ("GET", "/logs", Value::Null),
    ] {
        let bare = path.split('?').next().unwrap();
        let template = format!("{one}{bare}");
        let (status, _) = call(method, &template, &format!("/v1/repls/blue{path}"), body).await;
        statuses.push(format!("{method} {path} {status}"));
    }
    insta::assert_snapshot!(statuses.join("\n"), @r#"
    PUT  201
    PUT  200
    GET  200
    POST /start 200
    GET  200
    PUT  409
    POST /exec 200
    POST /exec 504
    POST /exec 422
    GET /logs 200
    GET /logs?follow=false 200
    GET /shell 400
    POST /kill 200
    POST /start 200
    POST /destroy?grace=5s 200
    POST /destroy?grace=soon 400
    GET /logs 200
    "#);
    let mut statuses = vec![];
    for (method, template, path) in [
        ("GET", "/v1/repls", "/v1/repls"),
        ("GET", "/v1/hosts", "/v1/hosts"),
        (
            "POST",
            "/v1/hosts/{id}/drain",
            "/v1/hosts/host-1/drain?grace=0s",
        ),
        ("GET", "/v1/hosts", "/v1/hosts"),
        ("POST", "/v1/hosts/{id}/undrain", "/v1/hosts/host-1/undrain"),
        ("POST", "/v1/hosts/{id}/preempt", "/v1/hosts/host-1/preempt"),
        ("POST", "/v1/hosts/{id}/drain", "/v1/hosts/nobody/drain"),
        ("GET", "/v1/events", "/v1/events"),
        ("GET", "/v1/openapi.json", "/v1/openapi.json"),
        ("GET", "/healthz", "/healthz"),
        ("GET", "/readyz", "/readyz"),
        ("GET", "/debug/operations", "/debug/operations"),
        ("GET", "/v1/stuck", "/v1/stuck?worst=3"),
        ("GET", "/v1/stuck", "/v1/stuck?worst=all"),
        ("GET", "/metrics", "/metrics"),
        ("DELETE", one, "/v1/repls/blue"),
        ("DELETE", one, "/v1/repls/blue"),
        ("GET", one, "/v1/repls/blue"),
    ] {
        let (status, _) = call(method, template, path, Value::Null).await;
        statuses.push(format!("{method} {path} {status}"));
    }
    insta::assert_snapshot!(statuses.join("\n"), @r#"
    GET /v1/repls 200
    GET /v1/hosts 200
    POST /v1/hosts/host-1/drain?grace=0s 200
    GET /v1/hosts 200
    POST /v1/hosts/host-1/undrain 200
    POST /v1/hosts/host-1/preempt 400
    POST /v1/hosts/nobody/drain 404
    GET /v1/events 200
    GET /v1/openapi.json 200
    GET /healthz 200
    GET /readyz 200
    GET /debug/operations 200
    GET /v1/stuck?worst=3 200
    GET /v1/stuck?worst=all 400
    GET /metrics 200
    DELETE /v1/repls/blue 204
    DELETE /v1/repls/blue 404
    GET /v1/repls/blue 404
    "#);
    fleet.assert_nothing_half_made().await;
}
