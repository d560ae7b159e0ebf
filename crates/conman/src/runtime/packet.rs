//! Packets on SOCK_SEQPACKET sockets, with file descriptors beside them: how conman talks to a keeper
//! and to a container's init. Nothing here ever waits in the kernel.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use model::wire::keeper::MESSAGE_BYTES_MAX;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ready;

/// The most file descriptors that the kernel passes with one message (SCM_MAX_FD).
const FDS_MAX: usize = 253;

/// One message.
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// One end of a packet socket, under tokio's watch.
pub(super) struct PacketSocket {
    fd: AsyncFd<std::sync::Arc<OwnedFd>>,
}

impl PacketSocket {
    /// Connects to a listening socket: a Unix connect does not wait, it succeeds or fails.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::new(fd)
    }

    /// A pair: ours, and a plain one to give away.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Only ours: the other side is used as its owner likes.
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self::new(ours)?, theirs))
    }

    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self {
            fd: ready::watch(fd, interest)?,
        })
    }

    /// Sends a message, when there is room.
    pub(super) async fn send(&self, message: &impl Serialize, fds: &[OwnedFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        loop {
            let mut ready = self.fd.writable().await?;
            if let Ok(sent) = ready.try_io(|fd| send_now(fd.as_fd(), &bytes, fds)) {
                return sent;
            }
        }
    }

    /// The next message; `None` when the other side is gone. Safe to cancel.
    pub(super) async fn receive(&self) -> io::Result<Option<Packet>> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive_now(fd.as_fd())) {
                return received;
            }
        }
    }

    /// The process that listens at the other end.
    pub(super) fn peer(&self) -> io::Result<rustix::process::Pid> {
        Ok(rustix::net::sockopt::socket_peercred(self.fd.get_ref())?.pid)
    }
}

/// Sends on a socket that others use too; waits for room only if there is none.
pub(super) async fn send_on(
    socket: &OwnedFd,
    message: &impl Serialize,
    fds: &[OwnedFd],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    match send_now(socket.as_fd(), &bytes, fds) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    let watched = ready::watch(socket.try_clone()?, Interest::WRITABLE)?;
    loop {
        let mut ready = watched.writable().await?;
        if let Ok(sent) = ready.try_io(|fd| send_now(fd.as_fd(), &bytes, fds)) {
            return sent;
        }
    }
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("more fds than a request has"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
    })?;
    Ok(())
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    // Its length first: most have some hundred bytes, and a buffer for the largest is mapped and zeroed anew each time.
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let length = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut [0_u8; 0], peek));
    let length = match length {
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other?.1,
    };
    let mut bytes = vec![0; length.min(MESSAGE_BYTES_MAX)];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags)
    });
    let message = match message {
        // The other side went away with something of ours unread.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if message.flags.intersects(cut) {
        // Out of file descriptors, or not our protocol: what is left of it cannot be trusted.
        return Err(io::Error::other("a message was cut by the kernel"));
    }
    bytes.truncate(message.bytes);
    Ok(Some(Packet { bytes, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_keep_their_edges_and_their_fds() {
        let (ours, theirs) = PacketSocket::pair().unwrap();
        let other = PacketSocket::new(theirs).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        ours.send(&"one", &[write]).await.unwrap();
        ours.send(&"two", &[]).await.unwrap();
        let one = other.receive().await.unwrap().unwrap();
        assert_eq!(one.bytes, b"\"one\"");
        rustix::io::write(&one.fds[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        assert_eq!(other.receive().await.unwrap().unwrap().bytes, b"\"two\"");
        drop(ours);
        assert!(other.receive().await.unwrap().is_none());
    }
}
