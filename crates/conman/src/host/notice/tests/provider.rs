//! A provider's server, as a test wants it to be at this moment.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::node::Address;

/// Serves what `answer` makes of each request.
pub(super) async fn serve<F>(answer: F) -> Address
where
    F: Fn(Request) -> BoxFuture<'static, Response> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer.clone();
        async move { answer(request).await }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Answers everything with one status and text.
pub(super) async fn always(status: StatusCode, text: &'static str) -> Address {
    serve(move |_| std::future::ready((status, text).into_response()).boxed()).await
}

/// Begins every answer and never ends it.
pub(super) async fn half_answers() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nTR";
            let _ = stream.write_all(half).await;
        }
    });
    address
}

/// Nobody is there.
pub(super) async fn nobody() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Address::Tcp(listener.local_addr().unwrap().to_string())
}

/// A header of a request.
pub(super) fn header(request: &Request, name: &str) -> Option<String> {
    Some(request.headers().get(name)?.to_str().unwrap().to_owned())
}
