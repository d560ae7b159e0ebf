//! Descriptors that the reactor watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has the reactor watch a descriptor of our own.
///
/// # Errors
/// When the kernel cannot poll it, or the process may watch no more.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, always gives the same descriptor, and the
    // returned `AsyncFd` owns it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
