//! Users' requests reach their repls.

use conman::store::memory::{Calls, Misbehaviour};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fleet::{Fleet, PATIENCE, request, text};

#[tokio::test]
async fn a_request_starts_its_repl_and_is_answered_by_it() {
    let fleet = Fleet::start(2).await;
    fleet.create("blue").await;
    let (status, body) = fleet.send("GET", "blue.localhost", "/x?y=1", "").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with("blue@"), "{body}");
    assert!(body.contains("GET /x?y=1 HTTP/1.1"), "{body}");
    assert!(body.contains("x-forwarded-for: 127.0.0.1"), "{body}");
    let (_, again) = fleet.send("GET", "blue.localhost", "/", "").await;
    assert_eq!(body.lines().next(), again.lines().next());
    assert_eq!(fleet.alive(), 1);
    let (status, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!((status, &repl["state"]), (200, &json!("running")));
    let (status, _) = fleet.api("DELETE", "/v1/repls/blue", Value::Null).await;
    assert_eq!((status, fleet.alive()), (204, 0));
    let (status, error) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("unknown_repl"))
    );
    let (status, page) = fleet.send("GET", "localhost", "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("conman_sessions_total{outcome=\"ok\",reason=\"opened\"} 2"),
        "{page}"
    );
    let log = fleet.session_log().await;
    assert_eq!(log.len(), 2, "{log:?}");
    assert_eq!(
        (&log[0]["repl"], &log[0]["outcome"]),
        (&json!("blue"), &json!("ok"))
    );
}

#[tokio::test]
async fn a_drain_moves_a_repl_under_its_users() {
    let fleet = Fleet::start(2).await;
    fleet.create("blue").await;
    fleet.send("GET", "blue.localhost", "/", "").await;
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    let host = repl["host"].as_str().unwrap().to_owned();
    let path = format!("/v1/hosts/{host}/drain?grace=0s");
    let (status, report) = fleet.api("POST", &path, Value::Null).await;
    assert_eq!(
        (status, &report["handed_off"]),
        (200, &json!(1)),
        "{report}"
    );
    let (status, body) = fleet.send("GET", "blue.localhost", "/", "").await;
    assert_eq!(status, 200, "{body}");
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_ne!(repl["host"].as_str().unwrap(), host);
    let (_, hosts) = fleet.api("GET", "/v1/hosts", Value::Null).await;
    let states: Vec<_> = hosts["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["state"])
        .collect();
    assert!(states.contains(&&json!("draining")) && states.contains(&&json!("active")));
}

fn away() -> Misbehaviour {
    Misbehaviour {
        calls: Calls::Unavailable,
        ..Misbehaviour::default()
    }
}

#[tokio::test]
async fn a_request_waits_for_a_store_that_is_away() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    fleet.gateway_store.misbehave(away());
    let mut client = fleet.connect().await;
    let answer = client.send_request(request("GET", "blue.localhost", "/", ""));
    let mut answer = std::pin::pin!(answer);
    while fleet.metric("conman_sessions_parked").await != Some(1.0) {
        let moment = std::time::Duration::from_millis(5);
        let early = tokio::time::timeout(moment, answer.as_mut()).await;
        assert!(early.is_err(), "answered without a store: {early:?}");
    }
    fleet.gateway_store.misbehave(Misbehaviour::default());
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(text(answer).await.starts_with("blue@"));
}

#[tokio::test]
async fn a_repl_that_was_reached_before_needs_no_store() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    fleet.send("GET", "blue.localhost", "/", "").await;
    fleet.gateway_store.misbehave(away());
    // A port of its own: no connection to it is kept from the first request.
    let (status, body) = fleet.send("GET", "8000-blue.localhost", "/", "").await;
    assert_eq!((status, body.starts_with("blue@")), (200, true), "{body}");
}

#[tokio::test]
async fn a_gateway_that_stops_answers_what_it_has_taken() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    fleet.fakes[0].hold_starts();
    let mut client = fleet.connect().await;
    let asked = client.send_request(request("GET", "blue.localhost", "/", ""));
    let mut answer = tokio::spawn(asked);
    while fleet.metric("conman_sessions_parked").await != Some(1.0) {}
    fleet.gateway_stop.ask(PATIENCE);
    // Longer than those have whom nobody owes an answer.
    let longer = std::time::Duration::from_millis(700);
    let early = tokio::time::timeout(longer, &mut answer).await;
    assert!(early.is_err() && !fleet.has_gateway_ended(), "{early:?}");
    assert!(TcpStream::connect(fleet.address).await.is_err());
    fleet.fakes[0].open_starts();
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert!(text(answer).await.starts_with("blue@"));
    assert_eq!(fleet.session_log().await[0]["outcome"], "ok");
}

#[tokio::test]
async fn whoever_connected_before_the_stop_is_answered() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let mut clients = vec![];
    for _ in 0..20 {
        let mut stream = TcpStream::connect(fleet.address).await.unwrap();
        let asked = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(asked).await.unwrap();
        clients.push(stream);
    }
    fleet.gateway_stop.ask(PATIENCE);
    for mut stream in clients {
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("an answer and the end in time").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}
