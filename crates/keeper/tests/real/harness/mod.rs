//! A keeper in a process of its own, a client of it, and proof that nothing is left.

mod client;
mod commands;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::id::{ContainerId, Epoch};
use model::wire::keeper::*;
use rustix::process::Pid;

pub(crate) use client::*;
pub(crate) use commands::*;

/// No single step of a test takes longer, on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How far ahead keepers are armed, where a test does not say otherwise.
pub(crate) const ARMED: Duration = Duration::from_secs(59);

/// Each keeper of a test run has ids of its own.
static KEEPERS: AtomicU32 = AtomicU32::new(0);

/// Whether native containers can be tested here; says loudly when not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: NOT ROOT. Native containers were NOT tested.");
    }
    root
}

/// A keeper's process with a directory of its own.
pub(crate) struct Host {
    pub(crate) keeper: Child,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) uid_base: u32,
    _stderr: BufReader<std::process::ChildStderr>,
    cgroups: Vec<PathBuf>,
    mounts: String,
    tmpfs: Option<PathBuf>,
}

impl Host {
    pub(crate) fn native() -> Self {
        Self::with_walls(Some(Self::next_uid_base()))
    }

    /// Each test is a process of its own, and no two that run at once share a range: the PIDs of
    /// 32,768 processes would need twice what there is above 1,000,000,000, so they take turns.
    fn next_uid_base() -> u32 {
        let number = KEEPERS.fetch_add(1, Ordering::Relaxed) + (std::process::id() % 1_500) * 16;
        1_000_000_000 + number * UID_COUNT
    }

    /// With a tmpfs in its directory, mounted with these options before the keeper is there.
    pub(crate) fn native_with_tmpfs(name: &str, options: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let place = directory.path().join(name);
        std::fs::create_dir(&place).expect("directory");
        let options = std::ffi::CString::new(options).expect("options");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(c"conman-test", &place, c"tmpfs", flags, options.as_c_str())
            .expect("mount");
        let mut host = Self::in_directory(directory, Some(Self::next_uid_base()));
        host.tmpfs = Some(place);
        host
    }

    pub(crate) fn plain() -> Self {
        Self::with_walls(None)
    }

    fn with_walls(uid_base: Option<u32>) -> Self {
        Self::in_directory(tempfile::tempdir().expect("directory"), uid_base)
    }

    fn in_directory(directory: tempfile::TempDir, uid_base: Option<u32>) -> Self {
        make_image(directory.path());
        let mounts = mount_table();
        let (keeper, stderr) = spawn_keeper(keeper_command(directory.path(), uid_base));
        Self {
            keeper,
            directory,
            uid_base: uid_base.unwrap_or(0),
            _stderr: stderr,
            cgroups: Vec::new(),
            mounts,
            tmpfs: None,
        }
    }

    /// A keeper for the place that this one has.
    pub(crate) fn second_keeper(&self) -> Command {
        keeper_command(self.directory.path(), Some(self.uid_base))
    }

    /// Another keeper for the place, when this one is dead.
    pub(crate) fn restart(&mut self) {
        let (keeper, stderr) = spawn_keeper(self.second_keeper());
        self.keeper = keeper;
        self._stderr = stderr;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path("k.sock"))
    }

    /// A client that has armed a deadline a minute ahead.
    pub(crate) fn armed_client(&self) -> Client {
        let mut client = self.client();
        client.arm(ARMED);
        client
    }

    /// A named pipe in a repl's workspace, `/home/repl/NAME` in its container.
    pub(crate) fn signpost(&self, repl: &str, name: &str) -> Signpost {
        let workspace = self.path(&format!("work/{repl}"));
        std::fs::create_dir_all(&workspace).expect("workspace");
        Signpost::new(&workspace.join(name))
    }

    /// A container that does nothing but wait.
    pub(crate) fn idle(&mut self, client: &mut Client, id: &ContainerId) -> Running {
        let launch = self.native_launch(id, "exec sleep 1000");
        client.start(id.clone(), launch)
    }

    /// A native container's launch: a shell's script.
    pub(crate) fn native_launch(&mut self, id: &ContainerId, script: &str) -> Launch {
        let mut launch = self.plain_launch(id, script);
        let name = format!("{}-{}", id.repl, id.epoch);
        std::fs::create_dir_all(self.path(&format!("work/{}", id.repl))).expect("workspace");
        std::fs::create_dir(self.path(&name)).expect("directory");
        launch.cwd = "/home/repl".into();
        let mut plan = self.native_plan(id);
        plan.cgroup_v2 = cgroup_v2().map(|root| self.make_cgroup(&root, &name));
        plan.cgroup_v1 = ["pids", "memory"]
            .iter()
            .map(|controller| Path::new("/sys/fs/cgroup").join(controller))
            .filter(|root| root.join("cgroup.procs").exists())
            .map(|root| self.make_cgroup(&root, &name))
            .collect();
        launch.kind = LaunchKind::Native(plan);
        launch
    }

    /// Its walls, without cgroups.
    pub(crate) fn native_plan(&self, id: &ContainerId) -> NativePlan {
        let name = format!("{}-{}", id.repl, id.epoch);
        let bind = |source: PathBuf, target: &str, access| Bind {
            source,
            target: target.into(),
            access,
        };
        let workspace = self.path(&format!("work/{}", id.repl));
        NativePlan {
            root: RootPlan {
                lower: vec![self.path("image")],
                upper: self.path(&format!("{name}/upper")),
                work: self.path(&format!("{name}/work")),
                binds: vec![
                    bind("/usr".into(), "/usr", Access::ReadOnly),
                    bind(workspace, "/home/repl", Access::ReadWrite),
                ],
            },
            hostname: id.repl.to_string(),
            cgroup_v2: None,
            cgroup_v2_host: None,
            cgroup_v1: vec![],
            cpu_quota: None,
        }
    }

    /// A v2 cgroup below which the containers of a host may be.
    pub(crate) fn make_host_cgroup(&mut self) -> Option<PathBuf> {
        cgroup_v2().map(|root| self.make_cgroup(&root, "host"))
    }

    /// A launch whose v2 cgroup is below that of the host.
    pub(crate) fn launch_below(
        &mut self,
        of_host: &Path,
        id: &ContainerId,
        script: &str,
    ) -> Launch {
        let mut launch = self.native_launch(id, script);
        if let LaunchKind::Native(plan) = &mut launch.kind {
            plan.cgroup_v2 = Some(self.make_cgroup_below(of_host, &id.repl.to_string()));
            plan.cgroup_v2_host = Some(of_host.to_owned());
        }
        launch
    }

    /// A v2 cgroup in another. Removed before that one.
    pub(crate) fn make_cgroup_below(&mut self, above: &Path, name: &str) -> PathBuf {
        let path = above.join(name);
        std::fs::create_dir(&path).expect("cgroup");
        self.cgroups.insert(0, path.clone());
        path
    }

    fn make_cgroup(&mut self, root: &Path, name: &str) -> PathBuf {
        let path = root.join(format!("conman-test-{}-{name}", self.keeper.id()));
        std::fs::create_dir(&path).expect("cgroup");
        self.cgroups.push(path.clone());
        path
    }

    /// A plain process' launch: a shell's script.
    pub(crate) fn plain_launch(&self, id: &ContainerId, script: &str) -> Launch {
        let log = |number| self.path(&format!("{}-{}.log.{number}", id.repl, id.epoch));
        Launch {
            kind: LaunchKind::Process,
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: BTreeMap::from([
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("HOME".into(), "/home/repl".into()),
            ]),
            cwd: "/".into(),
            log: LogPlan {
                files: [log(0), log(1)],
                bytes_max: LOG_BYTES_MAX,
            },
            witness: None,
        }
    }

    /// What the container has written so far.
    pub(crate) fn log(&self, id: &ContainerId) -> String {
        let path = self.path(&format!("{}-{}.log.0", id.repl, id.epoch));
        std::fs::read_to_string(path).expect("log")
    }

    /// Waits for the keeper's end without asking for it.
    pub(crate) fn await_keepers_end(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.keeper);
        let pidfd =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd");
        await_readable(&pidfd);
        self.keeper.wait().expect("wait")
    }

    pub(crate) fn keeper_pid(&self) -> u32 {
        self.keeper.id()
    }

    pub(crate) fn signal_keeper(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.keeper);
        rustix::process::kill_process(pid, signal).expect("signal the keeper");
    }

    /// SIGTERM, exit code 0, nothing left.
    pub(crate) fn end(mut self) {
        self.signal_keeper(rustix::process::Signal::TERM);
        let status = self.await_keepers_end();
        assert!(status.success(), "{status}");
        assert!(!self.path("k.sock").exists());
        assert!(!self.path("k.sock.keeper").exists());
        self.prove_nothing_left();
    }

    /// No process in any cgroup of ours, no process of our ids, no mount.
    pub(crate) fn prove_nothing_left(&mut self) {
        for cgroup in self.cgroups.drain(..) {
            let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("cgroup");
            assert_eq!(processes, "", "{}", cgroup.display());
            std::fs::remove_dir(&cgroup).expect("an empty cgroup");
        }
        if self.uid_base > 0 {
            let left = processes_of(self.uid_base);
            assert!(left.is_empty(), "left: {left:?}");
        }
        assert_eq!(mount_table(), self.mounts, "mounts are left");
        self.unmount_tmpfs();
    }

    /// Whether no process is left in its cgroups and of its ids.
    pub(crate) fn is_empty(&self) -> bool {
        let is_empty = |cgroup: &PathBuf| {
            std::fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
        };
        self.cgroups.iter().all(is_empty) && processes_of(self.uid_base).is_empty()
    }

    /// Fails when something still uses it.
    fn unmount_tmpfs(&mut self) {
        if let Some(place) = self.tmpfs.take() {
            let flags = rustix::mount::UnmountFlags::empty();
            rustix::mount::unmount(&place, flags).expect("unmount");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Only after a failed test is there anything to do here.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        for cgroup in &self.cgroups {
            let until = Instant::now() + PATIENCE;
            while std::fs::remove_dir(cgroup).is_err() && Instant::now() < until {
                std::thread::yield_now();
            }
        }
        if let Some(place) = self.tmpfs.take() {
            let _ = rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn keeper_command(directory: &Path, uid_base: Option<u32>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman-keeper"));
    command.arg(directory.join("k.sock")).arg("h1");
    command.args(uid_base.map(|base| base.to_string()));
    command.stdin(Stdio::null());
    command
}

/// Starts a keeper and waits until it is ready.
fn spawn_keeper(mut command: Command) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut keeper = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn keeper");
    let mut stderr = BufReader::new(keeper.stderr.take().expect("piped"));
    let mut line = String::new();
    await_readable(stderr.get_ref());
    stderr.read_line(&mut line).expect("a line");
    assert!(line.contains("\"ready\""), "{line}");
    (keeper, stderr)
}

/// The host's processes whose user is in a keeper's range.
pub(crate) fn processes_of(uid_base: u32) -> Vec<i32> {
    let range = uid_base..uid_base + UID_COUNT;
    let in_range = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // Dead, and the machine's init will reap it in its own time.
        if status.contains("State:\tZ") {
            return false;
        }
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().next()?.parse().ok())
            .is_some_and(|uid: u32| range.contains(&uid))
    };
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(in_range)
        .collect()
}

/// The host's mounts, without the tests' own tmpfs.
fn mount_table() -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    table
        .lines()
        .filter(|line| !line.contains("conman-test"))
        .fold(String::new(), |all, line| all + line + "\n")
}

pub(crate) fn cgroup_v2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| PathBuf::from(fields[1]))
}

/// What conman prepares for the image `host`, in small.
fn make_image(directory: &Path) {
    let image = directory.join("image");
    for name in [
        "etc",
        "tmp",
        "home/repl",
        "usr",
        "proc",
        "sys",
        "dev",
        "var",
    ] {
        std::fs::create_dir_all(image.join(name)).expect("directory");
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), image.join(name)).expect("link");
    }
    let passwd = "root:x:0:0:root:/home/repl:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    std::fs::write(image.join("etc/passwd"), passwd).expect("passwd");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(image.join("tmp"), mode).expect("mode");
}

pub(crate) fn id(repl: &str, epoch: u64) -> ContainerId {
    ContainerId {
        repl: repl.parse().expect("a name"),
        epoch: Epoch(epoch),
    }
}

/// The keeper's guard, once it is there and is not the one before. It has its own session a moment after it was begun.
pub(crate) fn await_guard(host: &Host, before: Option<Pid>) -> Pid {
    loop {
        match guard_of(host) {
            Some(found) if Some(found) != before => return found,
            _ => std::thread::yield_now(),
        }
    }
}

/// The keeper's child that leads a session of its own. Read from `/proc`: where the keeper's own session was begun
/// outside the tests' PID namespace its number is 0, which `rustix::process::getsid` takes for no answer at all.
fn guard_of(host: &Host) -> Option<Pid> {
    let keeper = host.keeper_pid();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    let children = children.unwrap_or_default();
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    pids.find(|pid| session_of(*pid) == Some(pid.as_raw_pid()))
}

/// The sixth field of `/proc/PID/stat`, the name in it aside.
fn session_of(pid: Pid) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(3)?.parse().ok()
}
