//! Commands and shells in a container that runs, by the engine, so that they have what the container has and no more:
//! its capabilities, its filter of system calls, its user.
//!
//! ```text
//! exec create ─► start: an upgraded connection ─► its PID (inspect) ─► held by pidfd
//!                    │                                                    │
//!          input ──► │ ──► output                    the handle says ended, or SIGKILL to its whole session
//!                                                                         │
//!                                                      its exit code (inspect) ◄──┘
//! ```
//!
//! The engine lets a command live whose caller has gone; so a task of ours minds each, and kills it when nobody waits
//! for it any more.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use model::api::{Refusal, RefusalCode};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::stream::{Source, next_frame};
use super::{Docker, ENGINE_MAX, exit_of};
use crate::docker::DockerId;
use crate::docker::engine::EngineError;
use crate::docker::process::{HoldError, Process, Stat, hold};
use crate::docker::tree::CgroupOf;
use crate::runtime::kept::Member;
use crate::runtime::ready;
use crate::runtime::{
    EXEC_OUTPUT_BYTES_MAX, Exec, ExecOutput, Exit, Terminal, TerminalSize, command_not_found,
    exec_timeout, not_running,
};

/// The shells to try, the best first.
const SHELLS: [&[&str]; 2] = [&["bash", "-l"], &["sh", "-l"]];

/// How often the engine is asked again what it is about to know.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// How long after a command's end its output may still be on the way. What its children in the background write goes
/// nowhere.
const OUTPUT_LATE_MAX: Duration = Duration::from_millis(300);

/// What the engine says of a command.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    running: bool,
    exit_code: Option<i32>,
    #[serde(default)]
    pid: u32,
}

/// A command that the engine has begun, and the task that minds it. It is killed when this is dropped.
struct Begun {
    stream: Upgraded,
    id: String,
    exit: oneshot::Receiver<Result<Exit, Refusal>>,
}

impl Docker {
    pub(super) async fn exec_in(
        &self,
        member: &Arc<Member>,
        exec: Exec,
    ) -> Result<ExecOutput, Refusal> {
        let timeout = exec.timeout;
        match tokio::time::timeout(timeout, self.exec_to_end(member, exec)).await {
            Ok(result) => result,
            // Whoever minds it was dropped with the future, and kills it.
            Err(_) => Err(exec_timeout(&member.running.id, timeout)),
        }
    }

    async fn exec_to_end(&self, member: &Arc<Member>, exec: Exec) -> Result<ExecOutput, Refusal> {
        let begun = self.begin(member, &exec.command, false).await?;
        let mut output = Output::default();
        let ended = carry(begun, &exec.stdin, &mut output).await;
        let exit = ended.unwrap_or_else(|| Err(not_running(&member.running.id)))?;
        Ok(ExecOutput {
            exit,
            stdout: output.out,
            stderr: output.err,
            truncated: output.truncated,
        })
    }

    pub(super) async fn shell_in(
        &self,
        member: &Arc<Member>,
        columns: u16,
        rows: u16,
    ) -> Result<Terminal, Refusal> {
        let mut begun = Err(not_running(&member.running.id));
        for shell in SHELLS {
            let command: Vec<_> = shell.iter().map(|word| (*word).to_owned()).collect();
            begun = self.begin(member, &command, true).await;
            let is_missing = |refusal: &Refusal| refusal.code == RefusalCode::CommandNotFound;
            if !begun.as_ref().err().is_some_and(is_missing) {
                break;
            }
        }
        let begun = begun?;
        let broken = |error: std::io::Error| broken(member, &error);
        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        let master = OwnedFd::from(theirs.into_std().map_err(broken)?);
        let (sizes, wanted) = mpsc::unbounded_channel();
        let pump = Pump {
            docker: self.engine.clone(),
            exec: begun.id,
            wanted,
        };
        pump.resize(columns, rows).await;
        let (mut send, ended) = oneshot::channel();
        let exit = begun.exit;
        let stream = begun.stream;
        tokio::spawn(async move {
            tokio::select! {
                exit = pump.until_ended(stream, ours, exit) => drop(send.send(exit)),
                // The terminal was dropped: so is the shell, by whoever minds it.
                () = send.closed() => {}
            }
        });
        Ok(Terminal {
            master,
            size: TerminalSize::Told(sizes),
            ended,
        })
    }

    /// Has the engine begin a command, and waits until it runs.
    async fn begin(
        &self,
        member: &Arc<Member>,
        command: &[String],
        tty: bool,
    ) -> Result<Begun, Refusal> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let running = &member.running.id;
        let failed = |error: EngineError| match error {
            EngineError::Refused {
                status: 404 | 409, ..
            } => not_running(running),
            error => Refusal::new(
                RefusalCode::Internal,
                format!("run a command in {running}: {error}"),
            ),
        };
        let path = format!("/containers/{}/exec", self.name(running));
        let body = json!({
            "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
            "Tty": tty, "Cmd": command,
        });
        let created = self
            .engine
            .call::<Created>(Method::POST, &path, Some(&body), ENGINE_MAX);
        let id = created.await.map_err(failed)?.id;
        let path = format!("/exec/{id}/start");
        let body = json!({ "Detach": false, "Tty": tty });
        let stream = self.engine.upgrade(&path, &body).await.map_err(failed)?;
        let (begun, began) = oneshot::channel();
        let (send, exit) = oneshot::channel();
        let minder = Minder {
            engine: self.engine.clone(),
            exec: id.clone(),
            member: member.clone(),
            trees: self.trees.clone(),
            command: command.first().cloned().unwrap_or_default(),
        };
        tokio::spawn(minder.mind(begun, send));
        let stopped = || not_running(running);
        began.await.unwrap_or_else(|_| Err(stopped()))?;
        Ok(Begun { stream, id, exit })
    }
}

/// Carries a command's input and output until it has ended, and gives how; `None` when nobody minds it any more.
async fn carry(begun: Begun, stdin: &[u8], output: &mut Output) -> Option<Result<Exit, Refusal>> {
    let (from, mut to) = tokio::io::split(TokioIo::new(begun.stream));
    let mut exit = begun.exit;
    let feed = async {
        // A command may end without reading all: that is its own business.
        let _ = to.write_all(stdin).await;
        let _ = to.shutdown().await;
        std::future::pending::<()>().await;
    };
    let reading = output.read_all(from);
    tokio::pin!(feed, reading);
    let mut is_read = false;
    let ended = loop {
        tokio::select! {
            ended = &mut exit => break ended.ok(),
            () = &mut reading, if !is_read => is_read = true,
            () = &mut feed => {}
        }
    };
    if !is_read {
        let late = async {
            tokio::select! {
                () = &mut reading => {}
                () = &mut feed => {}
            }
        };
        // A child in the background may hold it open for ever.
        let _ = tokio::time::timeout(OUTPUT_LATE_MAX, late).await;
    }
    ended
}

/// Minds one command from its beginning to its end.
struct Minder {
    engine: crate::docker::engine::Engine,
    exec: String,
    member: Arc<Member>,
    trees: crate::docker::tree::Trees,
    command: String,
}

impl Minder {
    async fn mind(
        self,
        begun: oneshot::Sender<Result<(), Refusal>>,
        mut send: oneshot::Sender<Result<Exit, Refusal>>,
    ) {
        let inspected = match self
            .until(|one| one.pid != 0 || one.exit_code.is_some())
            .await
        {
            Ok(inspected) => inspected,
            Err(refusal) => return drop(begun.send(Err(refusal))),
        };
        if inspected.pid == 0 {
            // It never was a process: the engine's runtime could not execute it.
            return drop(begun.send(Err(command_not_found(&self.command))));
        }
        let _ = begun.send(Ok(()));
        let held = self.hold(inspected.pid);
        let ended = async {
            if let Some((process, _, _)) = &held {
                let _ = process.ended().await;
            }
            let inspected = self.until(|one| !one.running).await?;
            Ok(inspected.exit_code.map_or(Exit::Unknown, exit_of))
        };
        tokio::select! {
            exit = ended => drop(send.send(exit)),
            () = send.closed() => {
                if let Some((process, cgroup, id)) = &held {
                    self.kill_session(process, cgroup, id);
                }
            }
            // With the container, everything in it.
            Ok(()) = container_dead(&self.member) => {
                drop(send.send(Ok(Exit::Signal(libc::SIGKILL))));
            }
        }
    }

    /// Asks until it is so. The engine tells nobody.
    async fn until(&self, is_so: impl Fn(&Inspected) -> bool) -> Result<Inspected, Refusal> {
        let path = format!("/exec/{}/json", self.exec);
        loop {
            let asked = self
                .engine
                .call::<Inspected>(Method::GET, &path, None, ENGINE_MAX);
            let inspected = asked.await.map_err(|error| {
                Refusal::new(
                    RefusalCode::Internal,
                    format!("run a command in {}: {error}", self.member.running.id),
                )
            })?;
            if is_so(&inspected) {
                return Ok(inspected);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    fn hold(&self, pid: u32) -> Option<(Process, CgroupOf, DockerId)> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let id = self.trees.id_in(&cgroups)?;
        match hold(pid, &id, &self.trees) {
            Ok((process, cgroup)) => Some((process, cgroup, id)),
            // It has ended already.
            Err(HoldError::Ended(_) | HoldError::Stranger { .. }) => None,
            Err(error) => {
                tracing::warn!(%error, "hold a command");
                None
            }
        }
    }

    /// SIGKILL to the command and what is in its session: the engine makes it its session's first.
    fn kill_session(&self, first: &Process, cgroup: &CgroupOf, id: &DockerId) {
        let _ = first.signal(Signal::KILL);
        for pid in cgroup.processes().unwrap_or_default() {
            let is_in = Stat::of(pid).is_some_and(|stat| stat.session == first.pid);
            if is_in && let Ok((process, _)) = hold(pid, id, &self.trees) {
                let _ = process.signal(Signal::KILL);
            }
        }
    }
}

async fn container_dead(member: &Member) -> std::io::Result<()> {
    // A descriptor of its own: the reactor takes each only once, and the container is watched already.
    let watched = ready::watch(member.pidfd.try_clone()?, Interest::READABLE)?;
    watched.readable().await?.retain_ready();
    Ok(())
}

/// What a command has written, up to what is kept of it.
#[derive(Default)]
struct Output {
    out: Vec<u8>,
    err: Vec<u8>,
    truncated: bool,
}

impl Output {
    async fn read_all(&mut self, mut from: ReadHalf<TokioIo<Upgraded>>) {
        let mut content = Vec::new();
        while let Ok(Some(source)) = next_frame(&mut from, &mut content).await {
            let kept = match source {
                Source::Output => &mut self.out,
                Source::Errors => &mut self.err,
            };
            let room = EXEC_OUTPUT_BYTES_MAX - kept.len();
            self.truncated |= content.len() > room;
            kept.extend_from_slice(&content[..content.len().min(room)]);
        }
    }
}

/// Carries a terminal's bytes between the engine and whoever holds our end, and its sizes to the engine.
struct Pump {
    docker: crate::docker::engine::Engine,
    exec: String,
    wanted: mpsc::UnboundedReceiver<(u16, u16)>,
}

impl Pump {
    async fn resize(&self, columns: u16, rows: u16) {
        let path = format!("/exec/{}/resize?w={columns}&h={rows}", self.exec);
        let resized = self
            .docker
            .call::<Value>(Method::POST, &path, None, ENGINE_MAX);
        if let Err(error) = resized.await {
            tracing::debug!(%error, "resize a terminal");
        }
    }

    async fn until_ended(
        mut self,
        stream: Upgraded,
        ours: UnixStream,
        mut exit: oneshot::Receiver<Result<Exit, Refusal>>,
    ) -> Exit {
        let (mut from_engine, to_engine) = tokio::io::split(TokioIo::new(stream));
        let (from_user, mut to_user) = ours.into_split();
        let shown = async {
            let _ = tokio::io::copy(&mut from_engine, &mut to_user).await;
        };
        let keys = self.carry_keys(from_user, to_engine);
        tokio::pin!(shown, keys);
        let mut is_shown = false;
        let ended = loop {
            tokio::select! {
                ended = &mut exit => break ended,
                () = &mut shown, if !is_shown => is_shown = true,
                () = &mut keys => {}
            }
        };
        if !is_shown {
            // What it said last is on the way.
            let _ = tokio::time::timeout(OUTPUT_LATE_MAX, shown).await;
        }
        // Without a word, the container died with the shell in it.
        match ended {
            Ok(Ok(exit)) => exit,
            _ => Exit::Signal(libc::SIGKILL),
        }
    }

    /// Never ends: a user that is gone is not a shell that is.
    async fn carry_keys(
        &mut self,
        mut from: tokio::net::unix::OwnedReadHalf,
        mut to: WriteHalf<TokioIo<Upgraded>>,
    ) {
        let mut buffer = vec![0; 4096];
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                Some((columns, rows)) = self.wanted.recv() => self.resize(columns, rows).await,
                read = from.read(&mut buffer), if is_open => match read {
                    Ok(read @ 1..) => {
                        // A size that was told before these keys is set before them.
                        while let Ok((columns, rows)) = self.wanted.try_recv() {
                            self.resize(columns, rows).await;
                        }
                        is_open = to.write_all(&buffer[..read]).await.is_ok();
                    }
                    _ => is_open = false,
                },
                else => std::future::pending().await,
            }
        }
    }
}

fn broken(member: &Member, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("open a terminal in {}: {error}", member.running.id),
    )
}
