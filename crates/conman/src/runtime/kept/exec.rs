//! Commands and shells in a container that runs: conman asks its init, over a channel for each.

use std::io;
use std::os::fd::OwnedFd;

use model::api::{Refusal, RefusalCode};
use model::wire::keeper::{ExecPlan, FromExec, ToExec, ToInit, TtySize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::driver::explain;
use super::member::{Member, exit_of};
use super::record::Record;
use crate::runtime::packet::{Packet, PacketSocket, send_on};
use crate::runtime::{
    EXEC_OUTPUT_BYTES_MAX, Exec, ExecOutput, Exit, Terminal, TerminalSize, exec_timeout,
    not_running,
};

/// The shells to try, the best first.
const SHELLS: [&[&str]; 2] = [&["bash", "-l"], &["sh", "-l"]];

/// A command that runs: dropping it has the init kill it.
struct Running {
    channel: PacketSocket,
}

impl Running {
    async fn start(
        member: &Member,
        plan: ExecPlan,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(Self, Option<OwnedFd>), Refusal> {
        let (channel, theirs) = PacketSocket::pair().map_err(|error| broken(member, &error))?;
        fds.insert(0, theirs);
        let control = member.control.as_ref().ok_or_else(|| gone(member))?;
        let sent = send_on(control, &ToInit::Exec(plan), &fds).await;
        // Ours must not keep the channel or a pipe open.
        drop(fds);
        if let Err(error) = sent {
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => gone(member),
                _ => broken(member, &error),
            });
        }
        let running = Self { channel };
        let (said, master) = running.hear(member).await?;
        match said {
            FromExec::Started { .. } => Ok((running, master)),
            FromExec::Failed(refusal) => Err(explain(&refusal)),
            FromExec::Exited { .. } => Err(broken(member, &io::Error::other("it never began"))),
        }
    }

    /// The next word on the channel, with the fd that came along.
    async fn hear(&self, member: &Member) -> Result<(FromExec, Option<OwnedFd>), Refusal> {
        match self.channel.receive().await {
            Ok(Some(Packet { bytes, mut fds })) => {
                let said = serde_json::from_slice(&bytes)
                    .map_err(|error| broken(member, &io::Error::from(error)))?;
                Ok((said, fds.pop()))
            }
            Ok(None) => Err(gone(member)),
            Err(error) => Err(broken(member, &error)),
        }
    }

    async fn exited(&self, member: &Member) -> Result<Exit, Refusal> {
        match self.hear(member).await? {
            (FromExec::Exited { exit }, _) => Ok(exit_of(exit)),
            (other, _) => {
                let said = io::Error::other(format!("the init said {other:?}"));
                Err(broken(member, &said))
            }
        }
    }
}

pub(super) async fn run(
    member: &Member,
    record: &Record,
    exec: Exec,
) -> Result<ExecOutput, Refusal> {
    let timeout = exec.timeout;
    match tokio::time::timeout(timeout, run_to_end(member, record, exec)).await {
        Ok(result) => result,
        // The channel was dropped with the future: the init kills the command's session.
        Err(_) => Err(exec_timeout(&member.running.id, timeout)),
    }
}

async fn run_to_end(member: &Member, record: &Record, exec: Exec) -> Result<ExecOutput, Refusal> {
    let io_error = |error: io::Error| broken(member, &error);
    let (mut stdin, stdin_theirs) = pipe_to().map_err(io_error)?;
    let (stdout_theirs, stdout) = pipe_from().map_err(io_error)?;
    let (stderr_theirs, stderr) = pipe_from().map_err(io_error)?;
    let plan = ExecPlan {
        command: exec.command,
        env: record.env.clone(),
        cwd: record.cwd.clone(),
        tty: None,
    };
    let fds = vec![stdin_theirs, stdout_theirs, stderr_theirs];
    let (running, _) = Running::start(member, plan, fds).await?;
    let feed = async {
        // A command may end without reading all: that is its own business.
        let _ = stdin.write_all(&exec.stdin).await;
        drop(stdin);
        std::future::pending::<()>().await;
    };
    let mut out = Kept::new(stdout);
    let mut err = Kept::new(stderr);
    let exit = tokio::select! {
        exit = running.exited(member) => exit?,
        () = feed => Exit::Unknown,
        () = out.read_all() => Exit::Unknown,
        () = err.read_all() => Exit::Unknown,
    };
    // What it wrote last is in the pipes; what its children in the background write goes nowhere.
    out.read_rest();
    err.read_rest();
    Ok(ExecOutput {
        exit,
        truncated: out.truncated || err.truncated,
        stdout: out.bytes,
        stderr: err.bytes,
    })
}

/// One output stream, up to what is kept of it.
struct Kept {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn new(pipe: pipe::Receiver) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
            truncated: false,
        }
    }

    /// Reads until it is dropped: the end of the stream is not the end of the command.
    async fn read_all(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = self.pipe.read(&mut buffer).await {
            self.keep(&buffer[..read]);
        }
        std::future::pending().await
    }

    fn read_rest(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        // A pipe holds 64 KiB unless its owner changed that; whoever writes on is not waited for.
        let mut left = 1024 * 1024_usize;
        // Past tokio, which has not yet heard of what came last.
        while let Ok(read @ 1..) = rustix::io::read(&self.pipe, &mut buffer) {
            self.keep(&buffer[..read]);
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = EXEC_OUTPUT_BYTES_MAX - self.bytes.len();
        self.truncated |= bytes.len() > room;
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

pub(super) async fn shell(
    member: &std::sync::Arc<Member>,
    record: &Record,
    columns: u16,
    rows: u16,
) -> Result<Terminal, Refusal> {
    let mut started = Err(gone(member));
    for shell in SHELLS {
        let plan = ExecPlan {
            command: shell.iter().map(|word| (*word).to_owned()).collect(),
            env: record.env.clone(),
            cwd: record.cwd.clone(),
            tty: Some(TtySize { columns, rows }),
        };
        started = Running::start(member, plan, Vec::new()).await;
        let is_missing = |refusal: &Refusal| refusal.code == RefusalCode::CommandNotFound;
        if !started.as_ref().err().is_some_and(is_missing) {
            break;
        }
    }
    let (running, master) = started?;
    let no_master = || {
        broken(
            member,
            &io::Error::other("the terminal came without its master"),
        )
    };
    let master = master.ok_or_else(no_master)?;
    rustix::io::ioctl_fionbio(&master, true).map_err(|errno| broken(member, &errno.into()))?;
    let (mut send, ended) = oneshot::channel();
    let member = member.clone();
    tokio::spawn(async move {
        tokio::select! {
            exit = running.exited(&member) => {
                // Without a word from the init, the container died with the shell in it.
                let _ = send.send(exit.unwrap_or(Exit::Signal(libc::SIGKILL)));
            }
            () = send.closed() => {
                // The terminal was dropped: so is the shell, with all that runs on it.
                let _ = running.channel.send(&ToExec::Kill, &[]).await;
            }
        }
    });
    Ok(Terminal {
        master,
        size: TerminalSize::OfMaster,
        ended,
    })
}

/// A pipe that we write to.
fn pipe_to() -> io::Result<(pipe::Sender, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((pipe::Sender::from_owned_fd(write)?, read))
}

/// A pipe that we read from.
fn pipe_from() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((write, pipe::Receiver::from_owned_fd(read)?))
}

fn gone(member: &Member) -> Refusal {
    not_running(&member.running.id)
}

fn broken(member: &Member, error: &io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("run a command in {}: {error}", member.running.id),
    )
}
