//! What conman and the keeper say to each other, and conman and the init in each container.
//!
//! # conman ↔ keeper
//!
//! A Unix SOCK_SEQPACKET socket at the keeper's path: one message per packet, JSON, at most
//! [`MESSAGE_BYTES_MAX`] bytes; file descriptors ride along as SCM_RIGHTS. The keeper serves one conman at
//! a time and the newest wins: at a new connection the older one is closed.
//!
//! ```text
//! conman                                   keeper
//!   │ ToKeeper{id, Hello}                    │
//!   │ ─────────────────────────────────────► │
//!   │      FromKeeper::Answer{id, Hello}     │
//!   │ ◄───────────────────────────────────── │
//!   │ List{after: None}, List{after: last}…  │  pages of at most LIST_PAGE, each entry that runs
//!   │ ◄──────────────── Listed{held, more}   │  with its fds: adoption after a restart of conman
//!   │ Arm{deadline}         ─► Armed         │  after every acknowledged renewal
//!   │ Start{container, …}   ─► Started + fds │  answers come when they are known, not in order
//!   │ Kill{ids}             ─► Done          │  the signals are sent, not yet: dead
//!   │ ◄──── FromKeeper::Event(Exited{…})     │  once per container: proven dead and reaped
//!   │ Forget{ids}           ─► Done          │  the keeper drops the ended entry from its list
//! ```
//!
//! Every request is answered exactly once, with its id, while the connection lasts. Events come
//! unasked, at any time after the connection is there, even before the answer to Hello; an exit that
//! happened while nobody was connected is not repeated as an event: it is in the list, as
//! [`HeldState::Exited`], until it is forgotten.
//!
//! **Fds with a message** come in the order in which the message names them: with
//! [`Answer::Started`] two, with [`Answer::Listed`] two for each entry whose state is
//! [`HeldState::Running`], in the order of the entries: first the pidfd of PID 1, then the *control
//! socket* of its init. An entry that is still being started is not listed. With [`HeldState::Watched`] only the
//! pidfd comes: there is no init of ours.
//!
//! # Containers that others start
//!
//! ```text
//! conman                                   keeper
//!   │ Admit{container}      ─► Done          │  the epoch is seen; refused as a Start is
//!   │ (has the engine start it)              │
//!   │ Hold{container, pid…} ─► Started + fd  │  killed at a request and shortly before the deadline
//! ```
//!
//! Their end is not told: the pidfd tells it, and they are no longer in the list.
//!
//! # conman ↔ init
//!
//! The control socket is SOCK_SEQPACKET too and goes one way: conman sends [`ToInit`], the init never
//! writes to it. So any number of duplicates of it may exist (the keeper keeps one, an old conman may still
//! have another) without one reading the other's answers. Each exec has a *channel* of its own for those:
//!
//! ```text
//! conman                                              init
//!   │ socketpair(SEQPACKET) = (mine, theirs)            │
//!   │ control ◄ ToInit::Exec + [theirs, in, out, err]   │   without a terminal: three more fds
//!   │ control ◄ ToInit::Exec + [theirs]                 │   with one
//!   │ mine    ► FromExec::Started (+ [master], if tty)  │   or FromExec::Failed, then end of file
//!   │ mine    ◄ ToExec::Kill                            │   at a timeout
//!   │ mine    ► FromExec::Exited                        │   then end of file
//! ```
//!
//! An exec lives as long as its channel: when conman closes `mine` (or is gone), the init kills the exec's
//! whole session. End of file on `mine` without an `Exited` means that the container is dead. The
//! terminal's size is changed on the master (TIOCSWINSZ).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, Epoch, HostId};
use crate::time::BootTime;

/// The version of this protocol. A conman that meets another one must not go on: it drains.
pub const PROTOCOL: u32 = 2;

/// The largest message. Below the least default socket buffer of Linux (208 KiB), which bounds a packet;
/// a spec's command and environment have at most 64 KiB together.
pub const MESSAGE_BYTES_MAX: usize = 192 * 1024;

/// The most entries in one answer to List: two fds each, and the kernel passes at most 253 at once.
pub const LIST_PAGE: usize = 64;

/// The most ids in one request to kill: their text fits into a message.
pub const KILL_IDS_MAX: usize = 1_000;

/// The furthest that a deadline may be ahead of now. A keeper that believed any number would make one
/// wrong message hold a host's containers for ever.
pub const ARM_AHEAD_MAX: Duration = Duration::from_secs(60);

/// How long a start may take, from its request, before the keeper kills what there is of it and answers
/// [`KeeperRefusalCode::TimedOut`].
pub const START_MAX: Duration = Duration::from_secs(10);

/// A request, with conman's number for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToKeeper {
    /// Chosen by conman, unique among the requests open on this connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What conman asks of the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// The first message. Answered by [`Answer::Hello`], whatever the version.
    Hello {
        /// The [`PROTOCOL`] that conman speaks.
        protocol: u32,
    },
    /// What the keeper holds, ended ones included, ordered by id. Answered by [`Answer::Listed`].
    List {
        /// Only those after this one; `None` from the beginning.
        #[serde(default)]
        after: Option<ContainerId>,
    },
    /// Moves the deadline. Answered by [`Answer::Armed`].
    Arm {
        /// When the kernel kills the keeper and everything in it. An earlier one than the keeper's is
        /// ignored, not refused: messages may be late, deadlines only grow.
        deadline: BootTime,
    },
    /// Starts a container. Answered by [`Answer::Started`], or refused and nothing of it is left running.
    /// Its epoch counts as seen from then on, whether it succeeded or not, unless the refusal was one of
    /// those that say that it was not tried ([`KeeperRefusalCode::was_tried`]).
    Start {
        /// Which. Its epoch must be above every one that this keeper has seen for the repl.
        container: ContainerId,
        /// What and how.
        launch: Box<Launch>,
    },
    /// Counts the epoch of a container that conman is about to have started by others. Answered by [`Answer::Done`],
    /// or refused as a [`Request::Start`] is. Void when the connection is closed or the container is killed.
    Admit {
        /// Which.
        container: ContainerId,
    },
    /// Holds a container that was admitted and has been started by others. Answered by [`Answer::Started`] with one
    /// fd, or refused, and then conman must kill it.
    Hold {
        /// Which.
        container: ContainerId,
        /// Its PID 1, as the host sees it; with a PID namespace of its own.
        pid: u32,
        /// When that was started, as `/proc/PID/stat` has it: the number alone may be somebody else's by now.
        start_ticks: u64,
    },
    /// Kills containers, all at once: `cgroup.kill` where there is a v2 cgroup (one for all if they are all that is
    /// held), SIGKILL to PID 1, and for plain processes every descendant. Ids that are not held or have ended are skipped. Answered by
    /// [`Answer::Done`] when the signals are sent; [`Event::Exited`] tells that each is dead.
    Kill {
        /// Which; at most [`KILL_IDS_MAX`].
        ids: Vec<ContainerId>,
    },
    /// Sends SIGTERM to the container's program (not to its children). Answered by [`Answer::Done`].
    Terminate {
        /// Which.
        id: ContainerId,
    },
    /// Drops ended containers from the list. Their epochs stay seen. Ids that run or are not held are
    /// skipped. Answered by [`Answer::Done`].
    Forget {
        /// Which.
        ids: Vec<ContainerId>,
    },
}

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromKeeper {
    /// To a request.
    Answer {
        /// Its number. Zero, with a refusal, when the request could not be read far enough to tell.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// Unasked.
    Event {
        /// What happened.
        event: Event,
    },
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello(Hello),
    /// To [`Request::List`], with two fds for each running entry (see the module).
    Listed {
        /// At most [`LIST_PAGE`] entries, ordered by id.
        held: Vec<Held>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To [`Request::Arm`].
    Armed {
        /// The deadline that now holds: the asked one, or a later one from before.
        deadline: BootTime,
    },
    /// To [`Request::Start`], with two fds: the container's program runs (its `execve` succeeded). To
    /// [`Request::Hold`], with one: it is held.
    Started(Held),
    /// To the rest.
    Done,
    /// To any: it was not done.
    Refused(KeeperRefusal),
}

/// Who the keeper is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The [`PROTOCOL`] that it speaks.
    pub protocol: u32,
    /// The host that it was started for.
    pub host: HostId,
    /// Its process id.
    pub pid: u32,
    /// Its deadline; `None` until it was armed for the first time.
    pub deadline: Option<BootTime>,
    /// How many containers it holds, ended ones included.
    pub held: u32,
    /// The host's uid and gid of root in its native containers; the range has [`UID_COUNT`] ids. `None`
    /// where it cannot make native containers (it is not root).
    pub uid_base: Option<u32>,
}

/// How many user and group ids a native container has.
pub const UID_COUNT: u32 = 65_536;

/// A container that the keeper holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub id: ContainerId,
    /// The PID of its PID 1 (for a plain process: of its init), as the host sees it.
    pub pid: u32,
    /// When it was started.
    pub started: BootTime,
    /// Whether it runs.
    pub state: HeldState,
    /// For [`HeldState::Running`], where its root is not what was asked for because this machine cannot:
    /// sentences for the operator's log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Whether a held container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HeldState {
    /// It runs.
    Running,
    /// It runs, and was started by others.
    Watched,
    /// It is proven dead.
    Exited {
        /// How its program ended.
        exit: WireExit,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WireExit {
    /// By itself.
    Code {
        /// With this exit code.
        code: i32,
    },
    /// By a signal; SIGKILL also when the container as a whole was killed.
    Signal {
        /// Which.
        signal: i32,
    },
}

/// What the keeper tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A container is dead: the pidfd of its PID 1 was readable, which with a PID namespace means that no
    /// process of it is left, and PID 1 has been reaped. (That its cgroup is empty too is for conman to
    /// see: the keeper did not make it.)
    Exited {
        /// Which.
        id: ContainerId,
        /// How its program ended.
        exit: WireExit,
    },
}

/// Why the keeper did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{step}: {message}")]
pub struct KeeperRefusal {
    /// What kind of failure.
    pub code: KeeperRefusalCode,
    /// The step that failed, as a bare verb with its object: `mount overlay`, `execute command`.
    pub step: String,
    /// What went wrong, for people.
    pub message: String,
    /// The kernel's error number, where it was the kernel that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

/// The kinds of [`KeeperRefusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperRefusalCode {
    /// The message is not one of this protocol, or a field of it cannot work.
    BadMessage,
    /// A start when no deadline was ever armed.
    NoDeadline,
    /// A start after the deadline.
    PastDeadline,
    /// An arm with a deadline further ahead than [`ARM_AHEAD_MAX`].
    DeadlineTooFar,
    /// A start at an epoch at or below one that was seen for the repl.
    StaleEpoch,
    /// The keeper is going down (it got SIGTERM).
    GoingDown,
    /// No such container is held, or it has ended.
    NotRunning,
    /// This machine or this keeper cannot do that at all: a native container without root.
    Unsupported,
    /// The command is not in the container.
    CommandNotFound,
    /// The command is there but cannot be executed.
    CommandNotExecutable,
    /// A lower directory or the source of a bind does not exist, or is no directory.
    ImageMissing,
    /// No space, inodes or quota left for the overlay, the log or the workspace.
    DiskFull,
    /// A limit of the machine, of the keeper or of the container's own cgroup: processes, memory, namespaces,
    /// open files.
    LimitReached,
    /// A file system did not answer, or the init did not report, within [`START_MAX`]; it was killed.
    TimedOut,
    /// Anything else that failed during a start.
    Failed,
}

impl KeeperRefusalCode {
    /// Whether a start refused with this was tried: its epoch is used up, and files may be left for cleanup.
    pub const fn was_tried(self) -> bool {
        !matches!(
            self,
            KeeperRefusalCode::BadMessage
                | KeeperRefusalCode::NoDeadline
                | KeeperRefusalCode::PastDeadline
                | KeeperRefusalCode::DeadlineTooFar
                | KeeperRefusalCode::StaleEpoch
                | KeeperRefusalCode::GoingDown
                | KeeperRefusalCode::NotRunning
                | KeeperRefusalCode::Unsupported
        )
    }
}

/// What is to run, and how. All paths are the host's and absolute unless said otherwise. The keeper opens
/// everything by path; no fds come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// With which walls.
    pub kind: LaunchKind,
    /// The program and its arguments. Without a `/`, looked up in the `PATH` of `env`, inside the container.
    pub command: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// The working directory, as the container sees it. A missing one is a failure.
    pub cwd: PathBuf,
    /// Where the program's output goes.
    pub log: LogPlan,
    /// An independent witness of the container's life, for tests and drills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<WitnessPlan>,
}

/// With which walls a program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LaunchKind {
    /// In namespaces, with a root of its own.
    Native(NativePlan),
    /// As a plain process of the keeper's user, with no isolation.
    Process,
}

/// A native container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativePlan {
    /// Its root file system.
    pub root: RootPlan,
    /// Its host name.
    pub hostname: String,
    /// Its cgroup v2 directory, which exists: the container is born in it, and killed by its `cgroup.kill`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_v2: Option<PathBuf>,
    /// The v2 directory above it, below which there is nothing but containers of this host: when all that the keeper
    /// holds are to be killed, one write to its `cgroup.kill` is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_v2_host: Option<PathBuf>,
    /// Its directories under cgroup v1 controllers, which exist: PID 1 is put into each before it goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroup_v1: Vec<PathBuf>,
    /// Its limit of processor time, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<Box<CpuQuota>>,
}

/// A limit of processor time, which must not hold back the dying: to end takes time too, and the hundreds of processes
/// of a container with a tenth of a processor would take seconds of it. So the limit is lifted before a kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    /// The control file that sets it.
    pub file: PathBuf,
    /// What lifts it, written there.
    pub unlimited: String,
}

/// A root file system: an overlay, with directories of the host bound into it.
///
/// The keeper always adds `/proc`, `/sys`, `/dev`, `/dev/pts`, `/dev/shm` and `/dev/mqueue`; mount points
/// that the image lacks are made in the upper layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Lower layers, uppermost first; at least one. Only read; the host's root owns their files, which the
    /// container then sees as its own root's.
    pub lower: Vec<PathBuf>,
    /// The upper layer: made, with its owner, if its parent exists. Never used for two containers.
    pub upper: PathBuf,
    /// Overlayfs' work directory, on the same file system as `upper`: made if its parent exists.
    pub work: PathBuf,
    /// Mounted on top, in this order. Not recursive: what is mounted below a source is not taken along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<Bind>,
}

/// A directory of the host in the container. Its files' owners on disk are shifted by the mount: root on
/// disk is root in the container. Set-user-id bits and device files have no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The directory, on the host.
    pub source: PathBuf,
    /// Where, in the container; absolute.
    pub target: PathBuf,
    /// Whether the container may write to it.
    pub access: Access,
}

/// What a container may do with a bound directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Where a program's standard output and error go, both into the same stream: two files used in turn.
///
/// The init writes `files[0]` until it has exactly `bytes_max` bytes, then empties `files[1]` and writes
/// that, then again. So the growing file is the one with less than `bytes_max` bytes; when both have less,
/// the other one is empty and it is `files[0]`. Output is lost rather than ever awaited: when the disk is
/// full the program goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlan {
    /// The files: made or emptied at start, mode 0600. Their directory exists.
    pub files: [PathBuf; 2],
    /// How large each may become.
    pub bytes_max: u64,
}

/// How much of a program's output is kept by default, in each of two files.
pub const LOG_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// A witness of how many containers of a repl are alive: the init holds an exclusive `flock` on `lock` for
/// as long as it lives, and appends one line of JSON ([`WitnessLine`]) to `record`. It guards nothing:
/// when the lock is held by another, that is what the line says, and the container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessPlan {
    /// The repl's lock file: made if its directory exists.
    pub lock: PathBuf,
    /// The record: made if its directory exists, shared by all.
    pub record: PathBuf,
}

/// One line of a witness' record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessLine {
    /// Which repl.
    pub repl: String,
    /// At which epoch.
    pub epoch: Epoch,
    /// On which host.
    pub host: String,
    /// What the witness saw.
    pub event: WitnessEvent,
    /// When, on CLOCK_MONOTONIC_RAW, in nanoseconds: comparable on one machine.
    pub monotonic_raw_ns: u64,
}

/// What a witness saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WitnessEvent {
    /// It got the lock: this container is the only one of its repl.
    Start,
    /// Somebody else held the lock: there are two.
    Overlap,
}

/// What conman sends to an init, on its control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToInit {
    /// Runs a command in the container, in a session of its own; with fds, see the module.
    Exec(ExecPlan),
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The program and its arguments, looked up as in [`Launch::command`].
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory, as the container sees it.
    pub cwd: PathBuf,
    /// With a terminal of the container's own devpts of this size; `None` with the three fds given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySize>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

/// What an init says on an exec's channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromExec {
    /// The command runs. With a terminal, one fd comes along: its master.
    Started {
        /// Its PID, as the container sees it.
        pid: u32,
    },
    /// It was not run; the channel is closed after this.
    Failed(KeeperRefusal),
    /// It has ended; the channel is closed after this. What it left in the background goes on.
    Exited {
        /// How.
        exit: WireExit,
    },
}

/// What conman says on an exec's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToExec {
    /// SIGKILL to the command's whole session. [`FromExec::Exited`] follows.
    Kill,
    /// A signal to the command's process group.
    Signal {
        /// Which, by number.
        signal: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ReplId;

    fn id(epoch: u64) -> ContainerId {
        let repl: ReplId = "r1".parse().expect("a name");
        ContainerId {
            repl,
            epoch: Epoch(epoch),
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let launch = Launch {
            kind: LaunchKind::Native(NativePlan {
                root: RootPlan {
                    lower: vec!["/image".into()],
                    upper: "/o/upper".into(),
                    work: "/o/work".into(),
                    binds: vec![Bind {
                        source: "/usr".into(),
                        target: "/usr".into(),
                        access: Access::ReadOnly,
                    }],
                },
                hostname: "r1".into(),
                cgroup_v2: Some("/sys/fs/cgroup/h/c".into()),
                cgroup_v2_host: Some("/sys/fs/cgroup/h".into()),
                cgroup_v1: vec![],
                cpu_quota: Some(Box::new(CpuQuota {
                    file: "/sys/fs/cgroup/h/c/cpu.max".into(),
                    unlimited: "max".into(),
                })),
            }),
            command: vec!["sh".into()],
            env: BTreeMap::from([("PATH".into(), "/usr/bin".into())]),
            cwd: "/".into(),
            log: LogPlan {
                files: ["/l/0".into(), "/l/1".into()],
                bytes_max: LOG_BYTES_MAX,
            },
            witness: None,
        };
        let sent = ToKeeper {
            id: 7,
            request: Request::Start {
                container: id(3),
                launch: Box::new(launch),
            },
        };
        let text = serde_json::to_string(&sent).expect("serialize");
        assert_eq!(serde_json::from_str::<ToKeeper>(&text).expect("read"), sent);
        for answer in [
            Answer::Done,
            Answer::Started(Held {
                id: id(3),
                pid: 9,
                started: BootTime(5),
                state: HeldState::Exited {
                    exit: WireExit::Code { code: 3 },
                },
                notes: vec![],
            }),
            Answer::Refused(KeeperRefusal {
                code: KeeperRefusalCode::DiskFull,
                step: "mount overlay".into(),
                message: "no space".into(),
                errno: Some(28),
            }),
        ] {
            let sent = FromKeeper::Answer { id: 7, answer };
            let text = serde_json::to_string(&sent).expect("serialize");
            assert_eq!(
                serde_json::from_str::<FromKeeper>(&text).expect("read"),
                sent
            );
        }
    }

    #[test]
    fn a_page_fits_into_one_message() {
        // 253 is SCM_MAX_FD; the longest entry is a name of 50 characters and the largest numbers.
        const { assert!(LIST_PAGE * 2 <= 253) };
        const { assert!(LIST_PAGE * 1024 < MESSAGE_BYTES_MAX) };
    }

    #[test]
    fn the_longest_kill_fits_into_one_message() {
        let longest = ContainerId {
            repl: "r"
                .repeat(crate::id::NAME_LENGTH_MAX)
                .parse()
                .expect("a name"),
            epoch: Epoch(u64::MAX),
        };
        let request = ToKeeper {
            id: u64::MAX,
            request: Request::Kill {
                ids: vec![longest; KILL_IDS_MAX],
            },
        };
        let bytes = serde_json::to_vec(&request).expect("serialize").len();
        assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes}");
    }
}
