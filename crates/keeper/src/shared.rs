//! What all native containers share, made once: the donor user namespace and the device directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode, UID_COUNT};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::failure::Step;
use crate::{mounts, sys};

/// A user namespace that maps as the containers' do, and has no process.
pub(crate) fn donor_namespace(uid_base: u32) -> Result<OwnedFd, KeeperRefusal> {
    let (here, there) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make donor namespace")?;
    let cloned = sys::clone3(libc::CLONE_NEWUSER, None)
        .step_or("make donor namespace", KeeperRefusalCode::Unsupported)?;
    let sys::Cloned::Parent { pid, pidfd } = cloned else {
        drop(there);
        // Until the keeper closes its end, or is gone.
        let _ = rustix::io::read(&here, &mut [0_u8; 1][..]);
        sys::exit_now(0);
    };
    let made = write_id_maps(pid, uid_base).and_then(|()| {
        rustix::fs::open(
            format!("/proc/{pid}/ns/user"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step("open donor namespace")
    });
    drop(there);
    // It ends by itself now; what it leaves is its exit status.
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    made
}

/// Maps the ids of a new user namespace: 0 and up, inside, to `uid_base` and up.
pub(crate) fn write_id_maps(pid: i32, uid_base: u32) -> Result<(), KeeperRefusal> {
    let map = format!("0 {uid_base} {UID_COUNT}\n");
    for file in ["uid_map", "gid_map"] {
        write_file(format!("/proc/{pid}/{file}"), &map).step("map ids")?;
    }
    Ok(())
}

/// Writes a file of procfs or cgroupfs: one write, no truncation.
pub(crate) fn write_file(path: impl rustix::path::Arg, text: &str) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}

/// The device directory: a tmpfs with what every program may use.
pub(crate) fn make_devices(place: &Path) -> Result<OwnedFd, KeeperRefusal> {
    const STEP: &str = "make devices";
    let directory = Mode::from_raw_mode(0o755);
    rustix::fs::mkdir(place, directory).step(STEP)?;
    rustix::mount::mount(
        c"conman-dev",
        place,
        c"tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0755,size=64k,nr_inodes=64",
    )
    .step(STEP)?;
    rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE).step(STEP)?;
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in devices {
        let path = place.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(major, minor),
        )
        .step(STEP)?;
        // Whatever the umask.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).step(STEP)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdir(place.join(name), directory).step(STEP)?;
    }
    // An empty directory that nobody may read: covers what is masked.
    rustix::fs::mkdir(place.join(".masked"), Mode::from_raw_mode(0o000)).step(STEP)?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        rustix::fs::symlink(target, place.join(name)).step(STEP)?;
    }
    mounts::open_directory(place, STEP)
}
