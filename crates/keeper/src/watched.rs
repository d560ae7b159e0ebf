//! Containers that the keeper has not started: it holds their PID 1 by a handle, and kills them before its own end.
//!
//! ```text
//! Admit ─► admitted ──Hold──► watched ──the handle says so──► gone
//!             │                  └── SIGKILL: asked for, going down, shortly before the deadline, and by the guard
//!             └──killed, or the connection is closed──► gone: a Hold that comes later is refused
//! ```
//!
//! The kernel does not kill them with the keeper, as it does the keeper's children. So they are killed a little before
//! the deadline, by this process; and when this process ends or is killed otherwise, by its guard.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use model::id::ContainerId;
use model::time::BootTime;
use model::timing::WATCHED_LEAD;
use model::wire::keeper::{
    Answer, CpuQuota, FromKeeper, Held, HeldState, KeeperRefusal, KeeperRefusalCode,
};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::json;

use crate::clock::boot_now;
use crate::failure::{Step, refused};
use crate::guard::Guard;
use crate::link::LinkState;
use crate::note::{Level, note};
use crate::processes;
use crate::quota::{Quota, Quotas};
use crate::server::Server;

/// A container that somebody else has started.
pub(crate) struct Watched {
    pid: u32,
    started: BootTime,
    pidfd: OwnedFd,
}

impl Watched {
    /// Its entry in the list.
    pub(crate) fn held(&self, id: &ContainerId) -> Held {
        Held {
            id: id.clone(),
            pid: self.pid,
            started: self.started,
            state: HeldState::Watched,
            notes: Vec::new(),
        }
    }

    /// The handle of its PID 1.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        rustix::process::pidfd_send_signal(&self.pidfd, signal)
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct AllWatched {
    /// Those that are about to be started.
    admitted: BTreeSet<ContainerId>,
    pub(crate) held: BTreeMap<ContainerId, Watched>,
    /// The limits of the keeper's own containers, which are the guard's business too.
    quotas: Quotas,
    guard: Option<Guard>,
}

impl AllWatched {
    /// When they are to be killed, for a deadline.
    pub(crate) fn kill_at(&self, deadline: Option<BootTime>) -> Option<BootTime> {
        let lead_ns = WATCHED_LEAD.as_nanos() as u64;
        let deadline = deadline.filter(|_| !self.held.is_empty())?;
        Some(BootTime(deadline.0.saturating_sub(lead_ns)))
    }

    /// SIGKILL to all.
    pub(crate) fn kill_all(&self) {
        for watched in self.held.values() {
            // Fails only for one that has just ended.
            let _ = watched.signal(Signal::KILL);
        }
    }

    /// SIGKILL to these; those that are about to be started will not be held.
    pub(crate) fn kill(&mut self, ids: &[ContainerId]) {
        for id in ids {
            self.admitted.remove(id);
            if let Some(watched) = self.held.get(id) {
                let _ = watched.signal(Signal::KILL);
            }
        }
    }

    /// SIGTERM, if it is held.
    pub(crate) fn terminate(&self, id: &ContainerId) -> Option<Result<(), KeeperRefusal>> {
        let sent = self.held.get(id)?.signal(Signal::TERM);
        Some(sent.step_or("send SIGTERM", KeeperRefusalCode::NotRunning))
    }

    /// Nobody waits for a start any more.
    pub(crate) fn forget_admitted(&mut self) {
        self.admitted.clear();
    }

    /// Whether this child of the keeper is the guard.
    pub(crate) fn is_guard(&self, pid: i32) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.pid() == pid)
    }

    /// A child of the keeper was reaped.
    pub(crate) fn reaped(&mut self, pid: i32) {
        if self.is_guard(pid) {
            note(Level::Warn, "guard replaced", json!({"pid": pid}));
            self.guard = None;
            if let Err(refusal) = self.renew_guard() {
                note(
                    Level::Warn,
                    "no guard",
                    json!({"step": refusal.step, "message": refusal.message}),
                );
            }
        }
    }

    /// A new guard that knows all of them.
    fn renew_guard(&mut self) -> Result<(), KeeperRefusal> {
        let mut guard = Guard::fork()?;
        for (id, watched) in &self.held {
            taken(guard.add(id, watched.pidfd.as_fd()))?;
        }
        for (id, quota) in self.quotas.iter() {
            taken(guard.limit(id, quota))?;
        }
        self.guard = Some(guard);
        Ok(())
    }

    /// Has the limit of a container lifted when the keeper is killed; without that it is not to be started.
    pub(crate) fn limit(
        &mut self,
        id: &ContainerId,
        quota: &CpuQuota,
    ) -> Result<(), KeeperRefusal> {
        let quota = Quota::open(quota)?;
        let is_told = self
            .guard
            .as_mut()
            .is_some_and(|guard| guard.limit(id, &quota) == LinkState::Up);
        self.quotas.insert(id.clone(), quota);
        if is_told {
            return Ok(());
        }
        self.renew_guard().inspect_err(|_| self.unlimit(id))
    }

    /// Lifts the limit of a container that is to be killed.
    pub(crate) fn lift(&self, id: &ContainerId) {
        self.quotas.lift(id);
    }

    /// It has ended, or was not started.
    pub(crate) fn unlimit(&mut self, id: &ContainerId) {
        if self.quotas.remove(id)
            && let Some(guard) = &mut self.guard
        {
            // One that is gone is replaced when it is reaped.
            let _ = guard.drop_one(id);
        }
    }

    fn add(&mut self, id: &ContainerId, watched: Watched) -> Result<(), KeeperRefusal> {
        let is_told = self
            .guard
            .as_mut()
            .is_some_and(|guard| guard.add(id, watched.pidfd.as_fd()) == LinkState::Up);
        self.held.insert(id.clone(), watched);
        if is_told {
            return Ok(());
        }
        let renewed = self.renew_guard();
        if renewed.is_err() {
            // Without a guard it would outlive the keeper.
            self.held.remove(id);
        }
        renewed
    }

    /// Its handle says that it has ended.
    pub(crate) fn ended(&mut self, id: &ContainerId) {
        self.held.remove(id);
        if let Some(guard) = &mut self.guard {
            // One that is gone is replaced when it is reaped.
            let _ = guard.drop_one(id);
        }
    }
}

fn taken(told: LinkState) -> Result<(), KeeperRefusal> {
    match told {
        LinkState::Up => Ok(()),
        LinkState::Broken => Err(refused(
            KeeperRefusalCode::Failed,
            "tell guard",
            "it takes no orders",
        )),
    }
}

impl Server<'_> {
    /// Counts the epoch of a container that is about to be started by others.
    pub(crate) fn admit(&mut self, id: ContainerId) -> Result<(), KeeperRefusal> {
        self.book.admit(boot_now(), &id)?;
        self.watched.admitted.insert(id);
        Ok(())
    }

    /// Holds a container that others have started.
    pub(crate) fn hold(
        &mut self,
        id: &ContainerId,
        pid: u32,
        start_ticks: u64,
    ) -> Result<(), KeeperRefusal> {
        let refuse = |code, message: String| Err(refused(code, "hold", message));
        if !self.watched.admitted.remove(id) {
            return refuse(
                KeeperRefusalCode::NotRunning,
                format!("{id} was not admitted, or was killed since"),
            );
        }
        self.book.is_open(boot_now())?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = raw else {
            return refuse(
                KeeperRefusalCode::BadMessage,
                format!("{pid} is no process"),
            );
        };
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
            .step_or("hold", KeeperRefusalCode::NotRunning)?;
        // The handle first: what is read now is of its process, or of one that has ended.
        if processes::start_ticks(pid) != Some(start_ticks) {
            return refuse(
                KeeperRefusalCode::NotRunning,
                format!("process {pid} is not the one that was started then"),
            );
        }
        let watched = Watched {
            pid,
            started: boot_now(),
            pidfd,
        };
        self.watched.add(id, watched)
    }

    /// Answers a hold: with the entry and its one fd, or why not.
    pub(crate) fn answer_hold(
        &mut self,
        request: u64,
        id: &ContainerId,
        result: Result<(), KeeperRefusal>,
    ) {
        let watched = self.watched.held.get(id);
        let (answer, fds) = match (result, watched) {
            (Ok(()), Some(watched)) => (
                Answer::Started(watched.held(id)),
                vec![watched.pidfd.as_fd()],
            ),
            (Err(refusal), _) => (Answer::Refused(refusal), Vec::new()),
            (Ok(()), None) => return,
        };
        // Not by `say`: the fd is borrowed from the container.
        let message = FromKeeper::Answer {
            id: request,
            answer,
        };
        if let Some(link) = &mut self.link
            && link.send(&message, &fds) == LinkState::Broken
        {
            self.unlink();
        }
    }

    /// Kills them if it is time: the deadline is the keeper's own end, and not theirs.
    pub(crate) fn kill_watched_in_time(&mut self) {
        let due = self.watched.kill_at(self.book.deadline());
        if due.is_some_and(|due| boot_now() >= due) {
            self.watched.kill_all();
        }
    }
}
