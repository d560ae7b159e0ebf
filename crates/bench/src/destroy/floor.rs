//! The floor: as many containers as the kernel alone can make and destroy, with nothing around them. Each is two
//! processes in namespaces of their own (as an init and its program), in a cgroup of its own below one parent, whose
//! `cgroup.kill` is written once.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::Destroyed;
use super::deaths::Watch;

const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// The libc crate's constant of this name is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The cgroups, removed with what they hold.
struct Cgroups {
    parent: PathBuf,
    children: Vec<PathBuf>,
}

impl Cgroups {
    fn make() -> anyhow::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .context("this machine has no cgroup v2 tree")?;
        let parent = Path::new(root[1]).join(format!("conman-floor-{}", std::process::id()));
        std::fs::create_dir(&parent).with_context(|| parent.display().to_string())?;
        Ok(Self {
            parent,
            children: vec![],
        })
    }

    fn add(&mut self) -> anyhow::Result<OwnedFd> {
        let child = self.parent.join(self.children.len().to_string());
        std::fs::create_dir(&child)?;
        self.children.push(child.clone());
        Ok(std::fs::File::open(child)?.into())
    }

    fn kill(&self) -> anyhow::Result<()> {
        std::fs::write(self.parent.join("cgroup.kill"), "1").context("write cgroup.kill")
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // After a success everything is dead; after an error this is what ends it.
        let _ = self.kill();
        for child in &self.children {
            while std::fs::remove_dir(child)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
            {
                std::thread::yield_now();
            }
        }
        let _ = std::fs::remove_dir(&self.parent);
    }
}

pub(super) fn destroy(count: usize) -> anyhow::Result<Destroyed> {
    let mut cgroups = Cgroups::make()?;
    let mut handles = vec![];
    let mut pids = vec![];
    for _ in 0..count {
        let cgroup = cgroups.add()?;
        let (pid, handle) = contained(&cgroup)?;
        pids.push(pid);
        handles.push(handle);
    }
    let watch = Watch::with(handles);
    let began = Instant::now();
    let watch = watch.begin(began)?;
    cgroups.kill()?;
    let sent = began.elapsed();
    let deaths = watch.deaths()?;
    for pid in pids {
        // SAFETY: waits for a child of this process; no memory is given.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    drop(cgroups);
    Ok(Destroyed {
        sent: Some(sent),
        settled: Some(began.elapsed()),
        ..Destroyed::of(deaths)
    })
}

/// One container: its first process, which has a child, and both wait for ever.
fn contained(cgroup: &OwnedFd) -> anyhow::Result<(libc::pid_t, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain numbers, for which zero is "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = NAMESPACES as u64 | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    arguments.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: the structure lives through the call and its size is given. Without CLONE_VM the child has memory of its
    // own, in which it makes system calls only: that is allowed in a copy of a process with threads.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&arguments),
            size_of::<libc::clone_args>(),
        )
    };
    if pid == 0 {
        // SAFETY: plain system calls without memory; the loop never comes back into this program's code.
        unsafe {
            libc::fork();
            loop {
                libc::pause();
            }
        }
    }
    ensure!(pid > 0, "clone3: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    let handle = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as libc::pid_t, handle))
}
