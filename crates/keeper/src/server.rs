//! The keeper's loop: one thread that waits for conman, for the inits' reports, and for deaths.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use model::id::ContainerId;
use model::time::BootTime;
use model::wire::keeper::{
    Answer, FromKeeper, Hello, KeeperRefusal, KeeperRefusalCode, LIST_PAGE, Launch, LaunchKind,
    PROTOCOL, Request, ToKeeper, WireExit,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use serde_json::json;

use crate::book::{Arming, Book};
use crate::clock::{DeadlineTimer, boot_now};
use crate::container::{Container, News, Phase};
use crate::failure::{Step, refused};
use crate::launch::Launcher;
use crate::link::{Link, LinkState};
use crate::note::{Level, note};
use crate::packet::Received;

/// How long a keeper that goes down waits for the last container's death. The kernel's part takes some
/// milliseconds; only a process that hangs in the kernel takes longer.
pub(crate) const GOING_DOWN_MAX: Duration = Duration::from_secs(10);

/// The signals that the keeper takes.
pub(crate) const SIGNALS: &[i32] = &[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD];

/// How a keeper's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All containers are proven dead.
    AllDead,
    /// Some would not die in time.
    Stuck(usize),
}

/// The keeper.
pub(crate) struct Server<'a> {
    pub(crate) listener: &'a OwnedFd,
    pub(crate) signals: OwnedFd,
    pub(crate) timer: DeadlineTimer,
    pub(crate) launcher: Launcher,
    pub(crate) book: Book,
    pub(crate) link: Option<Link>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Plain processes whose init is reaped, while orphans may be left.
    pub(crate) orphaned: Vec<(ContainerId, WireExit)>,
    pub(crate) down_by: Option<BootTime>,
}

struct Ready {
    listener: bool,
    signals: bool,
    link: Option<PollFlags>,
    reports: Vec<ContainerId>,
}

impl Server<'_> {
    /// Serves until SIGTERM, then kills everything.
    pub(crate) fn run(mut self) -> End {
        loop {
            if let Some(down_by) = self.down_by {
                let alive = self.alive();
                if alive == 0 && self.orphaned.is_empty() {
                    return End::AllDead;
                }
                if boot_now() >= down_by {
                    return End::Stuck(alive);
                }
            }
            let ready = self.wait();
            if ready.signals {
                self.take_signals();
            }
            for id in ready.reports {
                self.take_reports(&id);
            }
            if ready.listener {
                self.accept();
            }
            if let Some(flags) = ready.link {
                self.serve(flags);
            }
            self.give_up_late_starts();
        }
    }

    pub(crate) fn alive(&self) -> usize {
        let alive = |container: &&Container| !matches!(container.phase, Phase::Ended(_));
        self.containers.values().filter(alive).count()
    }

    fn wait(&self) -> Ready {
        let mut polled = vec![
            PollFd::new(self.listener, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        if let Some(link) = &self.link {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, link.is_waiting());
            polled.push(PollFd::new(link.socket(), flags));
        }
        let reports_first = polled.len();
        let mut starting = Vec::new();
        let mut until = self.down_by;
        for container in self.containers.values() {
            if let Phase::Starting(start) = &container.phase {
                polled.push(PollFd::new(&start.fds.reports, PollFlags::IN));
                starting.push(container.id.clone());
                until = Some(until.map_or(start.until, |until| until.min(start.until)));
            }
        }
        let timeout = until.map(|until| {
            let left = until.since(boot_now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // Fails only when interrupted or out of memory: then nothing is ready, and it is asked again.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let is_ready = |index: usize| !polled[index].revents().is_empty();
        Ready {
            listener: is_ready(0),
            signals: is_ready(1),
            link: (self.link.is_some() && is_ready(2)).then(|| polled[2].revents()),
            reports: starting
                .into_iter()
                .enumerate()
                .filter(|(index, _)| is_ready(reports_first + index))
                .map(|(_, id)| id)
                .collect(),
        }
    }

    // ---- conman

    /// The newest conman wins.
    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(self.listener, flags) else {
            return;
        };
        // The socket's mode lets in only this user; this is for the day when somebody changes the mode.
        let this_user = rustix::process::geteuid();
        match rustix::net::sockopt::socket_peercred(&socket) {
            Ok(peer) if peer.uid == this_user || peer.uid.is_root() => {
                note(
                    Level::Info,
                    "connected",
                    json!({"conman_pid": peer.pid.as_raw_nonzero().get()}),
                );
            }
            _ => return,
        }
        self.unlink();
        self.link = Some(Link::new(socket));
    }

    /// Closes the connection, if there is one. A start that nobody waits for any more is undone: the next
    /// conman would not know of it.
    fn unlink(&mut self) {
        if self.link.take().is_none() {
            return;
        }
        for container in self.containers.values_mut() {
            if matches!(container.phase, Phase::Starting(_)) {
                container.kill_init();
                container.fail(refused(
                    KeeperRefusalCode::Failed,
                    "start",
                    "the connection that asked for it is closed",
                ));
            }
        }
        note(Level::Info, "disconnected", json!({}));
    }

    fn serve(&mut self, flags: PollFlags) {
        let Some(link) = &mut self.link else {
            return;
        };
        if flags.contains(PollFlags::OUT) && link.flush() == LinkState::Broken {
            return self.unlink();
        }
        // One at a time: deaths and reports get their turn between a hundred starts.
        match link.receive() {
            Received::Packet(bytes, _) => self.take_request(&bytes),
            Received::Nothing => {}
            Received::TooLarge => self.answer(
                0,
                Answer::Refused(refused(
                    KeeperRefusalCode::BadMessage,
                    "read request",
                    "the message is too large, or carries fds",
                )),
                &[],
            ),
            Received::Closed => self.unlink(),
        }
    }

    pub(crate) fn say(&mut self, message: &FromKeeper, fds: &[BorrowedFd<'_>]) {
        if let Some(link) = &mut self.link
            && link.send(message, fds) == LinkState::Broken
        {
            self.unlink();
        }
    }

    pub(crate) fn answer(&mut self, id: u64, answer: Answer, fds: &[BorrowedFd<'_>]) {
        self.say(&FromKeeper::Answer { id, answer }, fds);
    }

    fn take_request(&mut self, bytes: &[u8]) {
        let ToKeeper { id, request } = match serde_json::from_slice(bytes) {
            Ok(message) => message,
            Err(error) => {
                let refusal = refused(
                    KeeperRefusalCode::BadMessage,
                    "read request",
                    error.to_string(),
                );
                return self.answer(request_id(bytes), Answer::Refused(refusal), &[]);
            }
        };
        match request {
            Request::Hello { protocol: _ } => {
                let hello = self.hello();
                self.answer(id, Answer::Hello(hello), &[]);
            }
            Request::List { after } => self.list(id, after.as_ref()),
            Request::Arm { deadline } => {
                let answer = match self.arm(deadline) {
                    Ok(deadline) => Answer::Armed { deadline },
                    Err(refusal) => Answer::Refused(refusal),
                };
                self.answer(id, answer, &[]);
            }
            Request::Start { container, launch } => {
                if let Err(refusal) = self.start(id, container, &launch) {
                    self.answer(id, Answer::Refused(refusal), &[]);
                }
            }
            Request::Kill { ids } => {
                self.kill(&ids);
                self.answer(id, Answer::Done, &[]);
            }
            Request::Terminate { id: container } => {
                let answer = match self.terminate(&container) {
                    Ok(()) => Answer::Done,
                    Err(refusal) => Answer::Refused(refusal),
                };
                self.answer(id, answer, &[]);
            }
            Request::Forget { ids } => {
                for container in &ids {
                    if let Some(Phase::Ended(_)) =
                        self.containers.get(container).map(|one| &one.phase)
                    {
                        self.containers.remove(container);
                    }
                }
                self.answer(id, Answer::Done, &[]);
            }
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            host: self.launcher.host.clone(),
            pid: std::process::id(),
            deadline: self.book.deadline(),
            held: self.containers.values().filter_map(Container::held).count() as u32,
            uid_base: self.launcher.native.as_ref().map(|native| native.uid_base),
        }
    }

    fn list(&mut self, request: u64, after: Option<&ContainerId>) {
        let listed = self
            .containers
            .values()
            .filter(|container| after.is_none_or(|after| container.id > *after))
            .filter_map(|container| Some((container, container.held()?)));
        let mut held = Vec::new();
        let mut fds = Vec::new();
        let mut more = false;
        for (container, entry) in listed {
            if held.len() == LIST_PAGE {
                more = true;
                break;
            }
            held.push(entry);
            if let Phase::Running(of) = &container.phase {
                fds.extend([of.pidfd.as_fd(), of.control.as_fd()]);
            }
        }
        let answer = FromKeeper::Answer {
            id: request,
            answer: Answer::Listed { held, more },
        };
        // Not by `say`: the fds are borrowed from the containers.
        if let Some(link) = &mut self.link
            && link.send(&answer, &fds) == LinkState::Broken
        {
            self.unlink();
        }
    }

    fn arm(&mut self, deadline: BootTime) -> Result<BootTime, KeeperRefusal> {
        match self.book.arm(boot_now(), deadline)? {
            Arming::Later(deadline) => {
                self.timer.arm(deadline).step("set deadline timer")?;
                Ok(deadline)
            }
            Arming::Unchanged(deadline) => Ok(deadline),
        }
    }

    // ---- containers

    fn start(
        &mut self,
        request: u64,
        id: ContainerId,
        launch: &Launch,
    ) -> Result<(), KeeperRefusal> {
        self.launcher.supports(launch)?;
        self.launcher.has_room(self.containers.len())?;
        let program = self.launcher.read(launch)?;
        let now = boot_now();
        self.book.admit(now, &id)?;
        let launched = self.launcher.launch(&id, program, launch)?;
        let native = matches!(launch.kind, LaunchKind::Native(_));
        let container = Container::new(id.clone(), launched, native, request, now);
        self.containers.insert(id, container);
        Ok(())
    }

    fn take_reports(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let news = container.take_reports();
        if let News::Started = news {
            self.has_started(id);
        }
    }

    pub(crate) fn has_started(&mut self, id: &ContainerId) {
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        container.phase = match container.phase {
            Phase::Starting(start) => {
                let request = start.request;
                container.phase = Phase::Running(start.fds);
                if let (Some(held), Some(fds)) = (container.held(), container.fds()) {
                    let with = [fds.pidfd.as_fd(), fds.control.as_fd()];
                    self.answer(request, Answer::Started(held), &with);
                }
                container.phase
            }
            other => other,
        };
        self.containers.insert(id.clone(), container);
    }

    fn give_up_late_starts(&mut self) {
        let now = boot_now();
        for container in self.containers.values_mut() {
            if let Phase::Starting(start) = &container.phase
                && start.until <= now
            {
                container.kill_init();
                container.fail(refused(
                    KeeperRefusalCode::TimedOut,
                    "start",
                    "the init did not report in time",
                ));
            }
        }
    }

    fn terminate(&self, id: &ContainerId) -> Result<(), KeeperRefusal> {
        match self.containers.get(id).map(|container| &container.phase) {
            Some(Phase::Running(fds)) => {
                rustix::process::pidfd_send_signal(&fds.pidfd, Signal::TERM)
                    .step_or("send SIGTERM", KeeperRefusalCode::NotRunning)
            }
            _ => Err(refused(
                KeeperRefusalCode::NotRunning,
                "send SIGTERM",
                format!("{id} is not running here"),
            )),
        }
    }
}

/// The number of a request that is otherwise not readable.
fn request_id(bytes: &[u8]) -> u64 {
    #[derive(serde::Deserialize)]
    struct Numbered {
        id: u64,
    }
    serde_json::from_slice(bytes).map_or(0, |Numbered { id }| id)
}
