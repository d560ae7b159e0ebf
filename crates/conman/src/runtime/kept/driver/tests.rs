//! The driver, with a keeper that says what a test has it say.

use std::path::Path;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::wire::keeper::{Hello, Launch, LaunchKind, LogPlan, PROTOCOL, ToKeeper};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::super::{How, Kept, Record, Walls};
use super::*;
use crate::runtime::layout::RuntimeOptions;
use crate::runtime::packet::PacketSocket;
use crate::runtime::{Runtime, StartRequest, ready};

/// Where a scripted keeper listens.
struct Listener(AsyncFd<Arc<OwnedFd>>);

impl Listener {
    fn at(path: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        Self(ready::watch(socket, Interest::READABLE).unwrap())
    }

    /// The next connection, on which it has said hello.
    async fn next(&self) -> Connection {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = loop {
            let mut ready = self.0.readable().await.unwrap();
            let accepted =
                |fd: &AsyncFd<Arc<OwnedFd>>| Ok(rustix::net::accept_with(fd.get_ref(), flags)?);
            if let Ok(socket) = ready.try_io(accepted) {
                break socket.unwrap();
            }
        };
        let connection = Connection(PacketSocket::new(socket).unwrap());
        let (id, Request::Hello { .. }) = connection.heard().await else {
            panic!("no hello");
        };
        let hello = Hello {
            protocol: PROTOCOL,
            host: "h1".parse().unwrap(),
            pid: std::process::id(),
            deadline: None,
            held: 0,
            uid_base: None,
        };
        connection.answer(id, Answer::Hello(hello)).await;
        connection
    }
}

struct Connection(PacketSocket);

impl Connection {
    async fn heard(&self) -> (u64, Request) {
        let packet = self.0.receive().await.unwrap().unwrap();
        let ToKeeper { id, request } = serde_json::from_slice(&packet.bytes).unwrap();
        (id, request)
    }

    async fn answer(&self, id: u64, answer: Answer) {
        let message = FromKeeper::Answer { id, answer };
        self.0.send(&message, &[]).await.unwrap();
    }

    /// Waits for the question what it holds, and gives its number.
    async fn asked_for_list(&self) -> u64 {
        match self.heard().await {
            (id, Request::List { .. }) => id,
            other => panic!("{other:?} instead of the question for the list"),
        }
    }

    async fn holds_nothing(&self, id: u64) {
        let nothing = Answer::Listed {
            held: vec![],
            more: false,
        };
        self.answer(id, nothing).await;
    }
}

/// Walls of which nothing is real but the proof of a death, which the test gives.
struct Paper {
    directory: PathBuf,
    proof_asked: mpsc::UnboundedSender<ContainerId>,
    proof: Arc<Semaphore>,
}

impl Walls for Paper {
    fn record(&self, id: &ContainerId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn prepare(&self, request: &StartRequest) -> Result<(How, Record), Refusal> {
        let launch = Launch {
            kind: LaunchKind::Process,
            command: request.spec.command.clone(),
            env: std::collections::BTreeMap::new(),
            cwd: "/".into(),
            log: LogPlan {
                files: ["0".into(), "1".into()],
                bytes_max: 1,
            },
            witness: None,
        };
        let record = Record {
            env: std::collections::BTreeMap::new(),
            cwd: "/".into(),
            port: None,
        };
        Ok((How::Keeper(Box::new(launch)), record))
    }

    fn end_unanswered<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.proof_asked.send(id.clone()).unwrap();
            self.proof.acquire().await.unwrap().forget();
            Ok(())
        }
        .boxed()
    }

    fn kill(&self, member: &Member) -> io::Result<()> {
        unreachable!("{} runs", member.running.id)
    }

    fn emptied<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, io::Result<()>> {
        unreachable!("{} runs", member.running.id)
    }

    fn dial<'a>(
        &'a self,
        member: &'a Member,
        _record: &'a Record,
        _port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Refusal>> {
        unreachable!("{} runs", member.running.id)
    }

    fn remove(&self, _id: &ContainerId) -> io::Result<()> {
        Ok(())
    }

    fn leftovers(&self, _held: &BTreeSet<ContainerId>) -> io::Result<BTreeSet<ContainerId>> {
        Ok(BTreeSet::new())
    }
}

#[tokio::test]
async fn a_start_that_is_not_answered_is_refused_when_it_is_proven_dead() {
    let directory = tempfile::tempdir().unwrap();
    let options = RuntimeOptions {
        host: "h1".parse().unwrap(),
        state: directory.path().to_owned(),
        workspaces: directory.path().to_owned(),
        keeper_socket: directory.path().join("keeper"),
        witness: None,
        cgroup: None,
    };
    let keeper = Listener::at(&options.keeper_socket);
    let (proof_asked, mut asked) = mpsc::unbounded_channel();
    let proof = Arc::new(Semaphore::new(0));
    let walls = Paper {
        directory: directory.path().to_owned(),
        proof_asked,
        proof: proof.clone(),
    };
    let kept = Arc::new(Kept::new(Arc::new(walls), &options));
    let first = keeper.next().await;
    let list = first.asked_for_list().await;
    first.holds_nothing(list).await;

    let request = StartRequest {
        id: ContainerId {
            repl: "a".parse().unwrap(),
            epoch: model::id::Epoch(7),
        },
        spec: serde_json::from_str(r#"{"command": ["serve"]}"#).unwrap(),
    };
    let id = request.id.clone();
    let starting = kept.clone();
    let start = tokio::spawn(async move { starting.start(request).await });
    let (_, Request::Start { container, .. }) = first.heard().await else {
        panic!("no start");
    };
    assert_eq!(container, id);
    // It may have begun, and it may begin: a keeper that is stopped here reads on when it goes on.
    drop(first);

    let second = keeper.next().await;
    let list = second.asked_for_list().await;
    assert!(
        !start.is_finished(),
        "the keeper has not said what it holds"
    );
    assert!(asked.try_recv().is_err(), "nothing can be proven yet");
    second.holds_nothing(list).await;
    assert_eq!(asked.recv().await, Some(id));
    assert!(!start.is_finished(), "it may still be dying");
    proof.add_permits(1);
    let refusal = start.await.unwrap().unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Fenced);
}
