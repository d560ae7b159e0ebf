//! Where a tracker keeps what must outlive its process: its counts, who is failing, what waits, and how far each
//! source was read, all of one moment.
//!
//! **Invariant:** the place up to which a source was read and what was made of it are written in one transaction.
//! Whenever the process ends, the lines behind the place count once, and the others are read again.
//!
//! A lost machine may take the last transactions with it, whole ones: those lines are read again too. So nothing
//! waits for the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use model::stuck::LogTime;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stuck::live::{Attempted, Audience, Change, Kept, Live, SourceCounts};
use stuck::tracker::Failure;

/// Raised whenever what is kept changes its meaning.
const VERSION: i64 = 1;

/// How long until a full disk is tried again: nothing tells when it has room.
const FULL_AGAIN: Duration = Duration::from_secs(1);

/// Why there is no database to use.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Somebody else has it.
    #[error("{} is in use by another tracker", .0.display())]
    InUse(PathBuf),
    /// It is of another version, or of another program.
    #[error("{} is no database of this version (it says {found}, this conman writes {VERSION})", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
    /// Anything else.
    #[error("{}: {reason}", path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// A source as it is known to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// How its lines are read, as JSON.
    pub(super) bookmark: Option<String>,
    /// How far it was read, as JSON of the follower's own.
    pub(super) place: Option<String>,
}

/// How far a source was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Set if it has changed.
    pub(super) bookmark: Option<String>,
    /// Set if it has changed.
    pub(super) place: Option<String>,
}

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    /// As it is written.
    watermark: Option<LogTime>,
}

const SCHEMA: &str = "
    CREATE TABLE sources (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, audience TEXT NOT NULL,
        counts TEXT NOT NULL, bookmark TEXT, place TEXT);
    CREATE TABLE totals (audience TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE watermark (one INTEGER PRIMARY KEY CHECK (one = 1), time INTEGER NOT NULL);
    CREATE TABLE failing (hash INTEGER PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE waiting (time INTEGER, source INTEGER, line INTEGER, hash INTEGER NOT NULL,
        entity TEXT, reason TEXT, PRIMARY KEY (time, source, line)) WITHOUT ROWID;
    PRAGMA user_version = 1;
";

const JOIN: &str = "INSERT INTO sources (number, name, audience, counts) \
    VALUES ((SELECT count(*) FROM sources), ?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET audience = ?2";

impl Database {
    /// Opens the database, or makes it. Nobody else can open it until it is dropped.
    ///
    /// # Errors
    /// As [`DatabaseError`] says.
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let fail = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => DatabaseError::InUse(path.to_owned()),
            _ => DatabaseError::Sqlite {
                path: path.to_owned(),
                reason: source.to_string(),
            },
        };
        let open = || {
            let mut connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::ZERO)?;
            // The lock is taken with the first transaction, and given back at the end.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
            let version: i64 =
                transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            let tables: i64 =
                transaction
                    .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if version == 0 && tables == 0 {
                transaction.execute_batch(SCHEMA)?;
                transaction.commit()?;
                return Ok((connection, VERSION));
            }
            transaction.commit()?;
            Ok((connection, version))
        };
        let (connection, found) = open().map_err(fail)?;
        if found != VERSION {
            let path = path.to_owned();
            return Err(DatabaseError::Version { path, found });
        }
        Ok(Self {
            connection,
            path: path.to_owned(),
            watermark: None,
        })
    }

    fn fail(&self, source: rusqlite::Error) -> DatabaseError {
        DatabaseError::Sqlite {
            path: self.path.clone(),
            reason: source.to_string(),
        }
    }

    /// Makes sources known, and gives everything that is kept. Those that are known already keep their numbers, and
    /// sources that nobody names any more stay where they are.
    ///
    /// # Errors
    /// When it cannot be read, or holds what no tracker has written.
    pub(super) fn load(
        &mut self,
        sources: &[(String, Audience)],
    ) -> Result<(Kept, Vec<Known>), DatabaseError> {
        self.load_all(sources).map_err(|source| self.fail(source))
    }

    /// Makes one source known while others are followed already. Its number is that of [`Live::join`], since both
    /// count what they know.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn join(&mut self, name: &str, audience: Audience) -> Result<Known, DatabaseError> {
        let join = || {
            self.connection.execute(
                JOIN,
                params![name, json(&audience)?, json(&SourceCounts::default())?],
            )?;
            let known = "SELECT bookmark, place FROM sources WHERE name = ?1";
            self.connection.query_row(known, [name], |row| {
                let (bookmark, place) = (row.get(0)?, row.get(1)?);
                Ok(Known { bookmark, place })
            })
        };
        join().map_err(|source| self.fail(source))
    }

    fn load_all(&mut self, sources: &[(String, Audience)]) -> rusqlite::Result<(Kept, Vec<Known>)> {
        let transaction = self.connection.transaction()?;
        for (name, audience) in sources {
            transaction.execute(
                JOIN,
                params![name, json(audience)?, json(&SourceCounts::default())?],
            )?;
        }
        let mut kept = Kept::default();
        let mut known = Vec::new();
        {
            let mut rows = transaction.prepare(
                "SELECT name, audience, counts, bookmark, place FROM sources ORDER BY number",
            )?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                kept.sources
                    .push((row.get(0)?, value(row, 1)?, value(row, 2)?));
                known.push(Known {
                    bookmark: row.get(3)?,
                    place: row.get(4)?,
                });
            }
            for audience in Audience::ALL {
                let found = transaction
                    .query_row(
                        "SELECT value FROM totals WHERE audience = ?1",
                        [json(&audience)?],
                        |row| value(row, 0),
                    )
                    .optional()?;
                kept.totals[audience as usize] = found.unwrap_or_default();
            }
            kept.watermark = transaction
                .query_row("SELECT time FROM watermark", [], |row| row.get(0))
                .optional()?
                .map(LogTime);
            let mut rows = transaction.prepare("SELECT hash, value FROM failing")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                kept.failing
                    .push((row.get::<_, i64>(0)?.cast_unsigned(), value(row, 1)?));
            }
            let mut rows = transaction
                .prepare("SELECT time, source, line, hash, entity, reason FROM waiting")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let entity: Option<String> = row.get(4)?;
                let reason: Option<String> = row.get(5)?;
                let attempt = Attempted {
                    time: LogTime(row.get(0)?),
                    line: row.get::<_, i64>(2)?.cast_unsigned(),
                    hash: row.get::<_, i64>(3)?.cast_unsigned(),
                    failure: entity.zip(reason).map(|(entity, reason)| Failure {
                        entity: entity.into(),
                        reason: reason.into(),
                    }),
                };
                let source = usize::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
                kept.waiting.push((source, attempt));
            }
        }
        transaction.commit()?;
        Ok((kept, known))
    }

    /// Writes what has changed, and how far the sources were read, by their numbers.
    ///
    /// # Errors
    /// When it cannot be written. Then nothing of it is.
    pub(super) fn store(
        &mut self,
        live: &mut Live,
        progress: &[(usize, Progress)],
    ) -> Result<(), DatabaseError> {
        let change = live.take_change();
        let watermark = live.watermark();
        // That somebody has looked, and there was no more, is nothing to write.
        if progress.is_empty() && change == Change::default() && watermark == self.watermark {
            return Ok(());
        }
        let mut is_told = false;
        loop {
            match self.store_all(live, &change, progress) {
                Ok(()) => {
                    self.watermark = watermark;
                    return Ok(());
                }
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                    // A full disk may have room again, and the lines are still there: whoever is on call has enough to do.
                    if !is_told {
                        tracing::error!(%error, "the stuck tracker waits for room on its disk");
                    }
                    is_told = true;
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a thread of its own, and no event to await"
                    )]
                    std::thread::sleep(FULL_AGAIN);
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    fn store_all(
        &mut self,
        live: &Live,
        change: &Change,
        progress: &[(usize, Progress)],
    ) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (source, Progress { bookmark, place }) in progress {
            transaction
                .prepare_cached(
                    "UPDATE sources SET counts = ?2, bookmark = coalesce(?3, bookmark), \
                     place = coalesce(?4, place) WHERE number = ?1",
                )?
                .execute(params![
                    *source as i64,
                    json(&live.counts(*source))?,
                    bookmark,
                    place
                ])?;
        }
        for (hash, failing) in &change.failing {
            let hash = hash.cast_signed();
            match failing {
                Some(failing) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO failing (hash, value) VALUES (?1, ?2)")?
                    .execute(params![hash, json(&failing)?])?,
                None => transaction
                    .prepare_cached("DELETE FROM failing WHERE hash = ?1")?
                    .execute([hash])?,
            };
        }
        if let Some((time, source, line)) = &change.gone {
            transaction
                .prepare_cached("DELETE FROM waiting WHERE (time, source, line) <= (?1, ?2, ?3)")?
                .execute(params![time.0, *source as i64, line.cast_signed()])?;
        }
        for (source, attempt) in &change.added {
            let failure = attempt.failure.as_ref();
            transaction
                .prepare_cached(
                    "INSERT INTO waiting (time, source, line, hash, entity, reason) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    attempt.time.0,
                    *source as i64,
                    attempt.line.cast_signed(),
                    attempt.hash.cast_signed(),
                    failure.map(|failure| &*failure.entity),
                    failure.map(|failure| &*failure.reason),
                ])?;
        }
        for audience in Audience::ALL {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO totals (audience, value) VALUES (?1, ?2)")?
                .execute(params![json(&audience)?, json(live.totals(audience))?])?;
        }
        if let Some(watermark) = live.watermark() {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO watermark (one, time) VALUES (1, ?1)")?
                .execute([watermark.0])?;
        }
        transaction.commit()
    }
}

fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn value<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(column, kind, error.into())
    })
}
