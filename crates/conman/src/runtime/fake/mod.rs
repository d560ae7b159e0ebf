//! A runtime in memory, for tests of what stands on the seam: no processes, but real sockets and terminals.
//!
//! ```text
//! start ─► (gate, delay, scripted failure) ─► Alive ── kill, die, keeper lost ──► Dying ─► Dead sent ─► cleanup
//!                                                                          └─ held while `hold_deaths` ─┘
//! ```
//!
//! It keeps the promises of the trait (and passes its contract), and everything that a machine may do
//! to a host can be made to happen: slow and failing starts, containers that die, that ignore SIGTERM,
//! whose death comes late, a keeper that is lost. A clone is another handle on the same fake.
//!
//! A container's `command` is taken at its word for a few programs (see [`programs`]); anything else
//! runs until it is ended and listens on the spec's port, echoing what it reads unless
//! [`Fake::serve_with`] says otherwise.

pub mod programs;
mod terminal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::api::{Refusal, RefusalCode};
use model::id::{ContainerId, Epoch, ReplId};
use model::time::BootTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use self::programs::Program;
use super::{
    Exec, ExecOutput, Exit, LogFiles, Running, Runtime, RuntimeEvent, StartRequest, Terminal,
};

/// One call of the trait, as the fake saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `arm`.
    Arm(BootTime),
    /// `start`, when it was asked, whatever came of it.
    Start(ContainerId),
    /// `adopt`.
    Adopt,
    /// `terminate`.
    Terminate(ContainerId),
    /// `kill`, with all that were named.
    Kill(Vec<ContainerId>),
    /// `exec`.
    Exec(ContainerId),
    /// `shell`.
    Shell(ContainerId),
    /// `dial`.
    Dial(ContainerId, u16),
    /// `cleanup`.
    Cleanup(ContainerId),
}

type Service = Arc<dyn Fn(ContainerId, TcpStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// The fake and its controls.
#[derive(Clone)]
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    state: std::sync::Mutex<State>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
    receiver: std::sync::Mutex<Option<mpsc::UnboundedReceiver<RuntimeEvent>>>,
    /// Starts wait until this is true.
    starts_open: watch::Sender<bool>,
    /// Rises with every change, so that `until` can wait.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    keeper: Option<u32>,
    next_pid: u32,
    containers: BTreeMap<ContainerId, Container>,
    epochs_seen: BTreeMap<ReplId, Epoch>,
    calls: Vec<Call>,
    deadline: Option<BootTime>,
    deadline_enforced: Option<AbortHandle>,
    enforce_deadline: bool,
    start_failures: VecDeque<Refusal>,
    start_delay: Duration,
    deaths_held: bool,
    held: Vec<(ContainerId, Exit)>,
    deaf: BTreeSet<ReplId>,
    service: Option<Service>,
    logs: Option<tempfile::TempDir>,
}

struct Container {
    running: Running,
    program: Program,
    port: Option<u16>,
    address: SocketAddr,
    /// The accept loop and with it every connection.
    serving: AbortHandle,
    /// Becomes true when the container dies: ends its execs and shells.
    dead: watch::Sender<bool>,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// A fake whose keeper is there, with nothing running.
    pub fn new() -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        Self {
            shared: Arc::new(Shared {
                state: std::sync::Mutex::new(State {
                    keeper: Some(1_000),
                    next_pid: 1_001,
                    ..State::default()
                }),
                events,
                receiver: std::sync::Mutex::new(Some(receiver)),
                starts_open: watch::Sender::new(true),
                changes: watch::Sender::new(0),
            }),
        }
    }

    /// Looks without being seen: `until` is not woken.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // A test that panicked while it held the lock has failed already.
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        look(&mut state)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = self.look(act);
        self.shared.changes.send_modify(|count| *count += 1);
        result
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.look(|state| state.calls.clone())
    }

    /// What is alive, in order.
    pub fn alive(&self) -> Vec<ContainerId> {
        self.look(|state| state.containers.keys().cloned().collect())
    }

    /// The deadline armed last.
    pub fn deadline(&self) -> Option<BootTime> {
        self.look(|state| state.deadline)
    }

    /// Waits until `condition` holds for the fake; it is looked at after every change.
    pub async fn until(&self, mut condition: impl FnMut(&Fake) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        while !condition(self) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Lets starts wait at a gate until [`Fake::open_starts`].
    pub fn hold_starts(&self) {
        self.shared.starts_open.send_replace(false);
    }

    /// Opens the gate of [`Fake::hold_starts`].
    pub fn open_starts(&self) {
        self.shared.starts_open.send_replace(true);
    }

    /// How long every start takes from now on.
    pub fn delay_starts(&self, delay: Duration) {
        self.with(|state| state.start_delay = delay);
    }

    /// The next start fails so; repeated calls queue up.
    pub fn fail_next_start(&self, refusal: Refusal) {
        self.with(|state| state.start_failures.push_back(refusal));
    }

    /// Containers of this repl listen on no port, whatever their spec says.
    pub fn set_deaf(&self, repl: &ReplId, deaf: bool) {
        self.with(|state| {
            if deaf {
                state.deaf.insert(repl.clone());
            } else {
                state.deaf.remove(repl);
            }
        });
    }

    /// What containers started from now on do with each connection; dropped when the container dies.
    pub fn serve_with<F>(&self, service: F)
    where
        F: Fn(ContainerId, TcpStream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    {
        self.with(|state| state.service = Some(Arc::new(service)));
    }

    /// The container's program ends by itself. Whether it was alive.
    pub fn die(&self, id: &ContainerId, exit: Exit) -> bool {
        self.end(id, exit)
    }

    /// Deaths happen, but are not reported (as if a process hung in the kernel) until [`Fake::let_die`].
    pub fn hold_deaths(&self) {
        self.with(|state| state.deaths_held = true);
    }

    /// Reports every death held back, and those to come at once.
    pub fn let_die(&self) {
        let held = self.with(|state| {
            state.deaths_held = false;
            std::mem::take(&mut state.held)
        });
        for (id, exit) in held {
            self.report(RuntimeEvent::Dead { id, exit });
        }
    }

    /// The keeper dies, and every container with it.
    pub fn lose_keeper(&self) {
        let (was_there, ids) = self.with(|state| {
            state.deadline = None;
            if let Some(timer) = state.deadline_enforced.take() {
                timer.abort();
            }
            (
                state.keeper.take().is_some(),
                state.containers.keys().cloned().collect::<Vec<_>>(),
            )
        });
        if !was_there {
            return;
        }
        self.report(RuntimeEvent::KeeperLost);
        for id in ids {
            self.end(&id, Exit::Unknown);
        }
    }

    /// A new keeper is there, holding nothing.
    pub fn connect_keeper(&self) {
        let pid = self.with(|state| {
            let pid = state.next_pid;
            state.next_pid += 1;
            state.keeper = Some(pid);
            state.epochs_seen.clear();
            pid
        });
        self.report(RuntimeEvent::KeeperConnected { pid });
    }

    /// From now on an armed deadline on CLOCK_BOOTTIME is kept: past it the keeper is lost.
    pub fn enforce_deadlines(&self) {
        self.with(|state| state.enforce_deadline = true);
    }

    /// Another runtime on the same containers, as after a restart of conman. The old one reports no more.
    pub fn restarted(&self) -> Self {
        let next = Self::new();
        let old = self.with(std::mem::take);
        next.with(|state| {
            *state = State {
                held: Vec::new(),
                deaths_held: false,
                ..old
            };
        });
        next
    }

    fn report(&self, event: RuntimeEvent) {
        // The receiver is gone when the test has dropped it: nobody listens.
        let _ = self.shared.events.send(event);
    }

    fn end(&self, id: &ContainerId, exit: Exit) -> bool {
        let (container, held) = self.with(|state| {
            let container = state.containers.remove(id);
            if container.is_some() && state.deaths_held {
                state.held.push((id.clone(), exit));
            }
            (container, state.deaths_held)
        });
        let Some(container) = container else {
            return false;
        };
        container.serving.abort();
        container.dead.send_replace(true);
        if !held {
            self.report(RuntimeEvent::Dead {
                id: id.clone(),
                exit,
            });
        }
        true
    }

    fn enforce(&self, deadline: BootTime) {
        let fake = self.clone();
        let wait = deadline.since(super::boot_now());
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            fake.lose_keeper();
        });
        let previous = self.with(|state| state.deadline_enforced.replace(task.abort_handle()));
        if let Some(previous) = previous {
            previous.abort();
        }
    }

    async fn start_now(&self, request: StartRequest) -> Result<Running, Refusal> {
        let id = request.id.clone();
        self.with(|state| state.calls.push(Call::Start(id.clone())));
        let mut open = self.shared.starts_open.subscribe();
        // The sender lives in `self`, so this only ends when the gate is open.
        let _ = open.wait_for(|open| *open).await;
        let delay = self.with(|state| state.start_delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.with(|state| -> Result<(), Refusal> {
            if let Some(refusal) = state.start_failures.pop_front() {
                return Err(refusal);
            }
            state.check_keeper()?;
            if state.deadline.is_none() {
                return Err(Refusal::new(
                    RefusalCode::Fenced,
                    "no deadline was armed yet",
                ));
            }
            if state
                .epochs_seen
                .get(&id.repl)
                .is_some_and(|seen| *seen >= id.epoch)
            {
                return Err(Refusal::new(
                    RefusalCode::NotOwner,
                    format!("{id} is not newer than an epoch that this keeper has seen"),
                ));
            }
            state.epochs_seen.insert(id.repl.clone(), id.epoch);
            Ok(())
        })?;
        let program = programs::parse(&request.spec)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(broken)?;
        let address = listener.local_addr().map_err(broken)?;
        let service = self.with(|state| state.service.clone());
        let service = service.unwrap_or_else(|| Arc::new(|_, stream| echo(stream).boxed()));
        let serving = tokio::spawn(serve(id.clone(), listener, service)).abort_handle();
        let running = self.with(|state| {
            let pid = state.next_pid;
            state.next_pid += 1;
            let running = Running {
                id: id.clone(),
                pid,
                started: super::boot_now(),
            };
            let deaf = state.deaf.contains(&id.repl);
            state.containers.insert(
                id.clone(),
                Container {
                    running: running.clone(),
                    program: program.clone(),
                    port: request.spec.port.filter(|_| !deaf),
                    address,
                    serving,
                    dead: watch::Sender::new(false),
                },
            );
            running
        });
        if let Program::Ends { exit, output } = program {
            self.write_log(&id, &output).map_err(broken)?;
            self.end(&id, exit);
        }
        Ok(running)
    }

    fn write_log(&self, id: &ContainerId, output: &[u8]) -> std::io::Result<()> {
        let path = self.with(|state| state.log_path(id))?;
        std::fs::write(path, output)
    }

    async fn exec_now(&self, id: ContainerId, exec: Exec) -> Result<ExecOutput, Refusal> {
        let mut dead = self.with(|state| {
            state.calls.push(Call::Exec(id.clone()));
            state.alive(&id).map(|container| container.dead.subscribe())
        })?;
        tokio::select! {
            output = tokio::time::timeout(exec.timeout, programs::run(&exec)) => {
                output.unwrap_or_else(|_| Err(super::exec_timeout(&id, exec.timeout)))
            }
            _ = dead.wait_for(|dead| *dead) => Err(super::not_running(&id)),
        }
    }

    async fn dial_now(&self, id: ContainerId, port: u16) -> Result<TcpStream, Refusal> {
        let address = self.with(|state| {
            state.calls.push(Call::Dial(id.clone(), port));
            let container = state.alive(&id)?;
            if container.port != Some(port) {
                return Err(super::not_listening(&id, port));
            }
            Ok(container.address)
        })?;
        TcpStream::connect(address)
            .await
            .map_err(|_| super::not_listening(&id, port))
    }
}

impl State {
    fn check_keeper(&self) -> Result<(), Refusal> {
        if self.keeper.is_some() {
            Ok(())
        } else {
            Err(super::keeper_gone())
        }
    }

    fn alive(&self, id: &ContainerId) -> Result<&Container, Refusal> {
        self.containers
            .get(id)
            .ok_or_else(|| super::not_running(id))
    }

    fn log_path(&mut self, id: &ContainerId) -> std::io::Result<std::path::PathBuf> {
        let directory = match self.logs.take() {
            Some(directory) => directory,
            None => tempfile::tempdir()?,
        };
        let path = directory.path().join(id.to_string());
        self.logs = Some(directory);
        Ok(path)
    }
}

fn broken(error: std::io::Error) -> Refusal {
    Refusal::new(RefusalCode::StartFailed, format!("fake container: {error}"))
}

async fn serve(id: ContainerId, listener: TcpListener, service: Service) {
    // Dropped with this task: a dead container's connections break.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(service(id.clone(), stream));
        while connections.try_join_next().is_some() {}
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // Either side may go away at any time; there is nobody to tell.
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

impl Runtime for Fake {
    fn events(&self) -> Option<mpsc::UnboundedReceiver<RuntimeEvent>> {
        let receiver = self
            .shared
            .receiver
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()?;
        // A keeper that was there before anybody listened is news to the first listener.
        if let Some(pid) = self.look(|state| state.keeper) {
            self.report(RuntimeEvent::KeeperConnected { pid });
        }
        Some(receiver)
    }

    fn arm(&self, deadline: BootTime) -> BoxFuture<'_, Result<(), Refusal>> {
        let result = self.with(|state| {
            state.calls.push(Call::Arm(deadline));
            state.check_keeper()?;
            state.deadline = Some(deadline);
            Ok(state.enforce_deadline)
        });
        let result = result.map(|enforce| {
            if enforce {
                self.enforce(deadline);
            }
        });
        async move { result }.boxed()
    }

    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Running, Refusal>> {
        self.start_now(request).boxed()
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Running>, Refusal>> {
        let result = self.with(|state| {
            state.calls.push(Call::Adopt);
            state.check_keeper()?;
            let containers = state.containers.values();
            Ok(containers
                .map(|container| container.running.clone())
                .collect())
        });
        async move { result }.boxed()
    }

    fn terminate(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>> {
        let ignores = self.with(|state| {
            state.calls.push(Call::Terminate(id.clone()));
            state
                .alive(id)
                .map(|container| container.program == Program::IgnoresTerminate)
        });
        let result = ignores.map(|ignores| {
            if !ignores {
                self.end(id, Exit::Signal(libc::SIGTERM));
            }
        });
        async move { result }.boxed()
    }

    fn kill(&self, ids: &[ContainerId]) -> BoxFuture<'_, Result<(), Refusal>> {
        self.with(|state| state.calls.push(Call::Kill(ids.to_vec())));
        for id in ids {
            self.end(id, Exit::Signal(libc::SIGKILL));
        }
        async { Ok(()) }.boxed()
    }

    fn exec(&self, id: &ContainerId, exec: Exec) -> BoxFuture<'_, Result<ExecOutput, Refusal>> {
        self.exec_now(id.clone(), exec).boxed()
    }

    fn shell(
        &self,
        id: &ContainerId,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'_, Result<Terminal, Refusal>> {
        let dead = self.with(|state| {
            state.calls.push(Call::Shell(id.clone()));
            state.alive(id).map(|container| container.dead.subscribe())
        });
        async move { terminal::open(columns, rows, dead?).map_err(broken) }.boxed()
    }

    fn dial(&self, id: &ContainerId, port: u16) -> BoxFuture<'_, Result<TcpStream, Refusal>> {
        self.dial_now(id.clone(), port).boxed()
    }

    fn logs(&self, id: &ContainerId) -> LogFiles {
        LogFiles(self.with(|state| {
            let path = state.log_path(id).ok().filter(|path| path.exists());
            path.into_iter().collect()
        }))
    }

    fn cleanup(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>> {
        let alive = self.with(|state| {
            state.calls.push(Call::Cleanup(id.clone()));
            state.containers.contains_key(id)
        });
        let result = if alive {
            Err(super::still_alive(id))
        } else {
            Ok(())
        };
        async move { result }.boxed()
    }
}

#[cfg(test)]
mod tests;
