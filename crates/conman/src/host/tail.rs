//! A container's output as a stream of bytes, and its growth.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use model::id::ContainerId;
use rustix::fs::inotify;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::runtime::Runtime;

const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Sends the container's output, and with `follow` what is added until `gone` is cancelled.
pub(super) async fn send(
    runtime: Arc<dyn Runtime>,
    id: ContainerId,
    follow: Option<CancellationToken>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = try_send(&*runtime, &id, follow, &pieces).await {
        // The reader may be gone, which ends the stream all the same.
        let _ = pieces.send(Err(error)).await;
    }
}

struct Reader {
    path: PathBuf,
    file: File,
}

async fn try_send(
    runtime: &dyn Runtime,
    id: &ContainerId,
    follow: Option<CancellationToken>,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let files = runtime.logs(id).0;
    let watch = match (&follow, files.last().and_then(|path| path.parent())) {
        (Some(_), Some(directory)) => Some(watch_directory(directory)?),
        _ => None,
    };
    let mut reader = None;
    for path in files {
        let Some(mut next) = open(path).await? else {
            continue;
        };
        if !next.send(pieces).await? {
            return Ok(());
        }
        reader = Some(next);
    }
    let (Some(gone), Some(watch)) = (follow, watch) else {
        return Ok(());
    };
    loop {
        let is_last_round = tokio::select! {
            () = gone.cancelled() => true,
            () = pieces.closed() => return Ok(()),
            changed = changed(&watch) => { changed?; false }
        };
        if let Some(reader) = &mut reader
            && !reader.send(pieces).await?
        {
            return Ok(());
        }
        // The files are used in turn: when the other one is the newest, it begins anew.
        if let Some(newest) = runtime.logs(id).0.pop()
            && reader.as_ref().is_none_or(|reader| reader.path != newest)
            && let Some(mut next) = open(newest).await?
        {
            if !next.send(pieces).await? {
                return Ok(());
            }
            reader = Some(next);
        }
        if is_last_round {
            return Ok(());
        }
    }
}

async fn open(path: PathBuf) -> io::Result<Option<Reader>> {
    match File::open(&path).await {
        Ok(file) => Ok(Some(Reader { path, file })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Reader {
    /// Sends everything up to the end; false when nobody reads any more.
    async fn send(&mut self, pieces: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<bool> {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
            let length = (&mut self.file)
                .take(PIECE_BYTES_MAX as u64)
                .read_to_end(&mut piece)
                .await?;
            if length == 0 {
                return Ok(true);
            }
            if pieces.send(Ok(piece.into())).await.is_err() {
                return Ok(false);
            }
        }
    }
}

fn watch_directory(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&watch, directory, events)?;
    crate::fd::watch(watch)
}

/// Waits for a change and forgets all that are known: what changed is looked up.
async fn changed(watch: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0_u8; 4096];
    watch
        .async_io(Interest::READABLE, |fd| {
            rustix::io::read(fd, &mut buffer).map_err(io::Error::from)
        })
        .await?;
    Ok(())
}
