//! WebSockets: how many messages go there and back, how long one takes, and many that say nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::REPL;
use super::load::{Latency, Target};
use crate::figures::percentile;

const SECONDS: u64 = 4;
const MESSAGE: &str = "sixty-four bytes of text, which is about what an editor sends now.";
/// How many are opened at once: a listening socket's queue has an end.
const OPENED_AT_ONCE: usize = 100;
/// In the measurement of latency each session says something so often.
const PAUSE: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TcpStream>;

/// What was found.
pub(super) struct Found {
    pub(super) per_second: f64,
    pub(super) latency: Latency,
}

/// A connection from within a process' network namespace: a socket is of the namespace in which it was made.
fn connect_inside(pid: i32, address: &str) -> anyhow::Result<std::net::TcpStream> {
    let address = address.to_owned();
    // A thread of its own: only it changes its namespace, and it ends.
    let connected = std::thread::spawn(move || {
        let inside = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&inside),
            Some(LinkNameSpaceType::Network),
        )?;
        std::net::TcpStream::connect(address)
    });
    let connected = connected
        .join()
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    Ok(connected?)
}

async fn open(target: &Target) -> anyhow::Result<Socket> {
    let stream = match target.inside {
        Some(pid) => {
            let stream = connect_inside(pid, &target.address)?;
            stream.set_nonblocking(true)?;
            TcpStream::from_std(stream)?
        }
        None => TcpStream::connect(&target.address).await?,
    };
    stream.set_nodelay(true)?;
    let url = format!("ws://{REPL}.localhost/");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
    // The server says who it is first.
    socket.next().await.context("a first message")??;
    Ok(socket)
}

async fn open_all(target: &Target, count: usize) -> anyhow::Result<Vec<Socket>> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let batch = OPENED_AT_ONCE.min(count - sockets.len());
        sockets.extend(try_join_all((0..batch).map(|_| open(target))).await?);
    }
    Ok(sockets)
}

async fn there_and_back(socket: &mut Socket) -> anyhow::Result<()> {
    socket.send(Message::text(MESSAGE)).await?;
    let back = socket.next().await.context("the message back")??;
    ensure!(back == Message::text(MESSAGE), "another message: {back}");
    Ok(())
}

/// Both figures, over so many sessions.
pub(super) async fn measure(target: &Target, count: usize) -> anyhow::Result<Found> {
    let sockets = open_all(target, count).await?;
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let busy = sockets.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            let mut sent = 0_u64;
            while Instant::now() < until {
                there_and_back(&mut socket).await?;
                sent += 1;
            }
            anyhow::Ok((sent, socket))
        })
    });
    let (mut sent, mut sockets) = (0, vec![]);
    for ended in try_join_all(busy).await? {
        let (count, socket) = ended?;
        sent += count;
        sockets.push(socket);
    }
    let began = tokio::time::Instant::now();
    let count = u32::try_from(sockets.len())?;
    let calm = (0_u32..).zip(sockets).map(|(number, mut socket)| {
        tokio::spawn(async move {
            let mut times_ms = vec![];
            let mut at = began + PAUSE * number / count;
            for _ in 0..SECONDS {
                tokio::time::sleep_until(at).await;
                there_and_back(&mut socket).await?;
                // From when it was to be sent: what waits for its turn waits too.
                times_ms.push(at.elapsed().as_secs_f64() * 1e3);
                at += PAUSE;
            }
            anyhow::Ok(times_ms)
        })
    });
    let mut times_ms = vec![];
    for ended in try_join_all(calm).await? {
        times_ms.extend(ended?);
    }
    Ok(Found {
        per_second: sent as f64 / SECONDS as f64,
        latency: Latency {
            p50_ms: percentile(&mut times_ms, 0.50),
            p99_ms: percentile(&mut times_ms, 0.99),
        },
    })
}

/// So many sessions that say nothing, until they are dropped.
pub(super) async fn hold(target: &Target, count: usize) -> anyhow::Result<Vec<Socket>> {
    open_all(target, count).await
}
