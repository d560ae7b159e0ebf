//! Readiness of file descriptors that tokio has no type for: pidfds, terminals, SEQPACKET sockets.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Puts a file descriptor under tokio's watch. It must be non-blocking if it is to be read or written.
///
/// # Errors
/// When epoll has no room for it.
pub(crate) fn watch(
    fd: impl Into<Arc<OwnedFd>>,
    interest: Interest,
) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` is open and stays the same description for as long as it lives, and it
    // lives at least as long as this `Arc` of it in the `AsyncFd`, which only lends it out.
    let watched = unsafe { AsyncFd::register_with_interest(fd.into(), interest) };
    watched.map_err(std::io::Error::from)
}
