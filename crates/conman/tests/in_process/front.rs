//! How clients come in: HTTP/2, TLS, the PROXY protocol, and what is refused at the door.

use std::sync::Arc;

use bytes::Bytes;
use conman::certs;
use conman::gateway::{Certificate, CertificateFiles, Door, Lock};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::fleet::{Fleet, PATIENCE, Setup, text};

/// A client's HTTP/2 connection over a stream.
async fn http2_over<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> http2::SendRequest<B>
where
    B: hyper::body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = TokioIo::new(stream);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn dialed(fleet: &Fleet) -> TcpStream {
    TcpStream::connect(fleet.address).await.unwrap()
}

/// Whatever the gateway says to these bytes until it closes the connection, or has answered and waits.
async fn answer_to(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    // One that is reset has had its answer, if any.
    let _ = read.expect("the connection is closed in time");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn http2_goes_to_the_container_as_http1() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let mut client = http2_over::<Empty<Bytes>>(dialed(&fleet).await).await;
    let asked = || {
        http::Request::get("http://blue.localhost/a?b")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Empty::new())
            .unwrap()
    };
    // Both at once over one connection.
    let (one, two) = tokio::join!(
        client.send_request(asked()),
        client.clone().send_request(asked())
    );
    for answer in [one, two] {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.version(), http::Version::HTTP_2);
        let seen = text(answer).await;
        for line in [
            "GET /a?b HTTP/1.1",
            "host: blue.localhost",
            "cookie: a=1; b=2",
        ] {
            assert!(seen.lines().any(|seen| seen == line), "{line}: {seen}");
        }
    }
    let api = http::Request::get("http://localhost/v1/repls");
    let answer = client
        .send_request(api.body(Empty::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    // What HTTP/2 has instead of an upgrade is for WebSockets alone.
    let tunnel = http::Request::connect("blue.localhost:443")
        .body(Empty::new())
        .unwrap();
    let answer = client.send_request(tunnel).await.unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_the_container() {
    let fleet = Fleet::start(1).await;
    fleet.fakes[0].serve_with(|_, stream| {
        Box::pin(async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() && socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    });
    fleet.create("blue").await;
    let mut client = http2_over::<Empty<Bytes>>(dialed(&fleet).await).await;
    let mut asked = http::Request::connect("http://blue.localhost/live")
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    asked
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let answer = client.send_request(asked).await.unwrap();
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    socket.send(Message::text("here")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("here"));
    drop(socket);
    fleet.api("POST", "/v1/repls/blue/kill", Value::Null).await;
    fleet.assert_nothing_half_made().await;
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let fleet = Fleet::start(1).await;
    fleet.fakes[0].serve_with(|_, stream| {
        Box::pin(async move {
            let echo = hyper::service::service_fn(
                async |request: http::Request<hyper::body::Incoming>| {
                    let trailers = request
                        .into_body()
                        .collect()
                        .await
                        .unwrap()
                        .trailers()
                        .cloned();
                    let frames = [
                        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("done"))),
                        Ok(Frame::trailers(trailers.unwrap_or_default())),
                    ];
                    let body = StreamBody::new(futures_util::stream::iter(frames));
                    let answer = http::Response::builder().header("trailer", "x-sum");
                    answer.body(body)
                },
            );
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection
                .serve_connection(TokioIo::new(stream), echo)
                .await;
        })
    });
    fleet.create("blue").await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames = [
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("abc"))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut client = http2_over(dialed(&fleet).await).await;
    let asked = http::Request::post("http://blue.localhost/")
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(body)
        .unwrap();
    let answer = client.send_request(asked).await.unwrap();
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "7");
    assert_eq!(whole.to_bytes(), "done");
}

#[tokio::test]
async fn what_two_servers_could_read_in_two_ways_is_not_passed_on() {
    let fleet = Fleet::start(1).await;
    fleet.create("blue").await;
    let head = "host: blue.localhost\r\n";
    for (request, expected) in [
        (
            format!("GET / HTTP/1.1\r\n{head}host: localhost\r\n\r\n"),
            "400",
        ),
        (
            format!("GET http://localhost/ HTTP/1.1\r\n{head}\r\n"),
            "400",
        ),
        (
            format!("POST / HTTP/1.1\r\n{head}content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
            "400",
        ),
        (
            format!("POST / HTTP/1.1\r\n{head}content-length: +1\r\n\r\na"),
            "400",
        ),
        (
            format!("POST / HTTP/1.1\r\n{head}content-length: 1, 1\r\n\r\na"),
            "400",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\n{head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            // Read as chunked alone, and the connection closed after it (RFC 9112, 6.1).
            "200",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\n{head}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"
            ),
            "400",
        ),
        (
            format!("POST / HTTP/1.1\r\n{head}transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
            "400",
        ),
        (
            format!("POST / HTTP/1.0\r\n{head}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            "400",
        ),
        (
            format!("POST / HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n\r\nzz\r\n\r\n"),
            "400",
        ),
        (format!("GET / HTTP/1.1\r\n{head}x: a\r\n b\r\n\r\n"), "400"),
        (format!("GET / HTTP/1.1\r\n{head}x: a\rb\r\n\r\n"), "400"),
        (format!("GET /\u{1} HTTP/1.1\r\n{head}\r\n"), "400"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
    ] {
        // A second request hides behind the first.
        let hidden = format!("GET /hidden HTTP/1.1\r\n{head}connection: close\r\n\r\n");
        let whole = format!("{request}{hidden}");
        let said = answer_to(dialed(&fleet).await, whole.as_bytes()).await;
        let status = said.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status, expected, "{request:?}: {said}");
        let seen = said.matches("GET /hidden").count();
        // Where the first was answered as a whole, the second is one of its own.
        assert!(seen <= 1, "{request:?}: {said}");
        if request.contains("content-length") || request.contains("transfer-encoding") {
            assert_eq!(seen, 0, "{request:?}: {said}");
        }
    }
}

#[tokio::test]
async fn a_body_may_be_so_large() {
    let setup = Setup {
        hosts: 1,
        gateway: Box::new(|config| config.body_bytes_max = Some(8)),
        ..Setup::default()
    };
    let fleet = Fleet::start_with(setup).await;
    fleet.create("blue").await;
    let head = "POST / HTTP/1.1\r\nhost: blue.localhost\r\nconnection: close\r\n";
    for body in [
        "content-length: 9\r\n\r\n123456789",
        "transfer-encoding: chunked\r\n\r\n5\r\n12345\r\n4\r\n6789\r\n0\r\n\r\n",
    ] {
        let said = answer_to(dialed(&fleet).await, format!("{head}{body}").as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 413"), "{body:?}: {said}");
        assert!(said.contains("the body has more than 8 bytes"), "{said}");
    }
    // They are the client's doing.
    let log = fleet.session_log().await;
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(
        log.iter().all(|line| line["outcome"] == "client_abort"),
        "{log:?}"
    );
}

/// A certificate for localhost of a CA of its own, and a client who trusts that.
struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certs::ca(directory.path()).unwrap();
        let made = Self { directory };
        made.renew();
        made
    }

    fn renew(&self) {
        let place = self.directory.path();
        let names = ["blue.localhost".to_owned(), "localhost".to_owned()];
        certs::node(place, place, "gateway", &names, 1).unwrap();
    }

    fn files(&self) -> CertificateFiles {
        let place = self.directory.path();
        CertificateFiles {
            certificate: place.join("gateway.pem"),
            key: place.join("gateway-key.pem"),
        }
    }

    async fn connect(&self, fleet: &Fleet, protocol: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = self.directory.path().join("ca.pem");
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("blue.localhost").unwrap();
        let stream = dialed(fleet).await;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn tls_has_both_protocols_and_its_certificate_is_changed_under_it() {
    let authority = Authority::new();
    let certificate = Arc::new(Certificate::load(authority.files()).unwrap());
    let setup = Setup {
        hosts: 1,
        gateway: Box::new(move |config| config.door.lock = Lock::Tls(certificate)),
        ..Setup::default()
    };
    let fleet = Fleet::start_with(setup).await;
    let spec = r#"{"command": ["serve"], "port": 8000}"#;
    let length = spec.len();
    let said = answer_to(
        authority.connect(&fleet, "http/1.1").await,
        format!(
            "PUT /v1/repls/blue HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{spec}"
        )
        .as_bytes(),
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    let old = authority.connect(&fleet, "h2").await;
    let first = shown(&old);
    let mut client = http2_over::<Empty<Bytes>>(old).await;
    let asked = || {
        http::Request::get("https://blue.localhost/")
            .body(Empty::new())
            .unwrap()
    };
    let seen = text(client.send_request(asked()).await.unwrap()).await;
    assert!(seen.contains("x-forwarded-proto: https"), "{seen}");
    assert!(
        seen.contains("proto=https;host=\"blue.localhost\""),
        "{seen}"
    );
    authority.renew();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The files are looked at once a second.
    while shown(&authority.connect(&fleet, "h2").await) == first {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the new certificate is never shown"
        );
    }
    // What stands goes on.
    assert_eq!(client.send_request(asked()).await.unwrap().status(), 200);
    // Nobody gets anything in the clear.
    let said = answer_to(
        dialed(&fleet).await,
        b"GET / HTTP/1.1\r\nhost: blue.localhost\r\n\r\n",
    )
    .await;
    assert!(!said.contains("HTTP/1.1"), "{said}");
}

#[tokio::test]
async fn a_load_balancer_says_for_whom_a_connection_is() {
    let setup = Setup {
        hosts: 1,
        gateway: Box::new(|config| {
            config.door = Door {
                lock: Lock::None,
                has_proxy_header: true,
            };
        }),
        ..Setup::default()
    };
    let fleet = Fleet::start_with(setup).await;
    let asked = "GET / HTTP/1.1\r\nhost: blue.localhost\r\nconnection: close\r\n\r\n";
    let v2 = |command: u8, family: u8, address: &[u8]| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend_from_slice(&[0x20 | command, family]);
        bytes.extend_from_slice(&u16::try_from(address.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(address);
        bytes
    };
    let four = [203, 0, 113, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80];
    let mut six = [0; 36];
    six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    six[15] = 7;
    let spec = r#"{"command": ["serve"], "port": 8000}"#;
    let create = format!(
        "PROXY UNKNOWN\r\nPUT /v1/repls/blue HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{spec}",
        spec.len()
    );
    let said = answer_to(dialed(&fleet).await, create.as_bytes()).await;
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    for (header, expected) in [
        (
            b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 80\r\n".to_vec(),
            "203.0.113.7",
        ),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 80\r\n".to_vec(),
            "2001:db8::7",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(1, 0x11, &four), "203.0.113.7"),
        (v2(1, 0x21, &six), "2001:db8::7"),
        // Behind the addresses may be more.
        (
            v2(1, 0x11, &[&four[..], &[4, 0, 1, 0]].concat()),
            "203.0.113.7",
        ),
        (v2(0, 0, &[]), "127.0.0.1"),
    ] {
        let whole = [&header[..], asked.as_bytes()].concat();
        let said = answer_to(dialed(&fleet).await, &whole).await;
        let line = format!("x-forwarded-for: {expected}");
        assert!(said.lines().any(|seen| seen == line), "{header:?}: {said}");
    }
    for bad in [
        asked.as_bytes().to_vec(),
        b"PROXY TCP4 a b c d\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 99999\r\n".to_vec(),
        [b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
        v2(1, 0x11, &four[..5]),
        v2(9, 0x11, &four),
        v2(1, 0x11, &[0; 5000]),
    ] {
        let whole = [&bad[..], asked.as_bytes()].concat();
        let said = answer_to(dialed(&fleet).await, &whole).await;
        assert_eq!(said, "", "{bad:?}");
    }
}
