//! The docker runtime: containers that Docker's engine makes, and that die without it.
//!
//! ```text
//! start:   directories, record ─► admitted by the keeper ─► created, started (engine) ─► its program runs ─► held
//! dead:    pidfd of PID 1 readable ─► cgroup empty        (the engine learns of it later, by itself)
//! cleanup: the engine removes it ─► record, older logs    (the workspace stays)
//! ```
//!
//! The engine starts containers, runs commands in them, carries their output and removes them. It never kills: that is
//! done by PID, through the keeper, whose timer does it at the deadline too. What it cannot promise, and native
//! containers can, is in the keeper's `watched`.
//!
//! Containers are found again by their labels; the name of each follows from its fleet, host, repl and epoch, and is
//! what the engine is asked by. PID 1 is the engine's own small init, which passes SIGTERM on.

mod create;
mod exec;
mod logs;
mod stream;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Method;
use model::api::Refusal;
use model::id::ContainerId;
use model::timing::START_STUCK_AFTER;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::dial::Dialer;
use super::kept::{How, Kept, Member, Outside, Record, Walls};
use super::layout::{Layout, RuntimeOptions, parse_id};
use super::native::{base_environment, cannot_prepare, make_private, named_in, remove_all};
use super::{Exec, ExecOutput, Exit, Running, StartRequest, Terminal};
use crate::docker::DockerId;
use crate::docker::engine::{Engine, EngineAddress, EngineError, Listed};
use crate::docker::process::{HoldError, Process, hold};
use crate::docker::tree::{CgroupOf, Trees};
use crate::telemetry::locks::Mutex;

/// Where a repl's workspace is in its container.
const HOME: &str = "/home/repl";

/// The labels of every container of ours.
const LABEL_FLEET: &str = "conman.fleet";
const LABEL_HOST: &str = "conman.host";
const LABEL_REPL: &str = "conman.repl";
const LABEL_EPOCH: &str = "conman.epoch";

/// How long the engine may take for what it does at once when it is well.
const ENGINE_MAX: Duration = Duration::from_secs(10);

/// How long it may take for what may wait for a container's lock or a disk: starts and removals.
const ENGINE_WORK_MAX: Duration = Duration::from_secs(60);

/// How long a death that nobody asked for waits for the engine to say how the program ended.
const EXIT_WORD_MAX: Duration = Duration::from_secs(3);

/// How long killed processes may take to end before that is an error.
const DEATH_MAX: Duration = Duration::from_secs(2);

/// When an image is fetched from its registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Never: what is not here is refused.
    Never,
    /// When it is not here.
    #[default]
    Missing,
    /// Before each start.
    Always,
}

impl Pull {
    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Pull::Never => "never",
            Pull::Missing => "missing",
            Pull::Always => "always",
        }
    }
}

/// What is the docker runtime's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerOptions {
    /// The engine's socket.
    pub engine: EngineAddress,
    /// What repls run that name no image.
    pub image: Option<String>,
    /// When images are fetched.
    pub pull: Pull,
    /// The engine's network that containers are in; `none` for their own loopback alone.
    pub network: String,
}

struct Docker {
    layout: Layout,
    fleet: String,
    options: DockerOptions,
    engine: Engine,
    trees: Trees,
    dialer: Dialer,
    live: Mutex<HashMap<ContainerId, Live>>,
}

/// What is known of a container in care.
#[derive(Clone)]
struct Live {
    cgroup: CgroupOf,
    /// Turns true when all of its output is in its files.
    logged: watch::Receiver<bool>,
}

/// Begins to look for the keeper. Must be called within tokio; blocks until the engine has answered.
///
/// # Errors
/// When the engine does not answer, or the state directory cannot be written.
pub fn open(options: &RuntimeOptions, docker: DockerOptions) -> io::Result<Kept> {
    let docker = Docker::new(options, docker)?;
    if options.witness.is_some() {
        tracing::warn!("the docker runtime leaves no witness: that is the native init's work");
    }
    make_private(&docker.layout.state)?;
    make_private(&docker.layout.workspaces)?;
    for directory in [docker.layout.records(), docker.layout.state.join("logs")] {
        std::fs::create_dir_all(directory)?;
    }
    let engine = docker.engine.clone();
    workers::wait_for(async move {
        engine
            .call::<Value>(Method::GET, "/info", None, ENGINE_MAX)
            .await
    })
    .map_err(io::Error::other)?;
    Ok(Kept::new(Arc::new(docker), options))
}

/// Removes what a host that is down has left: its containers, killed if need be, and their records. Safe to repeat.
///
/// # Errors
/// The first thing that could not be removed.
pub fn purge(options: &RuntimeOptions, docker: DockerOptions) -> io::Result<()> {
    let docker = Docker::new(options, docker)?;
    let records = docker.layout.records();
    workers::wait_for(async move {
        for (id, listed) in docker.list().await.map_err(io::Error::other)? {
            docker.end(&listed).await?;
            docker.remove_now(&id).await.map_err(io::Error::other)?;
        }
        Ok::<_, io::Error>(())
    })?;
    remove_all(&records)
}

impl Docker {
    fn new(options: &RuntimeOptions, docker: DockerOptions) -> io::Result<Self> {
        Ok(Self {
            layout: Layout::new(options),
            fleet: options.fleet(),
            engine: Engine::new(docker.engine.clone()),
            options: docker,
            trees: Trees::of_this_machine()?,
            dialer: Dialer::default(),
            live: Mutex::new("containers of Docker's", HashMap::new()),
        })
    }

    /// The name of a container, by which the engine is asked.
    fn name(&self, id: &ContainerId) -> String {
        format!(
            "{}-{}-{}-{}",
            self.fleet, self.layout.host, id.repl, id.epoch
        )
    }

    fn live(&self, id: &ContainerId) -> Option<Live> {
        self.live.lock().get(id).cloned()
    }

    /// This host's containers, by their labels, in whatever state.
    async fn list(&self) -> Result<Vec<(ContainerId, Listed)>, EngineError> {
        let labels = [
            format!("{LABEL_FLEET}={}", self.fleet),
            format!("{LABEL_HOST}={}", self.layout.host),
        ];
        let filters = BTreeMap::from([("label".to_owned(), labels.to_vec())]);
        let listed = self.engine.list(&filters, ENGINE_MAX).await?;
        let ours = listed.into_iter().filter_map(|one| {
            let label = |name| one.labels.get(name);
            let id = parse_id(&format!("{}@{}", label(LABEL_REPL)?, label(LABEL_EPOCH)?))?;
            Some((id, one))
        });
        Ok(ours.collect())
    }

    /// Kills what is left alive of a container, and proves it dead.
    async fn end(&self, listed: &Listed) -> io::Result<()> {
        let id: DockerId = listed.id.parse().map_err(io::Error::other)?;
        let inspected = match self.engine.inspect(id.as_str(), ENGINE_MAX).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other.map_err(io::Error::other)?,
        };
        if inspected.state.pid == 0 {
            return Ok(());
        }
        let (process, cgroup) = match hold(inspected.state.pid, &id, &self.trees) {
            Err(HoldError::Ended(_)) => return Ok(()),
            other => other.map_err(io::Error::other)?,
        };
        tracing::info!(container = id.short(), "killing what is left alive");
        process.signal(Signal::KILL)?;
        cgroup.kill(&id, &self.trees)?;
        let dead = async {
            process.ended().await?;
            cgroup.emptied().await
        };
        let in_time = tokio::time::timeout(DEATH_MAX, dead).await;
        in_time.unwrap_or_else(|_| {
            let stuck = format!("{}: it was killed and does not end", id.short());
            Err(io::Error::new(io::ErrorKind::TimedOut, stuck))
        })
    }

    async fn remove_now(&self, id: &ContainerId) -> Result<(), EngineError> {
        let path = format!("/containers/{}?force=1&v=1", self.name(id));
        let removed = self
            .engine
            .call::<Value>(Method::DELETE, &path, None, ENGINE_WORK_MAX);
        match removed.await {
            // Gone, or going.
            Err(error) if error.is_not_found() => Ok(()),
            Err(EngineError::Refused { status: 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// How its program ended, once the engine knows; its output is complete then.
    async fn ended(&self, id: &ContainerId) -> Exit {
        let name = self.name(id);
        match self.engine.settled(&name, ENGINE_MAX).await {
            Ok(Some(code)) => exit_of(code),
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }
}

/// A program that a signal has ended shows as 128 and the signal's number, with the engine as in a shell.
fn exit_of(code: i32) -> Exit {
    match code {
        129..=192 => Exit::Signal(code - 128),
        _ => Exit::Code(code),
    }
}

impl Walls for Docker {
    fn start_stuck_after(&self) -> Duration {
        // Its image may have to come first, and the engine has its own patience for each of its steps.
        create::PULL_MAX + START_STUCK_AFTER
    }

    fn record(&self, id: &ContainerId) -> PathBuf {
        self.layout.record(id)
    }

    fn prepare(&self, request: &StartRequest) -> Result<(How, Record), Refusal> {
        let StartRequest { id, spec } = request;
        let mut env = base_environment(id, "", HOME, spec.port);
        // The image knows its own.
        env.remove("PATH");
        env.extend(spec.env.clone());
        let record = Record {
            env,
            cwd: HOME.into(),
            port: None,
        };
        let make_files = || {
            std::fs::create_dir_all(self.layout.workspace(id))?;
            std::fs::create_dir_all(self.layout.logs(&id.repl))?;
            record.write(&self.layout.record(id))
        };
        make_files().map_err(|error| cannot_prepare(id, &error))?;
        Ok((How::Outside, record))
    }

    fn start_outside<'a>(
        &'a self,
        request: &'a StartRequest,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Outside, Refusal>> {
        async move {
            let started = self.create_and_start(request, record).await;
            if started.is_err() {
                self.abandon(&request.id).await;
            }
            started
        }
        .boxed()
    }

    fn abandon<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, ()> {
        async move {
            let listed = self.list().await.unwrap_or_default();
            for (_, listed) in listed.iter().filter(|(one, _)| one == id) {
                if let Err(error) = self.end(listed).await {
                    tracing::error!(%id, %error, "end a container that could not be started");
                }
            }
            if let Err(error) = self.remove_now(id).await {
                tracing::warn!(%id, %error, "remove a container that could not be started");
            }
        }
        .boxed()
    }

    fn hold(&self, running: &Running) {
        let id = running.id.clone();
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid));
        // One that has just ended has none any more, and with its PID namespace nothing is left in it.
        let cgroup = cgroups
            .ok()
            .and_then(|text| self.trees.cgroup_of(&text, &self.trees.id_in(&text)?))
            .unwrap_or_default();
        let (done, logged) = watch::channel(false);
        self.live.lock().insert(id.clone(), Live { cgroup, logged });
        let (engine, name) = (self.engine.clone(), self.name(&id));
        let files = self.layout.log_files(&id);
        tokio::spawn(async move {
            if let Err(error) = logs::follow(&engine, &name, files).await {
                tracing::warn!(%id, %error, "follow the container's output");
            }
            done.send_replace(true);
        });
    }

    fn kill(&self, member: &Member) -> io::Result<()> {
        member.kill()
    }

    fn emptied<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, io::Result<()>> {
        async move {
            match self.live(&member.running.id) {
                Some(live) => live.cgroup.emptied().await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn exit<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Exit> {
        async move {
            let id = &member.running.id;
            let live = self.live.lock().remove(id);
            if member.was_killed.load(std::sync::atomic::Ordering::Relaxed) {
                // The engine will not know for a while, and nobody shall wait for it.
                return Exit::Signal(libc::SIGKILL);
            }
            let ended = async {
                let exit = self.ended(id).await;
                if let Some(mut live) = live {
                    // Its sender lives until it is so.
                    let _ = live.logged.wait_for(|done| *done).await;
                }
                exit
            };
            let exit = match tokio::time::timeout(EXIT_WORD_MAX, ended).await {
                Ok(exit) => exit,
                Err(_) => Exit::Unknown,
            };
            match exit {
                // By somebody, or by the keeper's guard: then its loss is known any moment now.
                Exit::Signal(libc::SIGKILL) => match member.said_or_silent().await {
                    Some(said) => said,
                    None => exit,
                },
                _ => exit,
            }
        }
        .boxed()
    }

    fn exec<'a>(
        &'a self,
        member: &'a Arc<Member>,
        _record: &'a Record,
        exec: Exec,
    ) -> BoxFuture<'a, Result<ExecOutput, Refusal>> {
        self.exec_in(member, exec).boxed()
    }

    fn shell<'a>(
        &'a self,
        member: &'a Arc<Member>,
        _record: &'a Record,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'a, Result<Terminal, Refusal>> {
        self.shell_in(member, columns, rows).boxed()
    }

    fn dial<'a>(
        &'a self,
        member: &'a Member,
        _record: &'a Record,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Refusal>> {
        self.dialer.dial_member(member, port).boxed()
    }

    fn remove(&self, id: &ContainerId) -> io::Result<()> {
        workers::wait_for(self.remove_now(id)).map_err(io::Error::other)
    }

    fn leftovers(&self, held: &BTreeSet<ContainerId>) -> io::Result<BTreeSet<ContainerId>> {
        let mut left = named_in(&self.layout.records())?;
        left.retain(|id| !held.contains(id));
        workers::wait_for(async {
            for (id, listed) in self.list().await.map_err(io::Error::other)? {
                if !held.contains(&id) {
                    self.end(&listed).await?;
                    left.insert(id);
                }
            }
            Ok(left)
        })
    }
}

/// Holds the process that the engine calls a container's PID 1.
fn hold_first(
    pid: u32,
    id: &DockerId,
    trees: &Trees,
) -> Result<Option<(Process, CgroupOf)>, HoldError> {
    match hold(pid, id, trees) {
        Ok(held) => Ok(Some(held)),
        Err(HoldError::Ended(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
