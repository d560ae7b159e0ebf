//! The keeper's place in the file system: its socket, and a directory beside it.
//!
//! The directory (the socket's path with `.keeper` added) is locked for as long as the keeper lives, so that two
//! keepers never serve one socket, and is what the scratch is mounted on. What a dead keeper left at both paths is
//! taken over; at a regular end both are removed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why the place cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another keeper is alive there.
    #[error("{path}: another keeper is alive there")]
    Taken {
        /// The socket's path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: {step}: {source}")]
    Io {
        /// Which path.
        path: PathBuf,
        /// Doing what.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The place, held.
pub(crate) struct Place {
    /// Where conman connects. Never waits.
    pub(crate) listener: OwnedFd,
    /// The directory.
    pub(crate) directory: PathBuf,
    socket: PathBuf,
    _lock: OwnedFd,
}

impl Place {
    /// Takes the place.
    pub(crate) fn take(socket: &Path) -> Result<Self, PlaceError> {
        let mut name = socket.as_os_str().to_owned();
        name.push(".keeper");
        let directory = PathBuf::from(name);
        let lock = lock(socket, &directory)?;
        let failed = |step| {
            move |errno: Errno| PlaceError::Io {
                path: socket.to_owned(),
                step,
                source: errno.into(),
            }
        };
        match rustix::fs::unlink(socket) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("remove stale socket")(errno)),
        }
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed("make socket"))?;
        let address = SocketAddrUnix::new(socket).map_err(failed("name socket"))?;
        // Nobody else may connect, not even in the moment before a chmod.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = rustix::net::bind(&listener, &address);
        rustix::process::umask(before);
        bound.map_err(failed("bind socket"))?;
        rustix::net::listen(&listener, 8).map_err(failed("listen"))?;
        Ok(Self {
            listener,
            directory,
            socket: socket.to_owned(),
            _lock: lock,
        })
    }

    /// Removes what was made. To be called when the scratch is unmounted.
    pub(crate) fn remove(self) {
        let _ = rustix::fs::unlink(&self.socket);
        let _ = rustix::fs::rmdir(&self.directory);
    }
}

fn lock(socket: &Path, directory: &Path) -> Result<OwnedFd, PlaceError> {
    let failed = |step| {
        move |errno: Errno| PlaceError::Io {
            path: directory.to_owned(),
            step,
            source: errno.into(),
        }
    };
    loop {
        match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make directory")(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed("open directory")(errno)),
        };
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(PlaceError::Taken {
                    path: socket.to_owned(),
                });
            }
            Err(errno) => return Err(failed("lock directory")(errno)),
        }
        // A keeper that was just ending may have removed it between the opening and the lock.
        let locked = rustix::fs::fstat(&opened).map_err(failed("look at directory"))?;
        match rustix::fs::stat(directory) {
            Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
                return Ok(opened);
            }
            _ => {}
        }
    }
}
