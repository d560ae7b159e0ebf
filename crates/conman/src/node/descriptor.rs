//! Passing an open file from one process of a machine to another, over the Unix socket between them.
//!
//! A descriptor comes beside bytes, and is lost if they are read by somebody who does not expect it. So who takes says first that
//! it reads the socket itself, and who gives waits for that.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// What either side says.
const WORD: u8 = b'!';

/// Gives a descriptor to the process at the other end, which [`take`]s it, and whose word for that has been read.
///
/// # Errors
/// The operating system's, and when the other side goes away.
pub(crate) async fn give(stream: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for one descriptor"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::sendmsg(
                stream.as_fd(),
                &[IoSlice::new(&[WORD])],
                &mut ancillary,
                flags,
            )?;
            Ok(())
        })
        .await
}

/// Takes the descriptor that the process at the other end [`give`]s.
///
/// # Errors
/// The operating system's, and when the other side goes away or gives none.
pub(crate) async fn take(stream: &mut UnixStream) -> io::Result<OwnedFd> {
    stream.write_u8(WORD).await?;
    stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut word = [0];
            let mut into = [IoSliceMut::new(&mut word)];
            rustix::net::recvmsg(stream.as_fd(), &mut into, &mut ancillary, flags)?;
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = part
                    && let Some(fd) = fds.next()
                {
                    return Ok(fd);
                }
            }
            Err(io::Error::other("no descriptor came"))
        })
        .await
}
