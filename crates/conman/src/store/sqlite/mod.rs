//! The store in one SQLite file, shared by the processes of one machine.
//!
//! ```text
//! txn ───► writer thread ──(all that wait, as one SQLite commit = one fsync)──► file ──► ring the bell
//! range ─► reader thread ─────────────────────────────────────────────────────► file
//! watch ◄── reader thread ◄── woken by: own commits, the bell of other processes
//! ```
//!
//! One thread writes. It takes every transaction that waits, up to `BATCH_MAX`, checks and applies each
//! at its own revision inside one SQLite transaction, and answers all of them after its commit: a
//! hundred concurrent claims cost a few fsyncs, not a hundred. Nobody is told of anything that is not
//! on the disk. Whether a transaction was written is unknown only if the commit itself failed: that is
//! [`StoreError::Ambiguous`].

mod bell;
mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use model::id::Revision;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{oneshot, watch};

use self::bell::{Bell, Ear};
use self::file::News;
use super::{Change, KeyValue, Range, Store, StoreError, Txn, TxnOutcome};

/// The most transactions in one commit: bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 256;

/// How many revisions of history are kept for watches: at the default renewal of three hosts, about
/// half an hour. A watch that was away for longer ranges again.
pub const HISTORY_REVISIONS: u64 = 10_000;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Write {
    Txn(Txn, Answer<TxnOutcome>),
    Compact(Revision, Answer<()>),
}

/// Answers one request of a batch, once it is known what became of the batch.
type Reply = Box<dyn FnOnce(Result<(), StoreError>)>;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A store in a file. Clones share its threads, which end with the last of them.
#[derive(Debug, Clone)]
pub struct Sqlite {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    writer: mpsc::Sender<Write>,
    reader: mpsc::Sender<Read>,
    /// Signals that there may be changes.
    rung: Arc<watch::Sender<()>>,
    bell: Arc<Bell>,
    closed: Arc<AtomicBool>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The writer and the reader end with their channels; the listener must be woken to see it.
        self.closed.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl Sqlite {
    /// Opens the store at `path`, and creates it if there is nothing.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when what is there is not a store, or a newer conman's, or cannot be
    /// opened; it is left as it was.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(path.into(), HISTORY_REVISIONS)
    }

    fn open_with(path: PathBuf, history_revisions: u64) -> Result<Self, StoreError> {
        let write = file::open_writer(&path)?;
        let read = file::open_reader(&path)?;
        let bell = Arc::new(Bell::open(&path)?);
        let ear = Ear::open(&path)?;
        let rung = Arc::new(watch::Sender::new(()));
        let closed = Arc::new(AtomicBool::new(false));

        let (writer, writes) = mpsc::channel();
        let (reader, reads) = mpsc::channel::<Read>();
        let own = Writer {
            connection: write,
            bell: Arc::clone(&bell),
            rung: Arc::clone(&rung),
            history_revisions,
        };
        spawn(&path, "store-writer", move || own.run(&writes))?;
        spawn(&path, "store-reader", move || {
            while let Ok(job) = reads.recv() {
                job(&read);
            }
        })?;
        let (heard, end) = (Arc::clone(&rung), Arc::clone(&closed));
        spawn(&path, "store-listener", move || listen(&ear, &heard, &end))?;
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                writer,
                reader,
                rung,
                bell,
                closed,
            }),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Forgets the history before `oldest`. The writer does this by itself as history grows.
    ///
    /// # Errors
    /// As those of a transaction.
    pub async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.write(|answer| Write::Compact(oldest, answer)).await
    }

    async fn write<T>(&self, request: impl FnOnce(Answer<T>) -> Write) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        if self.shared.writer.send(request(answer)).is_err() {
            return Err(StoreError::Unavailable("its writer has ended".into()));
        }
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Ambiguous("its writer ended on the way".into())),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Read = Box::new(move |connection| {
            // Whoever asked may have gone.
            let _ = answer.send(look(connection).map_err(|error| file::classify(&error)));
        });
        let ended = || StoreError::Unavailable("its reader has ended".into());
        self.shared.reader.send(job).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn spawn(path: &Path, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    match thread::Builder::new().name(name.into()).spawn(run) {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::Fatal(format!(
            "open {}: {error}",
            path.display()
        ))),
    }
}

fn listen(ear: &Ear, rung: &watch::Sender<()>, closed: &AtomicBool) {
    while !closed.load(Ordering::Acquire) {
        if let Err(error) = ear.wait() {
            tracing::error!(%error, "the store's bell cannot be heard any more");
            return;
        }
        rung.send_replace(());
    }
}

struct Writer {
    connection: Connection,
    bell: Arc<Bell>,
    rung: Arc<watch::Sender<()>>,
    history_revisions: u64,
}

impl Writer {
    fn run(self, writes: &mpsc::Receiver<Write>) {
        while let Ok(first) = writes.recv() {
            let place = match self.bell.enter() {
                Ok(place) => Some(place),
                Err(error) => {
                    // SQLite's own lock still excludes; only the order in the line is lost.
                    tracing::warn!(%error, "could not wait in the store's line");
                    None
                }
            };
            // Only now: those that came while this one was waiting in line go with it.
            let mut batch = vec![first];
            batch.extend(writes.try_iter().take(BATCH_MAX - 1));
            self.commit(batch);
            drop(place);
        }
    }

    fn commit(&self, batch: Vec<Write>) {
        let mut answers: Vec<Reply> = Vec::new();
        match self.apply(batch, &mut answers) {
            Ok(()) => {
                let committed = self.connection.execute_batch("COMMIT").map_err(|error| {
                    self.roll_back();
                    match error.sqlite_error_code() {
                        // It met the end of the disk before the write that makes the others count.
                        Some(ErrorCode::DiskFull) => file::classify(&error),
                        // Before the commit nothing could be seen; from here on it may have been.
                        _ => StoreError::Ambiguous(format!("commit: {error}")),
                    }
                });
                if committed.is_ok() {
                    self.bell.ring();
                    self.rung.send_replace(());
                }
                for answer in answers {
                    answer(committed.clone());
                }
            }
            Err(error) => {
                self.roll_back();
                for answer in answers {
                    answer(Err(file::classify(&error)));
                }
            }
        }
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the store's transaction could not be rolled back");
        }
    }

    /// Begins and applies; pushes every request's answer first, so that all hear of a failure.
    fn apply(&self, batch: Vec<Write>, answers: &mut Vec<Reply>) -> rusqlite::Result<()> {
        let mut failed = self.connection.execute_batch("BEGIN IMMEDIATE").err();
        for write in batch {
            match write {
                Write::Txn(txn, answer) => {
                    let mut outcome = None;
                    if failed.is_none() {
                        match file::apply(&self.connection, &txn) {
                            Ok(applied) => outcome = Some(applied),
                            Err(error) => failed = Some(error),
                        }
                    }
                    answers.push(Box::new(move |committed| {
                        let nothing = || StoreError::Unavailable("nothing was done".into());
                        let _ = answer.send(committed.and_then(|()| outcome.ok_or_else(nothing)));
                    }));
                }
                Write::Compact(oldest, answer) => {
                    if failed.is_none() {
                        failed = file::compact(&self.connection, oldest).err();
                    }
                    answers.push(Box::new(move |committed| {
                        let _ = answer.send(committed);
                    }));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => self.bound_history(),
        }
    }

    /// Keeps history between its bound and a quarter more, so that not every commit deletes.
    fn bound_history(&self) -> rusqlite::Result<()> {
        let (newest, oldest) = file::revisions(&self.connection)?;
        let kept = (newest.0 + 1).saturating_sub(oldest.0);
        if kept <= self.history_revisions + self.history_revisions / 4 {
            return Ok(());
        }
        file::compact(
            &self.connection,
            Revision((newest.0 + 1).saturating_sub(self.history_revisions)),
        )
    }
}

impl Store for Sqlite {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.read(move |connection| file::range(connection, &prefix)))
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.read(move |connection| file::get(connection, &key)))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(async move {
            super::check_txn(&txn)?;
            self.write(|answer| Write::Txn(txn, answer)).await
        })
    }

    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        let store = self.clone();
        let prefix = prefix.to_owned();
        let rung = self.shared.rung.subscribe();
        let from = Some(from.max(Revision(1)));
        stream::unfold((from, rung), move |(from, mut rung)| {
            let store = store.clone();
            let prefix = prefix.clone();
            async move {
                let mut from = from?;
                loop {
                    rung.borrow_and_update();
                    let prefix = prefix.clone();
                    let news = store.read(move |connection| file::news(connection, &prefix, from));
                    match news.await {
                        Err(error) => return Some((Err(error), (None, rung))),
                        Ok(News::Compacted(oldest)) => {
                            return Some((Err(StoreError::Compacted { oldest }), (None, rung)));
                        }
                        Ok(News::Changes(changes, next)) if !changes.is_empty() => {
                            return Some((Ok(changes), (Some(next), rung)));
                        }
                        Ok(News::Changes(_, next)) => from = next,
                    }
                    // The sender lives in `store`: this cannot fail.
                    let _ = rung.changed().await;
                }
            }
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests;
