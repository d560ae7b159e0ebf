//! The native runtime: containers in namespaces, made by this machine's kernel and nothing else.
//!
//! ```text
//! start:   image ─► workspace ─► overlay directory ─► log directory ─► cgroup ─► record ─► the keeper
//! dead:    pidfd of PID 1 readable ─► cgroup empty
//! cleanup: cgroup ─► overlay with its record ─► older logs      (the workspace stays)
//! ```
//!
//! Mounts live in the container's own namespace and end with it; what is on disk is below the state
//! directory (see `layout`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::api::{Refusal, RefusalCode};
use model::id::ContainerId;
use model::spec::Spec;
use model::wire::keeper::{
    Access, Bind, LOG_BYTES_MAX, Launch, LaunchKind, LogPlan, NativePlan, RootPlan, WitnessPlan,
};
use tokio::net::TcpStream;

use super::cgroup::{Cgroups, Mounts};
use super::dial::Dialer;
use super::image::{HOME, Images};
use super::kept::{How, Kept, Member, Record, Walls};
use super::layout::{Layout, RuntimeOptions, parse_id};
use super::{Running, StartRequest};
use crate::telemetry::locks::{Guard, Mutex};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct Native {
    layout: Layout,
    witness: Option<PathBuf>,
    cgroups: Cgroups,
    images: Images,
    dialer: Dialer,
    /// The mount and the network namespaces of containers that live or are not cleaned up after. The last process of a
    /// container would have to unmount all of it before it counts as dead, and of two hundred only one at a time can; so
    /// it is not the last to hold it. The network's end comes later by itself, but then it would be in the way of the
    /// starts elsewhere.
    held: Mutex<HashMap<ContainerId, Vec<std::fs::File>>>,
}

/// Prepares this machine and begins to look for the keeper. Must be called within tokio; blocks for as long
/// as it takes to copy a few files.
///
/// # Errors
/// When the state directory or the cgroup trees cannot be written.
pub fn open(options: &RuntimeOptions) -> io::Result<Kept> {
    open_on(options, this_machine(options)?)
}

/// As [`open`], on some of the machine's cgroup trees only.
///
/// # Errors
/// As [`open`].
pub fn open_on(options: &RuntimeOptions, mounts: Mounts) -> io::Result<Kept> {
    let layout = Layout::new(options);
    make_private(&layout.state)?;
    make_private(&layout.workspaces)?;
    for directory in [
        layout.overlays(),
        layout.state.join("logs"),
        layout.workspaces.clone(),
    ] {
        std::fs::create_dir_all(&directory)?;
        spread_out(&directory);
    }
    make_witness(options)?;
    let cgroups = cgroups(options, mounts)?;
    for controller in cgroups.unlimited() {
        tracing::warn!(
            controller = controller.as_str(),
            "this machine has no such cgroup controller: its limit is not kept"
        );
    }
    let native = Native {
        images: Images::prepare(&layout.state)?,
        layout,
        witness: options.witness.clone(),
        cgroups,
        dialer: Dialer::default(),
        held: Mutex::new("namespaces of containers", HashMap::new()),
    };
    Ok(Kept::new(Arc::new(native), options))
}

/// Removes what a host that is down has left outside of its state directory, and its containers' files
/// in it. Kills what should be dead. Safe to repeat.
///
/// # Errors
/// The first thing that could not be removed.
pub fn purge(options: &RuntimeOptions) -> io::Result<()> {
    let layout = Layout::new(options);
    let cgroups = cgroups(options, this_machine(options)?)?;
    let left = end_all(&cgroups, &layout, &BTreeSet::new())?;
    for id in &left {
        cgroups.remove(id)?;
    }
    cgroups.remove_host()?;
    remove_all(&layout.overlays())
}

fn this_machine(options: &RuntimeOptions) -> io::Result<Mounts> {
    let mounts = Mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo")?);
    Ok(match &options.cgroup {
        Some(cgroup) => mounts.below(cgroup),
        None => mounts,
    })
}

fn cgroups(options: &RuntimeOptions, mounts: Mounts) -> io::Result<Cgroups> {
    if mounts == Mounts::default() {
        return Err(io::Error::other("no cgroup tree is mounted"));
    }
    Cgroups::prepare(mounts, &options.fleet(), &options.host)
}

impl Native {
    fn held(&self) -> Guard<'_, HashMap<ContainerId, Vec<std::fs::File>>> {
        // Whole after every statement under the lock.
        self.held.lock()
    }

    fn make_files(&self, id: &ContainerId) -> io::Result<()> {
        let make = |directory: &Path| match std::fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("make {}: {error}", directory.display()),
            )),
            Ok(()) => Ok(()),
        };
        make(&self.layout.workspace(id))?;
        make(&self.layout.overlay(id))?;
        make(&self.layout.logs(&id.repl))
    }
}

impl Walls for Native {
    fn record(&self, id: &ContainerId) -> PathBuf {
        // Not with the others' in one directory: see `spread_out`.
        self.layout.overlay(id).join("record.json")
    }

    fn prepare(&self, request: &StartRequest) -> Result<(How, Record), Refusal> {
        let StartRequest { id, spec } = request;
        let mut layers = self.images.layers(&spec.image)?;
        layers.binds.push(Bind {
            source: self.layout.workspace(id),
            target: HOME.into(),
            access: Access::ReadWrite,
        });
        let record = Record {
            env: environment(id, spec),
            cwd: HOME.into(),
            port: None,
        };
        let prepared = || -> io::Result<_> {
            self.make_files(id)?;
            record.write(&self.record(id))?;
            self.cgroups.create(id, &spec.limits)
        };
        let placement = prepared().map_err(|error| cannot_prepare(id, &error))?;
        let overlay = self.layout.overlay(id);
        let launch = Launch {
            kind: LaunchKind::Native(NativePlan {
                root: RootPlan {
                    lower: layers.lower,
                    upper: overlay.join("upper"),
                    work: overlay.join("work"),
                    binds: layers.binds,
                },
                hostname: id.repl.to_string(),
                cgroup_v2: placement.v2,
                cgroup_v2_host: placement.v2_host,
                cgroup_v1: placement.v1,
                cpu_quota: placement.cpu_quota.map(Box::new),
            }),
            command: spec.command.clone(),
            env: record.env.clone(),
            cwd: record.cwd.clone(),
            log: log_plan(&self.layout, id),
            witness: witness_plan(self.witness.as_deref(), id),
        };
        Ok((How::Keeper(Box::new(launch)), record))
    }

    fn hold(&self, running: &Running) {
        let open = |kind| std::fs::File::open(format!("/proc/{}/ns/{kind}", running.pid));
        // One that has died meanwhile has nothing left to hold.
        let namespaces = ["mnt", "net"]
            .into_iter()
            .filter_map(|kind| open(kind).ok());
        self.held().insert(running.id.clone(), namespaces.collect());
    }

    fn kill(&self, member: &Member) -> io::Result<()> {
        self.cgroups.kill(&member.running.id)?;
        member.kill()
    }

    fn emptied<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let id = &member.running.id;
            if self.cgroups.is_empty(id)? {
                return Ok(());
            }
            // PID 1 is dead, so nothing in here has a right to live; there should be nothing.
            self.cgroups.kill(id)?;
            self.cgroups.emptied(id).await
        }
        .boxed()
    }

    fn end_unanswered<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, io::Result<()>> {
        async move {
            if self.cgroups.is_empty(id)? {
                return Ok(());
            }
            self.cgroups.kill_all(id)?;
            self.cgroups.emptied(id).await
        }
        .boxed()
    }

    fn dial<'a>(
        &'a self,
        member: &'a Member,
        _record: &'a Record,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Refusal>> {
        async move { self.dialer.dial_member(member, port).await }.boxed()
    }

    fn met_keeper(&self) -> io::Result<()> {
        // A service manager takes the cgroups of a service that has ended away, and gives the next one new ones.
        self.cgroups.make_ready()
    }

    fn remove(&self, id: &ContainerId) -> io::Result<()> {
        // Here is the unmounting, which may wait for a disk.
        let namespaces = self.held().remove(id);
        drop(namespaces);
        self.cgroups.remove(id)?;
        remove_all(&self.layout.overlay(id))
    }

    fn leftovers(&self, held: &BTreeSet<ContainerId>) -> io::Result<BTreeSet<ContainerId>> {
        end_all(&self.cgroups, &self.layout, held)
    }
}

/// Kills every process of this host's containers that are not held, and returns the containers of which
/// anything is left, all proven dead.
fn end_all(
    cgroups: &Cgroups,
    layout: &Layout,
    held: &BTreeSet<ContainerId>,
) -> io::Result<BTreeSet<ContainerId>> {
    let mut left = cgroups.list()?;
    left.extend(named_in(&layout.overlays())?);
    left.retain(|id| !held.contains(id));
    for id in &left {
        if !cgroups.is_empty(id)? {
            tracing::info!(%id, "killing what is left alive");
            cgroups.kill_all(id)?;
        }
    }
    for id in &left {
        cgroups.emptied_blocking(id)?;
    }
    Ok(left)
}

/// The containers that have a file or directory of their own in here.
pub(super) fn named_in(directory: &Path) -> io::Result<BTreeSet<ContainerId>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        found.extend(parse_id(name.strip_suffix(".json").unwrap_or(&name)));
    }
    Ok(found)
}

fn environment(id: &ContainerId, spec: &Spec) -> std::collections::BTreeMap<String, String> {
    let mut env = base_environment(id, PATH, HOME, spec.port);
    env.extend(spec.env.clone());
    env
}

/// What every program finds in its environment, unless its spec says otherwise.
pub(super) fn base_environment(
    id: &ContainerId,
    path: &str,
    home: &str,
    port: Option<u16>,
) -> std::collections::BTreeMap<String, String> {
    let mut env = std::collections::BTreeMap::new();
    let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
    set("PATH", path);
    set("HOME", home);
    set("TERM", "xterm-256color");
    set("LANG", "C.UTF-8");
    set("REPL", id.repl.as_str());
    if let Some(port) = port {
        set("PORT", &port.to_string());
    }
    env
}

pub(super) fn log_plan(layout: &Layout, id: &ContainerId) -> LogPlan {
    LogPlan {
        files: layout.log_files(id),
        bytes_max: LOG_BYTES_MAX,
    }
}

pub(super) fn witness_plan(directory: Option<&Path>, id: &ContainerId) -> Option<WitnessPlan> {
    directory.map(|directory| WitnessPlan {
        lock: directory.join(format!("{}.lock", id.repl)),
        record: directory.join("record"),
    })
}

/// A directory that others may not enter: a container's files in it may be set-user-id root.
/// The keeper opens the witness' files, but makes no directory for them.
pub(super) fn make_witness(options: &RuntimeOptions) -> io::Result<()> {
    options
        .witness
        .as_ref()
        .map_or(Ok(()), std::fs::create_dir_all)
}

pub(super) fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

/// Tells the file system that what is in the directories in here has little to do with each other, so that it
/// need not lie close together (`chattr +T`).
///
/// A container makes and removes some twenty inodes. ext4 does not reuse a removed one for a minute and more, and
/// looks at each of them anew for every one that it makes nearby: with containers coming and going in one
/// corner of the disk, that was half of the time of a start.
fn spread_out(directory: &Path) {
    use rustix::fs::{IFlags, Mode, OFlags};
    let flag = || -> rustix::io::Result<()> {
        let opened = rustix::fs::open(directory, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = rustix::fs::ioctl_getflags(&opened)?;
        rustix::fs::ioctl_setflags(&opened, flags | IFlags::TOPDIR)
    };
    // Only slower without; most other file systems know no such thing.
    if let Err(error) = flag() {
        tracing::debug!(directory = %directory.display(), %error, "spread out");
    }
}

pub(super) fn remove_all(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("remove {}: {error}", directory.display()),
        )),
        _ => Ok(()),
    }
}

pub(super) fn cannot_prepare(id: &ContainerId, error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Refusal::new(
            RefusalCode::DiskFull,
            format!("no space is left for the files of {id}: {error}"),
        ),
        _ => Refusal::new(
            RefusalCode::StartFailed,
            format!("prepare the container of {id}: {error}"),
        ),
    }
}
