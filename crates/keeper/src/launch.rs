//! The keeper's part of a start: clones the init, places it, says go.
//!
//! ```text
//! (the preparer) ─► open cgroups ─► clone3 ─► map ids ─► go ─► (the init joins v1 cgroups, and reports)
//!                     └─ any failure: killed and reaped here, before the refusal
//! ```
//!
//! Nothing here waits for a disk: procfs and cgroupfs are the kernel's own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use model::id::{ContainerId, HostId};
use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode, Launch, LaunchKind, NativePlan};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use seccompiler::BpfProgram;

use crate::container::Ordered;
use crate::failure::{Step, failed, refused};
use crate::init::{self, Birth, Log, Program, Walls};
use crate::oom::ScoreBefore;
use crate::packet;
use crate::prepare::Prepared;
use crate::report::Go;
use crate::shared;
use crate::sys::{self, Cloned};
use crate::witness::Witness;

/// An init that was told to go.
pub(crate) struct Launched {
    /// Its PID.
    pub(crate) pid: i32,
    /// The same for good.
    pub(crate) pidfd: OwnedFd,
    /// Where it reports.
    pub(crate) reports: OwnedFd,
    /// Where conman's commands go.
    pub(crate) control: OwnedFd,
    /// Its v2 cgroup.
    pub(crate) cgroup: Option<PathBuf>,
    /// That of all of the host's containers.
    pub(crate) cgroup_of_host: Option<PathBuf>,
}

/// What starts need, made once.
pub(crate) struct Launcher {
    /// Whose.
    pub(crate) host: HostId,
    /// For native containers, where they can be made.
    pub(crate) native: Option<Native>,
    /// The limit of open files that programs get.
    pub(crate) open_files: rustix::process::Rlimit,
    /// The score for the out-of-memory killer that programs get.
    pub(crate) oom_score: ScoreBefore,
}

/// What native starts need.
pub(crate) struct Native {
    /// The programs' filter.
    pub(crate) seccomp: BpfProgram,
    /// Root's id in the containers, as the host sees it.
    pub(crate) uid_base: u32,
}

/// A held container: its pidfd, its control socket, its report socket.
const FDS_PER_CONTAINER: u64 = 3;
/// For a start itself, the connection, the list's copies that wait to be sent, and the keeper's own.
const FDS_RESERVED: u64 = 256;

/// Their fds pass in one message.
const BINDS_MAX: usize = 64;

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

impl Launcher {
    /// Whether this keeper has fds left for one more, so that it always has some for conman and for kills.
    pub(crate) fn has_room(&self, containers: usize) -> Result<(), KeeperRefusal> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let needed = containers as u64 * FDS_PER_CONTAINER + FDS_RESERVED;
        if limit.is_some_and(|limit| needed > limit) {
            return Err(refused(
                KeeperRefusalCode::LimitReached,
                "admit",
                format!(
                    "{containers} containers need {needed} open files, and that is the keeper's limit"
                ),
            ));
        }
        Ok(())
    }

    /// Whether this keeper can do that at all.
    pub(crate) fn supports(&self, launch: &Launch) -> Result<(), KeeperRefusal> {
        match (&launch.kind, &self.native) {
            (LaunchKind::Native(_), None) => Err(refused(
                KeeperRefusalCode::Unsupported,
                "admit",
                "this keeper was started for plain processes only",
            )),
            _ => Ok(()),
        }
    }

    /// Reads the plan without touching anything: what is wrong with it is wrong before it is tried.
    pub(crate) fn read(&self, launch: &Launch) -> Result<Program, KeeperRefusal> {
        let bad = |message| Err(refused(KeeperRefusalCode::BadMessage, "read plan", message));
        if launch.log.bytes_max == 0 {
            return bad("log.bytes_max must not be zero");
        }
        if let LaunchKind::Native(plan) = &launch.kind {
            if plan.root.lower.is_empty() {
                return bad("root.lower must not be empty");
            }
            if plan.root.binds.len() > BINDS_MAX {
                return bad("a container has at most 64 binds");
            }
            if plan
                .root
                .binds
                .iter()
                .any(|bind| !bind.target.is_absolute())
            {
                return bad("a bind's target must be absolute");
            }
        }
        Program::new(&launch.command, &launch.env, &launch.cwd)
    }

    /// Starts an init. On failure nothing of it is left running or mounted.
    pub(crate) fn launch(
        &self,
        id: &ContainerId,
        ordered: &Ordered,
        prepared: Prepared,
    ) -> Result<Launched, KeeperRefusal> {
        let launch = &ordered.launch;
        let witness = prepared
            .witness
            .map(|files| Witness::new(files, id, &self.host));
        let (reports, keeper) = packet::pair().step("make report socket")?;
        let (control, inits_control) = packet::pair().step("make control socket")?;
        let mut cgroup = None;
        let mut flags = 0;
        let mut placement = None;
        let mut walls = None;
        if let (LaunchKind::Native(plan), Some(native)) = (&launch.kind, &self.native) {
            if let Some(path) = &plan.cgroup_v2 {
                cgroup = Some(open_cgroup(path)?);
            }
            flags = NAMESPACES;
            walls = Some(Walls {
                root: prepared.root,
                tasks: open_tasks(&plan.cgroup_v1)?,
                hostname: plan.hostname.clone(),
                cgroup: cgroup.is_some(),
                seccomp: &native.seccomp,
            });
            placement = Some(Placement {
                plan,
                uid_base: native.uid_base,
            });
        }
        let birth = Birth {
            native: walls,
            program: &ordered.program,
            log: Log::new(prepared.log, launch.log.bytes_max),
            keeper,
            control: inits_control,
            witness,
            open_files: self.open_files,
            oom_score: &self.oom_score,
        };
        let cloned = sys::clone3(flags, cgroup.as_ref().map(AsFd::as_fd)).map_err(refuse_clone)?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            init::run(birth)
        };
        drop(birth);
        let launched = Launched {
            pid,
            pidfd,
            reports,
            control,
            cgroup: placement
                .as_ref()
                .and_then(|placement| placement.plan.cgroup_v2.clone()),
            cgroup_of_host: placement
                .as_ref()
                .and_then(|placement| placement.plan.cgroup_v2_host.clone()),
        };
        match launched.place(placement) {
            Ok(()) => Ok(launched),
            Err(refusal) => {
                launched.undo();
                Err(refusal)
            }
        }
    }
}

struct Placement<'a> {
    plan: &'a NativePlan,
    uid_base: u32,
}

impl Launched {
    fn place(&self, placement: Option<Placement<'_>>) -> Result<(), KeeperRefusal> {
        if let Some(Placement { uid_base, .. }) = placement {
            shared::write_id_maps(self.pid, uid_base)?;
        }
        packet::send_value(&self.reports, &Go, &[]).step("say go")
    }

    fn undo(self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
        });
    }
}

/// The kernel says ENOSPC for too many user or PID namespaces, and no disk is meant.
fn refuse_clone(errno: Errno) -> KeeperRefusal {
    let mut refusal = failed("clone", errno);
    refusal.code = match errno {
        Errno::NOSPC => KeeperRefusalCode::LimitReached,
        Errno::NOSYS | Errno::PERM | Errno::INVAL => KeeperRefusalCode::Failed,
        _ => refusal.code,
    };
    refusal
}

fn name(path: &std::path::Path, mut refusal: KeeperRefusal) -> KeeperRefusal {
    refusal.message = format!("{}: {}", path.display(), refusal.message);
    refusal
}

/// For the init to join them by itself: the kernel moves a thread that asks for itself at once. To move another
/// process it first waits until no thread of the machine forks or ends, some milliseconds, and here that would be
/// the keeper's. The right to write comes with the fd.
fn open_tasks(directories: &[PathBuf]) -> Result<Vec<OwnedFd>, KeeperRefusal> {
    let open = |directory: &PathBuf| {
        let path = directory.join("tasks");
        rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .step("open cgroup")
            .map_err(|refusal| name(directory, refusal))
    };
    directories.iter().map(open).collect()
}

fn open_cgroup(path: &std::path::Path) -> Result<OwnedFd, KeeperRefusal> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step("open cgroup")
    .map_err(|refusal| name(path, refusal))
}
