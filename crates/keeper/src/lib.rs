//! The keeper: the small process beside conman that is the parent of a host's containers and holds the host's
//! deadline. conman may hang, crash, be stopped or be upgraded; the containers live on, until the deadline.
//!
//! ```text
//!            Arm (conman, after each acknowledged renewal)
//!           ┌──────────────┐
//!           ▼              │
//! started ─► not armed ─► armed ──deadline──► SIGKILL by the kernel: dead, and with it every container
//!              │            │
//!              └──SIGTERM───┴──► kills all, reaps all ─► exits 0
//! ```
//!
//! The happy path: conman connects (`model::wire::keeper`), arms the deadline, has containers started, and is told
//! when each is dead. Nothing here decides anything else. There is one thread and no async runtime, because it
//! forks: the init of each container (module `init`) is a forked child of this process, with nothing executed. One
//! more child, the preparer (module `prepare`), does what may have to wait for a disk.
//!
//! **What holds, and why.**
//!
//! - *Dead on time.* At the deadline the kernel's timer sends SIGKILL to the keeper, stopped or hung as it may be;
//!   each init has the death signal armed, so the kernel kills it with its parent; and with PID 1 of a
//!   PID namespace, everything in it. No code of ours runs then. An init that the keeper's death caught
//!   before it armed the signal finds the keeper's end of their socket closed. A limit of processor time, which would make
//!   the dying slow, is lifted by the guard.
//! - *Never an older one.* A start needs a deadline ahead, and an epoch above all that were seen for the repl.
//! - *Dead means reaped.* `Exited` is sent when PID 1 has been reaped, which the kernel allows only when nothing
//!   of its namespace is left.
//! - *Root inside is nobody outside.* A native container has its own user namespace, none of the host's ids, no
//!   capability that reaches out of it, and a system call filter.
//!
//! **What holds less.** A container that others have started (Docker's engine) is not the keeper's child. It is held by a
//! handle, killed shortly before the deadline, and by a guard when the keeper is gone (module `watched`). A machine on which both are
//! stopped, or on which conman is killed between the engine's start and the keeper's hold, keeps it until a conman is back.
//!
//! **What does not.** A plain process ([`model::wire::keeper::LaunchKind::Process`]) has no such walls. Its init, which the
//! keeper's death does not kill, sees that death as end of file, kills all its descendants and ends; so a process that
//! stops or kills its own init and outlives the keeper is out of reach. And a program that is held in the kernel by a dead disk
//! ends only when the disk does, though it runs no instruction of its own until then; the keeper itself touches no disk
//! (module `prepare`).

pub mod book;
mod clock;
mod container;
mod deaths;
mod failure;
mod guard;
mod init;
mod launch;
mod link;
pub mod manager;
mod mounts;
mod note;
mod oom;
mod packet;
mod place;
mod prepare;
mod processes;
mod quota;
mod report;
mod seccomp;
mod server;
mod shared;
mod starts;
mod sys;
mod watched;
mod witness;

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::id::HostId;
use model::wire::keeper::KeeperRefusal;
use rustix::process::Resource;
use serde_json::json;

use crate::book::Book;
use crate::clock::{DeadlineTimer, boot_now};
use crate::failure::Step;
use crate::launch::{Launcher, Native};
use crate::manager::{Beats, Manager};
use crate::mounts::Mounts;
use crate::note::{Level, note};
use crate::place::Place;
use crate::prepare::Preparer;
use crate::server::{End, Server};
use crate::watched::AllWatched;

pub use crate::place::PlaceError;

/// What a keeper is started with.
#[derive(Debug)]
pub struct Config {
    /// Where conman connects. A directory beside it, with `.keeper` added to the name, is the keeper's too.
    pub socket: PathBuf,
    /// The host that it is the keeper of.
    pub host: HostId,
    /// What containers it can make.
    pub walls: Walls,
    /// Who is told how it is.
    pub manager: Option<Manager>,
}

/// What containers a keeper can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walls {
    /// Native ones, and plain processes. Needs root.
    Native {
        /// The host's uid and gid of root in the containers, with [`model::wire::keeper::UID_COUNT`] ids from there. Must not be
        /// those of anybody else.
        uid_base: u32,
    },
    /// Plain processes only.
    ProcessOnly,
}

/// The default of [`Walls::Native::uid_base`]: above what distributions give to users and to their subordinate ids'
/// first ranges.
pub const UID_BASE_DEFAULT: u32 = 1_000_000_000;

/// Why a keeper ended other than by SIGTERM with everything dead.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Its socket cannot be had.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A step of its setup failed.
    #[error("set up keeper: {0}")]
    Setup(#[from] KeeperRefusal),
    /// The filter cannot be built: a defect.
    #[error("build seccomp filter: {0}")]
    Filter(String),
    /// At SIGTERM, some containers did not die in time. They die with this process.
    #[error("{0} containers did not die in time")]
    Stuck(usize),
}

/// Runs a keeper in this process until SIGTERM or SIGINT, then kills all containers and returns. The caller must
/// have started no thread, and should exit with this. At the deadline this process is killed.
pub fn run(config: Config) -> Result<(), KeeperError> {
    // The working directory changes below.
    let socket = std::path::absolute(&config.socket).map_err(|source| PlaceError::Io {
        path: config.socket.clone(),
        step: "find socket",
        source,
    })?;
    let place = Place::take(&socket)?;
    sys::ignore_only_sigpipe();
    let signals = {
        sys::block_signals(server::SIGNALS).step("block signals")?;
        sys::signal_fd(server::SIGNALS).step("make signal fd")?
    };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .step("become subreaper")?;
    let open_files = raise_open_files();
    let oom_score = oom::protect();
    let (native, mounts) = match config.walls {
        Walls::Native { uid_base } => {
            let seccomp =
                seccomp::program().map_err(|error| KeeperError::Filter(error.to_string()))?;
            let mounts = Mounts::new(&place.directory, uid_base)?;
            (Some(Native { seccomp, uid_base }), Some(mounts))
        }
        Walls::ProcessOnly => (None, None),
    };
    let server = Server {
        listener: &place.listener,
        signals,
        timer: DeadlineTimer::new().step("make deadline timer")?,
        launcher: Launcher {
            host: config.host.clone(),
            native,
            open_files,
            oom_score,
        },
        book: Book::default(),
        link: None,
        preparer: Preparer::new(mounts)?,
        ordered: BTreeMap::new(),
        containers: BTreeMap::new(),
        watched: AllWatched::default(),
        orphaned: Vec::new(),
        down_by: None,
        beats: Beats::begin(config.manager, boot_now()),
    };
    note(
        Level::Info,
        "ready",
        json!({"host": config.host.to_string(), "pid": std::process::id()}),
    );
    let end = server.run();
    if let Walls::Native { .. } = config.walls {
        mounts::release(&place.directory);
    }
    place.remove();
    match end {
        End::AllDead => {
            note(Level::Info, "ended", json!({}));
            Ok(())
        }
        End::Stuck(left) => {
            note(
                Level::Warn,
                "ended with containers left",
                json!({"containers": left}),
            );
            Err(KeeperError::Stuck(left))
        }
    }
}

/// Lets this process have as many open files as it may: each container takes three. Returns the limits that
/// were there, for the programs.
fn raise_open_files() -> rustix::process::Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let mut raised = before;
    raised.current = raised.maximum;
    // Without it there is room for some 300 containers, and a start says so when there is none.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    before
}
