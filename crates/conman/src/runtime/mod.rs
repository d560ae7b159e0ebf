//! Containers, whatever makes them: the one seam through which a host touches them.
//!
//! ```text
//! prepare ─► start ─► (exec, shell, dial)* ─► terminate? ─► kill ─► Dead ─► cleanup
//!              │                                              ▲
//!              └────────── its PID 1 exits by itself ─────────┘
//! ```
//!
//! A runtime reports, it does not decide: it never releases a repl and never restarts a container. Every
//! verb is safe to repeat, and `cleanup` is safe when `start` never ran. `Dead` is *proven*: the
//! pidfd of PID 1 is readable and the container's cgroup is empty.
//!
//! The trait names no implementation. All of them pass `contract`.

pub mod cgroup;
mod dial;
pub mod docker;
pub mod fake;
mod image;
mod kept;
mod layout;
pub mod native;
mod packet;
pub mod process;
pub(crate) mod ready;
mod refusal;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use model::api::Refusal;
use model::id::{ContainerId, ReplId};
use model::spec::Spec;
use model::time::BootTime;
use model::timing::START_STUCK_AFTER;
use rustix::termios::Winsize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub use self::kept::Kept;
pub use self::layout::RuntimeOptions;
pub(crate) use self::layout::parse_id;
use self::refusal::{
    command_not_found, exec_timeout, image_not_found, keeper_gone, needs_docker, not_listening,
    not_running, still_alive,
};

/// Now on CLOCK_BOOTTIME, the clock of every deadline given to [`Runtime::arm`].
pub fn boot_now() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // The kernel's uptime is never negative.
    BootTime(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// One container to start.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// Which.
    pub id: ContainerId,
    /// What runs in it.
    pub spec: Spec,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Which.
    pub id: ContainerId,
    /// The PID of its PID 1, as the host sees it.
    pub pid: u32,
    /// When it was started.
    pub started: BootTime,
}

/// How a container's program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it: the keeper was gone.
    Unknown,
}

/// What a runtime reports without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// The container is proven dead. Comes exactly once for every container that ran or was adopted.
    Dead {
        /// Which.
        id: ContainerId,
        /// How its program ended.
        exit: Exit,
    },
    /// The keeper is gone, and with it every container: each one's `Dead` has been or will be sent.
    KeeperLost,
    /// A keeper is there, for the first time or again: `adopt` tells what it holds.
    KeeperConnected {
        /// Its process id.
        pid: u32,
    },
}

/// A command run in a container.
#[derive(Debug, Clone)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// What it reads.
    pub stdin: Vec<u8>,
}

/// What it left; each stream is cut at [`EXEC_OUTPUT_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Whether either was cut.
    pub truncated: bool,
}

/// How a terminal's size is changed.
#[derive(Debug, Clone)]
pub enum TerminalSize {
    /// By TIOCSWINSZ on its master.
    OfMaster,
    /// By telling whoever has the true master: columns and rows, before what is written next.
    Told(mpsc::UnboundedSender<(u16, u16)>),
}

impl TerminalSize {
    /// Changes it. A terminal that is closed has none, and the last one wins.
    pub fn set(&self, master: impl AsFd, columns: u16, rows: u16) {
        let (columns, rows) = (columns.max(1), rows.max(1));
        match self {
            TerminalSize::OfMaster => {
                let size = Winsize {
                    ws_col: columns,
                    ws_row: rows,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                let _ = rustix::termios::tcsetwinsize(master, size);
            }
            TerminalSize::Told(sizes) => drop(sizes.send((columns, rows))),
        }
    }
}

/// The most kept of each output stream of an exec.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// A login shell on a terminal of the container's own devpts.
#[derive(Debug)]
pub struct Terminal {
    /// The terminal's master side, or a socket that leads to it; non-blocking.
    pub master: OwnedFd,
    /// How its size is changed.
    pub size: TerminalSize,
    /// How the shell ended, once.
    pub ended: tokio::sync::oneshot::Receiver<Exit>,
}

/// Where a container's output is: files to be read in this order, the last one growing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFiles(pub Vec<PathBuf>);

/// Makes, reaches and kills containers. See the module for the order of calls.
pub trait Runtime: Send + Sync + 'static {
    /// The events of this runtime; the first caller gets them.
    fn events(&self) -> Option<mpsc::UnboundedReceiver<RuntimeEvent>>;

    /// Sets the host's deadline, passed on to the keeper: past it, everything here is killed by the kernel.
    fn arm(&self, deadline: BootTime) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Does ahead what a start of this spec would have to wait for, as far as that can be done without knowing its
    /// epoch: its image. A start works without it.
    fn prepare(&self, spec: &Spec) -> BoxFuture<'_, Result<(), Refusal>> {
        let _ = spec;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts a container. On any error nothing is left running; `cleanup` removes the rest. One whose operation is told
    /// to end is refused as long as nobody has been asked who could start it; from then on its end is waited for.
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Running, Refusal>>;

    /// How long a start may take before it counts as stuck.
    fn start_stuck_after(&self) -> Duration {
        START_STUCK_AFTER
    }

    /// What runs already: after a restart of conman.
    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Running>, Refusal>>;

    /// Sends SIGTERM to the container's program.
    fn terminate(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Sends SIGKILL to everything in these containers, all at once. `Dead` follows for each.
    fn kill(&self, ids: &[ContainerId]) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Runs a command in a running container.
    fn exec(&self, id: &ContainerId, exec: Exec) -> BoxFuture<'_, Result<ExecOutput, Refusal>>;

    /// Opens a shell on a terminal in a running container.
    fn shell(
        &self,
        id: &ContainerId,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'_, Result<Terminal, Refusal>>;

    /// Connects to a port on the container's own loopback, once; refused is
    /// [`model::api::RefusalCode::PortNotListening`].
    fn dial(&self, id: &ContainerId, port: u16) -> BoxFuture<'_, Result<TcpStream, Refusal>>;

    /// Where the output of this container is.
    fn logs(&self, id: &ContainerId) -> LogFiles;

    /// The container of this repl, alive or not, whose output is the newest that is still here.
    fn newest_logs(&self, _repl: &ReplId) -> Option<ContainerId> {
        // A runtime that keeps nothing of dead containers has nothing to say.
        None
    }

    /// Removes what a dead container left: overlay, cgroup, logs of older epochs. Off the critical path.
    fn cleanup(&self, id: &ContainerId) -> BoxFuture<'_, Result<(), Refusal>>;
}
