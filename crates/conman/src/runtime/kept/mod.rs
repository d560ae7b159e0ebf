//! Containers that a keeper holds: what the native and the process runtime have in common.
//!
//! ```text
//!            ┌────────────── driver (one task): the connection to the keeper ──────────────┐
//!  start ──► │ Start ─► Started + fds ─► a Member: its PID 1's pidfd, its init's socket     │
//!            │                            │                                                 │
//!            │              watcher (one task each): pidfd readable ─► cgroup empty ─► Dead │
//!            │ Exited ─► the exit code for it                                               │
//!            └─ keeper lost: every watcher goes on by itself, with no exit code to come ────┘
//! ```
//!
//! A death needs no word of the keeper's: the watcher sees the pidfd and the cgroup itself. The keeper only
//! adds how the program ended, and is waited for a moment at most.
//!
//! What differs between the runtimes (what is prepared, proven and removed) is behind [`Walls`].

mod driver;
mod exec;
mod link;
mod logs;
mod member;
mod record;
mod turns;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use model::api::{Refusal, RefusalCode};
use model::id::{ContainerId, ReplId};
use model::time::BootTime;
use model::timing::{START_STUCK_AFTER, WATCHED_LEAD};
use model::wire::keeper::{Answer, KILL_IDS_MAX, Launch, Request};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::telemetry::locks::Mutex;
use crate::telemetry::operations::while_wanted;

pub(super) use self::member::Member;
pub(super) use self::record::{PortMap, Record};
use super::layout::{Layout, RuntimeOptions};
use super::{
    Exec, ExecOutput, Exit, LogFiles, Running, Runtime, RuntimeEvent, StartRequest, Terminal,
    boot_now, keeper_gone, not_running, still_alive,
};

/// How long the keeper may take to confirm that it has sent the kills, before conman sends them itself.
const KILL_WORD_MAX: Duration = Duration::from_millis(100);

/// Who starts a container.
pub(super) enum How {
    /// The keeper, which is then its parent.
    Keeper(Box<Launch>),
    /// Somebody else, by [`Walls::start_outside`]; the keeper then holds it.
    Outside,
}

/// What came of a start by somebody else.
pub(super) enum Outside {
    /// Its program runs.
    Running {
        /// The PID of its PID 1.
        pid: u32,
        /// When that was started, as `/proc/PID/stat` has it.
        start_ticks: u64,
    },
    /// Its program ran and has ended.
    Ended(Exit),
}

/// What a keeper's containers are made of. Blocking unless it says otherwise.
pub(super) trait Walls: Send + Sync + 'static {
    /// Where a container's record lies: how it was started, for a conman that comes later.
    fn record(&self, id: &ContainerId) -> PathBuf;

    /// Prepares everything that must exist before the container is started.
    fn prepare(&self, request: &StartRequest) -> Result<(How, Record), Refusal>;

    /// Starts a container of [`How::Outside`]. On any error nothing is left running.
    fn start_outside<'a>(
        &'a self,
        request: &'a StartRequest,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Outside, Refusal>> {
        let id = &request.id;
        let nobody = Refusal::new(
            RefusalCode::Internal,
            format!("nobody but the keeper starts {id}"),
        );
        let _ = record;
        std::future::ready(Err(nobody)).boxed()
    }

    /// How long a start may take before it counts as stuck.
    fn start_stuck_after(&self) -> Duration {
        START_STUCK_AFTER
    }

    /// Ends a container of [`How::Outside`] that the keeper does not hold.
    fn abandon<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, ()> {
        let _ = id;
        std::future::ready(()).boxed()
    }

    /// Ends what there may be of a container whose start the keeper has not answered and will not, and returns when
    /// nothing of it is alive. One of [`How::Outside`] is [`Walls::abandon`]ed by whoever began it.
    fn end_unanswered<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, std::io::Result<()>> {
        let _ = id;
        std::future::ready(Ok(())).boxed()
    }

    /// How the program of a container ended that is proven dead.
    fn exit<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Exit> {
        member.said().boxed()
    }

    /// Runs a command in a running container.
    fn exec<'a>(
        &'a self,
        member: &'a Arc<Member>,
        record: &'a Record,
        exec: Exec,
    ) -> BoxFuture<'a, Result<ExecOutput, Refusal>> {
        exec::run(member, record, exec).boxed()
    }

    /// Opens a shell on a terminal in a running container.
    fn shell<'a>(
        &'a self,
        member: &'a Arc<Member>,
        record: &'a Record,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'a, Result<Terminal, Refusal>> {
        exec::shell(member, record, columns, rows).boxed()
    }

    /// Holds on to what the kernel would otherwise take down on the way to its death, until [`Walls::remove`], and begins to
    /// follow what must be followed. Called once for each container that is seen alive, started just now or adopted.
    fn hold(&self, running: &Running) {
        let _ = running;
    }

    /// SIGKILL to everything in it, without the keeper.
    fn kill(&self, member: &Member) -> std::io::Result<()>;

    /// Ends when nothing of a container whose PID 1 is dead is left; ends what is.
    fn emptied<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, std::io::Result<()>>;

    /// Connects to a port of a running container.
    fn dial<'a>(
        &'a self,
        member: &'a Member,
        record: &'a Record,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Refusal>>;

    /// A keeper is there that was not before: whatever ended with the last one is made again.
    fn met_keeper(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Removes what a dead container left.
    fn remove(&self, id: &ContainerId) -> std::io::Result<()>;

    /// What an earlier run of this host left, without what is held: killed and proven dead, to be removed.
    fn leftovers(&self, held: &BTreeSet<ContainerId>) -> std::io::Result<BTreeSet<ContainerId>>;
}

/// A runtime on real processes, held by a keeper. Made by `native::open` or `process::open`.
pub struct Kept {
    shared: Arc<Shared>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<RuntimeEvent>>>,
    driver: tokio::task::AbortHandle,
}

pub(super) struct Shared {
    walls: Arc<dyn Walls>,
    layout: Layout,
    members: Mutex<HashMap<ContainerId, Arc<Member>>>,
    records: Mutex<HashMap<ContainerId, Arc<Record>>>,
    /// The last one that was asked for.
    deadline: Mutex<Option<BootTime>>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
    asks: mpsc::UnboundedSender<Ask>,
    turns: turns::Turns,
}

/// What the driver is asked to say to the keeper.
enum Ask {
    Start {
        id: ContainerId,
        /// A start, or the holding of one that others have started.
        request: Request,
        reply: oneshot::Sender<Result<Running, Refusal>>,
    },
    Request {
        request: Request,
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// What is held, once it is known.
    Adopt {
        reply: oneshot::Sender<Result<Vec<Running>, Refusal>>,
    },
}

impl Kept {
    /// Begins to look for the keeper. Must be called within tokio.
    pub(super) fn new(walls: Arc<dyn Walls>, options: &RuntimeOptions) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let (asks, asked) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            walls,
            layout: Layout::new(options),
            members: Mutex::new("containers that are held", HashMap::new()),
            records: Mutex::new("records of containers", HashMap::new()),
            deadline: Mutex::new("deadline", None),
            events,
            asks,
            turns: turns::Turns::default(),
        });
        let driver = driver::drive(shared.clone(), options.keeper_socket.clone(), asked);
        Self {
            shared,
            receiver: Mutex::new("events of the runtime", Some(receiver)),
            driver: tokio::spawn(driver).abort_handle(),
        }
    }

    async fn start_now(&self, request: StartRequest) -> Result<Running, Refusal> {
        let id = request.id.clone();
        let turn = while_wanted(self.shared.turns.take()).await?;
        let (shared, to_prepare) = (self.shared.clone(), request.clone());
        let fault = crate::faults::in_prepare(&id.repl);
        let preparing = blocking(move || {
            fault();
            shared.walls.prepare(&to_prepare)
        });
        // A disk may hang for ever. What comes of it later is removed with the leftovers.
        let (how, record) = while_wanted(preparing).await???;
        let record = Arc::new(record);
        self.shared
            .records
            .lock()
            .insert(id.clone(), record.clone());
        let result = match how {
            How::Keeper(launch) => {
                let container = id.clone();
                let start = Request::Start { container, launch };
                self.shared.ask_start(&id, start).await
            }
            How::Outside => {
                // Others make it, with means of their own.
                drop(turn);
                // A task of its own: whoever asked may go, and what was begun must be held or ended.
                let starting = self.shared.clone().start_outside(request, record);
                let started = tokio::spawn(starting).await;
                started.unwrap_or_else(|error| {
                    let message = format!("start {id}: {error}");
                    Err(Refusal::new(RefusalCode::Internal, message))
                })
            }
        };
        if result.is_err() {
            self.shared.records.lock().remove(&id);
        }
        result
    }

    async fn kill_now(&self, ids: Vec<ContainerId>) -> Result<(), Refusal> {
        let members: Vec<_> = {
            let held = self.shared.members.lock();
            ids.iter().filter_map(|id| held.get(id).cloned()).collect()
        };
        // Also those that it only begins to start: the keeper gives them up.
        for member in &members {
            member.was_killed.store(true, Ordering::Relaxed);
        }
        let requests = ids.chunks(KILL_IDS_MAX).map(|ids| {
            let ids = ids.to_vec();
            self.shared.request(Request::Kill { ids })
        });
        let told = tokio::time::timeout(KILL_WORD_MAX, try_join_all(requests)).await;
        if matches!(told, Ok(Ok(_))) {
            return Ok(());
        }
        // A keeper that is stopped or gone must not keep anything alive.
        for member in members {
            self.shared.kill_directly(&member);
        }
        Ok(())
    }

    async fn dial_now(&self, id: &ContainerId, port: u16) -> Result<TcpStream, Refusal> {
        let member = self.shared.member(id)?;
        let record = self.shared.record(id).await?;
        self.shared.walls.dial(&member, &record, port).await
    }

    async fn cleanup_now(&self, id: ContainerId) -> Result<(), Refusal> {
        if self.shared.members.lock().contains_key(&id) {
            return Err(still_alive(&id));
        }
        self.shared.records.lock().remove(&id);
        let shared = self.shared.clone();
        let done = blocking(move || shared.remove(&id)).await?;
        done.map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("clean up container: {error}"),
            )
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The connection closes; the containers live on, for the next conman to adopt.
        self.driver.abort();
    }
}

impl Shared {
    fn member(&self, id: &ContainerId) -> Result<Arc<Member>, Refusal> {
        let member = self.members.lock().get(id).cloned();
        member.ok_or_else(|| not_running(id))
    }

    async fn record(&self, id: &ContainerId) -> Result<Arc<Record>, Refusal> {
        if let Some(record) = self.records.lock().get(id) {
            return Ok(record.clone());
        }
        // Adopted: it was started by an earlier conman.
        let path = self.walls.record(id);
        let read = blocking(move || Record::read(&path)).await?;
        let record = Arc::new(read.map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("read record of {id}: {error}"),
            )
        })?);
        if self.members.lock().contains_key(id) {
            self.records.lock().insert(id.clone(), record.clone());
        }
        Ok(record)
    }

    async fn ask_start(&self, id: &ContainerId, request: Request) -> Result<Running, Refusal> {
        let (reply, started) = oneshot::channel();
        let id = id.clone();
        self.tell(Ask::Start { id, request, reply }, started).await
    }

    async fn start_outside(
        self: Arc<Self>,
        request: StartRequest,
        record: Arc<Record>,
    ) -> Result<Running, Refusal> {
        let id = request.id.clone();
        let container = id.clone();
        self.request(Request::Admit { container }).await?;
        let (pid, start_ticks) = match self.walls.start_outside(&request, &record).await? {
            Outside::Running { pid, start_ticks } => (pid, start_ticks),
            Outside::Ended(exit) => {
                let running = Running {
                    id: id.clone(),
                    pid: 0,
                    started: boot_now(),
                };
                self.report(RuntimeEvent::Dead { id, exit });
                return Ok(running);
            }
        };
        let hold = Request::Hold {
            container: id.clone(),
            pid,
            start_ticks,
        };
        let held = self.ask_start(&id, hold).await;
        if held.is_err() {
            self.walls.abandon(&id).await;
        }
        held
    }

    /// How the program of a container ended that is proven dead.
    async fn how_ended(&self, member: &Member) -> Exit {
        let deadline = *self.deadline.lock();
        let is_over = deadline.is_some_and(|at| at.since(boot_now()) <= WATCHED_LEAD);
        // The keeper kills what it only watches a little before its own end: that was not the program's doing.
        if member.control.is_none() && is_over && !member.was_killed.load(Ordering::Relaxed) {
            return Exit::Unknown;
        }
        self.walls.exit(member).await
    }

    async fn tell<T>(
        &self,
        ask: Ask,
        answer: oneshot::Receiver<Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        if self.asks.send(ask).is_err() {
            return Err(keeper_gone());
        }
        answer.await.unwrap_or_else(|_| Err(keeper_gone()))
    }

    async fn request(&self, request: Request) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(Ask::Request { request, reply }, answer).await
    }

    /// Sends a request whose answer changes nothing.
    fn mention(&self, request: Request) {
        let (reply, _) = oneshot::channel();
        // Without a driver there is no keeper to hear it.
        let _ = self.asks.send(Ask::Request { request, reply });
    }

    fn kill_directly(&self, member: &Member) {
        if let Err(error) = self.walls.kill(member) {
            tracing::error!(id = %member.running.id, %error, "kill container");
        }
    }

    fn report(&self, event: RuntimeEvent) {
        // Nobody listens while the process ends.
        let _ = self.events.send(event);
    }

    fn remove(&self, id: &ContainerId) -> std::io::Result<()> {
        self.walls.remove(id)?;
        logs::remove_older(&self.layout.logs(&id.repl))?;
        match std::fs::remove_file(self.walls.record(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Runs what may wait for the disk or for cgroup locks where it delays nobody else.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(RefusalCode::Internal, format!("runtime: {error}")))
}

impl Runtime for Kept {
    fn events(&self) -> Option<mpsc::UnboundedReceiver<RuntimeEvent>> {
        self.receiver.lock().take()
    }

    fn arm(&self, deadline: BootTime) -> BoxFuture<'_, Result<(), Refusal>> {
        {
            let mut last = self.shared.deadline.lock();
            *last = (*last).max(Some(deadline));
        }
        let armed = self.shared.request(Request::Arm { deadline });
        armed.map(|answer| answer.map(drop)).boxed()
    }

    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Running, Refusal>> {
        self.start_now(request).boxed()
    }

    fn start_stuck_after(&self) -> Duration {
        self.shared.walls.start_stuck_after()
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Running>, Refusal>> {
        let (reply, adopted) = oneshot::channel();
        self.shared.tell(Ask::Adopt { reply }, adopted).boxed()
    }

    fn terminate(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>> {
        let alive = self.shared.member(id).map(drop);
        let request = Request::Terminate { id: id.clone() };
        async move {
            alive?;
            self.shared.request(request).await.map(drop)
        }
        .boxed()
    }

    fn kill(&self, ids: &[ContainerId]) -> BoxFuture<'_, Result<(), Refusal>> {
        self.kill_now(ids.to_vec()).boxed()
    }

    fn exec(&self, id: &ContainerId, exec: Exec) -> BoxFuture<'_, Result<ExecOutput, Refusal>> {
        let id = id.clone();
        async move {
            let member = self.shared.member(&id)?;
            let record = self.shared.record(&id).await?;
            self.shared.walls.exec(&member, &record, exec).await
        }
        .boxed()
    }

    fn shell(
        &self,
        id: &ContainerId,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'_, Result<Terminal, Refusal>> {
        let id = id.clone();
        async move {
            let member = self.shared.member(&id)?;
            let record = self.shared.record(&id).await?;
            let shell = self.shared.walls.shell(&member, &record, columns, rows);
            shell.await
        }
        .boxed()
    }

    fn dial(&self, id: &ContainerId, port: u16) -> BoxFuture<'_, Result<TcpStream, Refusal>> {
        let id = id.clone();
        async move { self.dial_now(&id, port).await }.boxed()
    }

    fn logs(&self, id: &ContainerId) -> LogFiles {
        LogFiles(logs::in_order(self.shared.layout.log_files(id)))
    }

    fn newest_logs(&self, repl: &ReplId) -> Option<ContainerId> {
        // A directory that cannot be read has nothing to show.
        let newest = logs::newest(&self.shared.layout.logs(repl)).ok().flatten();
        newest.map(|epoch| ContainerId {
            repl: repl.clone(),
            epoch,
        })
    }

    fn cleanup(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>> {
        self.cleanup_now(id.clone()).boxed()
    }
}
