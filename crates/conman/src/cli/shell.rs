//! `conman repl shell`: this terminal joined to the repl's shared one.
//!
//! ```text
//!   keys ──► escape ──► binary frames ──► the repl's terminal
//!   size ──► {"type":"resize"}
//!   screen ◄── binary frames            {"type":"exit","code":n} ──► our own exit code
//! ```
//!
//! The terminal is raw from the first frame to the last and is put back on every way out: the guard's
//! drop covers returns, errors and panics, and the signals that would end the process end the loop instead.

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use model::id::ReplId;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::Message;

use super::escape::{Escape, Typed};
use super::exit::Exit;
use super::screen::{Raw, Signals, keys, show, size};
use crate::client::Client;

/// What the client says besides keys.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Resize { columns: u16, rows: u16 },
}

/// What the server says besides output. What it may add later is not our concern.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Notice {
    Exit {
        code: i32,
    },
    /// The repl is lost to this terminal: the connection ends next.
    Error {
        message: String,
    },
    #[serde(other)]
    Other,
}

/// How the loop ended.
enum End {
    /// The shell ended with this code.
    Exited(i32),
    /// The user left; the shell goes on.
    Left,
    /// A signal asked us to end.
    Signal(u8),
    /// The connection ended before the shell.
    Lost(String),
}

/// Joins the repl's terminal and stays until the shell ends or the user leaves.
pub(super) async fn run(client: &Client, repl: &ReplId) -> anyhow::Result<Exit> {
    // Before the size is read: a resize while the connection is made is not missed.
    let mut signals = Signals::new().context("listen to signals")?;
    let (columns, rows) = size().unwrap_or((80, 24));
    let path = format!("/v1/repls/{repl}/shell?columns={columns}&rows={rows}");
    // Before the terminal is touched: most of what can go wrong goes wrong here.
    let mut socket = client.socket(&path).await?;
    let raw = Raw::begin().context("switch the terminal to raw mode")?;
    let interactive = raw.is_some();
    if interactive {
        eprint!("connected to {repl}; Enter ~ . leaves without ending the shell\r\n");
    }
    let end = talk(&mut socket, &mut signals, interactive).await;
    drop(raw);
    // The other side may be gone already.
    let _ = socket.close(None).await;
    match end? {
        End::Exited(code) => Ok(Exit::of_program(code)),
        End::Left => {
            if interactive {
                eprintln!("\nleft {repl}; its shell goes on");
            }
            Ok(Exit::Done)
        }
        End::Signal(number) => Ok(Exit::Program(128 + number)),
        End::Lost(why) => Err(anyhow::anyhow!("the connection to {repl} was lost: {why}")),
    }
}

async fn talk(
    socket: &mut crate::client::Socket,
    signals: &mut Signals,
    interactive: bool,
) -> anyhow::Result<End> {
    let mut keys = keys().context("read the keyboard")?;
    let mut typing = true;
    let mut escape = Escape::new();
    loop {
        tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(Message::Binary(bytes))) => show(&bytes).context("write to the terminal")?,
                Some(Ok(Message::Text(text))) => {
                    match serde_json::from_str(&text) {
                        Ok(Notice::Exit { code }) => return Ok(End::Exited(code)),
                        Ok(Notice::Error { message }) => return Ok(End::Lost(message)),
                        Ok(Notice::Other) | Err(_) => {}
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|frame| frame.to_string());
                    return Ok(End::Lost(reason.unwrap_or_else(|| "closed".into())));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Ok(End::Lost(error.to_string())),
                None => return Ok(End::Lost("closed".into())),
            },
            typed = keys.recv(), if typing => {
                let (keys, leaves) = match typed {
                    // Input from a file or pipe has ended: so does the terminal's, for the shell.
                    None => { typing = false; (vec![4], false) }
                    Some(keys) if !interactive => (keys, false),
                    Some(keys) => match escape.step(&keys) {
                        Typed::Keys(keys) => (keys, false),
                        Typed::Leave(keys) => (keys, true),
                    },
                };
                if !keys.is_empty() {
                    socket.send(Message::Binary(keys.into())).await?;
                }
                if leaves {
                    return Ok(End::Left);
                }
            }
            _ = signals.resized.recv() => if let Some((columns, rows)) = size() {
                let control = serde_json::to_string(&Control::Resize { columns, rows })?;
                socket.send(Message::Text(control.into())).await?;
            },
            _ = signals.hung_up.recv() => return Ok(End::Signal(1)),
            _ = signals.interrupted.recv() => return Ok(End::Signal(2)),
            _ = signals.terminated.recv() => return Ok(End::Signal(15)),
        }
    }
}
