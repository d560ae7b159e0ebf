//! The stuck tracker: follows logs without end, and knows at any time who is stuck and who was.
//!
//! ```text
//!   follower ──┐ lines read, place                     ┌─► database: what was counted, and up to which place
//!   follower ──┼──────────────────► the owner's thread ─┤
//!   follower ──┘                     (owns the state)   └─► View ──► /metrics, /v1/stuck
//! ```
//!
//! One thread owns the state and the database; each source has a thread, or a task, that reads it and sends what it
//! brought. The tracker meets the gateway in its session log alone.

mod database;
mod follow;
mod metrics;
mod owner;
mod page;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

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
    /// On standard input.
    StandardInput,
}
