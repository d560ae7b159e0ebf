//! The stuck tracker: follows logs without end, and knows at any time who is stuck and who was.
//!
//! ```text
//!   follower ──┐ lines read, place                     ┌─► database: what was counted, and up to which place
//!   follower ──┼──────────────────► the owner's thread ─┤
//!   follower ──┘                     (owns the state)   └─► View ──► /metrics, /v1/stuck
//! ```
//!
//! One thread owns the state and the database; each source has a thread that reads it and sends what it brought. The
//! tracker meets the gateway in its session log alone.

mod database;
mod follow;
mod metrics;
mod owner;
mod page;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stuck::live::{Audience, Rules};
use stuck::query::Query;

pub use self::database::DatabaseError;
pub use self::owner::Tracker;
pub use self::page::{WORST_DEFAULT, serve};
pub use self::view::View;

/// What a tracker is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps what must outlive it.
    pub database: PathBuf,
    /// Its rules.
    pub rules: Rules,
    /// What it follows.
    pub sources: Vec<Source>,
}

/// One source.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, in metrics and in the database: what is read under another name is read anew.
    pub name: String,
    /// Whose attempts it tells of.
    pub audience: Audience,
    /// How its lines are read.
    pub query: Arc<Query>,
    /// Where its lines are.
    pub kind: SourceKind,
}

/// Where lines are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// In a file that grows, is rotated, is truncated.
    File(PathBuf),
    /// In every file that a pattern matches, now or later; each is a source of its own, named by its path.
    Files(String),
    /// On standard input.
    StandardInput,
    /// In the journal of systemd.
    Journal(Journal),
    /// In Grafana Loki.
    Loki(Box<Loki>),
}

/// A part of systemd's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// A unit, or a match as `journalctl` takes it, as in `SYSLOG_IDENTIFIER=gate`.
    pub of: String,
    /// Where its files are; none for this machine's own.
    pub directory: Option<PathBuf>,
    /// How far back the first reading begins.
    pub since: Duration,
}

/// What is asked of a Loki.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loki {
    /// Its address, as in `https://loki:3100`.
    pub url: String,
    /// What is asked for, in LogQL.
    pub query: String,
    /// The tenant, where it has several.
    pub tenant: Option<String>,
    /// A file with what the header `Authorization` is to say.
    pub authorization: Option<PathBuf>,
    /// How far back the first reading begins.
    pub since: Duration,
    /// How late an entry may come to Loki and still be found in its place.
    pub lateness: Duration,
}
