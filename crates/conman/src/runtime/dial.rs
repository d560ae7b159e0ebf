//! Sockets in other network namespaces.
//!
//! A socket belongs to the namespace in which it was *made*, for good; only its making needs a thread that
//! has entered there. So one OS thread does nothing but: enter by the container's pidfd, make a socket, go
//! back. The connect is tokio's, non-blocking, on the caller's own task.
//!
//! A thread that cannot go back would make every later socket in the wrong namespace: it ends instead,
//! and a new one is started at the next dial.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};

use model::api::{Refusal, RefusalCode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::kept::Member;
use super::{not_listening, not_running};
use crate::telemetry::locks::Mutex;

struct Wanted {
    pidfd: Arc<OwnedFd>,
    family: AddressFamily,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

/// Dials into containers.
pub(super) struct Dialer {
    thread: Mutex<Option<mpsc::Sender<Wanted>>>,
}

impl Default for Dialer {
    fn default() -> Self {
        Self {
            thread: Mutex::new("thread that dials", None),
        }
    }
}

impl Dialer {
    /// As [`Dialer::dial`], for a container's caller.
    pub(super) async fn dial_member(
        &self,
        member: &Member,
        port: u16,
    ) -> Result<TcpStream, Refusal> {
        let id = &member.running.id;
        let dialed = self.dial(&member.pidfd, port).await;
        dialed.map_err(|error| match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => not_listening(id, port),
            Some(libc::ESRCH) => not_running(id),
            _ => Refusal::new(
                RefusalCode::Internal,
                format!("dial port {port} of {id}: {error}"),
            ),
        })
    }

    /// Connects to a port on the loopback of the namespace in which the process of `pidfd` lives: over
    /// IPv4, and where that is refused over IPv6, since servers that bind "localhost" may get either.
    ///
    /// # Errors
    /// ECONNREFUSED when nobody listens, ESRCH when the process is dead.
    pub(super) async fn dial(&self, pidfd: &Arc<OwnedFd>, port: u16) -> io::Result<TcpStream> {
        match self
            .dial_address(pidfd, Ipv4Addr::LOCALHOST.into(), port)
            .await
        {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let second = self
                    .dial_address(pidfd, Ipv6Addr::LOCALHOST.into(), port)
                    .await;
                // Without IPv6 there the first answer stands.
                second.map_err(|_| error)
            }
            other => other,
        }
    }

    async fn dial_address(
        &self,
        pidfd: &Arc<OwnedFd>,
        address: IpAddr,
        port: u16,
    ) -> io::Result<TcpStream> {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = self.socket(pidfd, family).await?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let stream = socket.connect(SocketAddr::new(address, port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn socket(&self, pidfd: &Arc<OwnedFd>, family: AddressFamily) -> io::Result<OwnedFd> {
        let (reply, made) = oneshot::channel();
        self.ask(Wanted {
            pidfd: pidfd.clone(),
            family,
            reply,
        })?;
        made.await
            .map_err(|_| io::Error::other("the dialing thread ended"))?
    }

    fn ask(&self, mut wanted: Wanted) -> io::Result<()> {
        let mut thread = self.thread.lock();
        if let Some(sender) = thread.as_ref() {
            match sender.send(wanted) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(unheard)) => wanted = unheard,
            }
        }
        let sent = thread.insert(start()?).send(wanted);
        sent.map_err(|_| io::Error::other("the dialing thread ended"))
    }
}

/// The thread ends when the sender is dropped.
fn start() -> io::Result<mpsc::Sender<Wanted>> {
    let (sender, receiver) = mpsc::channel::<Wanted>();
    let home = std::fs::File::open("/proc/thread-self/ns/net")?;
    let builder = std::thread::Builder::new().name("dial".to_owned());
    builder.stack_size(64 * 1024).spawn(move || {
        for wanted in receiver {
            let made = make(&wanted);
            let back = rustix::thread::move_into_link_name_space(
                home.as_fd(),
                Some(LinkNameSpaceType::Network),
            );
            // Who asked may have gone: the socket closes with the reply.
            let _ = wanted.reply.send(made);
            if let Err(error) = back {
                tracing::error!(%error, "return from a container's network namespace");
                return;
            }
        }
    })?;
    Ok(sender)
}

fn make(wanted: &Wanted) -> io::Result<OwnedFd> {
    rustix::thread::move_into_thread_name_spaces(
        wanted.pidfd.as_fd(),
        ThreadNameSpaceType::NETWORK,
    )?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        wanted.family,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests;
