//! The store's file: what makes it ours, its tables, and the queries on them.
//!
//! `item` is the state, `change` the history that watches read (a change without a value is a tombstone),
//! and `meta` has the two revisions: the newest, and the oldest that a watch may start from.

use std::path::Path;

use model::id::Revision;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::store::{Change, KeyValue, Operation, Range, StoreError, Target, Txn, TxnOutcome};

/// "conm" in SQLite's header: tells our file from any other SQLite file.
const APPLICATION_ID: i32 = 0x636f_6e6d;
/// The format of the tables below. A higher one is a newer conman's.
const FORMAT: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE item (
        key TEXT PRIMARY KEY NOT NULL,
        value TEXT NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE change (
        revision INTEGER NOT NULL,
        position INTEGER NOT NULL,
        key TEXT NOT NULL,
        value TEXT,
        created INTEGER NOT NULL,
        PRIMARY KEY (revision, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (
        only INTEGER PRIMARY KEY CHECK (only = 0),
        revision INTEGER NOT NULL,
        oldest INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (0, 0, 1);
";

/// How long a connection waits for SQLite's own locks (recovery after a crash, a first opening). The
/// writers of several processes queue before that, at the bell.
const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// The WAL is cut back to this after a checkpoint.
const WAL_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// What a failing query means for its caller, when nothing was written by it.
pub(super) fn classify(error: &rusqlite::Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::Fatal("the file is not an SQLite file".into()),
        // Room may be made.
        Some(ErrorCode::DiskFull) => StoreError::Unavailable(format!("no space is left: {text}")),
        Some(ErrorCode::DatabaseCorrupt) => {
            StoreError::Fatal(format!("the file is damaged: {text}"))
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            StoreError::Fatal(text)
        }
        _ => StoreError::Unavailable(text),
    }
}

/// What of a file there is.
enum Found {
    /// Nothing at all, or an SQLite file without a table.
    Blank,
    /// A store of this format.
    Ours,
}

/// Opens the file for writing and makes it ours if it is blank.
///
/// # Errors
/// [`StoreError::Fatal`] when it is not a store, or a newer conman's; it is left as it was.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    // Look before touching: a foreign file must not even be switched to WAL.
    inspect(&connection, path)?;
    set_up(&mut connection, path)?;
    Ok(connection)
}

/// Opens a file that [`open_writer`] has opened before.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = open(path, OpenFlags::empty())?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(|error| named(path, &error))?;
    Ok(connection)
}

fn open(path: &Path, extra: OpenFlags) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra;
    let connection =
        Connection::open_with_flags(path, flags).map_err(|error| named(path, &error))?;
    connection
        .busy_timeout(BUSY)
        .map_err(|error| named(path, &error))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// [`classify`] with the file's name in the text.
fn named(path: &Path, error: &rusqlite::Error) -> StoreError {
    let path = path.display();
    match classify(error) {
        StoreError::Fatal(text) => StoreError::Fatal(format!("{path}: {text}")),
        StoreError::Unavailable(text) => StoreError::Unavailable(format!("{path}: {text}")),
        other => other,
    }
}

fn inspect(connection: &Connection, path: &Path) -> Result<Found, StoreError> {
    let number = |pragma: &str| -> Result<i32, StoreError> {
        connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .map_err(|error| named(path, &error))
    };
    let (application_id, format) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| named(path, &error))?;
    let path = path.display();
    match (application_id, format, tables) {
        (0, 0, 0) => Ok(Found::Blank),
        (APPLICATION_ID, FORMAT, _) => Ok(Found::Ours),
        (APPLICATION_ID, newer, _) if newer > FORMAT => Err(StoreError::Fatal(format!(
            "{path} is the store of a newer conman: its format is {newer}, this conman knows {FORMAT}"
        ))),
        (APPLICATION_ID, strange, _) => Err(StoreError::Fatal(format!(
            "{path} has the unknown format {strange}, this conman knows {FORMAT}"
        ))),
        _ => Err(StoreError::Fatal(format!(
            "{path} is an SQLite file, but not a store of conman's"
        ))),
    }
}

fn set_up(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let steps = |connection: &mut Connection| -> rusqlite::Result<()> {
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        debug_assert_eq!(mode, "wal");
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)
    };
    steps(connection).map_err(|error| named(path, &error))?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|error| named(path, &error))?;
    // Again, inside the transaction: another process may have made it ours meanwhile.
    if let Found::Blank = inspect(&transaction, path)? {
        let create = || -> rusqlite::Result<()> {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", FORMAT)
        };
        create().map_err(|error| named(path, &error))?;
    }
    transaction.commit().map_err(|error| named(path, &error))
}

fn as_column(revision: Revision) -> i64 {
    // A revision a nanosecond would take three centuries to get there.
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn from_column(column: i64) -> Revision {
    Revision(u64::try_from(column).unwrap_or(0))
}

/// The newest revision, and the oldest that a watch may start from.
pub(super) fn revisions(connection: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    connection
        .prepare_cached("SELECT revision, oldest FROM meta")?
        .query_row([], |row| {
            Ok((from_column(row.get(0)?), from_column(row.get(1)?)))
        })
}

fn to_item(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: row.get(0)?,
        value: row.get(1)?,
        create: from_column(row.get(2)?),
        modified: from_column(row.get(3)?),
    })
}

pub(super) fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    connection
        .prepare_cached("SELECT key, value, created, modified FROM item WHERE key = ?1")?
        .query_row([key], to_item)
        .optional()
}

pub(super) fn range(connection: &Connection, prefix: &str) -> rusqlite::Result<Range> {
    let transaction = connection.unchecked_transaction()?;
    let (revision, _) = revisions(&transaction)?;
    let mut items = Vec::new();
    {
        // Text sorts by its bytes: all with the prefix follow it, and the first without ends the walk.
        let mut statement = transaction.prepare_cached(
            "SELECT key, value, created, modified FROM item WHERE key >= ?1 ORDER BY key",
        )?;
        for item in statement.query_map([prefix], to_item)? {
            let item = item?;
            if !item.key.starts_with(prefix) {
                break;
            }
            items.push(item);
        }
    }
    Ok(Range { revision, items })
}

/// What a watch that has seen everything before `from` can deliver, and from where it goes on.
pub(super) enum News {
    /// These, possibly none, then from there.
    Changes(Vec<Change>, Revision),
    /// The history before this revision is gone.
    Compacted(Revision),
}

pub(super) fn news(
    connection: &Connection,
    prefix: &str,
    from: Revision,
) -> rusqlite::Result<News> {
    let transaction = connection.unchecked_transaction()?;
    let (newest, oldest) = revisions(&transaction)?;
    if newest < from {
        return Ok(News::Changes(Vec::new(), from));
    }
    if from < oldest {
        return Ok(News::Compacted(oldest));
    }
    let mut changes = Vec::new();
    {
        let mut statement = transaction.prepare_cached(
            "SELECT key, value, created, revision FROM change WHERE revision >= ?1
             ORDER BY revision, position",
        )?;
        let mut rows = statement.query([as_column(from)])?;
        while let Some(row) = rows.next()? {
            // Borrowed: most changes are beats, which most watches do not want.
            let key = row.get_ref(0)?.as_str()?;
            if !key.starts_with(prefix) {
                continue;
            }
            let (key, revision) = (key.to_owned(), from_column(row.get(3)?));
            changes.push(match row.get::<_, Option<String>>(1)? {
                Some(value) => Change::Put(KeyValue {
                    key,
                    value,
                    create: from_column(row.get(2)?),
                    modified: revision,
                }),
                None => Change::Delete { key, revision },
            });
        }
    }
    Ok(News::Changes(changes, Revision(newest.0 + 1)))
}

/// Checks and carries out one of ours inside an SQLite transaction that the caller commits.
pub(super) fn apply(connection: &Connection, txn: &Txn) -> rusqlite::Result<TxnOutcome> {
    let mut current = Vec::with_capacity(txn.compares.len());
    let mut holds = true;
    for compare in &txn.compares {
        let item = get(connection, &compare.key)?;
        let revision = item
            .as_ref()
            .map_or(Revision::ABSENT, |item| match compare.target {
                Target::Create => item.create,
                Target::Modified => item.modified,
            });
        holds &= revision == compare.revision;
        current.push(item);
    }
    if !holds {
        return Ok(TxnOutcome::Rejected { current });
    }
    let (newest, _) = revisions(connection)?;
    let revision = Revision(newest.0 + 1);
    let mut position = 0;
    for operation in &txn.operations {
        let (key, value, created) = match operation {
            Operation::Put { key, value } => {
                let created: i64 = connection
                    .prepare_cached(
                        "INSERT INTO item VALUES (?1, ?2, ?3, ?3) ON CONFLICT (key) DO UPDATE
                         SET value = excluded.value, modified = excluded.modified
                         RETURNING created",
                    )?
                    .query_row(params![key, value, as_column(revision)], |row| row.get(0))?;
                (key, Some(value), created)
            }
            Operation::Delete { key } => {
                let deleted = connection
                    .prepare_cached("DELETE FROM item WHERE key = ?1")?
                    .execute([key])?;
                if deleted == 0 {
                    continue;
                }
                (key, None, 0)
            }
        };
        connection
            .prepare_cached("INSERT INTO change VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![as_column(revision), position, key, value, created])?;
        position += 1;
    }
    if position == 0 {
        return Ok(TxnOutcome::Committed(newest));
    }
    connection
        .prepare_cached("UPDATE meta SET revision = ?1")?
        .execute([as_column(revision)])?;
    Ok(TxnOutcome::Committed(revision))
}

/// Forgets the history before `oldest`, inside an SQLite transaction that the caller commits.
pub(super) fn compact(connection: &Connection, oldest: Revision) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM change WHERE revision < ?1")?
        .execute([as_column(oldest)])?;
    connection
        .prepare_cached("UPDATE meta SET oldest = max(oldest, min(?1, revision + 1))")?
        .execute([as_column(oldest)])?;
    Ok(())
}
