//! The keeper's loop: one thread that waits for conman, for the preparer, for the inits' reports, and for deaths.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use model::id::ContainerId;
use model::time::BootTime;
use model::wire::keeper::{
    Answer, FromKeeper, Held, Hello, KeeperRefusal, KeeperRefusalCode, LIST_PAGE, PROTOCOL,
    Request, ToKeeper, WireExit,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use serde_json::json;

use crate::book::{Arming, Book};
use crate::clock::{DeadlineTimer, boot_now};
use crate::container::{Container, Ordered, Phase};
use crate::failure::{Step, refused};
use crate::launch::Launcher;
use crate::link::{Link, LinkState};
use crate::manager::Beats;
use crate::note::{Level, note};
use crate::packet::Received;
use crate::prepare::Preparer;
use crate::watched::AllWatched;

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
    pub(crate) preparer: Preparer,
    /// Starts that the preparer works on.
    pub(crate) ordered: BTreeMap<ContainerId, Ordered>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Containers that others have started.
    pub(crate) watched: AllWatched,
    /// Plain processes whose init is reaped, while orphans may be left.
    pub(crate) orphaned: Vec<(ContainerId, WireExit)>,
    pub(crate) down_by: Option<BootTime>,
    /// This loop's signs of life.
    pub(crate) beats: Beats,
}

/// What the loop waits for.
enum Source {
    Signals,
    Listener,
    Preparer,
    Link,
    /// Of a container that is being started.
    Reports(ContainerId),
    /// A container that others have started has ended.
    Watched(ContainerId),
}

impl Server<'_> {
    /// Serves until SIGTERM, then kills everything.
    pub(crate) fn run(mut self) -> End {
        loop {
            if let Some(down_by) = self.down_by {
                let alive = self.alive();
                if alive == 0 && self.orphaned.is_empty() {
                    self.preparer.end();
                    return End::AllDead;
                }
                if boot_now() >= down_by {
                    self.preparer.end();
                    return End::Stuck(alive);
                }
            }
            for (source, flags) in self.wait() {
                match source {
                    Source::Signals => self.take_signals(),
                    Source::Listener => self.accept(),
                    Source::Preparer => self.take_delivery(flags),
                    Source::Link => self.serve(flags),
                    Source::Reports(id) => self.take_reports(&id),
                    Source::Watched(id) => self.watched.ended(&id),
                }
            }
            self.give_up_late_starts();
            self.kill_watched_in_time();
            self.beats.beat(boot_now());
        }
    }

    pub(crate) fn alive(&self) -> usize {
        let alive = |container: &&Container| !matches!(container.phase, Phase::Ended(_));
        self.containers.values().filter(alive).count() + self.watched.held.len()
    }

    /// Waits until something is ready, a start is late, or a sign of life is due.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let mut polled = vec![
            (Source::Signals, &self.signals, PollFlags::IN),
            (Source::Listener, self.listener, PollFlags::IN),
        ];
        let flags = |link: &Link| {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, link.is_waiting());
            flags
        };
        let preparer = self.preparer.link();
        polled.push((Source::Preparer, preparer.socket(), flags(preparer)));
        if let Some(link) = &self.link {
            polled.push((Source::Link, link.socket(), flags(link)));
        }
        for container in self.containers.values() {
            if let Phase::Starting(start) = &container.phase {
                let source = Source::Reports(container.id.clone());
                polled.push((source, &start.fds.reports, PollFlags::IN));
            }
        }
        for (id, watched) in &self.watched.held {
            polled.push((Source::Watched(id.clone()), watched.pidfd(), PollFlags::IN));
        }
        let mut fds: Vec<PollFd<'_>> = polled
            .iter()
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        let timeout = self.next_limit().map(|until| {
            let left = until.since(boot_now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // Fails only when interrupted or out of memory: then nothing is ready, and it is asked again.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        polled
            .into_iter()
            .zip(ready)
            .filter(|(_, ready)| !ready.is_empty())
            .map(|((source, _, _), ready)| (source, ready))
            .collect()
    }

    /// The next point in time at which something is to be given up, or said.
    fn next_limit(&self) -> Option<BootTime> {
        let starting = self.containers.values().filter_map(|container| {
            let Phase::Starting(start) = &container.phase else {
                return None;
            };
            Some(start.until)
        });
        let ordered = self.ordered.values().map(|ordered| ordered.until);
        let watched = self.watched.kill_at(self.book.deadline());
        let limits = starting.chain(ordered).chain(self.down_by).chain(watched);
        limits.chain(self.beats.next()).min()
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
    pub(crate) fn unlink(&mut self) {
        if self.link.take().is_none() {
            return;
        }
        self.ordered.clear();
        self.watched.forget_admitted();
        for container in self.containers.values_mut() {
            if matches!(container.phase, Phase::Starting(_)) {
                container.kill_init();
                container.fail(refused(
                    KeeperRefusalCode::Failed,
                    "start",
                    "the connection that asked for it is closed",
                ));
            }
            container.forget_request();
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
                if let Err(refusal) = self.start(id, container, launch) {
                    self.answer(id, Answer::Refused(refusal), &[]);
                }
            }
            Request::Admit { container } => {
                let answer = match self.admit(container) {
                    Ok(()) => Answer::Done,
                    Err(refusal) => Answer::Refused(refusal),
                };
                self.answer(id, answer, &[]);
            }
            Request::Hold {
                container,
                pid,
                start_ticks,
            } => {
                let result = self.hold(&container, pid, start_ticks);
                self.answer_hold(id, &container, result);
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
            held: (self.containers.values().filter_map(Container::held).count()
                + self.watched.held.len()) as u32,
            uid_base: self.launcher.native.as_ref().map(|native| native.uid_base),
        }
    }

    fn list(&mut self, request: u64, after: Option<&ContainerId>) {
        let own = self.containers.values().filter_map(|container| {
            let fds = match &container.phase {
                Phase::Running(of) => vec![of.pidfd.as_fd(), of.control.as_fd()],
                _ => Vec::new(),
            };
            Some((container.held()?, fds))
        });
        let watched = self.watched.held.iter();
        let watched =
            watched.map(|(id, watched)| (watched.held(id), vec![watched.pidfd().as_fd()]));
        let is_after = |entry: &Held| after.is_none_or(|after| entry.id > *after);
        let listed = own.chain(watched).filter(|(entry, _)| is_after(entry));
        let mut listed: Vec<_> = listed.collect();
        listed.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        let more = listed.len() > LIST_PAGE;
        listed.truncate(LIST_PAGE);
        let (held, fds): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
        let fds: Vec<_> = fds.into_iter().flatten().collect();
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

    fn terminate(&self, id: &ContainerId) -> Result<(), KeeperRefusal> {
        if let Some(sent) = self.watched.terminate(id) {
            return sent;
        }
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
