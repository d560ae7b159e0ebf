//! The bytes of a session, to and from its container.
//!
//! ```text
//! the host is elsewhere:        gateway ── network ── host ── container      (through its conman)
//! it is on this very machine:   gateway ───────────────────── container      (the socket itself, which its conman has opened)
//!                                  └─ the connection that it was given over: open as long as the session, for the host counts it
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::node::{self, Stream};

/// See above.
#[derive(Debug)]
pub(super) enum SessionStream {
    Through(TokioIo<Upgraded>),
    Direct(Direct),
}

/// A container's socket.
#[derive(Debug)]
pub(super) struct Direct {
    container: TcpStream,
    /// When the host's conman ends, so does the session: it would not be counted by the next one.
    counted: UnixStream,
}

impl SessionStream {
    pub(super) fn through(upgraded: Upgraded) -> Self {
        Self::Through(TokioIo::new(upgraded))
    }

    /// Takes the container's socket over the connection to its host.
    pub(super) async fn direct(upgraded: Upgraded) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::other(why.to_owned());
        let parts = upgraded
            .downcast::<TokioIo<Stream>>()
            .map_err(|_| wrong("the connection is not one to a host"))?;
        let Stream::Unix(mut counted) = parts.io.into_inner() else {
            return Err(wrong("a host elsewhere cannot give a socket"));
        };
        let fd = node::take_descriptor(&mut counted).await?;
        let container = std::net::TcpStream::from(fd);
        container.set_nonblocking(true)?;
        let container = TcpStream::from_std(container)?;
        Ok(Self::Direct(Direct { container, counted }))
    }
}

impl Direct {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.container).poll_read(context, buffer);
        if read.is_ready() {
            return read;
        }
        let mut nothing = [0; 1];
        let mut nothing = ReadBuf::new(&mut nothing);
        // The host says nothing more: whatever comes is the end.
        Pin::new(&mut self.counted).poll_read(context, &mut nothing)
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            SessionStream::Through(stream) => Pin::new(stream).poll_read(context, buffer),
            SessionStream::Direct(direct) => direct.poll_read(context, buffer),
        }
    }
}

macro_rules! on_either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            SessionStream::Through($stream) => $call,
            SessionStream::Direct(Direct {
                container: $stream, ..
            }) => $call,
        }
    };
}

impl AsyncWrite for SessionStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            SessionStream::Through(stream) => stream.is_write_vectored(),
            SessionStream::Direct(direct) => direct.container.is_write_vectored(),
        }
    }
}
