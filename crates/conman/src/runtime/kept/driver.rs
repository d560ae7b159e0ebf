//! The one task that speaks with the keeper.
//!
//! ```text
//! Seeking ─► linked ─► Resync (pages of the list) ─► leftovers killed ─► KeeperConnected ─► Serving
//!    ▲                                                                                        │
//!    ├──── connection over, keeper alive: the same again, nothing is told ◄───────────────────┤
//!    └──── keeper dead: KeeperLost, every exit still unknown stays unknown ◄──────────────────┘
//! ```
//!
//! A start that was not answered when the connection ended is *unanswered*: it may have begun, and may go on to begin for as
//! long as the keeper has not met its next conman. So it stays unanswered until the list on the next connection, or the keeper's death, and is
//! refused only when nothing of it is alive.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::id::ContainerId;
use model::wire::keeper::{
    Answer, Event, FromKeeper, Held, HeldState, KeeperRefusal, KeeperRefusalCode, Request,
};
use tokio::sync::{mpsc, oneshot};

use super::link::{KeeperLife, Link, Message};
use super::member::{Member, exit_of};
use super::{Ask, Shared, blocking};
use crate::runtime::{Exit, Running, RuntimeEvent, keeper_gone};

/// How long to wait before a proof that failed is tried again.
const PROVE_AGAIN: Duration = Duration::from_millis(100);

/// How long to stay away from a keeper that is alive and closed the connection. The usual reason is a newer
/// conman, which must not be pushed out at once.
const CLOSED_PAUSE: Duration = Duration::from_millis(500);

/// Who waits for an answer.
enum Waiting {
    Start(ContainerId, Starter),
    Request(oneshot::Sender<Result<Answer, Refusal>>),
}

/// Who waits for a start.
type Starter = oneshot::Sender<Result<Running, Refusal>>;

/// The starts that a connection left unanswered.
type Unanswered = Vec<(ContainerId, Starter)>;

/// Why a link was given up.
enum Over {
    /// The connection ended; the keeper may be alive.
    Closed,
    /// The keeper is dead.
    Dead,
    /// Nobody holds the runtime any more.
    Unused,
}

pub(super) async fn drive(
    shared: Arc<Shared>,
    socket: PathBuf,
    mut asks: mpsc::UnboundedReceiver<Ask>,
) {
    // The keeper that was announced and whose loss was not.
    let mut before: Option<Arc<KeeperLife>> = None;
    let mut pause = Duration::ZERO;
    let mut unanswered = Unanswered::new();
    loop {
        let seeking = seek(
            &shared,
            &socket,
            &mut asks,
            &mut before,
            &mut unanswered,
            pause,
        );
        let Some(mut link) = seeking.await else {
            return;
        };
        pause = CLOSED_PAUSE;
        let is_same = before
            .as_ref()
            .is_some_and(|life| life.pid == link.life.pid);
        if let Some(life) = before.take_if(|_| !is_same) {
            shared.keeper_lost(&life);
        }
        match resync(&shared, &mut link, is_same).await {
            Ok(()) => {}
            Err(error) => {
                tracing::info!(%error, "the connection to the keeper ended while its list was read");
                continue;
            }
        }
        shared.answer_all(&mut unanswered);
        if !is_same {
            shared.report(RuntimeEvent::KeeperConnected { pid: link.life.pid });
        }
        before = Some(link.life.clone());
        match serve(&shared, &mut link, &mut asks, &mut unanswered).await {
            Over::Closed => {}
            Over::Dead => {
                before = None;
                pause = Duration::ZERO;
                shared.keeper_lost(&link.life);
                shared.answer_all(&mut unanswered);
            }
            Over::Unused => return,
        }
    }
}

/// Waits for a keeper, and for the death of the one before; refuses whatever is asked meanwhile.
async fn seek(
    shared: &Arc<Shared>,
    socket: &std::path::Path,
    asks: &mut mpsc::UnboundedReceiver<Ask>,
    before: &mut Option<Arc<KeeperLife>>,
    unanswered: &mut Unanswered,
    pause: Duration,
) -> Option<Link> {
    let mut seeking = std::pin::pin!(seek_after(socket, pause));
    loop {
        let ended = async {
            match before.as_ref() {
                Some(life) => life.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            link = &mut seeking => return Some(link),
            () = ended => {
                if let Some(life) = before.take() {
                    shared.keeper_lost(&life);
                    shared.answer_all(unanswered);
                    // The next one is waited for from now on.
                    seeking.set(seek_after(socket, Duration::ZERO));
                }
            }
            ask = asks.recv() => refuse(ask?),
        }
    }
}

async fn seek_after(socket: &std::path::Path, pause: Duration) -> Link {
    tokio::time::sleep(pause).await;
    Link::seek(socket).await
}

fn refuse(ask: Ask) {
    // Who asked may have gone.
    match ask {
        Ask::Start { reply, .. } => drop(reply.send(Err(keeper_gone()))),
        Ask::Request { reply, .. } => drop(reply.send(Err(keeper_gone()))),
        Ask::Adopt { reply } => drop(reply.send(Err(keeper_gone()))),
    }
}

/// Learns what the keeper holds. With one met for the first time, also ends what is left of others before.
async fn resync(shared: &Arc<Shared>, link: &mut Link, is_same: bool) -> io::Result<()> {
    let mut after = None;
    let mut ended = Vec::new();
    let mut running = BTreeSet::new();
    loop {
        let (answer, fds) = link.ask(Request::List { after }).await?;
        let Answer::Listed { held, more } = answer else {
            return Err(io::Error::other(format!(
                "it answered list with {answer:?}"
            )));
        };
        let mut fds = fds.into_iter();
        after = held.last().map(|last| last.id.clone());
        for entry in held {
            match entry.state {
                HeldState::Running | HeldState::Watched => {
                    running.insert(entry.id.clone());
                    let fds = take_fds(entry.state, &mut fds)?;
                    if !shared.members.lock().contains_key(&entry.id) {
                        shared.watch_over(entry, fds, link.life.pid);
                    }
                }
                HeldState::Exited { exit } => {
                    let member = shared.members.lock().get(&entry.id).cloned();
                    match member {
                        Some(member) => member.exited(exit_of(exit)),
                        None => ended.push(entry.id),
                    }
                }
            }
        }
        if !more {
            break;
        }
    }
    if !ended.is_empty() {
        link.send(Request::Forget { ids: ended }).await?;
    }
    if !is_same {
        let walls = shared.walls.clone();
        blocking(move || walls.met_keeper())
            .await
            .map_err(io::Error::other)??;
        shared.clone().end_leftovers(running).await;
    }
    Ok(())
}

/// The pidfd, and the way to its init if it has one of ours.
type MemberFds = (OwnedFd, Option<OwnedFd>);

fn take_fds(state: HeldState, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<MemberFds> {
    let missing = || io::Error::other("a running container came without its fds");
    let pidfd = fds.next().ok_or_else(missing)?;
    let control = match state {
        HeldState::Watched => None,
        _ => Some(fds.next().ok_or_else(missing)?),
    };
    Ok((pidfd, control))
}

async fn serve(
    shared: &Arc<Shared>,
    link: &mut Link,
    asks: &mut mpsc::UnboundedReceiver<Ask>,
    unanswered: &mut Unanswered,
) -> Over {
    let mut waiting = HashMap::new();
    let life = link.life.clone();
    let over = loop {
        tokio::select! {
            message = link.receive() => match message {
                Ok(Some(message)) => take(shared, link.life.pid, &mut waiting, message),
                Ok(None) => break Over::Closed,
                Err(error) => {
                    tracing::warn!(%error, "read from keeper");
                    break Over::Closed;
                }
            },
            ask = asks.recv() => {
                let Some(ask) = ask else {
                    break Over::Unused;
                };
                if let Err(error) = send(shared, link, &mut waiting, ask).await {
                    tracing::debug!(%error, "write to keeper");
                    break Over::Closed;
                }
            }
            () = life.ended() => break Over::Dead,
        }
    };
    if matches!(over, Over::Dead | Over::Closed) {
        // What it said last: after the end of the other side this finds an end.
        while let Ok(Ok(Some(message))) =
            tokio::time::timeout(Duration::from_millis(10), link.receive()).await
        {
            take(shared, link.life.pid, &mut waiting, message);
        }
    }
    for waiting in waiting.into_values() {
        match waiting {
            Waiting::Start(id, reply) => unanswered.push((id, reply)),
            Waiting::Request(reply) => drop(reply.send(Err(keeper_gone()))),
        }
    }
    over
}

async fn send(
    shared: &Arc<Shared>,
    link: &mut Link,
    waiting: &mut HashMap<u64, Waiting>,
    ask: Ask,
) -> io::Result<()> {
    let (request, who) = match ask {
        Ask::Start { id, request, reply } => (request, Waiting::Start(id, reply)),
        Ask::Request { request, reply } => (request, Waiting::Request(reply)),
        Ask::Adopt { reply } => {
            // The link is served only after a resync: the members are what is held.
            drop(reply.send(Ok(shared.running())));
            return Ok(());
        }
    };
    match link.send(request).await {
        Ok(id) => {
            waiting.insert(id, who);
            Ok(())
        }
        // Dropping `who` refuses it.
        Err(error) => Err(error),
    }
}

fn take(shared: &Arc<Shared>, keeper: u32, waiting: &mut HashMap<u64, Waiting>, message: Message) {
    match message.content {
        FromKeeper::Event {
            event: Event::Exited { id, exit },
        } => {
            let member = shared.members.lock().get(&id).cloned();
            if let Some(member) = member {
                member.exited(exit_of(exit));
            }
        }
        FromKeeper::Answer { id, answer } => match (waiting.remove(&id), answer) {
            (Some(Waiting::Start(id, reply)), answer) => {
                let started = match answer {
                    Answer::Started(held) => take_fds(held.state, &mut message.fds.into_iter())
                        .map(|fds| shared.watch_over(held, fds, keeper))
                        .map_err(|error| internal(&format!("start {id}: {error}"))),
                    Answer::Refused(refusal) => Err(explain(&refusal)),
                    other => Err(internal(&format!(
                        "the keeper answered start with {other:?}"
                    ))),
                };
                shared.answer(reply, started);
            }
            (Some(Waiting::Request(reply)), answer) => {
                let answer = match answer {
                    Answer::Refused(refusal) => Err(explain(&refusal)),
                    answer => Ok(answer),
                };
                // Who asked may have gone.
                drop(reply.send(answer));
            }
            (None, answer) => tracing::warn!(id, ?answer, "the keeper answered what nobody asked"),
        },
    }
}

impl Shared {
    /// Answers a start.
    fn answer(&self, starter: Starter, started: Result<Running, Refusal>) {
        if let Err(Ok(orphan)) = starter.send(started) {
            // Nobody waits for it any more: a container that nobody knows of must not live.
            let member = self.members.lock().get(&orphan.id).cloned();
            member.inspect(|member| self.kill_directly(member));
        }
    }

    /// Answers the starts that a connection left unanswered, now that the keeper has said what it holds, or is dead.
    fn answer_all(self: &Arc<Self>, unanswered: &mut Unanswered) {
        for (id, starter) in unanswered.drain(..) {
            let running = self.members.lock().get(&id).map(|one| one.running.clone());
            match running {
                Some(running) => self.answer(starter, Ok(running)),
                None => drop(tokio::spawn(self.clone().refuse_when_dead(id, starter))),
            }
        }
    }

    async fn refuse_when_dead(self: Arc<Self>, id: ContainerId, starter: Starter) {
        while let Err(error) = self.walls.end_unanswered(&id).await {
            tracing::error!(%id, %error, "prove dead what the keeper may have started");
            tokio::time::sleep(PROVE_AGAIN).await;
        }
        self.answer(starter, Err(keeper_gone()));
    }

    fn running(&self) -> Vec<Running> {
        let members = self.members.lock();
        let mut running: Vec<_> = members
            .values()
            .map(|member| member.running.clone())
            .collect();
        running.sort_by(|one, other| one.id.cmp(&other.id));
        running
    }

    /// Takes a container into care: from here on its death is reported, once.
    fn watch_over(self: &Arc<Self>, held: Held, fds: MemberFds, keeper: u32) -> Running {
        for note in &held.notes {
            tracing::warn!(id = %held.id, note, "a container is not all that was asked for");
        }
        let running = Running {
            id: held.id.clone(),
            pid: held.pid,
            started: held.started,
        };
        self.walls.hold(&running);
        let member = Arc::new(Member {
            running: running.clone(),
            pidfd: Arc::new(fds.0),
            control: fds.1,
            was_killed: AtomicBool::new(false),
            exit: tokio::sync::watch::Sender::new(None),
            keeper,
        });
        self.members.lock().insert(held.id, member.clone());
        tokio::spawn(self.clone().see_die(member));
        running
    }

    async fn see_die(self: Arc<Self>, member: Arc<Member>) {
        let id = member.running.id.clone();
        while let Err(error) = self.prove_dead(&member).await {
            tracing::error!(%id, %error, "prove a container dead");
            tokio::time::sleep(PROVE_AGAIN).await;
        }
        let exit = self.how_ended(&member).await;
        self.members.lock().remove(&id);
        self.report(RuntimeEvent::Dead {
            id: id.clone(),
            exit,
        });
        self.mention(Request::Forget { ids: vec![id] });
    }

    async fn prove_dead(&self, member: &Member) -> io::Result<()> {
        member.dead().await?;
        self.walls.emptied(member).await
    }

    fn keeper_lost(&self, life: &KeeperLife) {
        self.report(RuntimeEvent::KeeperLost);
        let orphans: Vec<_> = {
            let members = self.members.lock();
            let orphans = members.values().filter(|member| member.keeper == life.pid);
            orphans.cloned().collect()
        };
        for orphan in orphans {
            // The kernel has killed it with its keeper; this is for the case that it has not.
            self.kill_directly(&orphan);
            orphan.exited(Exit::Unknown);
        }
    }

    /// Ends and removes what an earlier run left. The end is waited for, the removal is not.
    async fn end_leftovers(self: Arc<Self>, mut held: BTreeSet<ContainerId>) {
        // Those of a keeper before, that are still dying.
        held.extend(self.members.lock().keys().cloned());
        let shared = self.clone();
        let found = blocking(move || shared.walls.leftovers(&held)).await;
        let leftovers = match found {
            Ok(Ok(leftovers)) => leftovers,
            Ok(Err(error)) => {
                tracing::error!(%error, "end what an earlier run left");
                return;
            }
            Err(refusal) => {
                tracing::error!(%refusal, "end what an earlier run left");
                return;
            }
        };
        if leftovers.is_empty() {
            return;
        }
        tracing::info!(
            containers = leftovers.len(),
            "removing what an earlier run left"
        );
        drop(tokio::task::spawn_blocking(move || {
            for id in leftovers {
                if let Err(error) = self.remove(&id) {
                    tracing::warn!(%id, %error, "remove what an earlier run left");
                }
            }
        }));
    }
}

fn internal(message: &str) -> Refusal {
    Refusal::new(RefusalCode::Internal, message)
}

/// A keeper's refusal, as a client sees it.
pub(super) fn explain(refusal: &KeeperRefusal) -> Refusal {
    let code = match refusal.code {
        KeeperRefusalCode::BadMessage | KeeperRefusalCode::DeadlineTooFar => RefusalCode::Internal,
        KeeperRefusalCode::NoDeadline
        | KeeperRefusalCode::PastDeadline
        | KeeperRefusalCode::GoingDown => RefusalCode::Fenced,
        KeeperRefusalCode::StaleEpoch => RefusalCode::NotOwner,
        KeeperRefusalCode::NotRunning => RefusalCode::NotRunning,
        KeeperRefusalCode::CommandNotFound | KeeperRefusalCode::CommandNotExecutable => {
            RefusalCode::CommandNotFound
        }
        KeeperRefusalCode::ImageMissing => RefusalCode::ImageNotFound,
        KeeperRefusalCode::DiskFull => RefusalCode::DiskFull,
        KeeperRefusalCode::Unsupported
        | KeeperRefusalCode::LimitReached
        | KeeperRefusalCode::TimedOut
        | KeeperRefusalCode::Failed => RefusalCode::StartFailed,
    };
    let message = match code {
        RefusalCode::DiskFull => format!("no space is left for the container's files: {refusal}"),
        _ => refusal.to_string(),
    };
    Refusal::new(code, message)
}

#[cfg(test)]
mod tests;
