//! The connection to the keeper: finds it, speaks with it, and knows whether it is alive.
//!
//! ```text
//! Seeking ── connected, Hello ─► Linked ── end of file ─► Seeking (is the keeper alive? then it is the same)
//!    │                                                        │
//!    └──────────── the pidfd of the keeper known before is readable: Lost ◄──┘
//! ```
//!
//! That the connection ended does not say that the keeper is dead: a newer conman may have taken it. Only its
//! pidfd says so.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::wire::keeper::{Answer, FromKeeper, Hello, PROTOCOL, Request, ToKeeper};
use rustix::fs::inotify;
use rustix::process::PidfdFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::packet::{Packet, PacketSocket};
use crate::runtime::ready;

/// How long to wait for news of the socket's directory before the socket is tried again all the same.
const SEEK_AGAIN: Duration = Duration::from_millis(100);

/// The same after a first try that found a socket on which nobody listens yet; doubled at each further one.
const REFUSED_AGAIN: Duration = Duration::from_millis(1);

/// How long a keeper may take to say hello. One that is stopped is tried again later.
const HELLO_MAX: Duration = Duration::from_secs(5);

/// A keeper's life, as its pidfd tells it.
pub(super) struct KeeperLife {
    pub(super) pid: u32,
    pidfd: AsyncFd<Arc<OwnedFd>>,
}

impl KeeperLife {
    fn new(pid: rustix::process::Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid: pid.as_raw_pid().unsigned_abs(),
            pidfd: ready::watch(pidfd, Interest::READABLE)?,
        })
    }

    /// Ends when the keeper is dead.
    pub(super) async fn ended(&self) {
        // An error means that the runtime is shutting down: then nobody asks any more.
        let _ = self.pidfd.readable().await;
    }
}

/// A connection on which the keeper has said hello.
pub(super) struct Link {
    socket: PacketSocket,
    pub(super) life: Arc<KeeperLife>,
    pub(super) hello: Hello,
    next_id: u64,
    /// What came before the answer that was waited for.
    early: std::collections::VecDeque<Message>,
}

/// What came from the keeper, with its fds.
pub(super) struct Message {
    pub(super) content: FromKeeper,
    pub(super) fds: Vec<OwnedFd>,
}

impl Link {
    /// Waits until a keeper listens at `path` and has said hello.
    pub(super) async fn seek(path: &Path) -> Self {
        let mut news = SocketNews::new(path);
        let mut told = None;
        let mut refused_again = REFUSED_AGAIN;
        loop {
            match tokio::time::timeout(HELLO_MAX, Self::open(path)).await {
                Ok(Ok(link)) => return link,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // Bound, and not listening: any moment now, or left by a dead keeper.
                    tokio::time::sleep(refused_again).await;
                    refused_again = SEEK_AGAIN.min(refused_again * 2);
                    continue;
                }
                Ok(Err(error)) if is_absent(&error) => refused_again = REFUSED_AGAIN,
                other => {
                    let why = match other {
                        Ok(Err(error)) => error.to_string(),
                        _ => "it does not answer".to_owned(),
                    };
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(socket = %path.display(), why, "the keeper cannot be used");
                        told = Some(why);
                    }
                }
            }
            news.wait().await;
        }
    }

    async fn open(path: &Path) -> io::Result<Self> {
        let socket = PacketSocket::connect(path)?;
        let life = Arc::new(KeeperLife::new(socket.peer()?)?);
        let mut link = Self {
            socket,
            life,
            hello: Hello {
                protocol: 0,
                host: "unknown".parse().map_err(io::Error::other)?,
                pid: 0,
                deadline: None,
                held: 0,
                uid_base: None,
            },
            next_id: 1,
            early: std::collections::VecDeque::new(),
        };
        let (answer, _) = link.ask(Request::Hello { protocol: PROTOCOL }).await?;
        match answer {
            Answer::Hello(hello) if hello.protocol == PROTOCOL => {
                link.hello = hello;
                Ok(link)
            }
            Answer::Hello(hello) => Err(io::Error::other(format!(
                "it speaks protocol {}, this conman {PROTOCOL}: drain this host, then upgrade its keeper",
                hello.protocol
            ))),
            other => Err(io::Error::other(format!(
                "it answered hello with {other:?}"
            ))),
        }
    }

    /// Sends a request; its answer will have the returned number.
    pub(super) async fn send(&mut self, request: Request) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        self.socket.send(&ToKeeper { id, request }, &[]).await?;
        Ok(id)
    }

    /// The next message; `None` when the connection is over. Safe to cancel.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        match self.early.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.receive_new().await,
        }
    }

    async fn receive_new(&self) -> io::Result<Option<Message>> {
        let Some(Packet { bytes, fds }) = self.socket.receive().await? else {
            return Ok(None);
        };
        let content = serde_json::from_slice(&bytes)?;
        Ok(Some(Message { content, fds }))
    }

    /// Sends a request and waits for its answer; what else comes meanwhile is kept for `receive`. For use
    /// while no other request is open.
    pub(super) async fn ask(&mut self, request: Request) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let asked = self.send(request).await?;
        loop {
            let Some(message) = self.receive_new().await? else {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            };
            match message.content {
                FromKeeper::Answer { id, answer } if id == asked => {
                    return Ok((answer, message.fds));
                }
                _ => self.early.push_back(message),
            }
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    ) || error.raw_os_error() == Some(libc::ESRCH)
}

/// Tells when something happens in the socket's directory.
struct SocketNews {
    directory: PathBuf,
    inotify: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl SocketNews {
    fn new(path: &Path) -> Self {
        Self {
            directory: path.parent().unwrap_or(Path::new("/")).to_owned(),
            inotify: None,
        }
    }

    /// Ends at the next news, or after [`SEEK_AGAIN`] for the case that there is none to be had.
    async fn wait(&mut self) {
        if self.inotify.is_none() {
            self.inotify = self.watch().ok();
        }
        let news = async {
            let Some(inotify) = &self.inotify else {
                return std::future::pending().await;
            };
            let mut buffer = [0; 4096];
            if let Ok(mut ready) = inotify.readable().await {
                // Only that something came matters.
                let _ = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer)?));
            }
        };
        let _ = tokio::time::timeout(SEEK_AGAIN, news).await;
    }

    fn watch(&self) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags)?;
        let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, &self.directory, events)?;
        ready::watch(fd, Interest::READABLE)
    }
}

impl Drop for SocketNews {
    /// The kernel lets whoever closes an inotify wait until nobody looks at its watches any more: on a busy machine for more than
    /// a second. On a thread that carries tasks, renewals would wait with it.
    fn drop(&mut self) {
        let Some(inotify) = self.inotify.take().map(AsyncFd::into_inner) else {
            return;
        };
        // Without a runtime the process is at its end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(inotify));
        }
    }
}
