//! One repl on one host, from the first wish for it to its release.
//!
//! ```text
//!            committed        started                 grace over
//!  Claiming ──────────► Starting ────► Running ─► Destroying ─► Killing ─► Releasing ─► (gone)
//!     ▲ │                  │ failed       │             │          ▲           ▲
//!     │ └─ lost ─► (gone)  └──────────────┼─────────────┼──────────┼───────────┤
//!  Asking: the store says it is mine      └─ dead ──────┴─ dead ───┴─ dead ────┘
//! ```
//!
//! *Dead* always means proven dead. A container whose lease was lost is [`After::Abandon`]ed: there is
//! nothing left to release.

use std::time::Duration;

use crate::api::ContainerState;
pub use crate::id::Ticket;
use crate::id::{Epoch, HostId, Incarnation};
use crate::time::BootTime;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Somebody holds this host for the owner; the store is being asked.
    Asking,
    /// The claim is on its way.
    Claiming,
    /// Owned; being started.
    Starting,
    /// Its process runs.
    Running,
    /// SIGTERM was sent.
    Destroying {
        /// When SIGKILL follows.
        kill_at: BootTime,
    },
    /// SIGKILL was sent.
    Killing,
    /// Proven dead, or never started; being released, handed off or forgotten.
    Releasing,
}

/// What becomes of the repl once its container is proven dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// It is free.
    Release,
    /// It goes to another host.
    HandOff(Target),
    /// The lease is lost: the repl is no longer this host's to give.
    Abandon,
}

/// A host that takes repls over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Who.
    pub host: HostId,
    /// Its registration, as read.
    pub incarnation: Incarnation,
    /// How many more containers it may be given.
    pub room: u32,
}

/// A stop that came while the container could not be stopped yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) grace: Duration,
}

/// One repl on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Where it is in its life.
    pub phase: Phase,
    /// The owner's epoch, once claimed.
    pub epoch: Option<Epoch>,
    /// What becomes of the repl afterwards.
    pub after: After,
    /// Sessions joined to it now.
    pub sessions: u32,
    /// When its process started.
    pub started: Option<BootTime>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) idle_since: BootTime,
    /// Sessions that wait for it to run, or to be gone.
    pub(super) waiting: Vec<Ticket>,
    /// Sessions that came while the store was being asked, and want a claim if the repl is not ours.
    pub(super) claimers: Vec<Ticket>,
    /// Sessions that came for an epoch before the store has said which epoch this is.
    pub(super) knowing: Vec<(Ticket, Epoch)>,
    /// Stops that came for an epoch before the store has said which epoch this is.
    pub(super) early_stops: Vec<(Ticket, Epoch, Stop)>,
    /// Callers that wait for its end.
    pub(super) stopping: Vec<Ticket>,
    /// A stop that waits for the start to end.
    pub(super) stop: Option<Stop>,
}

impl Container {
    pub(super) fn new(phase: Phase, epoch: Option<Epoch>, now: BootTime) -> Self {
        Self {
            phase,
            epoch,
            after: After::Release,
            sessions: 0,
            started: None,
            idle_timeout: None,
            idle_since: now,
            waiting: vec![],
            claimers: vec![],
            knowing: vec![],
            early_stops: vec![],
            stopping: vec![],
            stop: None,
        }
    }

    /// A session waits for it, for the epoch that it came for if it knows one.
    pub(super) fn wait(&mut self, ticket: Ticket, wanted: Option<Epoch>) {
        match wanted {
            Some(wanted) if self.epoch.is_none() => self.knowing.push((ticket, wanted)),
            _ => self.waiting.push(ticket),
        }
    }

    /// Every session that waits for it waits no more.
    pub(super) fn take_waiting(&mut self) -> Vec<Ticket> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.extend(self.knowing.drain(..).map(|(ticket, _)| ticket));
        waiting
    }

    /// Whoever waits for its end waits no more.
    pub(super) fn take_stopping(&mut self) -> Vec<Ticket> {
        let mut stopping = std::mem::take(&mut self.stopping);
        stopping.extend(self.early_stops.drain(..).map(|(ticket, ..)| ticket));
        stopping
    }

    /// The state that people see; `None` while the repl is not this host's.
    pub fn state(&self) -> Option<ContainerState> {
        Some(match self.phase {
            Phase::Asking | Phase::Claiming => return None,
            Phase::Starting => ContainerState::Starting,
            Phase::Running => ContainerState::Running,
            Phase::Destroying { .. } => ContainerState::Destroying,
            Phase::Killing => ContainerState::Killing,
            Phase::Releasing => ContainerState::Releasing,
        })
    }

    /// When this container must be destroyed for want of sessions.
    pub(super) fn idle_at(&self) -> Option<BootTime> {
        match (self.phase, self.sessions, self.idle_timeout) {
            (Phase::Running, 0, Some(timeout)) => Some(self.idle_since.plus(timeout)),
            _ => None,
        }
    }

    /// When something is due.
    pub(super) fn wakeup(&self) -> Option<BootTime> {
        match self.phase {
            Phase::Destroying { kill_at } => Some(kill_at),
            _ => self.idle_at(),
        }
    }
}
