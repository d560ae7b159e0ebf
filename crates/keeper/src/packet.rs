//! Messages on SOCK_SEQPACKET sockets: one JSON value per packet, fds beside it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use model::wire::keeper::MESSAGE_BYTES_MAX;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most fds that the kernel passes with one message.
const FDS_MAX: usize = 253;

/// What came, if anything.
pub(crate) enum Received {
    /// A packet.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// Nothing is there now.
    Nothing,
    /// A packet too large, or with more fds than can be taken. It is lost.
    TooLarge,
    /// The other side is gone.
    Closed,
}

/// Two ends of a new socket.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Sends without ever waiting; `Errno::AGAIN` when the other side's buffer is full.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    })
    .map(drop)
}

/// Sends a value as JSON.
pub(crate) fn send_value(
    socket: impl AsFd,
    value: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(value).map_err(|_| Errno::INVAL)?;
    send(socket, &bytes, fds)
}

/// Sends a value, waiting while the other side's buffer is full.
pub(crate) fn send_value_patiently(
    socket: impl AsFd,
    value: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    loop {
        match send_value(&socket, value, fds) {
            Err(Errno::AGAIN) => {
                let mut poll = [PollFd::new(&socket, PollFlags::OUT)];
                rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None))?;
            }
            sent => return sent,
        }
    }
}

/// Takes one packet, without waiting unless `wait`.
pub(crate) fn receive(socket: impl AsFd, wait: Wait) -> Received {
    let flags = match wait {
        Wait::No => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        Wait::Yes => RecvFlags::CMSG_CLOEXEC,
    };
    // Its length first: a buffer for the largest message would stay in each init's private memory.
    let peek = flags | RecvFlags::PEEK | RecvFlags::TRUNC;
    let length = rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut [0_u8; 0], peek));
    let length = match length {
        Ok((_, length)) => length.min(MESSAGE_BYTES_MAX),
        Err(Errno::AGAIN) => return Received::Nothing,
        Err(_) => return Received::Closed,
    };
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags,
        )
    });
    let Ok(message) = received else {
        return Received::Closed;
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Received::Closed;
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Received::TooLarge;
    }
    bytes.truncate(message.bytes);
    Received::Packet(bytes, fds)
}

/// Whether to wait for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Return at once.
    No,
    /// Until one comes or the other side is gone.
    Yes,
}

/// Takes one value that the other side of a pair of ours has sent; `None` for anything else.
pub(crate) fn receive_value<T: DeserializeOwned>(socket: impl AsFd, wait: Wait) -> Option<T> {
    match receive(socket, wait) {
        Received::Packet(bytes, _) => serde_json::from_slice(&bytes).ok(),
        _ => None,
    }
}
