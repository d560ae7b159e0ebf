//! The bell: a small file beside the store through which its processes queue, and wake each other.
//!
//! ```text
//! writer:    wait in line ─► BEGIN … COMMIT ─► ring ─► leave
//! listener:  (inotify: somebody rang, or died) ─► look for changes
//! ```
//!
//! **In line.** SQLite's own busy handler sleeps and tries again, longer each time. A lock on this file is
//! waited for in the kernel instead, which wakes the next writer as soon as the one before has left. It
//! orders; what excludes is still SQLite's lock.
//!
//! **Ring.** A commit becomes visible through shared memory, which no event reports; and the write to the
//! WAL, which one does, comes before it. So the writer writes a byte here *after* its commit. One that is
//! killed between the two has its file closed by the kernel, and that is an event as well.
//!
//! **A stopped writer** (SIGSTOP) in the line's first place would hold up every other host of the machine
//! beyond its deadline. Those behind it kill it: to the fleet it is as good as dead, and its own deadline
//! takes its containers.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use model::store::StoreError;
use rustix::fs::{FlockOperation, fcntl_lock, inotify};
use rustix::process::{
    Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal,
};

/// How long the first in line may take until those behind look whether it is stopped.
const PATIENCE: Duration = Duration::from_millis(400);

/// One process's place at the bell.
#[derive(Debug)]
pub(super) struct Bell {
    file: File,
    /// To the thread that looks after a first in line that does not move. Dropping it ends the thread.
    impatience: mpsc::Sender<Waiting>,
}

enum Waiting {
    Begins,
    Ends,
}

fn path_of(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push("-bell");
    PathBuf::from(name)
}

fn fatal(path: &Path, verb: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Fatal(format!("{verb} {}: {error}", path.display()))
}

impl Bell {
    /// The bell of the store at this path.
    pub(super) fn open(store: &Path) -> Result<Self, StoreError> {
        let path = path_of(store);
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
        };
        let file = open().map_err(|error| fatal(&path, "open", error))?;
        let looked_at = file
            .try_clone()
            .map_err(|error| fatal(&path, "open", error))?;
        let (impatience, waits) = mpsc::channel();
        std::thread::Builder::new()
            .name("store-patience".into())
            .spawn(move || watch_the_first(&looked_at, &waits))
            .map_err(|error| fatal(&path, "watch", error))?;
        Ok(Self { file, impatience })
    }

    /// Waits until this process is the first in line.
    pub(super) fn enter(&self) -> io::Result<Place<'_>> {
        let place = Place { bell: self };
        match fcntl_lock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(place),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
        // The thread's end would mean that nobody is impatient any more, and nothing worse.
        let _ = self.impatience.send(Waiting::Begins);
        let entered =
            rustix::io::retry_on_intr(|| fcntl_lock(&self.file, FlockOperation::LockExclusive));
        let _ = self.impatience.send(Waiting::Ends);
        entered?;
        Ok(place)
    }

    /// Tells every process that looks at the store to look again.
    pub(super) fn ring(&self) {
        if let Err(error) = self.file.write_all_at(b"!", 0) {
            // On a full disk the byte is there from the first ring; anything else is worth a look.
            tracing::warn!(%error, "the store's watchers could not be woken");
        }
    }
}

/// The first place in line, until dropped.
pub(super) struct Place<'a> {
    bell: &'a Bell,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Unlocking what is locked cannot fail.
        let _ = fcntl_lock(&self.bell.file, FlockOperation::Unlock);
    }
}

fn watch_the_first(file: &File, waits: &mpsc::Receiver<Waiting>) {
    while let Ok(Waiting::Begins) = waits.recv() {
        loop {
            match waits.recv_timeout(PATIENCE) {
                Err(mpsc::RecvTimeoutError::Timeout) => kill_if_stopped(file),
                Ok(Waiting::Begins) => {}
                Ok(Waiting::Ends) => break,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Kills the first in line if it is stopped. If it is merely slow, it is left alone.
fn kill_if_stopped(file: &File) {
    let Ok(Some(lock)) = fcntl_getlk(file, &Flock::from(FlockType::WriteLock)) else {
        return;
    };
    let Some(pid) = lock.pid else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Only once the pidfd is there does the PID stand for that process and no later one.
    if !is_stopped(pid)
        || !matches!(fcntl_getlk(file, &lock), Ok(Some(now)) if now.pid == Some(pid))
    {
        return;
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) => tracing::error!(
            pid = pid.as_raw_nonzero(),
            "a stopped process held up the store's writers: killed"
        ),
        Err(error) => tracing::error!(
            pid = pid.as_raw_nonzero(),
            %error,
            "a stopped process holds up the store's writers, and cannot be killed"
        ),
    }
}

fn is_stopped(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // `pid (name) S …`: the name may itself have parentheses.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Hears the bell of a store.
#[derive(Debug)]
pub(super) struct Ear {
    inotify: rustix::fd::OwnedFd,
}

impl Ear {
    /// Hears everything from now on.
    pub(super) fn open(store: &Path) -> Result<Self, StoreError> {
        let path = path_of(store);
        let open = || {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
            let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE;
            inotify::add_watch(&inotify, &path, flags)?;
            rustix::io::Result::Ok(inotify)
        };
        let inotify = open().map_err(|error| fatal(&path, "listen to", error))?;
        Ok(Self { inotify })
    }

    /// Blocks until the bell was rung since the last call. Several rings may be one.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        rustix::io::retry_on_intr(|| rustix::io::read(&self.inotify, &mut events))?;
        Ok(())
    }
}
