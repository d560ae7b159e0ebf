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

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use model::id::ReplId;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::escape::{Escape, Typed};
use super::exit::Exit;
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

/// The terminal in raw mode, until dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` when standard input is no terminal: then its bytes are sent as they are.
    fn begin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to put back.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

/// The size of the terminal that is looked at, if there is one.
fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout().as_fd())
        .or_else(|_| tcgetwinsize(io::stdin().as_fd()))
        .ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// What is typed, until the end of the input. The thread is left behind in its read at the end.
fn keys() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut screen = io::stdout().lock();
    screen.write_all(bytes)?;
    screen.flush()
}

/// What a terminal's process is told by signals.
struct Signals {
    resized: Signal,
    hung_up: Signal,
    terminated: Signal,
    interrupted: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            hung_up: signal(SignalKind::hangup())?,
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
        })
    }
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
