//! A container as the keeper holds it.
//!
//! ```text
//!                         ┌── Started ──► Running ──reaped──► Ended ──Forget──► gone
//! Ordered ──► Starting ───┤
//!    │                    └── Failed, killed, timed out ──► Failing ──reaped──► gone, and the start is refused
//!    └── the same ──► gone, and the start is refused
//! ```
//!
//! What has ended is known from reaping alone: PID 1 is reaped when every process of its namespace is gone.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use model::id::ContainerId;
use model::time::BootTime;
use model::wire::keeper::{
    Held, HeldState, KeeperRefusal, KeeperRefusalCode, LIST_PAGE, Launch, LaunchKind,
    MESSAGE_BYTES_MAX, WireExit,
};
use rustix::process::Signal;

use crate::failure::refused;
use crate::init::Program;
use crate::launch::Launched;
use crate::packet::{self, Wait};
use crate::processes::{self, Process};
use crate::report::FromInit;
use crate::shared;

/// A start that the preparer works on: there is nothing yet to kill.
pub(crate) struct Ordered {
    /// The request's number.
    pub(crate) request: u64,
    /// When the keeper gives up.
    pub(crate) until: BootTime,
    /// What is to run.
    pub(crate) program: Program,
    /// And how.
    pub(crate) launch: Box<Launch>,
}

/// One container.
pub(crate) struct Container {
    /// Which.
    pub(crate) id: ContainerId,
    /// The PID of its PID 1.
    pub(crate) pid: i32,
    /// When it was started.
    pub(crate) started: BootTime,
    /// Where it stands.
    pub(crate) phase: Phase,
    kind: Kind,
    notes: Vec<String>,
    /// How the program ended, as the init said.
    said: Option<WireExit>,
}

enum Kind {
    Native {
        cgroup: Option<PathBuf>,
        of_host: Option<PathBuf>,
    },
    Process,
}

/// Where a container stands.
pub(crate) enum Phase {
    /// Its init works towards the program's start; conman's request waits for an answer.
    Starting(Starting),
    /// It is dying; then the start is refused, if whoever asked is still there.
    Failing(Option<u64>, KeeperRefusal),
    /// Its program runs.
    Running(Fds),
    /// It is dead and reaped.
    Ended(WireExit),
}

/// A start that is not decided.
pub(crate) struct Starting {
    /// The request's number.
    pub(crate) request: u64,
    /// When the keeper gives up.
    pub(crate) until: BootTime,
    /// What it has then.
    pub(crate) fds: Fds,
}

/// What the keeper holds of a living container.
pub(crate) struct Fds {
    /// Its PID 1.
    pub(crate) pidfd: OwnedFd,
    /// Where its init takes commands.
    pub(crate) control: OwnedFd,
    /// Where its init reports.
    pub(crate) reports: OwnedFd,
}

/// What the report socket said.
pub(crate) enum News {
    /// Nothing of weight.
    None,
    /// The program runs.
    Started,
}

impl Container {
    pub(crate) fn new(
        id: ContainerId,
        launched: Launched,
        ordered: &Ordered,
        notes: Vec<String>,
        now: BootTime,
    ) -> Self {
        Self {
            id,
            pid: launched.pid,
            started: now,
            phase: Phase::Starting(Starting {
                request: ordered.request,
                until: ordered.until,
                fds: Fds {
                    pidfd: launched.pidfd,
                    control: launched.control,
                    reports: launched.reports,
                },
            }),
            kind: match ordered.launch.kind {
                LaunchKind::Native(_) => Kind::Native {
                    cgroup: launched.cgroup,
                    of_host: launched.cgroup_of_host,
                },
                LaunchKind::Process => Kind::Process,
            },
            notes: bounded(notes),
            said: None,
        }
    }

    /// What holds while it lives; `None` when it is dead or dying of a failed start.
    pub(crate) fn fds(&self) -> Option<&Fds> {
        match &self.phase {
            Phase::Starting(starting) => Some(&starting.fds),
            Phase::Running(fds) => Some(fds),
            Phase::Failing(..) | Phase::Ended(_) => None,
        }
    }

    /// Whether orphans of it may be left when its init is dead.
    pub(crate) fn is_plain_process(&self) -> bool {
        matches!(self.kind, Kind::Process)
    }

    /// The cgroup that it shares with all containers of its host, and with nothing else.
    pub(crate) fn cgroup_of_host(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Native {
                cgroup: Some(_),
                of_host,
            } => of_host.as_deref(),
            _ => None,
        }
    }

    /// Its entry in the list, unless it is not to be listed.
    pub(crate) fn held(&self) -> Option<Held> {
        let state = match self.phase {
            Phase::Running(_) => HeldState::Running,
            Phase::Ended(exit) => HeldState::Exited { exit },
            Phase::Starting(_) | Phase::Failing(..) => return None,
        };
        Some(Held {
            id: self.id.clone(),
            pid: self.pid as u32,
            started: self.started,
            state,
            notes: self.notes.clone(),
        })
    }

    /// Takes what its init has reported.
    pub(crate) fn take_reports(&mut self) -> News {
        let mut news = News::None;
        while let Some(report) = self
            .fds()
            .and_then(|fds| packet::receive_value::<FromInit>(&fds.reports, Wait::No))
        {
            match report {
                FromInit::Started => news = News::Started,
                FromInit::Failed(refusal) => self.fail(refusal),
                FromInit::Exited(exit) => self.said = Some(exit),
            }
        }
        news
    }

    /// Makes an undecided start a failed one; the container is to be killed if it does not end by itself.
    pub(crate) fn fail(&mut self, refusal: KeeperRefusal) {
        if let Phase::Starting(starting) = &self.phase {
            self.phase = Phase::Failing(Some(starting.request), refusal);
        }
    }

    /// Whoever asked for the start is gone: the number of the request means nothing to the next conman, or something
    /// else.
    pub(crate) fn forget_request(&mut self) {
        if let Phase::Failing(request, _) = &mut self.phase {
            *request = None;
        }
    }

    /// Sends SIGKILL to PID 1: with a PID namespace, everything dies with it. Only to be called before it is
    /// reaped, as is true of every phase but Ended.
    pub(crate) fn kill_init(&self) {
        match (&self.phase, self.fds()) {
            (_, Some(fds)) => {
                // Fails only for one that has just ended.
                let _ = rustix::process::pidfd_send_signal(&fds.pidfd, Signal::KILL);
            }
            // Not reaped yet, so the PID is still its own.
            (Phase::Failing(..), None) => processes::signal(self.pid, Signal::KILL),
            (_, None) => {}
        }
    }

    /// Sends SIGKILL to what the init's death alone would not kill: what was put into the cgroup from
    /// outside, and the descendants of a plain process.
    pub(crate) fn kill_the_rest(&self, processes: &[Process]) {
        match &self.kind {
            Kind::Native {
                cgroup: Some(cgroup),
                ..
            } => {
                // Older kernels have no cgroup.kill; a dead container's cgroup may be gone.
                let _ = shared::write_file(cgroup.join("cgroup.kill"), "1");
            }
            Kind::Native { cgroup: None, .. } => {}
            Kind::Process => {
                for process in processes::descendants(processes, self.pid) {
                    processes::signal(process.pid, Signal::KILL);
                }
            }
        }
    }

    /// Its init was reaped. Says how the program ended, or why the start failed.
    pub(crate) fn reaped(&mut self, status: WireExit) -> Reaped {
        self.take_reports();
        let said = self.said.unwrap_or(status);
        match std::mem::replace(&mut self.phase, Phase::Ended(said)) {
            Phase::Starting(starting) => Reaped::StartFailed(
                Some(starting.request),
                refused(
                    KeeperRefusalCode::Failed,
                    "start",
                    format!("the init ended before the program ran: {status:?}"),
                ),
            ),
            Phase::Failing(request, refusal) => Reaped::StartFailed(request, refusal),
            Phase::Running(_) | Phase::Ended(_) => Reaped::Exited(said),
        }
    }
}

/// A page of the list must fit into a message, whatever paths the notes name.
fn bounded(mut notes: Vec<String>) -> Vec<String> {
    notes.truncate(NOTES_MAX);
    for note in &mut notes {
        let end = note.floor_char_boundary(NOTE_BYTES_MAX);
        note.truncate(end);
    }
    notes
}

const NOTES_MAX: usize = 4;
const NOTE_BYTES_MAX: usize = 200;
// A path's odd byte may become two in JSON; the rest of an entry is well below 512 bytes.
const _: () = assert!(LIST_PAGE * (NOTES_MAX * NOTE_BYTES_MAX * 2 + 512) < MESSAGE_BYTES_MAX);

/// What it means that an init was reaped.
pub(crate) enum Reaped {
    /// A start has failed, and nothing of it is left.
    StartFailed(Option<u64>, KeeperRefusal),
    /// The container is dead.
    Exited(WireExit),
}

impl Container {
    /// A start that is killed before it is decided has failed.
    pub(crate) fn killed(&mut self) {
        self.fail(refused(KeeperRefusalCode::Failed, "start", "it was killed"));
    }

    /// The first pass of a kill of many. A plain process' init lives until its descendants are dead, so that
    /// none of them gets out of its tree.
    pub(crate) fn kill_init_of_native(&mut self, _processes: &[Process]) {
        if !self.is_plain_process() {
            self.kill_init();
        }
    }

    /// The second pass.
    pub(crate) fn finish_killing(&mut self, processes: &[Process]) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.kill_the_rest(processes);
        if self.is_plain_process() {
            self.kill_init();
        }
        self.killed();
    }
}
