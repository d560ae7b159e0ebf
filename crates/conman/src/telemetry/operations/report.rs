//! What is told of operations: the same for the log, `GET /debug/operations` and `conman debug operations`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Entry, Kind, Operations, Stage};

/// One operation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Operation)]
pub struct OperationReport {
    /// Its number in its process.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// On what: a repl, or a container as `repl@epoch`.
    pub subject: String,
    /// What it is at.
    pub stage: Stage,
    /// For how long it has been under way.
    pub age_ms: u64,
    /// For how long it has been at its stage.
    pub stage_age_ms: u64,
    /// How long it may take from its beginning before it counts as stuck.
    pub deadline_ms: u64,
    /// Whether it has taken longer.
    pub overdue: bool,
    /// Whether it was told to end, and has not.
    pub cancelled: bool,
    /// The thread that brought it to its stage, as below `/proc/<pid>/task`; absent before any has.
    pub thread: Option<u32>,
    /// The futures that it waits for, each with how long; absent of those that are not one future.
    pub awaits: Option<String>,
}

/// What one process is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ProcessOperations)]
pub struct Report {
    /// The host that the process runs; absent of a gateway.
    pub host: Option<String>,
    /// Its process id.
    pub pid: u32,
    /// What is under way, the oldest first.
    pub operations: Vec<OperationReport>,
}

impl Report {
    /// What this process is at for one of its roles.
    pub fn take(host: Option<String>, operations: &Operations) -> Self {
        Self {
            host,
            pid: std::process::id(),
            operations: operations.report(),
        }
    }
}

/// What a gateway and every host are at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FleetOperations)]
pub struct FleetReport {
    /// The gateway that was asked, then every host that answers.
    pub processes: Vec<Report>,
    /// The hosts that do not.
    pub unreachable: Vec<String>,
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Entry {
    pub(super) fn report(&self, awaits: Option<String>) -> OperationReport {
        let age = self.begun.elapsed();
        let staged = Duration::from_micros(self.staged_us.load(Ordering::Relaxed));
        let thread = self.thread.load(Ordering::Relaxed);
        OperationReport {
            id: self.id,
            kind: self.kind,
            subject: self.subject.clone(),
            stage: self.stage(),
            age_ms: milliseconds(age),
            stage_age_ms: milliseconds(age.saturating_sub(staged)),
            deadline_ms: milliseconds(self.patience),
            overdue: age > self.patience,
            cancelled: self.cancel.is_cancelled(),
            thread: (thread != 0).then_some(thread),
            awaits,
        }
    }
}
