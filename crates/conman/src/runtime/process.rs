//! The process runtime: plain processes of conman's own user, for trying the rest without root.
//!
//! **There is no isolation.** Every program sees the machine, its files, its network and every other
//! repl. What is kept are the lifecycle and the deadline: a keeper holds each program's init, and the
//! init its descendants.
//!
//! All programs share the machine's ports, so each is given a free one of its own in `PORT`, and a dial to
//! the port of its spec goes there. Limits are not kept, and an image other than `host` is refused.
//!
//! Every program is marked in its environment. What has escaped its init (the init was killed by
//! somebody, and the keeper with it) is found by that mark.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::api::{Refusal, RefusalCode};
use model::id::ContainerId;
use model::spec::Image;
use model::wire::keeper::{Launch, LaunchKind};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::net::TcpStream;

use super::image::check_directory;
use super::kept::{How, Kept, Member, PortMap, Record, Walls};
use super::layout::{Layout, RuntimeOptions};
use super::native::{
    base_environment, cannot_prepare, log_plan, make_private, make_witness, named_in, remove_all,
    witness_plan,
};
use super::{Exit, StartRequest, needs_docker, not_listening};

/// The variable that marks a program and all that it starts.
const MARK: &str = "CONMAN_CONTAINER";

struct Process {
    layout: Layout,
    witness: Option<PathBuf>,
    /// `<fleet>/<host>/`.
    mark: String,
}

/// Begins to look for the keeper. Must be called within tokio.
///
/// # Errors
/// When the state directory cannot be written.
pub fn open(options: &RuntimeOptions) -> io::Result<Kept> {
    tracing::warn!(
        "the process runtime isolates nothing: every repl can read this user's files, reach the network and \
         end the others, and no limit is kept; it is for trying conman without root"
    );
    let layout = Layout::new(options);
    make_private(&layout.state)?;
    make_private(&layout.workspaces)?;
    for directory in [layout.records(), layout.state.join("logs")] {
        std::fs::create_dir_all(directory)?;
    }
    make_witness(options)?;
    let process = Process {
        layout,
        witness: options.witness.clone(),
        mark: format!("{}/{}/", options.fleet(), options.host),
    };
    Ok(Kept::new(Arc::new(process), options))
}

/// Removes what a host that is down has left, workspaces and logs excepted. Kills what should be dead.
/// Safe to repeat.
///
/// # Errors
/// The first thing that could not be removed.
pub fn purge(options: &RuntimeOptions) -> io::Result<()> {
    let records = Layout::new(options).records();
    for id in named_in(&records)? {
        end_marked(&format!("{}/{}/{id}", options.fleet(), options.host))?;
    }
    remove_all(&records)
}

impl Process {
    fn mark(&self, id: &ContainerId) -> String {
        format!("{}{id}", self.mark)
    }
}

impl Walls for Process {
    fn record(&self, id: &ContainerId) -> PathBuf {
        self.layout.record(id)
    }

    fn prepare(&self, request: &StartRequest) -> Result<(How, Record), Refusal> {
        let StartRequest { id, spec } = request;
        if let Image::Directory(path) = &spec.image {
            check_directory(path.as_ref())?;
            return Err(Refusal::new(
                RefusalCode::BadSpec,
                format!(
                    "image: dir:{path} needs the native runtime, this host runs plain processes"
                ),
            ));
        }
        if let Image::Docker(reference) = &spec.image {
            return Err(needs_docker(reference, "plain processes"));
        }
        let cannot = |error: io::Error| cannot_prepare(id, &error);
        let given = match spec.port {
            Some(asked) => Some(PortMap {
                asked,
                given: free_port().map_err(cannot)?,
            }),
            None => None,
        };
        let home = self.layout.workspace(id);
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
        let port = given.map(|port| port.given);
        let mut env = base_environment(id, &path, &home.to_string_lossy(), port);
        env.extend(spec.env.clone());
        env.insert(MARK.to_owned(), self.mark(id));
        let record = Record {
            env,
            cwd: home.clone(),
            port: given,
        };
        let make_files = || {
            std::fs::create_dir_all(&home)?;
            std::fs::create_dir_all(self.layout.logs(&id.repl))?;
            record.write(&self.layout.record(id))
        };
        make_files().map_err(cannot)?;
        let launch = Launch {
            kind: LaunchKind::Process,
            command: spec.command.clone(),
            env: record.env.clone(),
            cwd: record.cwd.clone(),
            log: log_plan(&self.layout, id),
            witness: witness_plan(self.witness.as_deref(), id),
        };
        Ok((How::Keeper(Box::new(launch)), record))
    }

    fn kill(&self, member: &Member) -> io::Result<()> {
        // The init last: as long as it lives, nothing gets out of its tree.
        kill_marked(&self.mark(&member.running.id))?;
        member.kill()
    }

    fn emptied<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, io::Result<()>> {
        async move {
            // An init that ended by itself, as its keeper says, has ended all that was in its tree.
            if member.said().await != Exit::Unknown {
                return Ok(());
            }
            let mark = self.mark(&member.running.id);
            super::kept::blocking(move || end_marked(&mark))
                .await
                .map_err(io::Error::other)?
        }
        .boxed()
    }

    fn end_unanswered<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let mark = self.mark(id);
            super::kept::blocking(move || end_marked(&mark))
                .await
                .map_err(io::Error::other)?
        }
        .boxed()
    }

    fn dial<'a>(
        &'a self,
        member: &'a Member,
        record: &'a Record,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Refusal>> {
        async move {
            let given = match record.port {
                Some(map) if map.asked == port => map.given,
                // Some other port of the machine's: it may be anybody's.
                _ => return Err(not_listening(&member.running.id, port)),
            };
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, given)).await;
            let stream = stream.map_err(|_| not_listening(&member.running.id, port))?;
            // Only slower without.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        .boxed()
    }

    fn remove(&self, _id: &ContainerId) -> io::Result<()> {
        Ok(())
    }

    fn leftovers(&self, held: &BTreeSet<ContainerId>) -> io::Result<BTreeSet<ContainerId>> {
        let mut left = named_in(&self.layout.records())?;
        left.retain(|id| !held.contains(id));
        for id in &left {
            end_marked(&self.mark(id))?;
        }
        Ok(left)
    }
}

/// A port that nobody listens on now. Somebody may take it before the program does: then the program
/// cannot listen, and its next start is given another one.
fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// SIGKILL to every process with this mark. Returns their pidfds.
fn kill_marked(mark: &str) -> io::Result<Vec<std::os::fd::OwnedFd>> {
    let wanted = format!("{MARK}={mark}");
    let mut killed = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some(pid) = Pid::from_raw(pid) else {
            continue;
        };
        // The handle first: it stays with the process whose environment is read next.
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Other users' processes cannot be read, and are none of ours; ended ones have no environment.
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted.as_bytes())
        {
            match rustix::process::pidfd_send_signal(&handle, Signal::KILL) {
                Err(rustix::io::Errno::SRCH) => {}
                other => other?,
            }
            killed.push(handle);
        }
    }
    Ok(killed)
}

/// Kills and waits until a look finds none: one may have forked while the others were looked at.
fn end_marked(mark: &str) -> io::Result<()> {
    loop {
        let killed = kill_marked(mark)?;
        if killed.is_empty() {
            return Ok(());
        }
        for handle in killed {
            let mut poll = [rustix::event::PollFd::new(
                &handle,
                rustix::event::PollFlags::IN,
            )];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None))?;
        }
    }
}
