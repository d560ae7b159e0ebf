//! An etcd of a test's own, whose members it can stop and kill.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

pub(super) struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Child,
}

impl Member {
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    pub(super) async fn is_leader(&self) -> bool {
        let page = self.page("/metrics").await.unwrap_or_default();
        page.lines().any(|line| line == "etcd_server_is_leader 1")
    }

    async fn is_healthy(&self) -> bool {
        let page = self.page("/health").await.unwrap_or_default();
        page.contains(r#"{"health":"true"}"#)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    files: tempfile::TempDir,
    initial: String,
}

/// A port that nobody has, outside the range that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    // Of each process its own eight, as far as that goes.
    let from = 20_000 + (std::process::id() % 1_400) as u16 * 8;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let port = from + TRIED.fetch_add(1, Ordering::Relaxed) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Cluster {
    /// `None` where `make test` has no etcd either.
    pub(super) async fn start(count: usize) -> Option<Self> {
        urls()?;
        let files = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..count).map(|_| (free_port(), free_port())).collect();
        let initial: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(number, (_, peer))| format!("m{number}=http://127.0.0.1:{peer}"))
            .collect();
        let initial = initial.join(",");
        let mut members = Vec::new();
        for (number, (client, peer)) in ports.into_iter().enumerate() {
            let name = format!("m{number}");
            let process = spawn(&files, &initial, &name, client, peer);
            members.push(Member {
                name,
                client,
                peer,
                process,
            });
        }
        let cluster = Self {
            members,
            files,
            initial,
        };
        for member in &cluster.members {
            healthy(member).await;
        }
        Some(cluster)
    }

    pub(super) async fn restart(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.kill();
        let Member {
            name, client, peer, ..
        } = &member;
        member.process = spawn(&self.files, &self.initial, name, *client, *peer);
        healthy(member).await;
    }

    pub(super) fn options(&self) -> Options {
        options(self.members.iter().map(Member::url).collect())
    }

    /// A store whose requests go to this member first.
    pub(super) fn store(&self, preferred: usize) -> Etcd {
        let store = Etcd::open(self.options()).unwrap();
        store.shared.preferred.store(preferred, Ordering::Relaxed);
        store
    }

    pub(super) async fn leader(&self) -> usize {
        loop {
            for (number, member) in self.members.iter().enumerate() {
                if member.is_leader().await {
                    return number;
                }
            }
        }
    }

    pub(super) async fn follower(&self) -> usize {
        (self.leader().await + 1) % self.members.len()
    }
}

fn spawn(files: &tempfile::TempDir, initial: &str, name: &str, client: u16, peer: u16) -> Child {
    let url = |port| format!("http://127.0.0.1:{port}");
    let mut command = Command::new("setpriv");
    // It must not outlive a test that is killed.
    command.args(["--pdeathsig", "KILL", "etcd", "--name", name]);
    command.arg("--data-dir").arg(files.path().join(name));
    for (flag, url) in [
        ("--listen-client-urls", url(client)),
        ("--advertise-client-urls", url(client)),
        ("--listen-peer-urls", url(peer)),
        ("--initial-advertise-peer-urls", url(peer)),
    ] {
        command.args([flag, &url]);
    }
    command.args(["--initial-cluster", initial, "--logger", "zap"]);
    let quiet = || Stdio::null();
    command.stdin(quiet()).stdout(quiet()).stderr(quiet());
    command.spawn().unwrap()
}

/// Asks until the member serves: it tells nobody when it does.
async fn healthy(member: &Member) {
    let serves = async {
        while !member.is_healthy().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(30), serves).await;
    assert!(served.is_ok(), "{} does not serve", member.name);
}
