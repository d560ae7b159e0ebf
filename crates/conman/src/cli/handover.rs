//! The gateway's listening socket: given by systemd, taken over from the process that has it, or bound.
//!
//! ```text
//! old: serves ── asked by a new one of the same user for this address ─► gives it the socket ─► ends as at SIGHUP
//! new: asks ─► has the socket, and serves ─► its host begins when the old process is gone
//! ```
//!
//! The kernel keeps those who connect in the socket's queue, whoever has it: nobody is refused in between.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::exit::CannotStart;
use super::serve::listen_on;
use crate::fd::watch;
use crate::node;

/// How long either side waits for the other's word.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest address with its newline, and then some.
const ADDRESS_BYTES_MAX: u64 = 128;

/// The process whose socket was taken over.
#[derive(Debug, Clone)]
pub(super) struct Predecessor(Arc<OwnedFd>);

impl Predecessor {
    /// Until it is gone.
    pub(super) async fn gone(&self) -> io::Result<()> {
        // A pidfd is readable once its process has ended.
        let pidfd = watch(self.0.try_clone()?)?;
        let _ended = pidfd.readable().await?;
        Ok(())
    }
}

/// Has a socket that listens there.
pub(super) async fn listen(
    address: SocketAddr,
    successors: &Path,
    takes_over: bool,
) -> Result<(TcpListener, Option<Predecessor>), CannotStart> {
    if let Some(given) = given(address)? {
        tracing::info!(%address, "listening on the socket that systemd has given");
        return Ok((given, None));
    }
    if takes_over && let Some((listener, predecessor)) = taken(address, successors).await {
        tracing::info!(%address, "the listening socket was taken over");
        return Ok((listener, Some(predecessor)));
    }
    Ok((listen_on(address, "--listen")?, None))
}

/// The socket of this address among those that the service manager has passed on (sd_listen_fds(3)).
fn given(address: SocketAddr) -> Result<Option<TcpListener>, CannotStart> {
    let mut passed = ListenFd::from_env();
    let cannot = |text: String| CannotStart(format!("the sockets that systemd gives: {text}"));
    for index in 0..passed.len() {
        let listener = passed.take_tcp_listener(index);
        let Some(listener) = listener.map_err(|error| cannot(error.to_string()))? else {
            continue;
        };
        if listener.local_addr().is_ok_and(|found| found == address) {
            let made = listener.set_nonblocking(true);
            made.map_err(|error| cannot(error.to_string()))?;
            return Ok(Some(listener));
        }
    }
    if passed.len() > 0 {
        return Err(cannot(format!(
            "none of them listens on {address} (--listen)"
        )));
    }
    Ok(None)
}

/// Asks who has it. Whoever does not answer has nothing to give.
async fn taken(address: SocketAddr, successors: &Path) -> Option<(TcpListener, Predecessor)> {
    let asked = tokio::time::timeout(PATIENCE, ask(address, successors)).await;
    match asked.map_err(io::Error::from).flatten() {
        Ok(taken) => Some(taken),
        Err(error) => {
            tracing::info!(%error, "there is no socket to take over");
            None
        }
    }
}

async fn ask(address: SocketAddr, successors: &Path) -> io::Result<(TcpListener, Predecessor)> {
    let mut stream = UnixStream::connect(successors).await?;
    let pid = socket_peercred(&stream)?.pid;
    // Before it is asked: from then on it may end, and another process have its number.
    let predecessor = Predecessor(Arc::new(pidfd_open(pid, PidfdFlags::empty())?));
    stream.write_all(format!("{address}\n").as_bytes()).await?;
    let listener = TcpListener::from(node::take_descriptor(&mut stream).await?);
    Ok((listener, predecessor))
}

/// Gives the socket of this address to the first process of this user that asks for it; returns when that has it.
pub(super) async fn give(
    listener: OwnedFd,
    address: SocketAddr,
    successors: UnixListener,
) -> io::Result<()> {
    let own = rustix::process::geteuid();
    loop {
        let (stream, _) = successors.accept().await?;
        if socket_peercred(&stream)?.uid != own {
            continue;
        }
        let answered = tokio::time::timeout(PATIENCE, answer(stream, &listener, address)).await;
        match answered.map_err(io::Error::from).flatten() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "give the listening socket to another process"),
        }
    }
}

/// Whether it has been given.
async fn answer(
    mut stream: UnixStream,
    listener: &OwnedFd,
    address: SocketAddr,
) -> io::Result<bool> {
    let mut wanted = String::new();
    let mut reader = BufReader::new((&mut stream).take(ADDRESS_BYTES_MAX));
    reader.read_line(&mut wanted).await?;
    if wanted.trim().parse() != Ok(address) {
        return Ok(false);
    }
    if reader.buffer().is_empty() {
        // It says that it is ready for it.
        stream.read_u8().await?;
    }
    node::give_descriptor(&stream, listener.as_fd()).await?;
    Ok(true)
}
