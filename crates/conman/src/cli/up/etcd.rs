//! The etcd of a fleet on one machine: three members on the loopback, children of the supervisor.
//!
//! ```text
//! find etcd ─► ports (those of the first start, ever after) ─► three members ─► started again when they end
//! ```
//!
//! They live in `etcd` of the state directory, and die with the supervisor as everything else. Their timings leave room
//! for two elections within a lease of the fast profile, so that no container is killed when the leader is lost.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::timing::{FAST, FENCE_LEAD};
use tokio::process::Command;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::process::{self, Process};
use crate::cli::exit::CannotStart;
use crate::store::etcd::Options;

const MEMBERS: usize = 3;

/// How often the leader says that it is there, and how long the others hear nothing of it before they elect. An election
/// begins within twice the timeout and may have to be repeated once.
const HEARTBEAT: Duration = Duration::from_millis(50);
const ELECTION: Duration = Duration::from_millis(500);

const _: () = assert!(
    2 * 2 * ELECTION.as_millis() + FAST.renew.as_millis() + FENCE_LEAD.as_millis()
        < FAST.hold.as_millis()
);
const _: () = assert!(HEARTBEAT.as_millis() * 5 <= ELECTION.as_millis());

/// How much of the history is kept.
const RETENTION: &str = "10m";

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Process>,
    started: Instant,
    backoff: Backoff,
}

impl Member {
    fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }
}

enum Event {
    Ended(usize, io::Result<ExitStatus>),
    RestartDue(usize),
}

/// The members.
pub(super) struct Etcd {
    program: PathBuf,
    directory: PathBuf,
    members: Vec<Member>,
    restart: bool,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl Etcd {
    /// Starts the members. Must be called on the thread that lives as long as the supervisor.
    ///
    /// # Errors
    /// When there is no etcd here, a port is taken, or a member cannot be started.
    pub(super) fn start(state: &Path, restart: bool) -> Result<Self, CannotStart> {
        let program = find(std::env::var_os("PATH").as_deref().unwrap_or_default())?;
        let directory = state.join("etcd");
        let cannot = |error: io::Error| {
            CannotStart(format!("start etcd in {}: {error}", directory.display()))
        };
        std::fs::create_dir_all(&directory).map_err(cannot)?;
        let ports = ports(&directory).map_err(cannot)?;
        if let Some(taken) = ports.iter().find(|port| !is_free(**port)) {
            return Err(CannotStart(format!(
                "port {taken} is in use, which the etcd in {} was made with; end what listens there, \
                 or give a --state of its own",
                directory.display()
            )));
        }
        let members = ports
            .chunks(2)
            .enumerate()
            .map(|(number, ports)| Member {
                name: format!("m{}", number + 1),
                client_port: ports[0],
                peer_port: ports[1],
                process: None,
                started: Instant::now(),
                backoff: Backoff::default(),
            })
            .collect();
        let mut etcd = Self {
            program,
            directory: directory.clone(),
            members,
            restart,
            events: FuturesUnordered::new(),
        };
        for number in 0..MEMBERS {
            etcd.start_member(number).map_err(cannot)?;
        }
        Ok(etcd)
    }

    /// Where they are.
    pub(super) fn options(&self) -> Options {
        Options {
            endpoints: self.members.iter().map(Member::client_url).collect(),
            prefix: "/conman".to_owned(),
            credentials: None,
            tls: None,
        }
    }

    fn start_member(&mut self, number: usize) -> io::Result<()> {
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url()))
            .collect();
        let member = &mut self.members[number];
        let log = File::create(self.directory.join(format!("{}.log", member.name)))?;
        let mut command = process::ourselves("tied");
        command.arg("--tied-to").arg(std::process::id().to_string());
        command.arg(&self.program);
        command.args(["--name", &member.name]);
        command
            .arg("--data-dir")
            .arg(self.directory.join(&member.name));
        command.args(["--listen-client-urls", &member.client_url()]);
        command.args(["--advertise-client-urls", &member.client_url()]);
        command.args(["--listen-peer-urls", &member.peer_url()]);
        command.args(["--initial-advertise-peer-urls", &member.peer_url()]);
        command.args(["--initial-cluster", &cluster.join(",")]);
        let milliseconds = |time: Duration| time.as_millis().to_string();
        command.args(["--heartbeat-interval", &milliseconds(HEARTBEAT)]);
        command.args(["--election-timeout", &milliseconds(ELECTION)]);
        // A member that was cut off or stopped does not disturb a leader that is well when it is back.
        command.arg("--pre-vote");
        command.args(["--auto-compaction-mode", "periodic"]);
        command.args(["--auto-compaction-retention", RETENTION]);
        command.args(["--logger", "zap", "--log-level", "warn"]);
        without_configuration(&mut command);
        command.stdout(Stdio::null()).stderr(log);
        let (process, ending) = process::spawn(command)?;
        tracing::info!(etcd = member.name, pid = process.pid, "started");
        member.process = Some(process);
        member.started = Instant::now();
        self.events.push(Box::pin(async move {
            Event::Ended(number, ending.wait().await)
        }));
        Ok(())
    }

    /// Starts members again that end. Does not return.
    pub(super) async fn run(&mut self) {
        while let Some(event) = self.events.next().await {
            match event {
                Event::Ended(number, status) => self.ended(number, &status),
                Event::RestartDue(number) => {
                    if let Err(error) = self.start_member(number) {
                        let name = &self.members[number].name;
                        tracing::error!(etcd = name, %error, "could not be started again");
                        self.restart_later(number, Duration::ZERO);
                    }
                }
            }
        }
        // None is left, and none is to come back.
        std::future::pending().await
    }

    fn ended(&mut self, number: usize, status: &io::Result<ExitStatus>) {
        let member = &mut self.members[number];
        member.process = None;
        let lived = member.started.elapsed();
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if self.restart {
            tracing::error!(
                etcd = member.name,
                how,
                "ended by itself: starting it again"
            );
            self.restart_later(number, lived);
        } else {
            tracing::error!(
                etcd = member.name,
                how,
                "ended by itself, and stays so (--restart false)"
            );
        }
    }

    fn restart_later(&mut self, number: usize, lived: Duration) {
        let due = Instant::now() + self.members[number].backoff.ended(lived);
        self.events.push(Box::pin(async move {
            tokio::time::sleep_until(due).await;
            Event::RestartDue(number)
        }));
    }

    /// Kills all, and returns when all are dead.
    pub(super) async fn stop(mut self) {
        for process in self
            .members
            .iter()
            .filter_map(|member| member.process.as_ref())
        {
            process.kill();
        }
        while self.members.iter().any(|member| member.process.is_some()) {
            match self.events.next().await {
                Some(Event::Ended(number, _)) => self.members[number].process = None,
                Some(Event::RestartDue(_)) => {}
                None => break,
            }
        }
    }
}

/// Whatever an etcd of this machine is told by variables is not meant for these.
fn without_configuration(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ETCD_")) {
            command.env_remove(name);
        }
    }
}

fn find(path: &std::ffi::OsStr) -> Result<PathBuf, CannotStart> {
    std::env::split_paths(path)
        .map(|directory| directory.join("etcd"))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            CannotStart(
                "--store etcd starts the program etcd, which is not in PATH: install it, as by \
                 Debian's package etcd-server, or leave the store to SQLite"
                    .to_owned(),
            )
        })
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The ports of this directory's etcd: two for each member, chosen once, for members know each other by them.
fn ports(directory: &Path) -> io::Result<Vec<u16>> {
    let file = directory.join("ports");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            let ports: Vec<_> = text
                .split_whitespace()
                .map_while(|port| port.parse().ok())
                .collect();
            if ports.len() == 2 * MEMBERS {
                return Ok(ports);
            }
            Err(io::Error::other(format!("{} is damaged", file.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let ports = choose(directory)?;
            let text: Vec<_> = ports.iter().map(ToString::to_string).collect();
            std::fs::write(&file, text.join(" "))?;
            Ok(ports)
        }
        Err(error) => Err(error),
    }
}

/// Below the range that the kernel takes outgoing connections' ports from, and others for each state directory.
fn choose(directory: &Path) -> io::Result<Vec<u16>> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let mut hasher = DefaultHasher::new();
    directory.hash(&mut hasher);
    let start = (hasher.finish() % u64::from(COUNT)) as u16;
    let free: Vec<_> = (0..COUNT)
        .map(|offset| FIRST + (start + offset) % COUNT)
        .filter(|port| is_free(*port))
        .take(2 * MEMBERS)
        .collect();
    if free.len() < 2 * MEMBERS {
        return Err(io::Error::other("no ports are free"));
    }
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_etcd_is_named_with_its_package() {
        let files = tempfile::tempdir().unwrap();
        let refused = find(files.path().as_os_str()).unwrap_err().to_string();
        assert!(
            refused.contains("Debian's package etcd-server"),
            "{refused}"
        );
        let program = files.path().join("etcd");
        std::fs::write(&program, "").unwrap();
        assert_eq!(find(files.path().as_os_str()).unwrap(), program);
    }

    #[test]
    fn ports_are_chosen_once() {
        let files = tempfile::tempdir().unwrap();
        let first = ports(files.path()).unwrap();
        assert_eq!(first.len(), 6);
        assert_eq!(ports(files.path()).unwrap(), first);
        std::fs::write(files.path().join("ports"), "20000 x").unwrap();
        let damaged = ports(files.path()).unwrap_err().to_string();
        assert!(damaged.ends_with("ports is damaged"), "{damaged}");
    }
}
