//! The least of an HTTP client: one request per connection, timed to the first byte of its answer.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// From before the connection to the first byte.
    pub(crate) first_byte: Duration,
}

/// Sends one request and reads its answer to the end.
pub(crate) async fn send(
    address: &str,
    host: &str,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = vec![0; 4096];
    let first = stream.read(&mut bytes).await?;
    let first_byte = began.elapsed();
    bytes.truncate(first);
    let text = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if is_whole(&text) {
            break text;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            break text;
        }
    };
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("no answer: {text:?}");
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.context("read the status")?,
        body: body.to_owned(),
        first_byte,
    })
}

/// Whether an answer with a length is there to its last byte; one without ends with its connection.
fn is_whole(text: &str) -> bool {
    text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
        head.lines().any(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")
                .and_then(|length| length.trim().parse::<usize>().ok())
                .is_some_and(|length| body.len() >= length)
        })
    })
}
