//! Makes a native container from inside: its root, `/proc`, `/sys`, `/dev`, its name and its loopback.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Component, Path};

use model::wire::keeper::KeeperRefusal;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, UnmountFlags};

use super::Walls;
use crate::failure::Step;
use crate::mounts::{Root, attach};
use crate::sys;

/// Covered with nothing: Docker's list. What a kernel does not have is skipped.
const MASKED: &[&CStr] = &[
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/kallsyms",
    c"/proc/kmsg",
    c"/proc/config.gz",
    c"/sys/firmware",
    c"/sys/devices/virtual/powercap",
    c"/sys/kernel",
];

/// Made read-only: Docker's list.
const READ_ONLY: &[&CStr] = &[
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];

impl Root {
    /// Adds its fds to a list.
    pub(crate) fn collect_fds(&self, list: &mut Vec<RawFd>) {
        list.push(self.overlay.as_raw_fd());
        list.push(self.devices.as_raw_fd());
        list.extend(self.binds.iter().map(|(mount, _)| mount.as_raw_fd()));
    }
}

/// Makes it. The caller is root of its user namespace, and in new namespaces of every other kind.
pub(super) fn make(root: Root, walls: &Walls<'_>) -> Result<(), KeeperRefusal> {
    // SAFETY: this process has one thread, and no other shares its file system context.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
        .step("enter a cgroup namespace")?;
    rustix::system::sethostname(walls.hostname.as_bytes()).step("set host name")?;
    sys::loopback_up().step("bring up loopback")?;

    // While the host's are still in sight: the kernel gives them only to whom a whole one is visible already.
    let nosuid_noexec_nodev = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = new_mount(c"proc", &[], nosuid_noexec_nodev).step("make /proc")?;
    let sys = new_mount(
        c"sysfs",
        &[],
        nosuid_noexec_nodev | MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .step("make /sys")?;

    enter(&root.overlay).step("change root")?;

    place(&proc, c"/proc")?;
    place(&sys, c"/sys")?;
    if walls.cgroup {
        // Of its own cgroup namespace: programs that fit themselves to their limits find them here.
        let cgroup = new_mount(
            c"cgroup2",
            &[],
            nosuid_noexec_nodev | MountAttrFlags::MOUNT_ATTR_RDONLY,
        )
        .step("make /sys/fs/cgroup")?;
        place(&cgroup, c"/sys/fs/cgroup")?;
    }
    place(&root.devices, c"/dev")?;
    let pts = new_mount(
        c"devpts",
        &[(c"mode", c"0620"), (c"ptmxmode", c"0666"), (c"gid", c"5")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .step("make /dev/pts")?;
    place(&pts, c"/dev/pts")?;
    let shm = new_mount(
        c"tmpfs",
        &[(c"mode", c"1777"), (c"size", c"64m")],
        nosuid_noexec_nodev,
    )
    .step("make /dev/shm")?;
    place(&shm, c"/dev/shm")?;
    let mqueue = new_mount(c"mqueue", &[], nosuid_noexec_nodev).step("make /dev/mqueue")?;
    place(&mqueue, c"/dev/mqueue")?;
    for (mount, target) in &root.binds {
        make_directories(target).step("make mount point")?;
        attach(mount.as_fd(), target)
            .step("attach bind")
            .map_err(|mut refusal| {
                refusal.message = format!("{}: {}", target.display(), refusal.message);
                refusal
            })?;
    }
    for path in MASKED {
        mask(path).step("mask paths")?;
    }
    for path in READ_ONLY {
        make_read_only(path).step("make paths read-only")?;
    }
    Ok(())
}

/// Makes the overlay this process' root and lets go of the host's.
fn enter(overlay: &OwnedFd) -> Result<(), Errno> {
    // On top of the old root, where nothing sees it until the roots change places.
    attach(overlay.as_fd(), Path::new("/"))?;
    rustix::process::fchdir(overlay)?;
    // Both at ".": the old root ends up on top of the new one, and is taken off there.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

fn new_mount(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount, at a directory that is made if the image lacks it.
fn place(mount: &OwnedFd, target: &CStr) -> Result<(), KeeperRefusal> {
    let step = || format!("attach {}", target.to_string_lossy());
    let path = Path::new(std::str::from_utf8(target.to_bytes()).unwrap_or("/"));
    make_directories(path).step(&step())?;
    attach(mount.as_fd(), path).step(&step())
}

/// Makes a directory and those above it, as far as they are missing. The root is the container's already, so
/// no link of the image leads out of it.
fn make_directories(path: &Path) -> Result<(), Errno> {
    match rustix::fs::stat(path) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut made = std::path::PathBuf::from("/");
    for component in path.components() {
        if let Component::Normal(name) = component {
            made.push(name);
            match rustix::fs::mkdir(&made, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn clone_mount(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(
        rustix::fs::CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
}

fn mask(path: &CStr) -> Result<(), Errno> {
    let cover = match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() => {
            clone_mount(c"/dev/.masked")?
        }
        Ok(_) => clone_mount(c"/dev/null")?,
        Err(_) => return Ok(()),
    };
    rustix::mount::move_mount(
        cover.as_fd(),
        c"",
        rustix::fs::CWD,
        path,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn make_read_only(path: &CStr) -> Result<(), Errno> {
    let clone = match clone_mount(path) {
        Ok(clone) => clone,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    sys::mount_setattr(clone.as_fd(), libc::MOUNT_ATTR_RDONLY, None)?;
    rustix::mount::move_mount(
        clone.as_fd(),
        c"",
        rustix::fs::CWD,
        path,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}
