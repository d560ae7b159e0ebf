//! One cgroup per container: its limits, its kill switch, and the proof that nothing of it is left.
//!
//! ```text
//! prepare (once) ─► create ─► (the keeper puts PID 1 in) ─► kill? ─► empty ─► remove
//! ```
//!
//! The tree is `conman-<instance>/<host>/<repl>@<epoch>` below the mount of each hierarchy in use:
//!
//! - **pure v2**: one directory; limits, `cgroup.kill` and `cgroup.events` are all in it.
//! - **hybrid**: limits in the v1 directories, kill and proof in the v2 one, which has no controller.
//! - **v1 only**: limits in the v1 directories; the proof is their empty `cgroup.procs`, read again and
//!   again, since v1 tells nobody. The kill is the keeper's, through PID 1.
//!
//! A controller that is nowhere to be had is a limit that is not kept: [`Cgroups::unlimited`] says which.

pub(crate) mod directory;
mod mounts;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::id::{ContainerId, HostId};
use model::spec::Limits;
use model::wire::keeper::CpuQuota;

use self::directory::{
    children, collect_processes, emptied_v2, gone_is_fine, is_empty_v1, is_empty_v2, is_gone,
    named, remove_tree, write,
};
pub use self::mounts::{Controller, Mounts};
pub(crate) use self::mounts::{Tree, trees};
use super::layout::parse_id;

const CPU_PERIOD_US: u64 = 100_000;

/// How long to wait before `cgroup.procs` of a v1 cgroup is read again.
const V1_LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The same, for threads that wait.
const LOOK_AGAIN: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// How often processes are moved out of the way: one that forks in between leaves its child behind.
const MOVES_MAX: u32 = 10;

/// How long killed processes may take to end before that is an error.
const EMPTY_MAX: Duration = Duration::from_secs(2);

/// The cgroups of one host.
#[derive(Debug)]
pub struct Cgroups {
    mounts: Mounts,
    /// The controllers that limit through v2.
    v2_limits: BTreeSet<Controller>,
    /// [`super::RuntimeOptions::fleet`].
    fleet: String,
    host: HostId,
}

/// Where the keeper puts a container's PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The v2 directory.
    pub v2: Option<PathBuf>,
    /// The v2 directory of all of the host's containers, above it.
    pub v2_host: Option<PathBuf>,
    /// The v1 directories, no two the same.
    pub v1: Vec<PathBuf>,
    /// What lifts the limit of processor time before a kill, if there is one.
    pub cpu_quota: Option<CpuQuota>,
}

impl Cgroups {
    /// Makes the host's directories and turns on the controllers on the way down.
    ///
    /// # Errors
    /// When the trees cannot be written: not root, or a read-only mount.
    pub fn prepare(mounts: Mounts, fleet: &str, host: &HostId) -> io::Result<Self> {
        let mut cgroups = Self {
            mounts,
            v2_limits: BTreeSet::new(),
            fleet: fleet.to_owned(),
            host: host.clone(),
        };
        if let Some(root) = &cgroups.mounts.v2 {
            let offered = words(&root.join("cgroup.controllers"))?;
            cgroups.v2_limits = Controller::ALL
                .into_iter()
                .filter(|controller| offered.contains(controller.as_str()))
                .filter(|controller| !cgroups.mounts.v1.contains_key(controller))
                .collect();
        }
        cgroups.make_ready()?;
        Ok(cgroups)
    }

    /// Makes the host's directories and turns on the controllers again, where that is undone.
    ///
    /// # Errors
    /// As [`Cgroups::prepare`]'s.
    pub fn make_ready(&self) -> io::Result<()> {
        if let Some(root) = &self.mounts.v2
            && !root.is_dir()
        {
            // Made by us it would be nobody's: it was to be given to us.
            return Err(named(io::Error::from(io::ErrorKind::NotFound), root));
        }
        for directory in self.host_directories() {
            make_all(&directory)?;
        }
        if let Some(root) = &self.mounts.v2 {
            let fleet = root.join(&self.fleet);
            let host = fleet.join(self.host.as_str());
            enable(root, &self.v2_limits, InnerProcesses::MoveToLeaf)?;
            enable(&fleet, &self.v2_limits, InnerProcesses::Refuse)?;
            enable(&host, &self.v2_limits, InnerProcesses::Refuse)?;
        }
        Ok(())
    }

    /// The controllers that this machine does not have: their limits are not kept.
    pub fn unlimited(&self) -> Vec<Controller> {
        let mut missing = Controller::ALL.to_vec();
        missing.retain(|controller| {
            !self.v2_limits.contains(controller) && !self.mounts.v1.contains_key(controller)
        });
        missing
    }

    /// Whether there is a v2 tree, and with it `cgroup.kill`.
    pub fn has_kill(&self) -> bool {
        self.mounts.v2.is_some()
    }

    /// Makes a container's cgroups and sets its limits. One that exists is used again.
    ///
    /// # Errors
    /// The kernel's, with the path in the text.
    pub fn create(&self, id: &ContainerId, limits: &Limits) -> io::Result<Placement> {
        let v2 = self.mounts.v2.as_ref().map(|root| self.directory(root, id));
        if let Some(directory) = &v2 {
            make(directory)?;
            for controller in &self.v2_limits {
                limit_v2(directory, *controller, limits)?;
            }
        }
        let mut v1 = Vec::with_capacity(self.mounts.v1.len());
        for (controller, root) in &self.mounts.v1 {
            let directory = self.directory(root, id);
            make(&directory)?;
            limit_v1(&directory, *controller, limits)?;
            if !v1.contains(&directory) {
                v1.push(directory);
            }
        }
        let v2_host = v2.as_deref().and_then(Path::parent).map(Path::to_owned);
        let cpu_quota = limits.cpu_millis.and_then(|_| self.cpu_quota(id));
        Ok(Placement {
            v2,
            v2_host,
            v1,
            cpu_quota,
        })
    }

    fn cpu_quota(&self, id: &ContainerId) -> Option<CpuQuota> {
        let (root, file, unlimited) = match (&self.mounts.v2, self.mounts.v1.get(&Controller::Cpu))
        {
            (_, Some(root)) => (root, "cpu.cfs_quota_us", "-1"),
            (Some(root), None) if self.v2_limits.contains(&Controller::Cpu) => {
                (root, "cpu.max", "max")
            }
            _ => return None,
        };
        Some(CpuQuota {
            file: self.directory(root, id).join(file),
            unlimited: unlimited.to_owned(),
        })
    }

    /// Lifts the limit of processor time of what is to be killed: see [`CpuQuota`].
    fn lift(&self, id: &ContainerId) -> io::Result<()> {
        match self.cpu_quota(id) {
            Some(CpuQuota { file, unlimited }) => gone_is_fine(write(&file, &unlimited)),
            None => Ok(()),
        }
    }

    /// SIGKILL to every process in the container, where a v2 tree exists. Nothing to kill is no error.
    pub fn kill(&self, id: &ContainerId) -> io::Result<()> {
        self.lift(id)?;
        let Some(root) = &self.mounts.v2 else {
            return Ok(());
        };
        gone_is_fine(write(&self.directory(root, id).join("cgroup.kill"), "1"))
    }

    /// Whether no process is left in any of the container's cgroups; true when they do not exist.
    pub fn is_empty(&self, id: &ContainerId) -> io::Result<bool> {
        if let Some(root) = &self.mounts.v2 {
            return is_empty_v2(&self.directory(root, id));
        }
        for root in self.v1_roots() {
            if !is_empty_v1(&self.directory(root, id))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// SIGKILL to every process in the container one by one where there is no v2 tree, else as
    /// [`Cgroups::kill`]. For what no keeper holds.
    pub fn kill_all(&self, id: &ContainerId) -> io::Result<()> {
        if self.has_kill() {
            return self.kill(id);
        }
        self.lift(id)?;
        for process in self.processes(id)? {
            let Some(pid) = i32::try_from(process)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            else {
                continue;
            };
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Err(rustix::io::Errno::SRCH) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// As [`Cgroups::emptied`], for a thread that may wait, and not for ever.
    pub fn emptied_blocking(&self, id: &ContainerId) -> io::Result<()> {
        let deadline = std::time::Instant::now() + EMPTY_MAX;
        while !self.is_empty(id)? {
            if std::time::Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{id}: its processes were killed and do not end"),
                ));
            }
            // A wait that nothing interrupts: the kernel is busy with their end.
            let _ = rustix::event::poll(&mut [], Some(&LOOK_AGAIN));
        }
        Ok(())
    }

    /// Waits until [`Cgroups::is_empty`].
    pub async fn emptied(&self, id: &ContainerId) -> io::Result<()> {
        // The usual case: PID 1 was the last.
        if self.is_empty(id)? {
            return Ok(());
        }
        if let Some(root) = &self.mounts.v2 {
            return emptied_v2(&self.directory(root, id)).await;
        }
        while !self.is_empty(id)? {
            tokio::time::sleep(V1_LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// The processes in the container's cgroups, as the host sees them.
    pub fn processes(&self, id: &ContainerId) -> io::Result<BTreeSet<u32>> {
        let mut processes = BTreeSet::new();
        for root in self.roots() {
            collect_processes(&self.directory(root, id), &mut processes)?;
        }
        Ok(processes)
    }

    /// Removes the container's cgroups with what was made below them. What is gone already is no error.
    pub fn remove(&self, id: &ContainerId) -> io::Result<()> {
        for root in self.roots() {
            remove_tree(&self.directory(root, id))?;
        }
        Ok(())
    }

    /// Every container of this host that has a cgroup, alive or not.
    pub fn list(&self) -> io::Result<BTreeSet<ContainerId>> {
        let mut found = BTreeSet::new();
        for directory in self.host_directories() {
            for child in children(&directory)? {
                let name = child.file_name().and_then(|name| name.to_str());
                found.extend(name.and_then(parse_id));
            }
        }
        Ok(found)
    }

    /// Removes the host's own directories, and the fleet's when this was its last host.
    pub fn remove_host(&self) -> io::Result<()> {
        for root in self.roots() {
            let fleet = root.join(&self.fleet);
            remove_tree(&fleet.join(self.host.as_str()))?;
            // Another host of the fleet may still be in it: then it stays.
            let _ = std::fs::remove_dir(&fleet);
        }
        Ok(())
    }

    fn directory(&self, root: &Path, id: &ContainerId) -> PathBuf {
        let host = root.join(&self.fleet).join(self.host.as_str());
        host.join(id.to_string())
    }

    fn host_directories(&self) -> Vec<PathBuf> {
        let roots = self.roots().into_iter();
        roots
            .map(|root| root.join(&self.fleet).join(self.host.as_str()))
            .collect()
    }

    fn v1_roots(&self) -> BTreeSet<&Path> {
        self.mounts.v1.values().map(PathBuf::as_path).collect()
    }

    fn roots(&self) -> BTreeSet<&Path> {
        let mut roots = self.v1_roots();
        roots.extend(self.mounts.v2.as_deref());
        roots
    }
}

/// What to do about processes in a cgroup whose controllers are to be passed on: v2 allows no processes
/// beside children there, except in the true root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InnerProcesses {
    /// Move them into a leaf of their own: the mount's root is not the true one in a container, and
    /// whatever started us is in it.
    MoveToLeaf,
    /// Give up: nobody has any business there.
    Refuse,
}

fn enable(
    directory: &Path,
    wanted: &BTreeSet<Controller>,
    inner: InnerProcesses,
) -> io::Result<()> {
    let control = directory.join("cgroup.subtree_control");
    let enabled = words(&control)?;
    let missing: Vec<String> = wanted
        .iter()
        .filter(|controller| !enabled.contains(controller.as_str()))
        .map(|controller| format!("+{}", controller.as_str()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    let mut tries_left = MOVES_MAX;
    loop {
        match write(&control, &missing) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && inner == InnerProcesses::MoveToLeaf
                    && tries_left > 0 =>
            {
                tries_left -= 1;
                move_to_leaf(directory)?;
            }
            other => return other,
        }
    }
}

fn move_to_leaf(directory: &Path) -> io::Result<()> {
    let leaf = directory.join("conman-leaf");
    make(&leaf)?;
    let processes = std::fs::read_to_string(directory.join("cgroup.procs"))?;
    for process in processes.lines() {
        // One that has ended meanwhile needs no move.
        let _ = write(&leaf.join("cgroup.procs"), process);
    }
    Ok(())
}

fn limit_v2(directory: &Path, controller: Controller, limits: &Limits) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            write(
                &directory.join("memory.max"),
                &limits.memory_bytes.to_string(),
            )?;
            // A limit that swap could stretch would be none; kernels without swap lack the file.
            absent_is_fine(write(&directory.join("memory.swap.max"), "0"))?;
            // One process at a time, as v1 has it: docs/decisions/0011. Kernels before 4.19 lack the file.
            absent_is_fine(write(&directory.join("memory.oom.group"), "0"))
        }
        Controller::Cpu => match limits.cpu_millis {
            Some(millis) => {
                let quota_us = u64::from(millis) * CPU_PERIOD_US / 1_000;
                write(
                    &directory.join("cpu.max"),
                    &format!("{quota_us} {CPU_PERIOD_US}"),
                )
            }
            None => Ok(()),
        },
        Controller::Pids => write(&directory.join("pids.max"), &limits.pids.to_string()),
    }
}

fn limit_v1(directory: &Path, controller: Controller, limits: &Limits) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            let bytes = limits.memory_bytes.to_string();
            write(&directory.join("memory.limit_in_bytes"), &bytes)?;
            // Memory and swap together; kernels without swap accounting lack the file.
            absent_is_fine(write(
                &directory.join("memory.memsw.limit_in_bytes"),
                &bytes,
            ))
        }
        Controller::Cpu => match limits.cpu_millis {
            Some(millis) => {
                let quota_us = u64::from(millis) * CPU_PERIOD_US / 1_000;
                write(
                    &directory.join("cpu.cfs_period_us"),
                    &CPU_PERIOD_US.to_string(),
                )?;
                write(&directory.join("cpu.cfs_quota_us"), &quota_us.to_string())
            }
            None => Ok(()),
        },
        Controller::Pids => write(&directory.join("pids.max"), &limits.pids.to_string()),
    }
}

/// With the directories above it. Another host that ends may take the fleet's empty one away in between.
fn make_all(directory: &Path) -> io::Result<()> {
    let mut tries_left = 10;
    loop {
        match std::fs::create_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries_left > 0 => {
                tries_left -= 1;
            }
            other => {
                other.map_err(|error| named(error, directory))?;
                break;
            }
        }
    }
    // The host's and the fleet's; the one above was there before.
    for made in directory.ancestors().take(2) {
        let_through(made)?;
    }
    Ok(())
}

fn make(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Ok(()) => let_through(directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(named(error, directory)),
    }
}

/// Lets everybody through, whatever the umask is: the root of a container, who is nobody out here, mounts its part of
/// the tree, and the kernel walks down to that by their rights.
fn let_through(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)) {
        // Another host of the fleet that ends has taken it away: whoever needs it says so.
        Err(error) if is_gone(&error) => Ok(()),
        other => other.map_err(|error| named(error, directory)),
    }
}

fn words(path: &Path) -> io::Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).map_err(|error| named(error, path))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Opening a control file that the kernel does not have, as one to be written, is "permission denied".
fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
