//! What is told of operations: the same for the log, `GET /debug/operations` and `conman debug operations`.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::time::milliseconds;
use model::timing::WATCHDOG_CIRCLE_AFTER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Entry, Kind, Operations, Stage};
use crate::telemetry::locks::circle::{self, SeenLock};
use crate::telemetry::locks::{self, Held, Party, Waiting};
use crate::telemetry::threads::{self, ThreadReport};

/// From when on a lock that nobody waits for is shown.
const HELD_LONG: Duration = Duration::from_secs(1);

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
    /// The locks of the process that somebody waits for, or that were held for a second or longer.
    pub locks: Vec<LockReport>,
    /// Those who wait for each other, and will for ever: each circle in words.
    pub circles: Vec<String>,
    /// The threads of the process, where one of these operations is overdue or there is a circle.
    pub threads: Vec<ThreadReport>,
}

/// A lock and everyone around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Lock)]
pub struct LockReport {
    /// Its name.
    pub name: String,
    /// Whether it is waited for with the whole thread, so that a waiter cannot be called off.
    pub blocks: bool,
    /// Who holds it; absent in the moment between two.
    pub holder: Option<PartyReport>,
    /// Who waits for it.
    pub waiters: Vec<PartyReport>,
}

/// Who holds a lock or waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LockParty)]
pub struct PartyReport {
    /// The thread that asked for it, as below `/proc/<pid>/task`.
    pub thread: u32,
    /// The task that did, by its number in this process; absent of a plain thread.
    pub task: Option<String>,
    /// For which operation, as `start repl@epoch`; absent where it was for none.
    pub operation: Option<String>,
    /// For how long.
    pub since_ms: u64,
}

impl From<&Party> for PartyReport {
    fn from(party: &Party) -> Self {
        Self {
            thread: party.thread,
            task: party.task.map(|task| task.to_string()),
            operation: party.operation.as_ref().map(|entry| entry.name()),
            since_ms: milliseconds(party.since.elapsed()),
        }
    }
}

impl fmt::Display for PartyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operation {
            Some(operation) => write!(f, "{operation}")?,
            None => f.write_str("no operation")?,
        }
        write!(f, " (thread {}", self.thread)?;
        if let Some(task) = &self.task {
            write!(f, ", task {task}")?;
        }
        write!(f, ", {} ms)", self.since_ms)
    }
}

impl fmt::Display for LockReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lock of the {}: held by ", self.name)?;
        match &self.holder {
            Some(holder) => write!(f, "{holder}")?,
            None => f.write_str("nobody")?,
        }
        for waiter in &self.waiters {
            write!(f, "; {waiter} waits")?;
        }
        Ok(())
    }
}

/// The locks that are worth a look.
fn busy(held: &[Held]) -> Vec<LockReport> {
    let worth_it = |lock: &&Held| {
        let is_old = |holder: &Party| holder.since.elapsed() >= HELD_LONG;
        !lock.waiters.is_empty() || lock.holder.as_ref().is_some_and(is_old)
    };
    let busy = held.iter().filter(worth_it).map(|lock| LockReport {
        name: lock.name.to_owned(),
        blocks: lock.waiting == Waiting::Blocks,
        holder: lock.holder.as_ref().map(PartyReport::from),
        waiters: lock.waiters.iter().map(PartyReport::from).collect(),
    });
    busy.collect()
}

impl Report {
    /// What this process is at for one of its roles.
    pub fn take(host: Option<String>, operations: &Operations) -> Self {
        // What cannot be read now is left out: the watchdog says so if it stays like that.
        let held = locks::held().unwrap_or_default();
        let seen: Vec<SeenLock> = held.iter().map(SeenLock::from).collect();
        let circles = circle::circles(&seen, WATCHDOG_CIRCLE_AFTER);
        let operations = operations.report();
        let hangs = !circles.is_empty() || operations.iter().any(|one| one.overdue);
        Self {
            host,
            pid: std::process::id(),
            operations,
            locks: busy(&held),
            circles: circles.iter().map(|one| circle::in_words(one)).collect(),
            threads: if hangs { threads::threads() } else { vec![] },
        }
    }

    /// Where each overdue operation waits, for people.
    pub(crate) fn operations_in_words(&self) -> Vec<String> {
        let overdue = self.operations.iter().filter(|one| one.overdue);
        overdue.map(OperationReport::in_words).collect()
    }

    /// Who waits for each other, who holds what, and what the threads do, for people.
    pub(crate) fn process_in_words(&self) -> Vec<String> {
        let circles = self.circles.iter().map(|text| format!("circle: {text}"));
        let locks = self.locks.iter().map(ToString::to_string);
        let threads = self.threads.iter().map(ToString::to_string);
        circles.chain(locks).chain(threads).collect()
    }
}

impl OperationReport {
    fn in_words(&self) -> String {
        let (kind, stage) = (self.kind.as_str(), self.stage.as_str());
        let mut text = format!(
            "{kind} {} is at {stage} for {} ms, {} ms after it began, and had {} ms",
            self.subject, self.stage_age_ms, self.age_ms, self.deadline_ms,
        );
        if let Some(thread) = self.thread {
            text += &format!(" (thread {thread})");
        }
        if let Some(awaits) = &self.awaits {
            text += &format!("\n{}", awaits.trim_end());
        }
        text
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
            deadline_ms: milliseconds(self.patience()),
            overdue: age > self.patience(),
            cancelled: self.cancel.is_cancelled(),
            thread: (thread != 0).then_some(thread),
            awaits,
        }
    }
}
