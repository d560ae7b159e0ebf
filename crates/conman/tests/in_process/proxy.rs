//! What HTTP asks of a proxy: bodies of any size, HEAD, upgrades, kept connections, and containers that are
//! gone before they have answered.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::fleet::{Fleet, PATIENCE, request, text};

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let fleet = Fleet::start(1).await;
    fleet.fakes[0].serve_with(|_, stream| {
        Box::pin(async move {
            let echo = service_fn(async |request: http::Request<Incoming>| {
                Ok::<_, Infallible>(http::Response::new(request.into_body()))
            });
            let connection = hyper::server::conn::http1::Builder::new();
            // The gateway closes it when it likes.
            let _ = connection
                .serve_connection(TokioIo::new(stream), echo)
                .await;
        })
    });
    fleet.create("blue").await;
    let sent: Bytes = (0..32_u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut asked = request("POST", "blue.localhost", "/", "");
    *asked.body_mut() = Full::new(sent.clone());
    let answer = fleet.request(asked).await;
    assert_eq!(answer.status(), 200);
    let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
    assert!(body.unwrap().unwrap().to_bytes() == sent);
}

#[tokio::test]
async fn a_kept_connection_outlives_its_repls_container() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let mut client = fleet.connect().await;
    let head = client
        .send_request(request("HEAD", "blue.localhost", "/", ""))
        .await
        .unwrap();
    assert_eq!(head.status(), 200);
    let length: usize = head.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(length > 0);
    assert_eq!(text(head).await, "");
    let mut containers = vec![];
    for _ in 0..2 {
        client.ready().await.unwrap();
        let answer = client
            .send_request(request("GET", "blue.localhost", "/", ""))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let body = text(answer).await;
        containers.push(body.lines().next().unwrap().to_owned());
        let (status, _) = fleet.api("POST", "/v1/repls/blue/kill", Value::Null).await;
        assert_eq!(status, 200);
    }
    assert_ne!(containers[0], containers[1]);
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn a_websocket_reaches_the_container() {
    let fleet = Fleet::start(1).await;
    fleet.fakes[0].serve_with(|id, stream| {
        Box::pin(async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            socket.send(Message::text(id.repl.as_str())).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_binary() && socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    });
    fleet.create("blue").await;
    let stream = TcpStream::connect(fleet.address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async("ws://blue.localhost/live", stream)
        .await
        .unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("blue"));
    let large = Message::binary(vec![7; 1 << 20]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), large);
    let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
    assert_eq!(repl["sessions"], json!(1));
    fleet.api("POST", "/v1/repls/blue/kill", Value::Null).await;
    // It is not kept waiting for a container that is dead, and told that another takes its place.
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = end else {
        panic!("{end:?}");
    };
    assert_eq!(close.code, CloseCode::Restart);
    drop(socket);
    fleet.assert_nothing_half_made().await;
}

/// Lets the first container take requests and never answer; gives each one's arrival.
fn hang(fleet: &Fleet) -> mpsc::UnboundedReceiver<()> {
    let (arrived, arrivals) = mpsc::unbounded_channel();
    for fake in &fleet.fakes {
        let arrived = arrived.clone();
        fake.serve_with(move |id, mut stream| {
            let arrived = arrived.clone();
            Box::pin(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut buffer = [0; 4096];
                let length = stream.read(&mut buffer).await.unwrap_or(0);
                if length == 0 {
                    return;
                }
                if arrived.send(()).is_ok() {
                    return std::future::pending().await;
                }
                let body = id.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            })
        });
    }
    arrivals
}

/// Sends a request, ends its container by `path` while it is under way, and gives the answer.
async fn cut_short(fleet: &Fleet, method: &str, path: &str) -> (u16, Value) {
    let mut arrivals = hang(fleet);
    let under_way = fleet.send(method, "blue.localhost", "/", "");
    let end = async {
        arrivals.recv().await.unwrap();
        // From now on requests are answered.
        drop(arrivals);
        let (_, repl) = fleet.api("GET", "/v1/repls/blue", Value::Null).await;
        let path = path.replace("HOST", repl["host"].as_str().unwrap());
        let (status, answer) = fleet.api("POST", &path, Value::Null).await;
        assert_eq!(status, 200, "{answer}");
    };
    let ((status, body), ()) = tokio::join!(under_way, end);
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    (status, body)
}

#[tokio::test]
async fn a_request_that_may_be_repeated_follows_its_repl() {
    let fleet = Fleet::start(2).await;
    fleet.create("blue").await;
    let (status, body) = cut_short(&fleet, "GET", "/v1/hosts/HOST/drain?grace=0s").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.as_str().unwrap().starts_with("blue@"), "{body}");
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_is_told_who_cut_it_short() {
    for (path, code, outcome) in [
        (
            "/v1/hosts/HOST/drain?grace=0s",
            "interrupted",
            "platform_fail",
        ),
        ("/v1/repls/blue/kill", "user_closed", "user_fail"),
    ] {
        let fleet = Fleet::start(2).await;
        fleet.create("blue").await;
        let (_, body) = cut_short(&fleet, "POST", path).await;
        assert_eq!(body["error"]["code"], json!(code), "{body}");
        let log = fleet.session_log().await;
        assert_eq!(log[0]["outcome"], json!(outcome), "{log:?}");
    }
}
