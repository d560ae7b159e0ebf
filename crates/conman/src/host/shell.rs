//! One terminal per repl, shared by everyone who is connected to it.
//!
//! ```text
//!                    ┌──► session A (WebSocket)
//!   master ──► reader ──► session B            A's and B's keys ──► master
//!                 └──► backlog (what a newcomer is shown first)
//! ```
//!
//! A session's WebSocket ends with 1000 after `{"type":"exit","code":n}` when the shell has ended, and with
//! 1012 (Service Restart) when its container has: then the gateway joins the next one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use model::api::Refusal;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::live::Live;
use super::session::Joined;
use crate::runtime::{Exit, Runtime, TerminalSize};
use crate::telemetry::locks::Mutex;

/// How much of a terminal's output a newcomer is shown.
const BACKLOG_BYTES_MAX: usize = 64 * 1024;
/// How many pieces of output a slow session may lag before it loses some.
const PIECES_BUFFERED_MAX: usize = 256;

/// What a client says besides keys.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Resize { columns: u16, rows: u16 },
}

/// What a client is told besides output.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Notice {
    Exit { code: i32 },
}

#[derive(Debug)]
struct Output {
    backlog: VecDeque<u8>,
    pieces: broadcast::Sender<Bytes>,
}

/// A shell on a terminal, and everyone who looks at it.
#[derive(Debug, Clone)]
pub(super) struct SharedShell {
    master: Arc<AsyncFd<OwnedFd>>,
    size: TerminalSize,
    output: Arc<Mutex<Output>>,
    exit: watch::Receiver<Option<Exit>>,
}

/// Joins the repl's terminal, starting its shell if there is none.
pub(super) async fn join(
    runtime: &dyn Runtime,
    live: &Live,
    columns: u16,
    rows: u16,
) -> Result<SharedShell, Refusal> {
    let mut shell = live.shell.lock().await;
    if let Some(shell) = shell.as_ref().filter(|shell| shell.exit.borrow().is_none()) {
        return Ok(shell.clone());
    }
    let terminal = runtime.shell(&live.running.id, columns, rows).await?;
    let master = crate::fd::watch(terminal.master).map_err(|error| {
        Refusal::new(
            model::api::RefusalCode::Internal,
            format!("watch the terminal: {error}"),
        )
    })?;
    let (exit_sender, exit) = watch::channel(None);
    let started = SharedShell {
        master: Arc::new(master),
        size: terminal.size,
        output: Arc::new(Mutex::new(
            "output of a terminal",
            Output {
                backlog: VecDeque::new(),
                pieces: broadcast::channel(PIECES_BUFFERED_MAX).0,
            },
        )),
        exit,
    };
    tokio::spawn(read(started.master.clone(), started.output.clone()));
    tokio::spawn(async move {
        let exit = terminal.ended.await.unwrap_or(Exit::Unknown);
        exit_sender.send_replace(Some(exit));
    });
    *shell = Some(started.clone());
    Ok(started)
}

async fn read(master: Arc<AsyncFd<OwnedFd>>, output: Arc<Mutex<Output>>) {
    let mut buffer = vec![0; 16 * 1024];
    // A terminal whose other side is closed reads as EIO.
    while let Ok(length @ 1..) = master
        .async_io(Interest::READABLE, |fd| {
            rustix::io::read(fd, &mut buffer[..]).map_err(io::Error::from)
        })
        .await
    {
        let piece = Bytes::copy_from_slice(&buffer[..length]);
        let mut output = output.lock();
        output.backlog.extend(&piece);
        let excess = output.backlog.len().saturating_sub(BACKLOG_BYTES_MAX);
        output.backlog.drain(..excess);
        // Nobody may be looking.
        let _ = output.pieces.send(piece);
    }
}

impl SharedShell {
    fn look(&self) -> (Bytes, broadcast::Receiver<Bytes>) {
        // One lock for both: nothing is shown twice, and nothing is missed.
        let mut output = self.output.lock();
        let backlog = Bytes::copy_from_slice(output.backlog.make_contiguous());
        (backlog, output.pieces.subscribe())
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .master
                .async_io(Interest::WRITABLE, |fd| {
                    rustix::io::write(fd, bytes).map_err(io::Error::from)
                })
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.size.set(&*self.master, columns, rows);
    }

    /// Serves one session until it, the shell or the container ends.
    pub(super) async fn serve(
        self,
        upgraded: Upgraded,
        live: Arc<Live>,
        columns: u16,
        rows: u16,
        joined: Joined,
    ) {
        self.resize(columns, rows);
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let (mut sink, mut stream) = socket.split();
        let (backlog, mut pieces) = self.look();
        let mut exit = self.exit.clone();
        // One that does not hear any more may have left keys behind: they are read to the end.
        let mut hears = backlog.is_empty() || sink.send(Message::Binary(backlog)).await.is_ok();
        let close = loop {
            tokio::select! {
                // Output that is there is shown before the end is told.
                biased;
                piece = pieces.recv(), if hears => match piece {
                    Ok(piece) => hears = sink.send(Message::Binary(piece)).await.is_ok(),
                    // A session that cannot keep up loses the middle, as on a slow line.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break CloseCode::Restart,
                },
                message = stream.next() => match message {
                    Some(Ok(Message::Binary(keys))) => if self.write(&keys).await.is_err() {
                        tracing::debug!("keys for a terminal that is closed");
                    },
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(Control::Resize { columns, rows }) => self.resize(columns, rows),
                        Err(error) => tracing::debug!(%error, "a control message that is none"),
                    },
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                },
                () = live.killed.cancelled() => break CloseCode::Restart,
                () = live.gone.cancelled() => break CloseCode::Restart,
                exit = ended(&mut exit) => {
                    let code = exit_code(exit);
                    // A container that dies takes its shell along a moment before it is known to be dead.
                    if self.container_is_ending(&live).await {
                        break CloseCode::Restart;
                    }
                    let notice = serde_json::to_string(&Notice::Exit { code }).unwrap_or_default();
                    if sink.send(Message::Text(notice.into())).await.is_err() {
                        return;
                    }
                    break CloseCode::Normal;
                }
            }
        };
        let frame = CloseFrame {
            code: close,
            reason: "".into(),
        };
        // Whoever is gone needs no farewell.
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.close().await;
        drop(joined);
    }

    async fn container_is_ending(&self, live: &Live) -> bool {
        let killed = matches!(*self.exit.borrow(), Some(Exit::Signal(9) | Exit::Unknown));
        if !killed {
            return live.gone.is_cancelled();
        }
        // Killed: by somebody inside, or with the whole container; its proof of death is then near.
        tokio::time::timeout(model::timing::KILL_BOUND, live.gone.cancelled())
            .await
            .is_ok()
    }
}

fn exit_code(exit: Option<Exit>) -> i32 {
    match exit {
        Some(Exit::Code(code)) => code,
        Some(Exit::Signal(signal)) => 128 + signal,
        Some(Exit::Unknown) | None => -1,
    }
}

/// Waits for the shell's end. Gives a copy, for the channel's guard must not be held across an await.
async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Option<Exit> {
    exit.wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|exit| *exit)
}
